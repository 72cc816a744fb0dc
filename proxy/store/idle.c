/*
 * Owns the connections that wait for somebody: warm ones for anyone, parked ones for their user. It
 * keeps them within their limits of number and time, and sees that spares are opened.
 */
#include "proxy/store/idle.h"

#include "proxy/base/mem.h"
#include "proxy/imap/caps.h"

#include <utlist.h>

enum { SPARE_PAUSE_MIN_MS = 1000, SPARE_PAUSE_MAX_MS = 30000 };

/* --- in and out of the lists --- */

/* Somebody waits for the place of a connection: none becomes idle now. */
static bool is_wanted(const struct pool_shard *at)
{
    return gate_is_crowded(at->connections.gate);
}

static bool join_user(struct pooled *p)
{
    struct pool *pool = p->pool;
    size_t len = strlen(p->user_name);
    struct parked_user *user;

    HASH_FIND_STR(pool->users, p->user_name, user);
    if (user == NULL) {
        user = mem_new(sizeof *user + len + 1);
        if (user == NULL)
            return false;
        memcpy(user->name, p->user_name, len);
        HASH_ADD_STR(pool->users, name, user);
        if (user->hh.tbl == NULL) {
            mem_free(user);
            return false;
        }
    }
    DL_APPEND2(user->first, p, user_previous, user_next);
    user->count++;
    p->user = user;
    return true;
}

/* The older one of two heads; either may be NULL. */
static struct pooled *older(struct pooled *one, struct pooled *other)
{
    if (one == NULL || other == NULL)
        return one == NULL ? other : one;
    return one->idle_since_ms <= other->idle_since_ms ? one : other;
}

bool idle_drop_oldest_of(struct pool_shard *at)
{
    struct pooled *oldest = older(at->warm, at->parked);

    if (oldest != NULL)
        pooled_drop(oldest, &at->pool->env->counters->drops_limit);
    return oldest != NULL;
}

bool idle_drop_oldest(struct pool *pool)
{
    struct pooled *oldest = NULL;

    for (size_t i = 0; i < pool->shard_count; i++)
        oldest = older(oldest, older(pool->shards[i]->warm, pool->shards[i]->parked));
    if (oldest != NULL)
        pooled_drop(oldest, &pool->env->counters->drops_limit);
    return oldest != NULL;
}

static void drop_at_down_addresses(struct pooled *list)
{
    struct pooled *next;

    for (struct pooled *p = list; p != NULL; p = next) {
        next = p->next;
        if (store_address_is_down(p->at->store, backend_address(p->backend)))
            pooled_drop(p, &p->pool->env->counters->drops_stale);
    }
}

void idle_drop_at_down_addresses(struct pool_shard *at)
{
    drop_at_down_addresses(at->warm);
    drop_at_down_addresses(at->parked);
}

/* --- parked --- */

/* This worker's part of a limit of the process. */
static size_t part_of(const struct pool *pool, int64_t limit)
{
    size_t part = (size_t)limit / pool->stores->worker_count;

    return part > 0 ? part : 1;
}

/*
 * A store that had a PROXY header takes the connection for that client's for ever: it is of no use
 * to another user.
 */
bool idle_can_reset(const struct pooled *p)
{
    return (int64_t)p->at->warm_count < pool_conf(p->pool)->warm &&
           pool_shard_conf(p->at)->client_address != CLIENT_ADDRESS_PROXY &&
           caps_has(backend_capabilities(p->backend), "UNAUTHENTICATE") &&
           pool_now(p->pool) - p->born_ms < pool_conf(p->pool)->lifetime &&
           !p->pool->keeps_nothing && !is_wanted(p->at);
}

/* The time of a parked one is over: it can be of use to others if the store can forget its user. */
static void end_parking(struct pooled *p, _Atomic uint64_t *reason)
{
    if (!idle_can_reset(p)) {
        pooled_drop(p, reason);
        return;
    }
    pooled_unlist(p);
    p->state = POOLED_RESETTING;
    backend_reset(p->backend);
}

void idle_park(struct pooled *p)
{
    struct pool *pool = p->pool;
    struct pool_shard *at = p->at;
    struct counters *counters = pool->env->counters;

    if (is_wanted(at) || pooled_is_outdated(p) || !join_user(p)) {
        pooled_drop(p, &counters->drops_limit);
        return;
    }
    p->state = POOLED_PARKED;
    p->idle_since_ms = pool_now(pool);
    DL_APPEND2(at->parked, p, previous, next);
    at->parked_count++;
    pool->parked_count++;
    gauge_add(&counters->backends_parked, 1);
    if (pool_conf(pool)->park_time == 0)
        end_parking(p, &counters->drops_expired);
    else if (p->user->count > (size_t)pool_conf(pool)->park_per_user)
        end_parking(p->user->first, &counters->drops_limit);
    else if (at->parked_count > part_of(pool, pool_conf(pool)->park_per_shard))
        end_parking(at->parked, &counters->drops_limit);
    else if (pool->parked_count > part_of(pool, pool_conf(pool)->park_total))
        idle_drop_oldest(pool);
}

struct pooled *idle_take_parked(struct pool_shard *at, const char *user_name,
                                const struct lease_identity *identity)
{
    struct parked_user *user;

    HASH_FIND_STR(at->pool->users, user_name, user);
    for (struct pooled *p = user == NULL ? NULL : user->first; p != NULL; p = p->user_next) {
        if (p->at != at || memcmp(&p->identity, identity, sizeof *identity) != 0)
            continue;
        pooled_unlist(p);
        return p;
    }
    return NULL;
}

void idle_purge(struct pool *pool, const char *user_name, const struct pool_shard *at,
                const struct lease_identity *identity)
{
    struct parked_user *user;
    struct pooled *next;

    HASH_FIND_STR(pool->users, user_name, user);
    for (struct pooled *p = user == NULL ? NULL : user->first; p != NULL; p = next) {
        next = p->user_next; /* the last drop frees `user`, too */
        if (p->at != at || memcmp(p->identity.proof, identity->proof, 16) != 0 ||
            memcmp(p->identity.backend_user, identity->backend_user, 16) != 0)
            pooled_drop(p, &pool->env->counters->drops_purged);
    }
}

/* --- warm --- */

void idle_add_warm(struct pooled *p)
{
    struct pool_shard *at = p->at;

    if (at->pool->keeps_nothing || is_wanted(at) || pooled_is_outdated(p) ||
        (int64_t)at->warm_count >= pool_conf(at->pool)->warm) {
        pooled_drop(p, &at->pool->env->counters->drops_limit);
        return;
    }
    p->state = POOLED_WARM;
    p->idle_since_ms = pool_now(at->pool);
    DL_APPEND2(at->warm, p, previous, next);
    at->warm_count++;
    gauge_add(&at->pool->env->counters->backends_warm, 1);
}

/* The newest one: it is the least likely to end just now. */
struct pooled *idle_take_warm(struct pool_shard *at)
{
    struct pooled *p = at->warm == NULL ? NULL : at->warm->previous;

    if (p != NULL)
        pooled_unlist(p);
    return p;
}

void idle_spare_opened(struct pooled *p)
{
    struct pool_shard *at = p->at;

    at->spare_opening = false;
    p->kind = LEASE_WARM;
    idle_add_warm(p);
    idle_refill(at);
}

void idle_spare_lost(struct pool_shard *at)
{
    uint64_t pause = at->spare_pause_ms * 2;

    at->spare_pause_ms = pause < SPARE_PAUSE_MIN_MS   ? SPARE_PAUSE_MIN_MS
                         : pause > SPARE_PAUSE_MAX_MS ? SPARE_PAUSE_MAX_MS
                                                      : pause;
    at->next_spare_ms = pool_now(at->pool) + at->spare_pause_ms;
}

void idle_spare_failed(struct pooled *p)
{
    idle_spare_lost(p->at);
    pooled_drop(p, &p->pool->env->counters->drops_refused);
}

/*
 * One at a time, for shards that are in use, while nobody waits. A store that wants a PROXY header
 * must know the client before it greets: no spare can be had there.
 */
static bool wants_spare(const struct pool_shard *at)
{
    const struct pool *pool = at->pool;
    uint64_t now = pool_now(pool);

    return !pool->keeps_nothing && !store_refuses(at->store) && !at->spare_opening &&
           (int64_t)at->warm_count < pool_conf(pool)->warm &&
           pool_shard_conf(at)->client_address != CLIENT_ADDRESS_PROXY && at->last_lease_ms != 0 &&
           now - at->last_lease_ms < pool_conf(pool)->warm_time &&
           (at->spare_pause_ms == 0 || now >= at->next_spare_ms) && !is_wanted(at) &&
           !gate_is_crowded(at->logins.gate);
}

void idle_refill(struct pool_shard *at)
{
    struct pool *pool = at->pool;
    struct pooled *p;

    if (!wants_spare(at) || !gate_try(&at->connections))
        return;
    p = pooled_new(at, POOLED_SPARE);
    if (p == NULL) {
        gate_leave(&at->connections);
        return;
    }
    at->spare_opening = true;
    p->backend = backend_open(pool->env, &p->target->target, NULL, pool->events, p);
    if (p->backend == NULL)
        pooled_drop(p, &pool->env->counters->drops_limit);
}

/* --- time --- */

void idle_expire(struct pool_shard *at)
{
    struct pool *pool = at->pool;
    struct counters *counters = pool->env->counters;
    uint64_t now = pool_now(pool);

    while (at->warm != NULL && now - at->warm->idle_since_ms >= pool_conf(pool)->warm_time)
        pooled_drop(at->warm, &counters->drops_expired);
    while (at->parked != NULL && now - at->parked->idle_since_ms >= pool_conf(pool)->park_time)
        end_parking(at->parked, &counters->drops_expired);
}
