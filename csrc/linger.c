/* linger.c: how a worker ends a connection. It shuts down the sending side, and reads for a while what the client still
 * sends: the kernel resets a socket that is closed with input unread, or that gets input afterwards, and the client loses the
 * part of the answer that it has not read (RFC 9112, 9.6).
 *
 * A ring holds those descriptors for the caller's time at most. It is swept at intervals (fan_linger_sweep), not when input
 * comes: most clients close at once, and a thread that woke for each would cost more than its connection. To hold a
 * connection costs 3 to 4 us (another call, a cold socket to close), a tenth of its whole cost. So connections without unread
 * input have a quarter of the ring; when many come that quarter is full, and the next one is closed at once. A connection with
 * unread input may have any place; if the ring is full it replaces the oldest one without.
 */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define SWEEP_BYTES 65536
#define READS 8 /* of SWEEP_BYTES each, for one client in a sweep */

struct parted {
    int fd;
    bool sends; /* it had sent input that was not read */
    int64_t since_ns;
};

struct fan_linger {
    pthread_mutex_t lock;
    bool swept;    /* a caller sweeps */
    bool disowned; /* this is a child's memory */
    bool copied;   /* children may have copies of the descriptors: close alone does not end a connection */
    int most, count;
    int quiet; /* places for connections without unread input */
    struct parted *ring; /* oldest first, from `first` */
    int first;
    char nowhere[SWEEP_BYTES]; /* late input; never used */
};

fan_linger *fan_linger_new(int most)
{
    fan_linger *linger = calloc(1, sizeof *linger);
    if (!linger)
        return NULL;
    linger->ring = calloc((size_t)most, sizeof *linger->ring);
    if (!linger->ring) {
        free(linger);
        return NULL;
    }
    linger->most = most;
    linger->quiet = most < 4 ? 1 : most / 4;
    pthread_mutex_init(&linger->lock, NULL);
    return linger;
}

void fan_linger_free(fan_linger *linger)
{
    fan_linger_drop(linger);
    pthread_mutex_destroy(&linger->lock);
    free(linger->ring);
    free(linger);
}

static struct parted *at(fan_linger *linger, int number)
{
    return &linger->ring[(linger->first + number) % linger->most];
}

/* Removes the oldest that has sent nothing, or else the oldest; returns its descriptor. */
static int make_room(fan_linger *linger)
{
    int number = 0;
    while (number < linger->count && at(linger, number)->sends)
        number++;
    if (number == linger->count)
        number = 0;
    int fd = at(linger, number)->fd;
    for (; number > 0; number--)
        *at(linger, number) = *at(linger, number - 1);
    linger->first = (linger->first + 1) % linger->most;
    linger->count--;
    return fd;
}

int fan_linger_part(fan_linger *linger, int fd)
{
    int unread = 0, closing = fd, result = 0;
    if (!linger->disowned) {
        if (ioctl(fd, FIONREAD, &unread) < 0)
            unread = 0;
        pthread_mutex_lock(&linger->lock);
        bool full = linger->count >= (unread > 0 ? linger->most : linger->quiet);
        if (!full || unread > 0) {
            closing = full ? make_room(linger) : -1;
            *at(linger, linger->count++) = (struct parted){.fd = fd, .sends = unread > 0, .since_ns = fan_now_ns()};
            result = linger->swept ? 0 : FAN_PART_SWEEP;
            linger->swept = true;
        }
        /* In the lock: no sweep may close it before its client is told. */
        if (closing != fd || linger->copied)
            shutdown(fd, SHUT_WR);
        pthread_mutex_unlock(&linger->lock);
    }
    if (closing < 0)
        return result;
    close(closing);
    return result | FAN_PART_FREED;
}

/* Reads what is there. False: the client has closed, or the connection is broken. */
static bool read_on(struct parted *one, char *nowhere)
{
    for (int i = 0; i < READS; i++) {
        ssize_t got = recv(one->fd, nowhere, SWEEP_BYTES, MSG_DONTWAIT);
        if (got == 0)
            return false;
        if (got < 0)
            return errno == EAGAIN || errno == EINTR || errno == ENOMEM;
        one->sends = true;
    }
    return true;
}

int fan_linger_sweep(fan_linger *linger, int64_t patience_ns)
{
    int kept = 0;
    bool sends = false;
    pthread_mutex_lock(&linger->lock);
    int64_t now_ns = fan_now_ns();
    for (int i = 0; i < linger->count; i++) {
        struct parted *one = at(linger, i);
        if (read_on(one, linger->nowhere) && now_ns - one->since_ns < patience_ns) {
            sends |= one->sends;
            *at(linger, kept++) = *one;
        } else {
            close(one->fd);
        }
    }
    linger->count = kept;
    linger->swept = kept > 0;
    pthread_mutex_unlock(&linger->lock);
    return kept == 0 ? 0 : sends ? FAN_SWEEP_SOON : FAN_SWEEP_LATER;
}

int fan_linger_drop(fan_linger *linger)
{
    pthread_mutex_lock(&linger->lock);
    int count = linger->count;
    for (int i = 0; i < count; i++)
        close(at(linger, i)->fd);
    linger->count = 0;
    pthread_mutex_unlock(&linger->lock);
    return count;
}

/* Without the lock, which a thread that does not exist in the child may hold: the ring may be in the middle of a change, and
 * then one descriptor is not closed. */
void fan_linger_disown(fan_linger *linger)
{
    linger->disowned = true;
    for (int i = 0; i < linger->count; i++)
        close(at(linger, i)->fd);
    linger->count = 0;
}

void fan_linger_copied(fan_linger *linger)
{
    linger->copied = true;
}
