/* state.h: the private structs, and which of them owns which descriptor. */
#ifndef FAN_STATE_H
#define FAN_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "fanout.h"
#include "os.h"

/* The fixed-size record that travels with each descriptor. A listener of FAN_NUDGE means: no connection, just wake up. */
typedef struct {
    uint64_t sequence;
    int64_t accepted_ns;
    int32_t listener;
    uint16_t peer_bytes;      /* length of the address in peer, as accept4 gave it */
    uint16_t nonblocking;
    union {
        sa_family_t family;
        struct sockaddr_un un; /* the largest: 110 bytes */
        char bytes[FAN_HOST_BYTES];
    } peer;
} fan_record;

#define FAN_NUDGE (-1)
#define FAN_TURNS_BYTES 12288 /* behind the scores */

/* The scores of all seats, each on pages of its own, and the turns behind them. */
typedef struct {
    char *memory;            /* NULL: not mapped */
    int seats;
    size_t each_bytes;       /* from one to the next */
} fan_scoreboard;

/* A connection in the master's hands. */
typedef struct {
    fan_record record;
    int fd;       /* owned */
    int channel;  /* where it was routed to, or -1 */
} fan_held;

/* A SEQPACKET pair. The master owns both ends; readers have duplicates of read_fd. */
typedef struct {
    int write_fd;            /* owned; in the epoll set `inner` */
    int read_fd;             /* owned */
    int size;                /* messages the kernel takes before it says EAGAIN */
    int quarter;             /* the kernel says POLLOUT at this many untaken, or fewer */
    int untaken;             /* upper bound of what waits in it: seen last, and passed since */
    int space;               /* messages that may be passed in this round; 0: not hungry, or not asked yet */
    int workers;             /* ready workers that read it; 0: out of rotation */
    int threads;             /* of them, threads that block in recvmsg; 0: event loops */
    bool armed;              /* EPOLLOUT will tell when it is hungry */
    bool broken;             /* a worker shut it down, and there were no descriptors yet for a new pair */
    int spill_fd;            /* owned; reading end of a pair that was broken, with what waited in it, or -1 */
    bool recalling;          /* no reader of its own any more: take back what waits in it */
    bool ending;             /* close it when it is empty */
    bool nudgeable;          /* blocking readers, and something was passed since it was last seen empty */
    int nudges;              /* sent since a message was last passed or taken */
    uint64_t taken_seen;     /* sum of the readers' `taken` at the last look */
    int64_t full_since_ns;   /* when space last became 0 */
} fan_channel;

/* What the core has for one worker: a channel of its own, and a page of the scoreboard. */
typedef struct {
    bool entered, pool;
    int identity;            /* for source-hash */
    int threads;
    int most;                /* connections that it may hold; 0: any number */
    uint64_t passed;         /* to its own channel in this generation, less what was recalled */
    int64_t entered_ns;
    uint64_t handicap;       /* least-connections: what a cold worker pretends to hold, fading over the slow start */
} fan_seat;

typedef struct {
    int fd;                  /* owned; in the epoll set `outer` */
    bool maybe;              /* may have connections; false when it had none, until epoll says otherwise */
    bool told;               /* epoll has said so, and none was accepted since */
    int64_t remaining;       /* finishing: how many more to accept */
} fan_listener;

/* Which worker gets a connection. */
typedef struct {
    bool pooled; /* blocking workers share one channel */
    int (*choose)(fan_core *core, const fan_record *record, int64_t now_ns); /* a channel that is hungry, or -1 */
    void (*enter)(fan_core *core, int seat); /* a worker comes into rotation; NULL: nothing to do */
} fan_policy;

#define FAN_LOOK_NS (10 * FAN_MS) /* how long a message may wait beside an idle reader before a reader is nudged */
#define FAN_PAUSE_EVENTS 8
#define FAN_EVENTS(seats) (FAN_PAUSE_EVENTS + (seats) + 1 + FAN_MAX_LISTENERS + 1)

struct fan_core {
    int inner;               /* epoll set: channels and watched descriptors */
    int outer;               /* epoll set: the listeners, and `inner`. Waited for only while a channel is hungry */
    int poll_fd, timer;        /* for a program with a loop of its own: all of that, and a timerfd; -1: it has none */
    const fan_policy *policy;
    int seat_count;
    int used_count;          /* the seats from here on were never used; those below may have no channel, either */
    int message_bytes;
    int accept_flags;
    bool finishing, finished;
    bool paused;             /* accepting failed last, and Python knows */
    int64_t pause_until_ns;  /* accepting rests (EMFILE and its like); 0: it does not */
    int64_t stall_until_ns;  /* passing rests (ETOOMANYREFS, ENOBUFS); 0: it does not */
    bool stall_told;         /* Python knows */
    int64_t look_at_ns;      /* next look whether a wake-up was lost; 0: nothing is untaken */
    int64_t lag_until_ns;    /* least-connections waits for the emptiest worker until then; 0: it does not */
    int cursor;              /* round-robin: where in rotation to look first */
    int rotation_count;
    int *rotation;           /* numbers of the channels with a ready worker */
    fan_channel *channels;   /* one a seat, and the pool's at [seats] */
    fan_seat *seats;
    fan_scoreboard scoreboard;       /* shared with the workers */
    fan_turns *turns;        /* behind it, and shared by all workers that read the pool */
    int scoreboard_fd;            /* owned; their file, or -1: they have none */
    int listener_count, listener_cursor;
    int batch_count;         /* accepted by the last batch */
    int64_t batch_ns;        /* when that was */
    fan_listener listeners[FAN_MAX_LISTENERS];
    int held_count;
    fan_held held[FAN_BATCH];
    bool more;               /* dispatching stopped only to let others have a turn */
    int event_count;
    fan_event *events;       /* for the next return to Python */
    int broken_count;        /* channels to be mended */
    bool recall;             /* some channel may be recalling, or have a spill_fd */
    fan_counters counters;
};

/* What an epoll event is about: the kind in the top byte of its data, a number or token below. */
#define FAN_ABOUT(kind, number) ((uint64_t)(kind) << 56 | (uint64_t)(number))
#define FAN_ABOUT_KIND(data) ((int)((data) >> 56))
#define FAN_ABOUT_NUMBER(data) ((int64_t)((data) & ((UINT64_C(1) << 56) - 1)))
enum { FAN_WATCHED, FAN_CHANNEL, FAN_LISTENER, FAN_INNER };

#endif
