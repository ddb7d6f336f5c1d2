/* core.h: the private structs, and which of them owns which descriptor. */
#ifndef FAN_CORE_H
#define FAN_CORE_H

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
#define FAN_TURNS_BYTES 12288 /* behind the boards */

/* The boards of all slots, each on pages of its own, and the turns behind them. */
typedef struct {
    char *memory;            /* NULL: not mapped */
    int slots;
    size_t each_bytes;       /* from one to the next */
} fan_boards;

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

/* A place for a worker. */
typedef struct {
    bool entered, pool;
    int identity;            /* for source-hash */
    int threads;
    int most;                /* connections that it may hold; 0: any number */
    uint64_t passed;         /* to its own channel in this generation, less what was recalled */
    int64_t entered_ns;
    uint64_t handicap;       /* least-connections: what a cold worker pretends to hold, fading over the slow start */
} fan_slot;

typedef struct {
    int fd;                  /* owned; in the epoll set `outer` */
    bool maybe;              /* may have connections; false when it had none, until epoll says otherwise */
    bool told;               /* epoll has said so, and none was accepted since */
    int64_t remaining;       /* finishing: how many more to accept */
} fan_listener;

struct fan_core {
    int inner;               /* epoll set: channels and watched descriptors */
    int outer;               /* epoll set: the listeners, and `inner`. Waited for only while somebody is hungry */
    int front, timer;        /* for a program with a loop of its own: all of that, and a timerfd; -1: it has none */
    int policy;
    int slot_count;
    int used_count;          /* the slots from here on were never used; those below may have no channel, either */
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
    fan_channel *channels;   /* one a slot, and the pool's at [slots] */
    fan_slot *slots;
    fan_boards boards;       /* shared with the workers */
    fan_turns *turns;        /* behind it, and shared by all workers that read the pool */
    int board_fd;            /* owned; their file, or -1: they have none */
    int listener_count, listener_cursor;
    int batch_count;         /* accepted by the last batch */
    int64_t batch_ns;        /* when that was */
    fan_listener listeners[FAN_MAX_LISTENERS];
    int held_count;
    fan_held held[FAN_BATCH];
    bool more;               /* dispatching stopped only to let others have a turn */
    int notice_count;
    fan_event *notices;      /* own news for the next return to Python */
    int broken_count;        /* channels to be mended */
    bool recall;             /* some channel may be recalling, or have a spill_fd */
    fan_counters counters;
};

/* What an epoll event is about: the kind in the top byte of its data, a number or token below. */
#define FAN_ABOUT(kind, number) ((uint64_t)(kind) << 56 | (uint64_t)(number))
#define FAN_ABOUT_KIND(data) ((int)((data) >> 56))
#define FAN_ABOUT_NUMBER(data) ((int64_t)((data) & ((UINT64_C(1) << 56) - 1)))
enum { FAN_WATCHED, FAN_CHANNEL, FAN_LISTENER, FAN_INNER };

/* core.c */
int fan_epoll(int set, int op, int fd, uint32_t events, uint64_t about);
void fan_core_notice(fan_core *core, int kind, int error, int64_t token);

/* accept.c */
int fan_accept_batch(fan_core *core, int want, int64_t now_ns);
void fan_accept_finish_empty(fan_core *core);
bool fan_accept_rests(const fan_core *core);
void fan_accept_pause(fan_core *core, int error);
void fan_listener_close(fan_core *core, int number);

/* slot.c */
int fan_slot_channel(const fan_core *core, int slot);
int fan_channel_next(const fan_core *core, int number);
int fan_channel_birth(fan_core *core, int number, fan_channel *out);
void fan_channels_mend(fan_core *core);
void fan_channel_end_if_empty(fan_core *core, int number);
void fan_channel_replace(fan_core *core, int number);

/* route.c */
int fan_route(fan_core *core, const fan_record *record, int64_t now_ns);
uint64_t fan_slot_live(const fan_core *core, int slot);
void fan_slot_warm_up(fan_core *core, int slot);

/* channel.c */
int fan_message_bytes(const char **call);
int fan_channel_open(fan_channel *channel);
void fan_channel_close(fan_channel *channel);
int fan_channel_resize(fan_channel *channel, int messages, int message_bytes);
int fan_channel_untaken(const fan_channel *channel);
int fan_channel_pass(fan_channel *channel, fan_held *const *held, int count);
int fan_channel_recall(int channel_fd, fan_held *out);
bool fan_channel_mend(fan_channel *channel);
int fan_channel_nudge(fan_channel *channel);
int fan_channel_room(int channel_fd, int want);
int fan_channel_wait(int channel_fd);
int fan_channel_receive(int channel_fd, int flags, fan_record *record, int *fd);
int fan_channel_receive_many(int channel_fd, int count, fan_record *records, int *fds);

/* board.c */
int fan_boards_map(fan_boards *boards, int slots);
int fan_boards_share(const fan_boards *boards);
void fan_boards_unmap(const fan_boards *boards);
fan_board *fan_boards_keep(const fan_boards *boards, int slot);
fan_turns *fan_boards_turns(const fan_boards *boards);
static inline fan_board *fan_boards_at(const fan_boards *boards, int slot)
{
    return (fan_board *)(boards->memory + (size_t)slot * boards->each_bytes);
}
void fan_board_begin(fan_board *page, uint64_t generation);
uint64_t fan_board_taken(const fan_board *page);
void fan_board_want(fan_board *page);
uint64_t fan_board_finished(const fan_board *page);
int fan_board_idle(const fan_board *page, int threads);
void fan_board_look(const fan_board *page, fan_board_view *out);
void fan_board_enrol(fan_board *page, int thread);
void fan_board_idle_now(fan_board *page, int thread);
void fan_board_busy_now(fan_board *page, int thread, int64_t now_ns);
void fan_board_took(fan_board *page, int count);
void fan_board_beat(fan_board *page, int64_t now_ns);
void fan_board_lost(fan_board *page, int count);

/* turns.c */
void fan_turns_begin(fan_turns *turns, int slot);
void fan_turns_read(fan_turns *turns, int slot, bool reads);
bool fan_turns_free(const fan_turns *turns, int channel_fd);
bool fan_turns_enter(fan_turns *turns, int slot, int channel_fd, int64_t begin_ns);
bool fan_turns_wait(const fan_turns *turns, int channel_fd, int64_t begin_ns);
void fan_turns_leave(fan_turns *turns, int slot);

#endif
