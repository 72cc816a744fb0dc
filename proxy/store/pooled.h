/*
 * The pool from within: its connections, the lists they are in, and what it has for each shard.
 * For pool.c, which serves requests, and idle.c, which keeps what nobody uses; nobody else includes
 * this.
 */
#ifndef IMAPMUX_STORE_POOLED_H
#define IMAPMUX_STORE_POOLED_H

#include "proxy/base/hash.h"
#include "proxy/base/keyed_hash.h"
#include "proxy/store/lease.h"
#include "proxy/store/store.h"

enum pooled_state {
    POOLED_OPENING, /* for a request */
    POOLED_LOGGING_IN,
    POOLED_CHECKING,
    POOLED_LENT,
    POOLED_LEAVING, /* for itself from here on */
    POOLED_PARKED,
    POOLED_RESETTING,
    POOLED_SPARE, /* opening, to be warm */
    POOLED_WARM,
    POOLED_STATE_COUNT
};

/*
 * How connections to a shard are made, by one configuration. Those that were made so keep it; it is
 * in force while it is its shard's. Counted, on one thread.
 */
struct pool_target {
    struct backend_target target; /* its TLS context is held */
    const struct conf *conf;      /* held */
    size_t holders;
};

struct pooled {
    struct pool *pool;
    struct pool_shard *at;
    struct pool_target *target; /* held */
    struct backend *backend;
    struct lease_request *request;  /* OPENING, LOGGING_IN, CHECKING */
    struct pooled *next, *previous; /* WARM and PARKED: in the shard's list, oldest first */
    struct pooled *all_next, *all_previous;
    struct parked_user *user; /* PARKED */
    struct pooled *user_next, *user_previous;
    char *user_name; /* from the login on */
    struct lease_identity identity;
    uint64_t started_ms; /* clock_ms: for all workers to compare */
    uint64_t born_ms, idle_since_ms;
    uint8_t state, kind;
};

struct pool_shard {
    struct pool *pool;
    struct store *store;
    struct pool_target *target; /* held: that of new connections */
    struct gate_side connections, logins;
    struct pooled *warm, *parked;
    size_t warm_count, parked_count;
    size_t logging_in;            /* have a place at the gate of logins */
    uint64_t leases[LEASE_KINDS]; /* so far */
    uint64_t last_lease_ms;
    bool spare_opening;
    uint64_t spare_pause_ms, next_spare_ms; /* after a failure */
    uint64_t losses_since_ms;
    unsigned loss_count;
    uint32_t down_address_news; /* of the store, so far as acted upon */
};

/* A user with parked connections, oldest first. */
struct parked_user {
    struct pooled *first;
    size_t count;
    UT_hash_handle hh;
    char name[];
};

struct pool {
    const struct env *env;
    const struct stores *stores;
    size_t index;               /* of the worker */
    struct pool_shard **shards; /* by shard id */
    size_t shard_count;
    struct pooled *all;
    struct parked_user *users;
    size_t parked_count;
    int scarce_fd;           /* a descriptor from here on: they run short */
    struct keyed_hash *hash; /* of the identities */
    uv_timer_t janitor;
    uv_async_t wake;
    const struct backend_events *events; /* of its connections */
    uint8_t handles_open;
    bool stopping, keeps_nothing;
};

/* NULL without memory. `tls` and `conf` are held as long as need be. */
struct pool_target *pool_target_new(const struct conf *conf, const struct conf_shard *shard,
                                    struct store *store, const struct tls *tls);
struct pool_target *pool_target_hold(struct pool_target *target);
void pool_target_release(struct pool_target **target); /* nulls the pointer; harmless on NULL */

/* Connections that are opened from now on use this TLS. */
void pool_target_use_tls(struct pool_target *target, const struct tls *tls);

/* A connection that is not open yet, with its place; NULL without memory. */
struct pooled *pooled_new(struct pool_shard *at, enum pooled_state state);

/* Takes it out of the lists of idle ones; harmless on one that is in none. */
void pooled_unlist(struct pooled *p);

/* Ends it, whatever its state; `reason` counts why. */
void pooled_drop(struct pooled *p, _Atomic uint64_t *reason);

/* It was made as its shard was before: it is not kept. */
static inline bool pooled_is_outdated(const struct pooled *p)
{
    return p->target != p->at->target;
}

/* The settings of the shard, as they are in force; or were, once it is removed. */
static inline const struct conf_shard *pool_shard_conf(const struct pool_shard *at)
{
    return at->target->target.shard;
}

static inline const struct conf_pool *pool_conf(const struct pool *pool)
{
    return &pool->env->conf->pool;
}

static inline uint64_t pool_now(const struct pool *pool)
{
    return uv_now(pool->env->loop);
}

#endif
