/* Owns what a pool has for each shard, and how that follows the configuration. */
#include "proxy/store/pool_change.h"

#include "proxy/base/conf_change.h"
#include "proxy/base/mem.h"
#include "proxy/store/idle.h"

struct pool_change {
    const struct tls *tls;      /* held */
    struct pool_shard **shards; /* the new table; behind the old ones stand those of new shards */
    size_t count, old_count;
    struct pool_target *targets[]; /* of old ones that have changed; else NULL */
};

static void free_shard(struct pool_shard *at)
{
    if (at == NULL)
        return;
    pool_target_release(&at->target);
    mem_free(at);
}

void pool_free_shards(struct pool *pool)
{
    for (size_t i = 0; i < pool->shard_count; i++)
        free_shard(pool->shards[i]);
    mem_free(pool->shards);
}

void pool_use_tls(struct pool *pool, const struct tls *tls)
{
    for (size_t i = 0; i < pool->shard_count; i++)
        pool_target_use_tls(pool->shards[i]->target, tls);
}

/* --- the first step --- */

static bool prepare_new(struct pool *pool, struct pool_change *change, const struct conf *conf,
                        const struct conf_shard *shard)
{
    struct pool_shard *at = mem_new(sizeof *at);

    change->shards[shard->id] = at;
    if (at == NULL)
        return false;
    at->pool = pool;
    at->store = stores_of(pool->stores, shard);
    at->target = pool_target_new(conf, shard, at->store, change->tls);
    return at->target != NULL;
}

/* The way to a shard that is as it was stays the same, and its connections are kept. */
static bool prepare_old(struct pool_change *change, const struct conf *conf,
                        const struct conf_shard *shard)
{
    const struct pool_shard *at = change->shards[shard->id];

    if (conf_same_shard(shard, pool_shard_conf(at)))
        return true;
    change->targets[shard->id] = pool_target_new(conf, shard, at->store, change->tls);
    return change->targets[shard->id] != NULL;
}

static bool prepare_all(struct pool *pool, struct pool_change *change, const struct conf *conf)
{
    bool good = true;

    for (size_t i = 0; i < pool->shard_count; i++)
        change->shards[i] = pool->shards[i];
    for (size_t i = 0; good && i < conf->shard_count; i++)
        good = conf->shards[i].id < pool->shard_count
                   ? prepare_old(change, conf, &conf->shards[i])
                   : prepare_new(pool, change, conf, &conf->shards[i]);
    return good;
}

struct pool_change *pool_prepare(struct pool *pool, const struct conf *conf, const struct tls *tls)
{
    size_t count = conf->shard_titles.count;
    struct pool_change *change = mem_new(sizeof *change + count * sizeof(struct pool_target *));

    if (change == NULL)
        return NULL;
    change->tls = tls_hold(tls);
    change->count = count;
    change->old_count = pool->shard_count;
    change->shards = mem_array(count, sizeof(struct pool_shard *));
    if (change->shards == NULL || !prepare_all(pool, change, conf))
        pool_discard(&change);
    return change;
}

/* --- the second step --- */

static void end_change(struct pool_change **change)
{
    tls_release(&(*change)->tls);
    mem_free((*change)->shards);
    mem_free(*change);
    *change = NULL;
}

void pool_discard(struct pool_change **change)
{
    struct pool_change *c = *change;

    if (c == NULL)
        return;
    for (size_t i = 0; i < c->old_count; i++)
        pool_target_release(&c->targets[i]);
    for (size_t i = c->old_count; c->shards != NULL && i < c->count; i++)
        free_shard(c->shards[i]);
    end_change(change);
}

/* What is idle was made in the old way. */
static void take_target(struct pool_shard *at, struct pool_target *target)
{
    pool_target_release(&at->target);
    at->target = target;
    while (idle_drop_oldest_of(at))
        ;
}

static void join_gates(struct pool_shard *at)
{
    struct pool *pool = at->pool;

    gate_join(&at->store->connections, pool->index, &at->connections, &pool->wake);
    gate_join(&at->store->logins, pool->index, &at->logins, &pool->wake);
}

void pool_commit(struct pool *pool, struct pool_change **change)
{
    struct pool_change *c = *change;
    struct pool_shard **old = pool->shards;

    pool->shards = c->shards;
    pool->shard_count = c->count;
    c->shards = old;
    for (size_t i = 0; i < c->old_count; i++)
        if (c->targets[i] != NULL)
            take_target(pool->shards[i], c->targets[i]);
    for (size_t i = c->old_count; i < c->count; i++)
        join_gates(pool->shards[i]);
    pool_use_tls(pool, c->tls);
    end_change(change);
}
