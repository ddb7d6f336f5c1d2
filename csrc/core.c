/* core.c: birth, death, and the one loop of the master: dispatch, wait, events out.
 *
 * Two epoll sets. `inner` holds the channels and what Python watches; `outer` holds the listeners and `inner`. The
 * master waits for `outer` only while somebody is hungry and nothing is in its hands. So a full house is not woken by
 * each new client, and changing between the two states costs no system call.
 */
#define _GNU_SOURCE
#include "core.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#define STALL_NS (10 * FAN_MS) /* after ETOOMANYREFS, ENOBUFS: no event tells when it is over */
#define LOOK_NS (10 * FAN_MS)  /* how long a message may wait beside an idle reader before somebody is nudged */
#define ROUNDS 64              /* batches in a row before Python's events get their turn: a few milliseconds */

#define FAN_OFTEN 8
#define NOTICES(slots) (FAN_OFTEN + (slots) + 1 + FAN_MAX_LISTENERS + 1)

int fan_epoll(int set, int op, int fd, uint32_t events, uint64_t about)
{
    struct epoll_event event = {.events = events, .data.u64 = about};
    return epoll_ctl(set, op, fd, &event) < 0 ? -errno : 0;
}

/* News of the core's own. There is room for each channel's and each listener's end, which come once; a quarrel of pauses
 * and resumptions loses its newest. */
void fan_core_notice(fan_core *core, int kind, int error, int64_t token)
{
    bool often = kind == FAN_EVENT_PAUSED || kind == FAN_EVENT_RESUMED;
    if (core->notice_count < (often ? FAN_OFTEN : NOTICES(core->slot_count)))
        core->notices[core->notice_count++] = (fan_event){.kind = kind, .error = error, .token = token};
}

/* ---- birth and death --------------------------------------------------------------------------------------------- */

int fan_core_new(int slots, int policy, fan_core **out)
{
    if (slots < 1 || slots > FAN_MAX_SLOTS || policy < FAN_ROUND_ROBIN || policy > FAN_SOURCE_HASH)
        return -EINVAL;
    int rc = -ENOMEM;
    fan_core *core = calloc(1, sizeof *core);
    if (!core)
        return rc;
    core->inner = core->outer = core->front = core->timer = core->board_fd = -1;
    core->slot_count = slots;
    core->policy = policy;
    core->accept_flags = SOCK_CLOEXEC;
    core->channels = calloc((size_t)slots + 1, sizeof *core->channels);
    core->slots = calloc((size_t)slots, sizeof *core->slots);
    core->rotation = calloc((size_t)slots + 1, sizeof *core->rotation);
    core->notices = calloc((size_t)NOTICES(slots), sizeof *core->notices);
    for (int i = 0; core->channels && i <= slots; i++)
        core->channels[i] = (fan_channel){.write_fd = -1, .read_fd = -1, .spill_fd = -1};
    if (!core->channels || !core->slots || !core->rotation || !core->notices)
        goto fail;
    rc = fan_boards_map(&core->boards, slots);
    if (rc < 0)
        goto fail;
    core->turns = fan_boards_turns(&core->boards);
    const char *call;
    rc = core->message_bytes = fan_message_bytes(&call);
    if (rc < 0)
        goto fail;
    core->inner = epoll_create1(EPOLL_CLOEXEC);
    core->outer = epoll_create1(EPOLL_CLOEXEC);
    rc = -errno;
    if (core->inner < 0 || core->outer < 0)
        goto fail;
    rc = fan_epoll(core->outer, EPOLL_CTL_ADD, core->inner, EPOLLIN, FAN_ABOUT(FAN_INNER, 0));
    if (rc == 0)
        rc = fan_channel_birth(core, slots, &core->channels[slots]);
    if (rc < 0)
        goto fail;
    *out = core;
    return 0;
fail:
    fan_core_free(core);
    return rc;
}

/* All but the channels' reading ends and the board. epoll sets are only closed, never edited: after a fork they are
 * the master's as well. */
static void close_most(fan_core *core)
{
    for (int i = 0; i < core->held_count; i++)
        fan_close(&core->held[i].fd);
    for (int i = 0; i < core->listener_count; i++)
        fan_close(&core->listeners[i].fd);
    for (int i = 0; core->channels && i <= core->slot_count; i++) {
        fan_close(&core->channels[i].write_fd);
        fan_close(&core->channels[i].spill_fd);
    }
    fan_close(&core->inner);
    fan_close(&core->outer);
    fan_close(&core->front);
    fan_close(&core->timer);
    fan_close(&core->board_fd);
}

static void free_memory(fan_core *core)
{
    free(core->channels);
    free(core->slots);
    free(core->rotation);
    free(core->notices);
    free(core);
}

void fan_core_free(fan_core *core)
{
    if (!core)
        return;
    close_most(core);
    for (int i = 0; core->channels && i <= core->slot_count; i++)
        fan_close(&core->channels[i].read_fd);
    fan_boards_unmap(&core->boards);
    free_memory(core);
}

void fan_core_abandon(fan_core *core, int slot, int *pool_fd, int *slot_fd, fan_board **board, fan_turns **turns)
{
    assert(slot >= 0 && slot < core->slot_count);
    close_most(core);
    *pool_fd = core->channels[core->slot_count].read_fd;
    *slot_fd = core->channels[slot].read_fd;
    for (int i = 0; i < core->slot_count; i++)
        if (i != slot)
            fan_close(&core->channels[i].read_fd);
    *board = fan_boards_keep(&core->boards, slot);
    *turns = core->turns;
    free_memory(core);
}

int fan_core_listen(fan_core *core, int fd)
{
    if (core->listener_count == FAN_MAX_LISTENERS)
        return -ENOSPC;
    int number = core->listener_count;
    int rc = fan_epoll(core->outer, EPOLL_CTL_ADD, fd, EPOLLIN, FAN_ABOUT(FAN_LISTENER, number));
    if (rc < 0)
        return rc;
    core->listeners[core->listener_count++] = (fan_listener){.fd = fd};
    return number;
}

int fan_core_share(fan_core *core)
{
    assert(core->used_count == 0 && core->board_fd < 0);
    int fd = fan_boards_share(&core->boards);
    if (fd < 0)
        return fd;
    core->board_fd = fd;
    return 0;
}

int fan_core_watch(fan_core *core, int fd, int64_t token)
{
    assert(token >= 0 && token < INT64_C(1) << 48);
    return fan_epoll(core->inner, EPOLL_CTL_ADD, fd, EPOLLIN, FAN_ABOUT(FAN_WATCHED, token));
}

int fan_core_unwatch(fan_core *core, int fd)
{
    return epoll_ctl(core->inner, EPOLL_CTL_DEL, fd, NULL) < 0 ? -errno : 0;
}

void fan_core_count(const fan_core *core, fan_counters *out)
{
    *out = core->counters;
    out->held = (uint64_t)core->held_count;
}

int fan_core_message_bytes(const fan_core *core)
{
    return core->message_bytes;
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

/* How many more connections a slot's worker may hold. */
static int room_of(const fan_core *core, int number)
{
    if (number == core->slot_count || core->slots[number].most == 0)
        return INT_MAX;
    uint64_t live = fan_slot_live(core, number), most = (uint64_t)core->slots[number].most;
    return live < most ? (int)(most - live) : 0;
}

/* No worker may have a connection now: those at their limit shall tell when one is done. Whether one is done already. */
static bool want_room(fan_core *core)
{
    bool room = false;
    for (int i = 0; i < core->rotation_count; i++)
        if (room_of(core, core->rotation[i]) == 0) {
            fan_board_want(fan_boards_at(&core->boards, core->rotation[i]));
            room |= room_of(core, core->rotation[i]) > 0;
        }
    return room;
}

/* Ask the kernel about the channels that are thought to be full; have those that are tell when they no longer are.
 * Returns how many connections may be passed now. */
static int total_space(fan_core *core, int64_t now_ns)
{
    int total = 0;
    for (int i = 0; i < core->rotation_count; i++) {
        fan_channel *channel = &core->channels[core->rotation[i]];
        int room = room_of(core, core->rotation[i]);
        if (room < channel->space || room == 0)
            channel->space = room;
        else if (channel->space <= 0 && !channel->armed) {
            channel->untaken = fan_channel_untaken(channel);
            if (channel->untaken >= 0 && channel->untaken <= channel->quarter) {
                channel->space = channel->size - channel->untaken;
                if (channel->space > room)
                    channel->space = room;
            } else {
                channel->full_since_ns = now_ns;
                channel->armed = fan_epoll(core->inner, EPOLL_CTL_MOD, channel->write_fd, EPOLLOUT | EPOLLONESHOT,
                                           FAN_ABOUT(FAN_CHANNEL, core->rotation[i])) == 0;
                if (!channel->armed)
                    core->stall_until_ns = now_ns + STALL_NS; /* ENOMEM: nothing else would have it asked again */
            }
        }
        total += channel->space;
    }
    return total;
}

/* Take back what waits where no worker reads. */
static int recall_batch(fan_core *core, int want, int64_t now_ns)
{
    int count = 0, number;
    if (!core->recall)
        return 0;
    for (number = fan_channel_next(core, 0); number <= core->slot_count; number = fan_channel_next(core, number + 1)) {
        fan_channel *channel = &core->channels[number];
        while (channel->recalling || channel->spill_fd >= 0) {
            if (count == want)
                goto out;
            fan_held *held = &core->held[count];
            int source = channel->spill_fd >= 0 ? channel->spill_fd : channel->read_fd;
            int rc = fan_channel_room(source, 1);
            if (rc < 0) {
                fan_accept_pause(core, -rc);
                goto out;
            }
            rc = fan_channel_recall(source, held);
            if (rc == 1) {
                held->channel = -1;
                core->counters.recalled++;
                if (number < core->slot_count)
                    core->slots[number].passed -= core->slots[number].passed > 0;
                count++;
            } else if (rc == -ENOBUFS)
                core->counters.truncated++;
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
    if (fan_accept_rests(core))
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
        fan_core_notice(core, FAN_EVENT_PAUSED, error, 0);
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
        fan_core_notice(core, FAN_EVENT_RESUMED, 0, 0);
    }
    /* Hungry is who has a quarter left or less. One that may have more is asked before it gets more, and has the
     * master wait until it is hungry: so a busy house is fed in batches instead of being woken into by each client. */
    channel->untaken += passed;
    if (channel->untaken > channel->quarter)
        channel->space = 0;
    if (number < core->slot_count)
        core->slots[number].passed += (uint64_t)passed;
    if (channel->threads > 0) {
        channel->nudgeable = true;
        channel->nudges = 0; /* those before were for others, who may all be gone by now */
        if (core->look_at_ns == 0)
            core->look_at_ns = now_ns + LOOK_NS;
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
        if (number < core->slot_count) /* counted while routing, so that the next one sees it */
            core->slots[number].passed++;
    }
    for (int i = 0; i < core->held_count; i++) {
        int number = core->held[i].channel;
        if (core->held[i].fd < 0 || number < 0)
            continue;
        if (number < core->slot_count)
            for (int j = i; j < core->held_count; j++)
                core->slots[number].passed -= core->held[j].channel == number;
        passed += pass_to(core, number, now_ns);
    }
    int kept = 0;
    for (int i = 0; i < core->held_count; i++)
        if (core->held[i].fd >= 0)
            core->held[kept++] = core->held[i];
    core->held_count = kept;
    return passed;
}

static void finish_if_done(fan_core *core)
{
    if (!core->finishing || core->finished || core->held_count > 0)
        return;
    for (int i = 0; i < core->listener_count; i++)
        if (core->listeners[i].fd >= 0)
            return;
    for (int i = fan_channel_next(core, 0); i <= core->slot_count; i = fan_channel_next(core, i + 1)) {
        const fan_channel *channel = &core->channels[i];
        if (channel->spill_fd >= 0 || (channel->recalling && fan_channel_untaken(channel) > 0))
            return;
    }
    for (int i = fan_channel_next(core, 0); i <= core->slot_count; i = fan_channel_next(core, i + 1))
        if (core->channels[i].write_fd >= 0)
            shutdown(core->channels[i].write_fd, SHUT_WR);
    core->finished = true;
    fan_core_notice(core, FAN_EVENT_FINISHED, 0, 0);
}

/* Move connections until nobody is hungry or nothing is there. True if it stopped only to let others have a turn. */
static bool dispatch(fan_core *core)
{
    for (int round = 0; round < ROUNDS; round++) {
        int64_t now_ns = fan_now_ns();
        if (core->finished || now_ns < core->stall_until_ns)
            return false;
        core->stall_until_ns = core->lag_until_ns = 0;
        if (core->broken_count && !fan_accept_rests(core))
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

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

static void listeners_may_have_more(fan_core *core)
{
    for (int i = 0; i < core->listener_count; i++)
        core->listeners[i].maybe = core->listeners[i].fd >= 0;
}

/* A message waits although a reader is idle, and none was taken since the last look: its wake-up died with a worker
 * that was killed or stopped in that instant. Wake the next one; as many in a row as seem idle. */
static bool look_at(fan_core *core, int number)
{
    fan_channel *channel = &core->channels[number];
    if (!channel->nudgeable)
        return false;
    fan_channel_mend(channel);
    channel->nudgeable = fan_channel_untaken(channel) > 0;
    if (!channel->nudgeable)
        return false;
    uint64_t taken = 0;
    int idle = 0;
    for (int slot = 0; slot < core->used_count; slot++) {
        if (core->slots[slot].entered && fan_slot_channel(core, slot) == number) {
            taken += fan_board_taken(fan_boards_at(&core->boards, slot));
            idle += fan_board_idle(fan_boards_at(&core->boards, slot), core->slots[slot].threads);
        }
    }
    if (taken != channel->taken_seen) {
        channel->taken_seen = taken;
        channel->nudges = 0;
    } else if (channel->nudges < idle && fan_channel_nudge(channel) == 0) {
        channel->nudges++;
        core->counters.nudges++;
    }
    return true;
}

static void keep_time(fan_core *core, int64_t now_ns)
{
    if (core->pause_until_ns && now_ns >= core->pause_until_ns) {
        core->pause_until_ns = 0;
        listeners_may_have_more(core);
    }
    if (core->look_at_ns && now_ns >= core->look_at_ns) {
        bool again = false;
        for (int i = 0; i < core->rotation_count; i++)
            again |= look_at(core, core->rotation[i]);
        core->look_at_ns = again ? now_ns + LOOK_NS : 0;
    }
}

/* Milliseconds until the next thing to do by the clock, rounded up; -1: nothing. `deadline_ns` is Python's. */
static int64_t next_deadline_ns(const fan_core *core, int64_t deadline_ns)
{
    int64_t next_ns = deadline_ns;
    if (core->pause_until_ns && core->pause_until_ns < next_ns)
        next_ns = core->pause_until_ns;
    if (core->stall_until_ns && core->stall_until_ns < next_ns)
        next_ns = core->stall_until_ns;
    if (core->lag_until_ns && core->lag_until_ns < next_ns)
        next_ns = core->lag_until_ns;
    if (core->look_at_ns && core->look_at_ns < next_ns)
        next_ns = core->look_at_ns;
    return next_ns;
}

static int patience_ms(const fan_core *core, int64_t now_ns, int64_t deadline_ns)
{
    int64_t next_ns = next_deadline_ns(core, deadline_ns);
    if (next_ns == INT64_MAX)
        return -1;
    int64_t ms = (next_ns - now_ns + FAN_MS - 1) / FAN_MS;
    return ms < 0 ? 0 : ms > 1000000 ? 1000000 : (int)ms;
}

static bool anybody_hungry(const fan_core *core)
{
    for (int i = 0; i < core->rotation_count; i++)
        if (core->channels[core->rotation[i]].space > 0)
            return true;
    return false;
}

static bool is_listening(const fan_core *core)
{
    return core->held_count == 0 && !core->stall_until_ns && !fan_accept_rests(core) && anybody_hungry(core);
}

static void channel_writable(fan_core *core, int number, uint32_t events)
{
    fan_channel *channel = &core->channels[number];
    channel->armed = false;
    if (events & (EPOLLHUP | EPOLLERR)) {
        if (!core->finished)
            fan_channel_replace(core, number);
        return;
    }
    channel->untaken = fan_channel_untaken(channel);
    /* The kernel's word counts: if it says there is space, one message is tried. */
    channel->space = channel->untaken >= 0 && channel->untaken < channel->size ? channel->size - channel->untaken : 1;
    listeners_may_have_more(core); /* nobody listened while all were full */
}

/* One wait. Returns how many events for Python, or -errno. */
static int wait_for(fan_core *core, int set, int timeout_ms, fan_event *events, int cap)
{
    struct epoll_event ready[64];
    int count = epoll_wait(set, ready, cap < 64 ? cap : 64, timeout_ms), told = 0;
    if (count < 0)
        return -errno;
    bool look_inside = false;
    for (int i = 0; i < count; i++) {
        int64_t number = FAN_ABOUT_NUMBER(ready[i].data.u64);
        switch (FAN_ABOUT_KIND(ready[i].data.u64)) {
        case FAN_WATCHED:
            events[told++] = (fan_event){.kind = FAN_EVENT_WATCHED, .token = number};
            break;
        case FAN_CHANNEL:
            channel_writable(core, (int)number, ready[i].events);
            break;
        case FAN_LISTENER:
            core->listeners[number].maybe = core->listeners[number].told = core->listeners[number].fd >= 0;
            break;
        case FAN_INNER:
            look_inside = true;
        }
    }
    if (!look_inside)
        return told;
    int rc = wait_for(core, core->inner, 0, events, cap); /* nothing was told yet: outer holds no watched ones */
    return rc == -EINTR ? told : rc;
}

static int64_t deadline_after(int64_t timeout_ns, int64_t now_ns)
{
    return timeout_ns < 0 || timeout_ns > INT64_MAX - now_ns ? INT64_MAX : now_ns + timeout_ns;
}

int fan_core_run(fan_core *core, int64_t timeout_ns, fan_event *events, int cap)
{
    assert(cap > 0);
    int64_t deadline_ns = deadline_after(timeout_ns, fan_now_ns());
    for (;;) {
        keep_time(core, fan_now_ns());
        core->more = dispatch(core);
        finish_if_done(core);
        int told = core->notice_count < cap ? core->notice_count : cap;
        if (told) {
            memcpy(events, core->notices, (size_t)told * sizeof *events);
            core->notice_count -= told;
            memmove(core->notices, core->notices + told, (size_t)core->notice_count * sizeof *events);
            return told;
        }
        int64_t now_ns = fan_now_ns();
        int timeout_ms = core->more ? 0 : patience_ms(core, now_ns, deadline_ns);
        told = wait_for(core, is_listening(core) ? core->outer : core->inner, timeout_ms, events, cap);
        if (told == -EINTR) {
            core->counters.interrupts++;
            return 0;
        }
        if (told != 0)
            return told;
        if (fan_now_ns() >= deadline_ns)
            return 0;
    }
}

/* ---- for a program that has a loop of its own ---------------------------------------------------------------------- */

int fan_core_front(fan_core *core)
{
    if (core->front >= 0)
        return core->front;
    int front = epoll_create1(EPOLL_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    int rc = front < 0 || timer < 0 ? -errno : 0;
    if (rc == 0)
        rc = fan_epoll(front, EPOLL_CTL_ADD, timer, EPOLLIN, 0);
    if (rc == 0)
        rc = fan_epoll(front, EPOLL_CTL_ADD, core->inner, EPOLLIN, 0);
    if (rc == 0)
        rc = fan_epoll(front, EPOLL_CTL_ADD, core->outer, 0, 0); /* asked for only while somebody is hungry, see arm */
    if (rc < 0) {
        fan_close(&front);
        fan_close(&timer);
        return rc;
    }
    core->front = front;
    core->timer = timer;
    return front;
}

int fan_core_arm(fan_core *core, int64_t timeout_ns)
{
    assert(core->front >= 0);
    int64_t now_ns = fan_now_ns();
    int64_t next_ns = next_deadline_ns(core, deadline_after(timeout_ns, now_ns));
    if (core->notice_count > 0 || core->more)
        next_ns = now_ns;
    struct itimerspec at = {0}; /* all zero: never */
    if (next_ns != INT64_MAX)
        at.it_value = (struct timespec){.tv_sec = next_ns / 1000000000, .tv_nsec = next_ns % 1000000000};
    if (timerfd_settime(core->timer, TFD_TIMER_ABSTIME, &at, NULL) < 0)
        return -errno;
    return fan_epoll(core->front, EPOLL_CTL_MOD, core->outer, is_listening(core) ? EPOLLIN : 0, 0);
}
