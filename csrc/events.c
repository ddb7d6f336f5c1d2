/* events.c: what every other file of the core may need: an entry in an epoll set, events for Python, the pause of accepting.
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

/* An event of the core's own. There is room for each channel's and each listener's end, which come once; if PAUSED and
 * RESUMED alternate faster than Python reads them, the newest are dropped. */
void fan_event_add(fan_core *core, int kind, int error, int64_t token)
{
    bool often = kind == FAN_EVENT_PAUSED || kind == FAN_EVENT_RESUMED;
    if (core->event_count < (often ? FAN_PAUSE_EVENTS : FAN_EVENTS(core->seat_count)))
        core->events[core->event_count++] = (fan_event){.kind = kind, .error = error, .token = token};
}

void fan_pause(fan_core *core, int error)
{
    if (error == EMFILE || error == ENFILE)
        core->counters.fd_shortages++;
    else if (error == ENOBUFS || error == ENOMEM)
        core->counters.memory_shortages++;
    if (!core->paused)
        fan_event_add(core, FAN_EVENT_PAUSED, error, 0);
    core->paused = true;
    core->pause_until_ns = fan_now_ns() + PAUSE_NS;
}

/* Whether accepting is paused. After the pause one try decides whether it is over; see fan_accept_batch. */
bool fan_is_paused(const fan_core *core)
{
    return core->pause_until_ns != 0;
}
