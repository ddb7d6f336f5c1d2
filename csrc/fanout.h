/* fanout.h: everything that Python may use of the core. Read this first.
 *
 * A core belongs to one process, the master. It owns the listening sockets, the channels (both ends of each), the
 * scoreboard, and for a moment each connection on its way from a listener to a channel. After fork() the child calls
 * fan_core_abandon() and keeps what one worker needs: its reading ends and its page of the scoreboard.
 *
 * Results: 0 or a count, or -errno. Times are CLOCK_MONOTONIC nanoseconds, durations nanoseconds.
 */
#ifndef FANOUT_H
#define FANOUT_H

#include <stdint.h>

/* cdef: begin */

#define FAN_MAX_SEATS 2048    /* once it is used, a page of memory each; and two descriptors while it is used */
#define FAN_MAX_LISTENERS 64
#define FAN_MAX_THREADS 256   /* with more a score would not fit on a page of 4 KiB */
#define FAN_BATCH 32          /* the most connections that are in the master's hands at one time */
#define FAN_HOST_BYTES 112    /* longest printable peer: a UNIX path, with its NUL */

typedef struct fan_core fan_core;    /* the master's end */
typedef struct fan_score fan_score;  /* a seat's shared counters and times, on a page of their own */
typedef struct fan_turns fan_turns;  /* which thread takes next from the pool's channel; shared by all that wait */
typedef struct fan_linger fan_linger; /* connections that a worker has ended and whose client may still send */
typedef struct fan_receiver fan_receiver;  /* a worker's (or thread's) reading end of a channel */

enum { FAN_ROUND_ROBIN, FAN_LEAST_CONNECTIONS, FAN_SOURCE_HASH };

/* What fan_core_run reports. */
enum {
    FAN_EVENT_WATCHED,          /* `token`: a watched descriptor is readable */
    FAN_EVENT_PAUSED,           /* `error`: accepting is paused: a shortage, or each accept() fails */
    FAN_EVENT_RESUMED,          /* accepting is resumed */
    FAN_EVENT_LISTENER_FAILED,  /* `token`: listener number, `error`: why it was closed */
    FAN_EVENT_CHANNEL_BROKEN,   /* `token`: seat, or -1 for the pool: a worker shut it down; a new one has taken its place */
    FAN_EVENT_FINISHED          /* after fan_core_finish: all that was queued has been passed, the listeners are closed */
};

typedef struct {
    int32_t kind;   /* FAN_EVENT_ */
    int32_t error;  /* a positive errno, or 0 */
    int64_t token;
} fan_event;

/* Counted since fan_core_new. accepted + recalled == passed + held + discarded at all times. */
typedef struct {
    uint64_t accepted;         /* connections taken off the listeners */
    uint64_t passed;           /* messages put into channels */
    uint64_t recalled;         /* messages taken back out of channels */
    uint64_t discarded;        /* connections closed by fan_core_free */
    uint64_t held;             /* connections in the master's hands now */
    uint64_t nudges;           /* empty messages sent to wake a reader */
    uint64_t aborted;          /* accept: the client had gone (ECONNABORTED) or the network complained */
    uint64_t fd_shortages;     /* accept: EMFILE, ENFILE */
    uint64_t memory_shortages; /* accept or pass: ENOBUFS, ENOMEM */
    uint64_t flight_limits;    /* pass: ETOOMANYREFS, too many descriptors in flight for this user */
    uint64_t full_channels;    /* pass: EAGAIN, the kernel refused a message that should have had space */
    uint64_t broken_channels;  /* pass: EPIPE and its like */
    uint64_t interrupts;       /* EINTR, of any call */
    uint64_t lost;        /* recall: MSG_CTRUNC, a connection lost for want of a descriptor */
} fan_counters;

/* A copy of a seat's page. Written by the worker, so never trusted where a lie could harm another worker. */
typedef struct {
    uint64_t generation;
    uint64_t taken;        /* connections */
    uint64_t done;         /* connections closed or detached; never more than taken */
    uint64_t lost;    /* connections lost in the worker for want of a descriptor */
    int64_t beat_ns;       /* when the serving loop last asked for a connection; 0: never */
    int64_t busy_since_ns; /* when the oldest connection in a handler was asked for; 0: all threads idle */
    int32_t busy_threads;
    int32_t threads;
    uint64_t in_hands;     /* connections that are lost if it is dead; what it was just taking included */
} fan_score_view;

/* A connection that has arrived in a worker. */
typedef struct {
    int32_t fd;             /* the worker's now */
    int32_t family;         /* AF_INET, AF_INET6, AF_UNIX */
    int32_t port;           /* 0 for AF_UNIX */
    uint32_t flowinfo;      /* AF_INET6 */
    uint32_t scope_id;      /* AF_INET6 */
    int32_t listener;       /* number given by fan_core_listen */
    int32_t nonblocking;    /* O_NONBLOCK is set on fd */
    int32_t host_bytes;     /* length of host, without the NUL; an abstract name begins with one */
    int64_t accepted_ns;    /* when the master accepted it */
    uint64_t sequence;      /* counts the connections of a master from 1 */
    char host[FAN_HOST_BYTES];
} fan_connection;

/* What a worker has of the core: two reading ends, of which it will use one, and what it has in shared memory. */
typedef struct {
    int32_t pool_fd;
    int32_t seat_fd;
    int32_t scoreboard_fd;  /* the scoreboard's file, for one that is no child of the master's; else -1 */
    fan_score *score;  /* its page; NULL until it is mapped */
    fan_turns *turns;  /* of the workers that read the pool */
} fan_ends;

/* ---- the master: birth, death, loop ------------------------------------------------------------------------- */

/* A core with room for `seats` workers at once, those that are about to leave included. On failure *out is untouched and
 * nothing stays open. */
int fan_core_new(int seats, int policy, fan_core **out);

/* Whether blocking workers share one channel, the pool's, under a policy that fan_core_new takes. */
int fan_policy_pooled(int policy);

/* After fan_core_new has failed: the name of a system call that the system refuses, as a sandbox does. NULL: of none. */
const char *fan_core_refused(void);

/* Close everything the core owns, connections in its hands included. */
void fan_core_free(fan_core *core);

/* Take over a listening socket that is O_NONBLOCK. Returns its number; on failure the fd stays the caller's. */
int fan_core_listen(fan_core *core, int fd);

/* Before the first seat: there will be workers that are no children of the master's, see fan_seat_ends. On failure nothing
 * has changed. */
int fan_core_share(fan_core *core);

/* Report FAN_EVENT_WATCHED with `token` while fd is readable. The fd stays the caller's: unwatch, then close.
 * Tokens are 0 or more, below 2^48. */
int fan_core_watch(fan_core *core, int fd, int64_t token);
int fan_core_unwatch(fan_core *core, int fd);

/* Dispatch connections until there is something to say, `timeout_ns` is over (negative: none), or a signal arrives.
 * Fills at most `cap` events; returns how many, 0 on timeout and on EINTR, so that Python can run its handlers. */
int fan_core_run(fan_core *core, int64_t timeout_ns, fan_event *events, int cap);

/* For a program that has a loop of its own. A descriptor, the core's, that is readable when fan_core_run has something to do
 * or to say; after each fan_core_run, fan_core_arm tells it for how long (as the timeout there) it may stay silent. */
int fan_core_poll_fd(fan_core *core);
int fan_core_arm(fan_core *core, int64_t timeout_ns);

/* Before fan_core_finish, for a TCP listener that no other process has: no new client gets into its queue. A SYN is dropped,
 * not answered; its client sends it again after a second, and is refused then, or finds what listens next. So the queue
 * comes to its end under any load, and no client that is in it is reset. If the kernel refuses that, they come as before. */
void fan_core_stop_new(fan_core *core, int listener);
void fan_listener_stop_new(int fd); /* the same, of one that no core has */

/* The clean end: pass on what the accept queues hold now (at most `limit` a listener), close the listeners, then end
 * the channels: readers find what is left in them, then end-of-file. Then FAN_EVENT_FINISHED, once. While no worker can take
 * them, clients wait; a listener without any is closed all the same. */
void fan_core_finish(fan_core *core, int64_t limit);

void fan_core_count(const fan_core *core, fan_counters *out);

/* Bytes of SO_SNDBUF that one message takes on this kernel, measured in fan_core_new. */
int fan_core_message_bytes(const fan_core *core);

/* ---- the master: seats ---------------------------------------------------------------------------------------- */

/* Before each fork: a channel, and a clean page for `generation`. `identity`: what source-hash knows the worker by; one
 * that replaces another has the same, so that its clients stay. On failure nothing has changed. */
int fan_seat_begin(fan_core *core, int seat, uint64_t generation, int identity);

/* The seat is not needed: its channel is closed as soon as what waits in it was passed to others, unless the seat is begun
 * before. Its worker has left and is dead. */
void fan_seat_end(fan_core *core, int seat);

/* What a worker needs that is no child of the master's, to be sent to it: three descriptors. They stay the core's, which was
 * shared. */
void fan_seat_ends(const fan_core *core, int seat, fan_ends *ends);

/* A worker is ready. `pool`: it reads the pool channel, else the seat's own. `threads`: how many block in
 * fan_take at once, 0 for an event loop. `size`: messages the channel shall take; returns what the kernel grants.
 * `most`: connections that one with its own channel may hold, waiting ones included; 0: any number. At `most` it gets
 * nothing until the scoreboard says that one is done, which is looked at whenever fan_core_run is woken or called; see
 * fan_score_done. */
int fan_seat_enter(fan_core *core, int seat, int pool, int threads, int size, int most);

/* The worker takes no more, alive or not: out of rotation. What waits in its own channel is taken back and passed to
 * others as soon as they are hungry; what is left stays for the seat's next worker. In the pool another reader is
 * woken, since this one's wake-up may have died with it. No-op if not entered. */
void fan_seat_leave(fan_core *core, int seat);

/* Messages that were passed to the seat's own channel (-1: to the pool's) and not taken; or -errno. */
int fan_seat_untaken(const fan_core *core, int seat);

void fan_seat_look(const fan_core *core, int seat, fan_score_view *out);

/* ---- the worker ----------------------------------------------------------------------------------------------- */

/* In the child, first thing: close all of the core but the two reading ends of `seat` and unmap the other pages;
 * then free it. The fds, the page and the turns are the caller's. Never touches the epoll sets: they are the master's too. */
void fan_core_abandon(fan_core *core, int seat, fan_ends *ends);

/* In a worker that was sent them: map its page of the scoreboard, and the turns. The caller closes `scoreboard_fd`, whose file
 * has the pages of other workers, too. On failure nothing is mapped. */
int fan_ends_map(fan_ends *ends, int seat);

/* A receiver reads from `fd` (which stays the caller's) and reports as thread number `thread` of the page. `turns`: it
 * reads the pool, for the worker in `seat`; NULL: a seat's own channel. Returns NULL on ENOMEM. */
fan_receiver *fan_receiver_new(int fd, fan_score *score, int thread, fan_turns *turns, int seat);
void fan_receiver_free(fan_receiver *receiver);

/* Block until a connection, or end-of-file, may be there. 1: it took a while. 0: it was there. -EINTR: a signal came.
 * -ECANCELED: fan_receiver_cancel. -EAGAIN: the time of SO_RCVTIMEO, if that is set. Takes nothing: a thread that waits for a
 * connection without the interpreter's lock might have to wait for the lock afterwards, with a client in its hands. */
int fan_take_wait(fan_receiver *receiver);

/* One that is there. 1: *out is filled and out->fd is the caller's. 0: end-of-file, the master is done. -EAGAIN: none, or
 * all messages are for threads that have waited longer: then wait.
 * -ECANCELED: fan_receiver_cancel. -EMFILE, -ENFILE: no free descriptor, nothing was taken. -ENOBUFS: the connection was
 * lost for want of one (MSG_CTRUNC; counted). `fd_is_free`: the caller has just closed a descriptor, so the check for a
 * free one can be saved. */
int fan_take(fan_receiver *receiver, fan_connection *out, int fd_is_free);

/* The thread goes on with a connection that was taken before: busy, until it asks for the next one. */
void fan_receiver_resume(fan_receiver *receiver);

/* As fan_take, for as many as are there, at most `cap` (and FAN_BATCH). Returns how many, -EAGAIN for none. */
int fan_take_ready(fan_receiver *receiver, fan_connection *out, int cap);

/* From any thread: fan_take and fan_take_wait return -ECANCELED from now on. One that sleeps must be woken by a signal,
 * too. */
void fan_receiver_cancel(fan_receiver *receiver);
int fan_receiver_sleeps(const fan_receiver *receiver);

/* Make `signum` interrupt fan_take_wait and do nothing else. */
int fan_interrupt_with(int signum);

/* Whether the kernel gives this process the orphans among its descendants. */
int fan_is_subreaper(void);

/* The C library keeps memory that is freed, up to 8 MiB, instead of asking the kernel for it again and again. */
void fan_keep_heap(void);

/* A taken connection was closed or detached. 1: the master waits for that, because all workers are at their limit; the caller
 * wakes it. */
int fan_score_done(fan_score *score);

/* The counter itself, for a caller that adds to it under a lock and never calls fan_score_done: from Python a call is expensive
 * where threads contend for the interpreter's lock. Not for a worker with a limit of connections. */
uint64_t *fan_score_done_cell(fan_score *score);

/* ---- the worker: the end of a connection ---------------------------------------------------------------------- */

#define FAN_PART_FREED 1    /* a descriptor is free */
#define FAN_PART_SWEEP 2    /* fan_linger_sweep is to be called until it returns 0 */
#define FAN_SWEEP_SOON 5    /* ms: a client sends */
#define FAN_SWEEP_LATER 100 /* ms: clients are expected to close */

/* Holds `most` connections at once. NULL: ENOMEM. */
fan_linger *fan_linger_new(int most);
void fan_linger_free(fan_linger *linger);

/* Ends a connection, although other processes may have copies of `fd`, which it takes over: the client is told at once, and the
 * descriptor is closed when the client has closed, too, or its time is over. Returns FAN_PART_ bits. From any thread. */
int fan_linger_part(fan_linger *linger, int fd);

/* Read and drop late input; close connections whose client has closed, and those that were ended more than `patience_ns` ago.
 * Returns FAN_SWEEP_, the ms until the next call; 0: none is left. */
int fan_linger_sweep(fan_linger *linger, int64_t patience_ns);

/* Close all held connections, because no descriptor is free. Returns how many. */
int fan_linger_drop(fan_linger *linger);

/* A child was forked, and may have copies: from now on each connection is shut down before its descriptor is closed. */
void fan_linger_copied(fan_linger *linger);

/* In a child that the worker forked: held connections are the worker's; those that the child closes are not shut down. */
void fan_linger_disown(fan_linger *linger);

/* In a child that the worker forked: it must not be seen on the worker's page; what it writes goes nowhere. */
void fan_score_disown(fan_score *score);

/* cdef: end */

#endif
