/* Owns the state of each store that all workers have in common. */
#include "proxy/store.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"

enum { DOUBT_MS = 1000 }; /* so long after a greeting a failure is an accident */

struct store *stores_open(const struct conf *conf, size_t worker_count)
{
    struct store *stores = mem_array(conf->shard_count, sizeof *stores);
    bool good = stores != NULL;

    for (size_t i = 0; good && i < conf->shard_count; i++) {
        const struct conf_shard *shard = &conf->shards[i];
        uint32_t queue = (uint32_t)shard->max_queue;

        stores[i].shard = shard;
        good = gate_init(&stores[i].connections, (uint32_t)shard->max_connections, queue, 0,
                         worker_count) &&
               gate_init(&stores[i].logins, (uint32_t)shard->max_logins_in_flight, queue,
                         shard->slow_start, worker_count);
    }
    if (!good)
        stores_close(&stores, conf->shard_count);
    return stores;
}

void stores_close(struct store **stores, size_t count)
{
    struct store *list = *stores;

    *stores = NULL;
    for (size_t i = 0; list != NULL && i < count; i++) {
        gate_release(&list[i].connections);
        gate_release(&list[i].logins);
    }
    mem_free(list);
}

void store_was_reached(struct store *store)
{
    atomic_store(&store->reached_ms, uv_hrtime() / 1000000);
    if (gate_start_slowly(&store->logins))
        log_event(LOG_LEVEL_WARNING, "store is back", "shard %s answers again",
                  store->shard->title);
}

bool store_was_not_reached(struct store *store, uint64_t started_ms)
{
    if (started_ms < atomic_load(&store->reached_ms) + DOUBT_MS)
        return false; /* one that goes wrong among many that go well */
    if (!gate_hold(&store->logins))
        return started_ms > atomic_load(&store->down_ms);
    atomic_store(&store->down_ms, uv_hrtime() / 1000000);
    log_event(LOG_LEVEL_WARNING, "store is down", "no address of shard %s answers",
              store->shard->title);
    return false;
}
