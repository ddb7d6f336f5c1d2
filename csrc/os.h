/* os.h: close-and-forget, the clock. Nothing else. */
#ifndef FAN_OS_H
#define FAN_OS_H

#include <stdint.h>
#include <time.h>
#include <unistd.h>

#define FAN_MS INT64_C(1000000) /* nanoseconds */

/* Linux frees the descriptor whatever close() returns (close(2), "Dealing with error returns"): never retry. */
static inline void fan_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static inline int64_t fan_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

#endif
