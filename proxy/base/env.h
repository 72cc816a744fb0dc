/*
 * What auth, routing and net get to know of the worker they run in: its loop, its next turn, the
 * configuration, the worker's counters, and its connection to Redis. Everything in it outlives
 * whoever borrows it.
 */
#ifndef IMAPMUX_BASE_ENV_H
#define IMAPMUX_BASE_ENV_H

#include "proxy/base/conf.h"
#include "proxy/base/metrics.h"
#include "proxy/base/turn.h"

#include <uv.h>

struct freshness;
struct redis_link;

struct env {
    uv_loop_t *loop;
    struct turn *turn;
    const struct conf *conf;
    struct counters *counters;
    struct redis_link *redis;          /* NULL unless conf_uses_redis */
    const struct freshness *freshness; /* of what Redis has told; of workers; may be NULL */
};

#endif
