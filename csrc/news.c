/* news.c: what every other file of the core may need: an entry in an epoll set, news for Python, the pause of accepting.
 *
 * It calls nothing of the core.
 */
#include "core.h"

#include <errno.h>
#include <sys/epoll.h>

#define PAUSE_NS (100 * FAN_MS) /* after EMFILE and its like: long enough to cost nothing, short for a client */

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
    if (core->notice_count < (often ? FAN_OFTEN : FAN_NOTICES(core->seat_count)))
        core->notices[core->notice_count++] = (fan_event){.kind = kind, .error = error, .token = token};
}

void fan_accept_pause(fan_core *core, int error)
{
    if (error == EMFILE || error == ENFILE)
        core->counters.fd_shortages++;
    else if (error == ENOBUFS || error == ENOMEM)
        core->counters.memory_shortages++;
    if (!core->paused)
        fan_core_notice(core, FAN_EVENT_PAUSED, error, 0);
    core->paused = true;
    core->pause_until_ns = fan_now_ns() + PAUSE_NS;
}

/* Whether accepting rests. After the pause one try decides whether it is over; see fan_accept_batch. */
bool fan_accept_rests(const fan_core *core)
{
    return core->pause_until_ns != 0;
}
