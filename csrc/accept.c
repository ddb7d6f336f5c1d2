/* accept.c: takes connections off the listeners, a small batch at a time; rests when the system is short of something.
 *
 * The kernel's accept queue is the central queue: this file is called only when a channel is hungry and nothing is in
 * the master's hands. It never retries at once what the system has just refused.
 */
#define _GNU_SOURCE
#include "core.h"

#include <assert.h>
#include <errno.h>
#include <linux/filter.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define FLURRY_NS (FAN_MS / 10) /* two wake-ups that are nearer than this are a flurry: 10,000 a second */
#define FEW 2                   /* clients that were not worth waking up for in a flurry */

void fan_listener_close(fan_core *core, int number)
{
    fan_listener *listener = &core->listeners[number];
    epoll_ctl(core->outer, EPOLL_CTL_DEL, listener->fd, NULL);
    fan_close(&listener->fd);
    listener->maybe = false;
}

/* The filter of a listener sees the TCP header first; what is accepted inherits it, and never has a SYN. */
void fan_listener_stop_new(int fd)
{
    enum { FLAGS = 13, NEW = TH_SYN, ALL = -1 };
    struct sock_filter newcomers[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, FLAGS),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, TH_SYN | TH_ACK),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NEW, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0),
        BPF_STMT(BPF_RET | BPF_K, (uint32_t)ALL),
    };
    struct sock_fprog program = {.len = sizeof newcomers / sizeof *newcomers, .filter = newcomers};
    setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

void fan_core_stop_new(fan_core *core, int listener)
{
    assert(listener >= 0 && listener < core->listener_count);
    if (core->listeners[listener].fd >= 0)
        fan_listener_stop_new(core->listeners[listener].fd);
}

/* Clients come fast and one by one. On a core that the master shares with them, or with the workers, it runs before they
 * get any further: the client has not yet sent its request, and the worker falls asleep again waiting for it. One yield,
 * and there are several. It costs 0.5 us if no other process wants the core. Measured on 2026-11-22 on the machine of
 * bench/README.md, blocking: conn/s on one core from 0.92 to 0.99 of SO_REUSEPORT, p50 at 5,000/s 206 to 193 us, p99
 * beside workers that spin for 5 ms the same (5.1 and 5.2 ms at 4,000/s, 4.0 and 3.8 ms at 8,000/s). SCHED_BATCH, which
 * does it always, cost 5 ms there. */
static void let_them_come(fan_core *core, int64_t now_ns)
{
    bool woken = false;
    for (int i = 0; i < core->listener_count; i++)
        woken |= core->listeners[i].told;
    if (woken && core->batch_count <= FEW && now_ns - core->batch_ns < FLURRY_NS)
        sched_yield();
    core->batch_ns = now_ns;
}

/* Whether there is a client. accept4 could say so, too, but takes 4 us for a "no": it makes the socket first. A poll
 * takes 0.3 us. */
static bool has_client(fan_listener *listener)
{
    struct pollfd asked = {.fd = listener->fd, .events = POLLIN};
    listener->maybe = listener->told || poll(&asked, 1, 0) != 0; /* if the poll fails accept4 says what is wrong */
    listener->told = false;
    return listener->maybe;
}

/* One connection into `held`. 1, 0 if this listener has none now, or -1 if accepting rests. */
static int accept_one(fan_core *core, int number, int64_t now_ns, fan_held *held)
{
    fan_listener *listener = &core->listeners[number];
    for (int tries = 0; tries < FAN_BATCH; tries++) {
        if (!has_client(listener))
            return 0;
        socklen_t bytes = sizeof held->record.peer;
        int fd = accept4(listener->fd, (struct sockaddr *)&held->record.peer, &bytes, core->accept_flags);
        if (fd >= 0) {
            held->fd = fd;
            held->channel = -1;
            held->record.sequence = ++core->counters.accepted;
            held->record.accepted_ns = now_ns;
            held->record.listener = number;
            held->record.nonblocking = (core->accept_flags & SOCK_NONBLOCK) != 0;
            held->record.peer_bytes = bytes < sizeof held->record.peer ? (uint16_t)bytes : sizeof held->record.peer;
            return 1;
        }
        switch (errno) {
        case EAGAIN:
            break; /* another process has taken it; the poll says whether there is another */
        case EINTR:
            core->counters.interrupts++;
            break; /* the connection is still queued */
        case EMFILE:
        case ENFILE:
        case ENOBUFS:
        case ENOMEM:
            fan_pause(core, errno);
            return -1;
        case ECONNABORTED:
        case EPERM:
        case EPROTO:
        case ETIMEDOUT:
        case ENETDOWN:
        case ENOPROTOOPT:
        case EHOSTDOWN:
        case ENONET:
        case EHOSTUNREACH:
        case EOPNOTSUPP:
        case ENETUNREACH:
            /* accept(2), "Error handling": that one connection is gone; each failed call takes one off the queue */
            core->counters.aborted++;
            break;
        default: /* a refusal that accept(2) does not list: later */
            fan_pause(core, errno);
            return -1;
        case EBADF:
        case EINVAL:
        case ENOTSOCK: /* not a listening socket any more; nothing here can mend it */
            fan_event_add(core, FAN_EVENT_LISTENER_FAILED, errno, number);
            fan_listener_close(core, number);
            return 0;
        }
    }
    fan_pause(core, errno); /* one after the other fails: a firewall, a security module */
    return -1;
}

/* Finishing while no channel is hungry: a listener that has no client now is done. */
void fan_accept_finish_empty(fan_core *core)
{
    for (int number = 0; number < core->listener_count; number++) {
        fan_listener *listener = &core->listeners[number];
        if (listener->fd >= 0 && (listener->remaining <= 0 || !has_client(listener)))
            fan_listener_close(core, number);
    }
}

/* Take up to `want` connections into the (empty) hands of the core, from one listener after the other. */
int fan_accept_batch(fan_core *core, int want, int64_t now_ns)
{
    int count = 0;
    let_them_come(core, now_ns);
    for (int i = 0; i < core->listener_count && count < want; i++) {
        int number = (core->listener_cursor + i) % core->listener_count;
        fan_listener *listener = &core->listeners[number];
        while (listener->maybe && count < want) {
            if (core->finishing && listener->remaining <= 0) {
                fan_listener_close(core, number);
                break;
            }
            int rc = accept_one(core, number, now_ns, &core->held[count]);
            if (rc < 0)
                goto out;
            if (rc == 0) {
                if (core->finishing)
                    fan_listener_close(core, number);
                break;
            }
            count++;
            if (core->finishing)
                listener->remaining--;
            if (core->paused) {
                core->paused = false;
                fan_event_add(core, FAN_EVENT_RESUMED, 0, 0);
            }
        }
    }
    if (core->listener_count)
        core->listener_cursor = (core->listener_cursor + 1) % core->listener_count; /* each is first in its turn */
out:
    core->held_count = core->batch_count = count;
    return count;
}
