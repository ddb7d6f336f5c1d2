/* take.c: a worker's end. Takes connections out of a channel and marks on the scoreboard what it does.
 *
 * It never takes a message that it may have no descriptor for: the kernel would close the connection and say only
 * MSG_CTRUNC. Asking for a descriptor costs two small calls; a lone thread that has just closed one need not ask.
 */
#define _GNU_SOURCE
#include "core.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SLEEP_NS (FAN_MS / 200) /* 5 us: a wait that lasts longer has slept; one that has not takes 1 */

struct fan_receiver {
    int fd;                 /* the channel; not owned */
    int thread;
    fan_score *score;
    fan_turns *turns;       /* of the pool, or NULL */
    int seat;
    bool in_turn;           /* it is inside, and may take */
    atomic_bool cancelled;
    atomic_bool sleeping;   /* waits for a message, or is about to */
};

fan_receiver *fan_receiver_new(int fd, fan_score *score, int thread, fan_turns *turns, int seat)
{
    assert(thread >= 0 && thread < FAN_MAX_THREADS && seat >= 0 && seat < FAN_MAX_SEATS);
    fan_receiver *receiver = calloc(1, sizeof *receiver);
    if (!receiver)
        return NULL;
    receiver->fd = fd;
    receiver->thread = thread;
    receiver->score = score;
    receiver->turns = turns;
    receiver->seat = seat;
    fan_score_enrol(score, thread);
    return receiver;
}

void fan_receiver_free(fan_receiver *receiver)
{
    free(receiver);
}

void fan_receiver_cancel(fan_receiver *receiver)
{
    atomic_store(&receiver->cancelled, true);
}

int fan_receiver_sleeps(const fan_receiver *receiver)
{
    return atomic_load(&receiver->sleeping);
}

static void ignore_signal(int signum)
{
    (void)signum;
}

/* Without SA_RESTART, so that a blocked recvmsg returns EINTR (signal(7)). */
int fan_interrupt_with(int signum)
{
    struct sigaction action = {.sa_handler = ignore_signal};
    return sigaction(signum, &action, NULL) < 0 ? -errno : 0;
}

/* As inet_ntop, which takes 0.2 us for each connection. Returns the length. */
static int dotted(const unsigned char *address, char *out)
{
    char *at = out;
    for (int i = 0; i < 4; i++) {
        int byte = address[i];
        if (i)
            *at++ = '.';
        if (byte >= 100)
            *at++ = (char)('0' + byte / 100);
        if (byte >= 10)
            *at++ = (char)('0' + byte / 10 % 10);
        *at++ = (char)('0' + byte % 10);
    }
    *at = 0;
    return (int)(at - out);
}

static void describe(const fan_record *record, int fd, fan_connection *out)
{
    out->fd = fd;
    out->listener = record->listener;
    out->nonblocking = record->nonblocking;
    out->accepted_ns = record->accepted_ns;
    out->sequence = record->sequence;
    out->family = record->peer.family;
    out->port = 0;
    out->host_bytes = 0;
    out->host[0] = 0;
    if (out->family == AF_INET) {
        struct sockaddr_in peer;
        memcpy(&peer, &record->peer, sizeof peer);
        out->host_bytes = dotted((const unsigned char *)&peer.sin_addr, out->host);
        out->port = ntohs(peer.sin_port);
    } else if (out->family == AF_INET6) {
        struct sockaddr_in6 peer;
        memcpy(&peer, &record->peer, sizeof peer);
        inet_ntop(AF_INET6, &peer.sin6_addr, out->host, FAN_HOST_BYTES);
        out->host_bytes = (int)strlen(out->host);
        out->port = ntohs(peer.sin6_port);
        out->flowinfo = ntohl(peer.sin6_flowinfo);
        out->scope_id = peer.sin6_scope_id;
    } else if (out->family == AF_UNIX) {
        const size_t head = offsetof(struct sockaddr_un, sun_path);
        size_t bytes = record->peer_bytes > head ? record->peer_bytes - head : 0;
        if (bytes > sizeof record->peer.un.sun_path)
            bytes = sizeof record->peer.un.sun_path;
        memcpy(out->host, record->peer.un.sun_path, bytes);
        if (bytes && out->host[0]) /* a path; an abstract name may hold NULs and is counted to its end */
            bytes = strnlen(out->host, bytes);
        out->host_bytes = (int)bytes;
        out->host[bytes] = 0;
    }
}

/* The descriptor table is the process's, and so is this lock: it keeps two threads from counting on the same last one. */
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;

static int receive_if_room(const fan_receiver *receiver, bool sure, fan_record *record, int *fd)
{
    pthread_mutex_lock(&table);
    int rc = sure ? 0 : fan_channel_room(receiver->fd, 1);
    if (rc >= 0)
        rc = fan_channel_receive(receiver->fd, MSG_DONTWAIT, record, fd);
    pthread_mutex_unlock(&table);
    return rc;
}

/* 1: it has slept. 0: there is a message that this thread may take, or end-of-file. -errno. */
static int wait_in_turn(fan_receiver *receiver)
{
    int64_t begin_ns = fan_now_ns(), asleep_ns = begin_ns;
    bool ours = false, slept = false;
    int rc = 1;
    if (receiver->turns && !receiver->in_turn) {
        ours = fan_turns_enter(receiver->turns, receiver->seat, receiver->fd, begin_ns);
        receiver->in_turn = true;
    }
    while (!ours && !slept && rc == 1) {
        asleep_ns = fan_now_ns();
        rc = fan_channel_wait(receiver->fd);
        slept = fan_now_ns() - asleep_ns > SLEEP_NS;
        ours = !receiver->turns || (rc == 1 && !slept && fan_turns_wait(receiver->turns, receiver->fd, begin_ns));
    }
    return rc < 0 ? rc : slept;
}

/* Whether or not it has taken: the next time it has to pass the gate again. */
static void turn_is_over(fan_receiver *receiver)
{
    if (receiver->in_turn)
        fan_turns_leave(receiver->turns, receiver->seat);
    receiver->in_turn = false;
}

int fan_take_wait(fan_receiver *receiver)
{
    fan_score_idle_now(receiver->score, receiver->thread);
    /* Sleeping first, cancelled second; fan_receiver_cancel's caller does it the other way round. So either this call sees
     * the cancellation, or that caller sees a sleeper and goes on signalling it. */
    atomic_store(&receiver->sleeping, true);
    int rc = atomic_load(&receiver->cancelled) ? -ECANCELED : wait_in_turn(receiver); /* [fan_channel_wait] */
    atomic_store(&receiver->sleeping, false);
    if (rc < 0)
        turn_is_over(receiver);
    return rc;
}

int fan_take(fan_receiver *receiver, fan_connection *out, int fd_is_free)
{
    fan_record record;
    int fd, rc;

    if (atomic_load(&receiver->cancelled)) {
        turn_is_over(receiver);
        fan_score_idle_now(receiver->score, receiver->thread);
        return -ECANCELED;
    }
    if (receiver->turns && !receiver->in_turn && !fan_turns_free(receiver->turns, receiver->fd))
        return -EAGAIN;
    /* Busy before it has anything: if we are killed inside the call, this is how the master knows what was lost. */
    fan_score_busy_now(receiver->score, receiver->thread, fan_now_ns());
    do
        rc = receive_if_room(receiver, fd_is_free, &record, &fd);
    while (rc == -ENOMSG);
    turn_is_over(receiver);
    if (rc == 1) {
        fan_score_took(receiver->score, 1);
        describe(&record, fd, out);
        return rc;
    }
    fan_score_idle_now(receiver->score, receiver->thread);
    if (rc == -ENOBUFS)
        fan_score_lost(receiver->score, 1);
    return rc;
}

void fan_receiver_resume(fan_receiver *receiver)
{
    fan_score_busy_now(receiver->score, receiver->thread, fan_now_ns());
}

int fan_take_ready(fan_receiver *receiver, fan_connection *out, int cap)
{
    fan_record records[FAN_BATCH];
    int fds[FAN_BATCH];

    fan_score_beat(receiver->score, fan_now_ns());
    int waiting = cap == 1 ? 1 : fan_channel_untaken(&(fan_channel){.read_fd = receiver->fd});
    int want = waiting < 1 ? 1 : waiting < cap ? waiting : cap;
    int room = fan_channel_room(receiver->fd, want < FAN_BATCH ? want : FAN_BATCH);
    if (room < 0)
        return room;
    int received = fan_channel_receive_many(receiver->fd, room, records, fds);
    if (received <= 0)
        return received;
    int taken = 0, lost = 0;
    for (int i = 0; i < received; i++) {
        taken += fds[i] >= 0;
        lost += fds[i] < 0 && records[i].listener != FAN_NUDGE;
    }
    /* First of all: if we are killed now, this is how the master knows what was lost. */
    if (taken)
        fan_score_took(receiver->score, taken);
    if (lost)
        fan_score_lost(receiver->score, lost);
    for (int i = 0, at = 0; i < received; i++)
        if (fds[i] >= 0)
            describe(&records[i], fds[i], &out[at++]);
    return taken ? taken : -EAGAIN;
}
