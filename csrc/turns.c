/* turns.c: which thread may take next of those that wait for the pool's channel, so that idle ones are served in turn.
 *
 * The kernel wakes the thread that has slept longest, but a woken thread takes some time to run, and a thread that comes
 * meanwhile would find the message first. So each thread that comes passes a gate, in the order of coming. Before it sleeps it
 * lets the threads take theirs that are inside: asleep, or woken and not running yet. The page, which workers share,
 * is believed for PATIENCE_NS only: a worker that was killed or stopped, or writes what is not true, delays the others by
 * that much.
 */
#define _GNU_SOURCE
#include "core.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#define PATIENCE_NS (2 * FAN_MS) /* a woken thread runs within 0.1 ms, on a busy machine within a few */
#define YIELDS 64                /* calls of sched_yield before the first sleep: some 50 us */

/* Of a seat. `reads` is the master's: whether its worker is in rotation. */
typedef struct {
    _Atomic uint16_t reads;
    _Atomic uint16_t inside;
} cell;

struct fan_turns {
    _Atomic uint32_t arrived;  /* at the gate */
    _Atomic uint32_t admitted; /* those that have passed it */
    _Atomic int32_t seats;     /* cells that were ever used */
    _Alignas(64) cell cells[FAN_MAX_SEATS];
};

_Static_assert(sizeof(struct fan_turns) <= FAN_TURNS_BYTES, "it fits");

/* ---- the master's side -------------------------------------------------------------------------------------------- */

/* The seat has no worker yet: no thread of it is inside. */
void fan_turns_begin(fan_turns *turns, int seat)
{
    if (atomic_load(&turns->seats) <= seat)
        atomic_store(&turns->seats, seat + 1);
    atomic_store(&turns->cells[seat].reads, 0);
    atomic_store(&turns->cells[seat].inside, 0);
}

void fan_turns_read(fan_turns *turns, int seat, bool reads)
{
    atomic_store(&turns->cells[seat].reads, reads);
}

/* ---- the workers' side -------------------------------------------------------------------------------------------- */

static int inside(const fan_turns *turns)
{
    int seats = atomic_load(&turns->seats), sum = 0;
    for (int seat = 0; seat < seats && seat < FAN_MAX_SEATS; seat++)
        if (atomic_load_explicit(&turns->cells[seat].reads, memory_order_relaxed))
            sum += atomic_load_explicit(&turns->cells[seat].inside, memory_order_relaxed);
    return sum;
}

static int untaken(int channel_fd)
{
    return fan_channel_untaken(&(fan_channel){.read_fd = channel_fd});
}

/* Whether a thread that has just come may take without waiting: there are more messages than waiting threads. */
bool fan_turns_free(const fan_turns *turns, int channel_fd)
{
    int waiting = inside(turns) + (int)(atomic_load(&turns->arrived) - atomic_load(&turns->admitted));
    return waiting <= 0 || untaken(channel_fd) > waiting;
}

/* What a thread may do that comes to the channel, with `others` inside before it. */
typedef enum { SLEEP, TAKE, WAIT } chance;

static chance chance_of(const fan_turns *turns, int channel_fd, int self)
{
    int others = inside(turns) - self;
    if (others <= 0) /* the same either way: a sleep returns at once if there is a message */
        return self ? TAKE : SLEEP;
    int messages = untaken(channel_fd);
    return messages <= 0 ? SLEEP : messages > others ? TAKE : WAIT;
}

static void pause_at(int tries)
{
    if (tries < YIELDS)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
}

/* Wait at the gate and pass it; inside until fan_turns_leave. True: take a message now. False: sleep until there is one. */
bool fan_turns_enter(fan_turns *turns, int seat, int channel_fd, int64_t begin_ns)
{
    uint32_t mine = atomic_fetch_add(&turns->arrived, 1);
    chance found = WAIT;
    for (int tries = 0; found == WAIT; tries++) {
        if ((int32_t)(atomic_load(&turns->admitted) - mine) >= 0)
            found = chance_of(turns, channel_fd, 0);
        if (found == WAIT && fan_now_ns() - begin_ns > PATIENCE_NS)
            found = TAKE;
        if (found == WAIT)
            pause_at(tries);
    }
    atomic_fetch_add(&turns->cells[seat].inside, 1);
    uint32_t admitted = atomic_load(&turns->admitted);
    while ((int32_t)(admitted - mine) <= 0 && !atomic_compare_exchange_weak(&turns->admitted, &admitted, mine + 1))
        ;
    return found == TAKE;
}

/* For a thread inside that did not sleep, because it found a message that is for one before it. As fan_turns_enter. */
bool fan_turns_wait(const fan_turns *turns, int channel_fd, int64_t begin_ns)
{
    for (int tries = 0; fan_now_ns() - begin_ns <= PATIENCE_NS; tries++) {
        chance found = chance_of(turns, channel_fd, 1);
        if (found != WAIT)
            return found == TAKE;
        pause_at(tries);
    }
    return true;
}

/* A later worker may have the place by now: never below 0. */
void fan_turns_leave(fan_turns *turns, int seat)
{
    uint16_t count = atomic_load(&turns->cells[seat].inside);
    while (count > 0 && !atomic_compare_exchange_weak(&turns->cells[seat].inside, &count, (uint16_t)(count - 1)))
        ;
}
