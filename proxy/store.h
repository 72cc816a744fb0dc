/*
 * What all workers share about the stores: how many connections and logins each one may have now,
 * and whether it answers. The list is made before the workers and outlives them.
 */
#ifndef IMAPMUX_PROXY_STORE_H
#define IMAPMUX_PROXY_STORE_H

#include "proxy/base/conf.h"
#include "proxy/gate.h"

struct store {
    const struct conf_shard *shard;
    struct gate connections;     /* places: connections of this process to the store */
    struct gate logins;          /* places: sessions between connecting and the end of the login */
    _Atomic uint64_t reached_ms; /* when it greeted last; uv_hrtime */
    _Atomic uint64_t down_ms;    /* when it was found down */
};

/* One for each shard, in the order of conf->shards; NULL without memory. */
struct store *stores_open(const struct conf *conf, size_t worker_count);
void stores_close(struct store **stores, size_t count);

/*
 * What an attempt met that began at `started_ms` (uv_hrtime, in ms): it was greeted, or no address
 * answered, and nobody else was greeted meanwhile or a moment ago: then the store is down. Its gate
 * for logins is held, so that one at a time tries; when it is back they begin slowly
 * (shard.slow_start). Any thread. `not_reached` tells whether that is the second failure: then
 * there is no use in waiting.
 */
void store_was_reached(struct store *store);
bool store_was_not_reached(struct store *store, uint64_t started_ms);

#endif
