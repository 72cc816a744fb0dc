/*
 * Two clocks, in milliseconds, and a short sleep. The first one only goes forward, and is the same
 * for all threads, where loops differ (uv_now); it stands still while the machine is suspended.
 */
#ifndef IMAPMUX_BASE_CLOCK_H
#define IMAPMUX_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_of(clockid_t id)
{
    struct timespec now;

    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static inline uint64_t clock_ms(void)
{
    return clock_of(CLOCK_MONOTONIC);
}

/* Since 1970. It may be set. */
static inline uint64_t clock_wall_ms(void)
{
    return clock_of(CLOCK_REALTIME);
}

/* A signal may end it early. */
static inline void clock_sleep(uint64_t ms)
{
    struct timespec time = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};

    nanosleep(&time, NULL);
}

#endif
