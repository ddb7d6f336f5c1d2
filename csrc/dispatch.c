/* dispatch.c: moves connections: from the listeners, and from channels without a reader, into the master's hands, and on to
 * the channels of hungry workers. It never waits.
 */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define STALL_NS (10 * FAN_MS) /* after ETOOMANYREFS, ENOBUFS: no event tells when it is over */
#define ROUNDS 64              /* batches in a row before Python's events get their turn: a few milliseconds */

/* How many more connections a seat's worker may hold. */
static int room_of(const fan_core *core, int number)
{
    if (number == core->seat_count || core->seats[number].most == 0)
        return INT_MAX;
    uint64_t live = fan_seat_live(core, number), most = (uint64_t)core->seats[number].most;
    return live < most ? (int)(most - live) : 0;
}

/* No worker may have a connection now: those at their limit shall tell when one is done. Whether one is done already. */
static bool want_room(fan_core *core)
{
    bool room = false;
    for (int i = 0; i < core->rotation_count; i++)
        if (room_of(core, core->rotation[i]) == 0) {
            fan_score_want(fan_scoreboard_at(&core->scoreboard, core->rotation[i]));
            room |= room_of(core, core->rotation[i]) > 0;
        }
    return room;
}

/* Ask the kernel about a channel that is thought to be full. One that is tells when it no longer is. */
static void ask_kernel(fan_core *core, int number, int room, int64_t now_ns)
{
    fan_channel *channel = &core->channels[number];
    channel->untaken = fan_channel_untaken(channel);
    if (channel->untaken >= 0 && channel->untaken <= channel->quarter) {
        int space = channel->size - channel->untaken;
        channel->space = space < room ? space : room;
        return;
    }
    channel->full_since_ns = now_ns;
    channel->armed = fan_epoll(core->inner, EPOLL_CTL_MOD, channel->write_fd, EPOLLOUT | EPOLLONESHOT,
                               FAN_ABOUT(FAN_CHANNEL, number)) == 0;
    if (!channel->armed)
        core->stall_until_ns = now_ns + STALL_NS; /* ENOMEM: nothing else would have it asked again */
}

/* How many connections may be passed to a channel now. */
static int space_of(fan_core *core, int number, int64_t now_ns)
{
    fan_channel *channel = &core->channels[number];
    int room = room_of(core, number);
    if (room < channel->space || room == 0)
        channel->space = room;
    else if (channel->space <= 0 && !channel->armed)
        ask_kernel(core, number, room, now_ns);
    return channel->space;
}

static int total_space(fan_core *core, int64_t now_ns)
{
    int total = 0;
    for (int i = 0; i < core->rotation_count; i++)
        total += space_of(core, core->rotation[i], now_ns);
    return total;
}

/* Take back what waits where no worker reads. */
static int recall_batch(fan_core *core, int want, int64_t now_ns)
{
    int count = 0, number;
    if (!core->recall)
        return 0;
    for (number = fan_channel_next(core, 0); number <= core->seat_count; number = fan_channel_next(core, number + 1)) {
        fan_channel *channel = &core->channels[number];
        while (channel->recalling || channel->spill_fd >= 0) {
            if (count == want)
                goto out;
            fan_held *held = &core->held[count];
            int source = channel->spill_fd >= 0 ? channel->spill_fd : channel->read_fd;
            int rc = fan_channel_room(source, 1);
            if (rc < 0) {
                fan_pause(core, -rc);
                goto out;
            }
            rc = fan_channel_recall(source, held);
            if (rc == 1) {
                held->channel = -1;
                core->counters.recalled++;
                if (number < core->seat_count)
                    core->seats[number].passed -= core->seats[number].passed > 0;
                count++;
            } else if (rc == -ENOBUFS)
                core->counters.lost++;
            else if (rc == -EINTR)
                core->counters.interrupts++;
            else if (rc != 0) { /* ENOMEM: later */
                core->stall_until_ns = now_ns + STALL_NS;
                goto out;
            } else if (channel->spill_fd >= 0)
                fan_close(&channel->spill_fd);
            else {
                channel->recalling = false;
                fan_channel_end_if_empty(core, number);
            }
        }
    }
    core->recall = false;
out:
    core->held_count = count;
    return count;
}

static int refill(fan_core *core, int space, int64_t now_ns)
{
    if (fan_is_paused(core))
        return 0;
    int want = space < FAN_BATCH ? space : FAN_BATCH;
    int count = recall_batch(core, want, now_ns);
    return count ? count : fan_accept_batch(core, want, now_ns);
}

/* What a refused message means for the next ones. Nothing is lost: the connections stay in the master's hands and are
 * tried again, at once where that helps, else after a rest. */
static void refused(fan_core *core, int number, int error, int64_t now_ns)
{
    core->stall_until_ns = now_ns;
    switch (error) {
    case EINTR:
        core->counters.interrupts++;
        return;
    case EPIPE:
    case ECONNRESET:
    case ECONNREFUSED:
    case ENOTCONN:
        fan_channel_replace(core, number);
        return;
    case EPERM: /* a reader has seen to that; else it is a security module */
        if (fan_channel_mend(&core->channels[number]))
            return;
        break;
    case EAGAIN: /* although the kernel had said that there is space */
        core->counters.full_channels++;
        core->channels[number].space = 0;
        core->stall_until_ns += STALL_NS;
        return;
    }
    core->stall_until_ns += STALL_NS;
    if (error == ETOOMANYREFS)
        core->counters.flight_limits++;
    else
        core->counters.memory_shortages++;
    if (!core->stall_told)
        fan_event_add(core, FAN_EVENT_PAUSED, error, 0);
    core->stall_told = true;
}

/* Send what was routed to one channel. Returns how many the kernel took; those are closed here. */
static int pass_to(fan_core *core, int number, int64_t now_ns)
{
    fan_channel *channel = &core->channels[number];
    fan_held *batch[FAN_BATCH];
    int count = 0;
    for (int i = 0; i < core->held_count; i++)
        if (core->held[i].channel == number)
            batch[count++] = &core->held[i];
    int passed = fan_channel_pass(channel, batch, count);
    for (int i = 0; i < count; i++) {
        if (i < passed)
            fan_close(&batch[i]->fd);
        else {
            batch[i]->channel = -1;
            channel->space++;
        }
    }
    if (passed < 0) {
        refused(core, number, -passed, now_ns);
        return 0;
    }
    core->counters.passed += (uint64_t)passed;
    if (core->stall_told) {
        core->stall_told = false;
        fan_event_add(core, FAN_EVENT_RESUMED, 0, 0);
    }
    /* Hungry is a channel that has a quarter left or less. One that may have more is asked before it gets more, and has the
     * master wait until it is hungry: so a busy house is fed in batches instead of being woken into by each client. */
    channel->untaken += passed;
    if (channel->untaken > channel->quarter)
        channel->space = 0;
    if (number < core->seat_count)
        core->seats[number].passed += (uint64_t)passed;
    if (channel->threads > 0) {
        channel->nudgeable = true;
        channel->nudges = 0; /* those before were for others, which may all be gone by now */
        if (core->look_at_ns == 0)
            core->look_at_ns = now_ns + FAN_LOOK_NS;
    }
    return passed;
}

/* Route and pass what is in the master's hands. Returns how many went; the others stay, in order. */
static int pass_held(fan_core *core, int64_t now_ns)
{
    int passed = 0;
    for (int i = 0; i < core->held_count; i++) {
        int number = fan_route(core, &core->held[i].record, now_ns);
        if (number < 0)
            break;
        core->held[i].channel = number;
        core->channels[number].space--;
        if (number < core->seat_count) /* counted while routing, so that the next one sees it */
            core->seats[number].passed++;
    }
    for (int i = 0; i < core->held_count; i++) {
        int number = core->held[i].channel;
        if (core->held[i].fd < 0 || number < 0)
            continue;
        if (number < core->seat_count)
            for (int j = i; j < core->held_count; j++)
                core->seats[number].passed -= core->held[j].channel == number;
        passed += pass_to(core, number, now_ns);
    }
    int kept = 0;
    for (int i = 0; i < core->held_count; i++)
        if (core->held[i].fd >= 0)
            core->held[kept++] = core->held[i];
    core->held_count = kept;
    return passed;
}

void fan_core_finish_if_done(fan_core *core)
{
    if (!core->finishing || core->finished || core->held_count > 0)
        return;
    for (int i = 0; i < core->listener_count; i++)
        if (core->listeners[i].fd >= 0)
            return;
    for (int i = fan_channel_next(core, 0); i <= core->seat_count; i = fan_channel_next(core, i + 1)) {
        const fan_channel *channel = &core->channels[i];
        if (channel->spill_fd >= 0 || (channel->recalling && fan_channel_untaken(channel) > 0))
            return;
    }
    for (int i = fan_channel_next(core, 0); i <= core->seat_count; i = fan_channel_next(core, i + 1))
        if (core->channels[i].write_fd >= 0)
            shutdown(core->channels[i].write_fd, SHUT_WR);
    core->finished = true;
    fan_event_add(core, FAN_EVENT_FINISHED, 0, 0);
}

/* Move connections until no channel is hungry or nothing is there. True if it stopped only to let others have a turn. */
bool fan_core_dispatch(fan_core *core)
{
    for (int round = 0; round < ROUNDS; round++) {
        int64_t now_ns = fan_now_ns();
        if (core->finished || now_ns < core->stall_until_ns)
            return false;
        core->stall_until_ns = core->lag_until_ns = 0;
        if (core->broken_count && !fan_is_paused(core))
            fan_channels_mend(core);
        int space = total_space(core, now_ns);
        if (space == 0 && want_room(core))
            space = total_space(core, now_ns);
        if (space == 0) {
            if (core->finishing)
                fan_accept_finish_empty(core);
            return false;
        }
        if (core->held_count == 0 && refill(core, space, now_ns) == 0)
            return false;
        if (pass_held(core, now_ns) == 0)
            return false;
    }
    return true;
}

void fan_core_finish(fan_core *core, int64_t limit)
{
    core->finishing = true;
    for (int i = 0; i < core->listener_count; i++) {
        core->listeners[i].remaining = limit;
        core->listeners[i].maybe = core->listeners[i].fd >= 0;
    }
}
