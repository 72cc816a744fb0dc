/*
 * What auth, routing and net get to know of the worker they run in: its loop, its next turn, the
 * configuration, the worker's counters, and its connection to Redis. Everything in it outlives
 * whoever borrows it.
 *
 * The worker's own has the configuration in force, which may be another one in the next turn of the
 * loop. Who is made for one configuration, and closed when another one comes, takes a copy.
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
    size_t holders;                    /* private: of a copy */
};

/*
 * A copy, which holds its configuration and keeps it. The caller holds the copy; NULL without
 * memory. On one thread.
 */
const struct env *env_copy(const struct env *env);

/* Of one that is no copy they do nothing, for it outlives all. */
const struct env *env_hold(const struct env *env);
void env_release(const struct env **env); /* nulls the pointer; harmless on NULL */

#endif
