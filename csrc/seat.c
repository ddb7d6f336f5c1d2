/* seat.c: seats for workers, and the channels that outlive them. Which are in rotation; what happens to a channel when its
 * reader comes, goes or breaks it.
 *
 * It never moves a connection from a listener and never waits.
 */
#define _GNU_SOURCE
#include "core.h"

#include <assert.h>
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* Connections that were passed to this seat's worker and are not done. The worker says what is done: clamped. */
uint64_t fan_seat_live(const fan_core *core, int seat)
{
    uint64_t done = fan_score_finished(fan_scoreboard_at(&core->scoreboard, seat)), passed = core->seats[seat].passed;
    return done < passed ? passed - done : 0;
}

/* The number of the next channel that may exist, from `number` on; the pool's is the last. All of them:
 * for (i = fan_channel_next(core, 0); i <= core->seat_count; i = fan_channel_next(core, i + 1)) */
int fan_channel_next(const fan_core *core, int number)
{
    return number < core->used_count || number > core->seat_count ? number : core->seat_count;
}

/* EPOLLONESHOT without a wish: armed only when it is full. */
int fan_channel_birth(fan_core *core, int number, fan_channel *out)
{
    fan_channel channel;
    int rc = fan_channel_open(&channel);
    if (rc < 0)
        return rc;
    rc = fan_epoll(core->inner, EPOLL_CTL_ADD, channel.write_fd, EPOLLONESHOT, FAN_ABOUT(FAN_CHANNEL, number));
    if (rc < 0)
        fan_channel_close(&channel);
    else
        *out = channel;
    return rc;
}

/* A new pair in the place of a broken one, for the workers that are forked from now on. What waits in the old one is
 * taken back from its reading end, which is kept until then. */
static void mend(fan_core *core, int number)
{
    fan_channel *channel = &core->channels[number], fresh;
    bool spilled = channel->spill_fd >= 0; /* broken again before that was emptied */
    if (spilled && fan_channel_untaken(channel) > 0)
        return;
    int rc = fan_channel_birth(core, number, &fresh);
    if (rc < 0) {
        fan_pause(core, -rc);
        return;
    }
    fan_channel_resize(&fresh, channel->size, core->message_bytes);
    fresh.spill_fd = spilled ? channel->spill_fd : channel->read_fd;
    if (spilled)
        fan_close(&channel->read_fd);
    fresh.recalling = number < core->seat_count;
    core->recall = true;
    /* Out of the set by name: a child that has just been forked may still hold the descriptor, and keep it in. */
    epoll_ctl(core->inner, EPOLL_CTL_DEL, channel->write_fd, NULL);
    fan_close(&channel->write_fd);
    *channel = fresh;
    core->broken_count--;
}

int fan_seat_channel(const fan_core *core, int seat)
{
    return core->seats[seat].pool ? core->seat_count : seat;
}

static void rebuild_rotation(fan_core *core)
{
    core->rotation_count = 0;
    for (int i = fan_channel_next(core, 0); i <= core->seat_count; i = fan_channel_next(core, i + 1))
        if (core->channels[i].workers > 0)
            core->rotation[core->rotation_count++] = i;
    core->cursor = core->rotation_count ? core->cursor % core->rotation_count : 0;
    fan_channel *pool = &core->channels[core->seat_count];
    if (pool->workers == 0 && core->rotation_count > 0) /* what waits in it would wait for ever */
        pool->recalling = core->recall = true;
}

int fan_seat_begin(fan_core *core, int seat, uint64_t generation, int identity)
{
    assert(seat >= 0 && seat < core->seat_count && !core->seats[seat].entered);
    fan_channel *channel = &core->channels[seat];
    if (channel->write_fd < 0) {
        int rc = fan_channel_birth(core, seat, channel);
        if (rc < 0)
            return rc;
        if (core->finished)
            shutdown(channel->write_fd, SHUT_WR);
        if (core->used_count <= seat)
            core->used_count = seat + 1;
    }
    channel->ending = false;
    if (core->broken_count) /* the child shall inherit the new pair */
        fan_channels_mend(core);
    core->seats[seat].identity = identity;
    int left = fan_channel_untaken(channel);
    core->seats[seat].passed = left > 0 ? (uint64_t)left : 0;
    fan_score_begin(fan_scoreboard_at(&core->scoreboard, seat), generation);
    fan_turns_begin(core->turns, seat);
    return 0;
}

int fan_seat_enter(fan_core *core, int seat, int pool, int threads, int size, int most)
{
    assert(seat >= 0 && seat < core->seat_count && !core->seats[seat].entered);
    assert(threads >= 0 && threads <= FAN_MAX_THREADS && (threads > 0 || !pool));
    fan_seat *it = &core->seats[seat];
    fan_channel *channel = &core->channels[pool ? core->seat_count : seat];
    size = fan_channel_resize(channel, size, core->message_bytes);
    if (channel->broken) { /* it has inherited the old pair, and is of no use */
        fan_event_add(core, FAN_EVENT_CHANNEL_BROKEN, 0, pool ? -1 : seat);
        return size;
    }
    it->entered_ns = fan_now_ns();
    if (core->policy->enter)
        core->policy->enter(core, seat);
    fan_turns_read(core->turns, seat, pool);
    it->entered = true;
    it->pool = pool;
    it->threads = threads;
    it->most = pool ? 0 : most;
    channel->recalling = false;
    channel->space = 0; /* the kernel is asked what is left in it */
    channel->workers++;
    channel->threads += threads;
    core->accept_flags = threads > 0 ? SOCK_CLOEXEC : SOCK_CLOEXEC | SOCK_NONBLOCK;
    rebuild_rotation(core);
    return size;
}

void fan_seat_end(fan_core *core, int seat)
{
    assert(seat >= 0 && seat < core->seat_count && !core->seats[seat].entered);
    core->channels[seat].ending = true;
    fan_channel_end_if_empty(core, seat);
}

/* One that is recalling comes back here when it is empty. */
void fan_channel_end_if_empty(fan_core *core, int number)
{
    fan_channel *channel = &core->channels[number];
    if (!channel->ending || channel->write_fd < 0 || channel->spill_fd >= 0 || fan_channel_untaken(channel) > 0)
        return;
    core->broken_count -= channel->broken;
    epoll_ctl(core->inner, EPOLL_CTL_DEL, channel->write_fd, NULL);
    fan_channel_close(channel);
    *channel = (fan_channel){.write_fd = -1, .read_fd = -1, .spill_fd = -1};
}

void fan_seat_leave(fan_core *core, int seat)
{
    assert(seat >= 0 && seat < core->seat_count);
    fan_seat *it = &core->seats[seat];
    if (!it->entered)
        return;
    fan_channel *channel = &core->channels[fan_seat_channel(core, seat)];
    fan_turns_read(core->turns, seat, false);
    it->entered = false;
    channel->workers--;
    channel->threads -= it->threads;
    if (!it->pool)
        channel->recalling = core->recall = true;
    else if (channel->workers > 0 && fan_channel_untaken(channel) > 0) {
        /* It may have died in the instant it was woken, and its wake-up with it. */
        if (fan_channel_nudge(channel) == 0)
            core->counters.nudges++;
    }
    rebuild_rotation(core);
}

void fan_seat_ends(const fan_core *core, int seat, fan_ends *ends)
{
    assert(seat >= 0 && seat < core->seat_count && core->scoreboard_fd >= 0);
    *ends = (fan_ends){
        .pool_fd = core->channels[core->seat_count].read_fd,
        .seat_fd = core->channels[seat].read_fd,
        .scoreboard_fd = core->scoreboard_fd,
    };
}

int fan_seat_untaken(const fan_core *core, int seat)
{
    const fan_channel *channel = &core->channels[seat < 0 ? core->seat_count : seat];
    if (channel->read_fd < 0)
        return 0;
    int spilled = channel->spill_fd < 0 ? 0 : fan_channel_untaken(&(fan_channel){.read_fd = channel->spill_fd});
    int untaken = fan_channel_untaken(channel);
    return untaken < 0 ? untaken : untaken + (spilled < 0 ? 0 : spilled);
}

void fan_seat_look(const fan_core *core, int seat, fan_score_view *out)
{
    assert(seat >= 0 && seat < core->seat_count);
    fan_score_look(fan_scoreboard_at(&core->scoreboard, seat), out);
    out->in_hands = out->taken - out->done;
    if (out->in_hands < (uint64_t)out->busy_threads)
        out->in_hands = (uint64_t)out->busy_threads;
    /* What was passed to its own channel, is not there, and was not done: also what it had received, but not counted. */
    int untaken = fan_seat_untaken(core, seat);
    uint64_t passed = core->seats[seat].passed, accounted = out->done + (untaken > 0 ? (uint64_t)untaken : 0);
    if (!core->seats[seat].pool && passed > accounted + out->in_hands)
        out->in_hands = passed - accounted;
}

void fan_channels_mend(fan_core *core)
{
    for (int i = fan_channel_next(core, 0); i <= core->seat_count; i = fan_channel_next(core, i + 1))
        if (core->channels[i].broken)
            mend(core, i);
}

/* A worker shut the channel down: its readers see end-of-file and leave. They are out of rotation at once. */
void fan_channel_replace(fan_core *core, int number)
{
    fan_channel *channel = &core->channels[number];
    if (channel->broken)
        return;
    core->counters.broken_channels++;
    for (int seat = 0; seat < core->used_count; seat++)
        if (core->seats[seat].entered && fan_seat_channel(core, seat) == number) {
            fan_turns_read(core->turns, seat, false);
            core->seats[seat].entered = false;
        }
    channel->workers = channel->threads = channel->space = 0;
    channel->broken = channel->recalling = core->recall = true;
    core->broken_count++;
    rebuild_rotation(core);
    fan_event_add(core, FAN_EVENT_CHANNEL_BROKEN, 0, number < core->seat_count ? number : -1);
    mend(core, number);
}
