/* core.c: birth and death of a core, in the master and in what is forked from it; what it listens on, watches, counts. */
#define _GNU_SOURCE
#include "core.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

int fan_core_new(int seats, int policy, fan_core **out)
{
    if (seats < 1 || seats > FAN_MAX_SEATS || !fan_policy_of(policy))
        return -EINVAL;
    int rc = -ENOMEM;
    fan_core *core = calloc(1, sizeof *core);
    if (!core)
        return rc;
    core->inner = core->outer = core->poll_fd = core->timer = core->scoreboard_fd = -1;
    core->seat_count = seats;
    core->policy = fan_policy_of(policy);
    core->accept_flags = SOCK_CLOEXEC;
    core->channels = calloc((size_t)seats + 1, sizeof *core->channels);
    core->seats = calloc((size_t)seats, sizeof *core->seats);
    core->rotation = calloc((size_t)seats + 1, sizeof *core->rotation);
    core->events = calloc((size_t)FAN_EVENTS(seats), sizeof *core->events);
    for (int i = 0; core->channels && i <= seats; i++)
        core->channels[i] = (fan_channel){.write_fd = -1, .read_fd = -1, .spill_fd = -1};
    if (!core->channels || !core->seats || !core->rotation || !core->events)
        goto fail;
    rc = fan_scoreboard_map(&core->scoreboard, seats);
    if (rc < 0)
        goto fail;
    core->turns = fan_scoreboard_turns(&core->scoreboard);
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
        rc = fan_channel_birth(core, seats, &core->channels[seats]);
    if (rc < 0)
        goto fail;
    *out = core;
    return 0;
fail:
    fan_core_free(core);
    return rc;
}

/* All but the channels' reading ends and the scoreboard. epoll sets are only closed, never edited: after a fork they are
 * the master's as well. */
static void close_most(fan_core *core)
{
    for (int i = 0; i < core->held_count; i++)
        fan_close(&core->held[i].fd);
    for (int i = 0; i < core->listener_count; i++)
        fan_close(&core->listeners[i].fd);
    for (int i = 0; core->channels && i <= core->seat_count; i++) {
        fan_close(&core->channels[i].write_fd);
        fan_close(&core->channels[i].spill_fd);
    }
    fan_close(&core->inner);
    fan_close(&core->outer);
    fan_close(&core->poll_fd);
    fan_close(&core->timer);
    fan_close(&core->scoreboard_fd);
}

static void free_memory(fan_core *core)
{
    free(core->channels);
    free(core->seats);
    free(core->rotation);
    free(core->events);
    free(core);
}

void fan_core_free(fan_core *core)
{
    if (!core)
        return;
    close_most(core);
    for (int i = 0; core->channels && i <= core->seat_count; i++)
        fan_close(&core->channels[i].read_fd);
    fan_scoreboard_unmap(&core->scoreboard);
    free_memory(core);
}

void fan_core_abandon(fan_core *core, int seat, fan_ends *ends)
{
    assert(seat >= 0 && seat < core->seat_count);
    close_most(core);
    for (int i = 0; i < core->seat_count; i++)
        if (i != seat)
            fan_close(&core->channels[i].read_fd);
    *ends = (fan_ends){
        .pool_fd = core->channels[core->seat_count].read_fd,
        .seat_fd = core->channels[seat].read_fd,
        .scoreboard_fd = -1,
        .score = fan_scoreboard_keep(&core->scoreboard, seat),
        .turns = core->turns,
    };
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
    assert(core->used_count == 0 && core->scoreboard_fd < 0);
    int fd = fan_scoreboard_share(&core->scoreboard);
    if (fd < 0)
        return fd;
    core->scoreboard_fd = fd;
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
