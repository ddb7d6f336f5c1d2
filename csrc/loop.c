/* loop.c: the one loop of the master: dispatch, wait, events out.
 *
 * Two epoll sets. `inner` holds the channels and what Python watches; `outer` holds the listeners and `inner`. The
 * master waits for `outer` only while a channel is hungry and it holds no connection. So a master whose
 * workers are full is not woken by each new client, and changing between the two states costs no system call.
 */
#define _GNU_SOURCE
#include "core.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

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
    for (int seat = 0; seat < core->used_count; seat++) {
        if (core->seats[seat].entered && fan_seat_channel(core, seat) == number) {
            taken += fan_score_taken(fan_scoreboard_at(&core->scoreboard, seat));
            idle += fan_score_idle(fan_scoreboard_at(&core->scoreboard, seat), core->seats[seat].threads);
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
        core->look_at_ns = again ? now_ns + FAN_LOOK_NS : 0;
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
    return core->held_count == 0 && !core->stall_until_ns && !fan_is_paused(core) && anybody_hungry(core);
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
    listeners_may_have_more(core); /* no listener was watched while all were full */
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
        core->more = fan_core_dispatch(core);
        fan_core_finish_if_done(core);
        int told = core->event_count < cap ? core->event_count : cap;
        if (told) {
            memcpy(events, core->events, (size_t)told * sizeof *events);
            core->event_count -= told;
            memmove(core->events, core->events + told, (size_t)core->event_count * sizeof *events);
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

int fan_core_poll_fd(fan_core *core)
{
    if (core->poll_fd >= 0)
        return core->poll_fd;
    int poll_fd = epoll_create1(EPOLL_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    int rc = poll_fd < 0 || timer < 0 ? -errno : 0;
    if (rc == 0)
        rc = fan_epoll(poll_fd, EPOLL_CTL_ADD, timer, EPOLLIN, 0);
    if (rc == 0)
        rc = fan_epoll(poll_fd, EPOLL_CTL_ADD, core->inner, EPOLLIN, 0);
    if (rc == 0)
        rc = fan_epoll(poll_fd, EPOLL_CTL_ADD, core->outer, 0, 0); /* asked for only while a channel is hungry, see arm */
    if (rc < 0) {
        fan_close(&poll_fd);
        fan_close(&timer);
        return rc;
    }
    core->poll_fd = poll_fd;
    core->timer = timer;
    return poll_fd;
}

int fan_core_arm(fan_core *core, int64_t timeout_ns)
{
    assert(core->poll_fd >= 0);
    int64_t now_ns = fan_now_ns();
    int64_t next_ns = next_deadline_ns(core, deadline_after(timeout_ns, now_ns));
    if (core->event_count > 0 || core->more)
        next_ns = now_ns;
    struct itimerspec at = {0}; /* all zero: never */
    if (next_ns != INT64_MAX)
        at.it_value = (struct timespec){.tv_sec = next_ns / 1000000000, .tv_nsec = next_ns % 1000000000};
    if (timerfd_settime(core->timer, TFD_TIMER_ABSTIME, &at, NULL) < 0)
        return -errno;
    return fan_epoll(core->poll_fd, EPOLL_CTL_MOD, core->outer, is_listening(core) ? EPOLLIN : 0, 0);
}
