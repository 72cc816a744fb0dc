/* Owns the life of a connection in the pool, and its place in the pool's lists. */
#include "proxy/pooled.h"

#include <utlist.h>

struct pooled *pooled_new(struct pool_shard *at, enum pooled_state state)
{
    struct pool *pool = at->pool;
    struct pooled *p = mem_new(sizeof *p);

    if (p == NULL)
        return NULL;
    p->pool = pool;
    p->at = at;
    p->state = (uint8_t)state;
    p->started_ms = uv_hrtime() / 1000000;
    p->born_ms = pool_now(pool);
    p->all_next = pool->all;
    if (p->all_next != NULL)
        p->all_next->all_previous = p;
    pool->all = p;
    return p;
}

static void leave_user(struct pooled *p)
{
    struct parked_user *user = p->user;

    p->user = NULL;
    DL_DELETE2(user->first, p, user_previous, user_next);
    if (--user->count > 0)
        return;
    HASH_DEL(p->pool->users, user);
    mem_free(user);
}

void pooled_unlist(struct pooled *p)
{
    struct counters *counters = p->pool->env->counters;

    if (p->state == POOLED_WARM) {
        DL_DELETE2(p->at->warm, p, previous, next);
        p->at->warm_count--;
        gauge_add(&counters->backends_warm, -1);
    } else if (p->state == POOLED_PARKED) {
        DL_DELETE2(p->at->parked, p, previous, next);
        p->at->parked_count--;
        p->pool->parked_count--;
        gauge_add(&counters->backends_parked, -1);
        leave_user(p);
    }
}

void pooled_drop(struct pooled *p, _Atomic uint64_t *reason)
{
    counter_add(reason, 1);
    pooled_unlist(p);
    if (p->state == POOLED_SPARE)
        p->at->spare_opening = false;
    if (p->all_next != NULL)
        p->all_next->all_previous = p->all_previous;
    if (p->all_previous != NULL)
        p->all_previous->all_next = p->all_next;
    else
        p->pool->all = p->all_next;
    backend_close(&p->backend);
    mem_free(p->user_name);
    gate_leave(&p->at->connections);
    mem_free(p);
}
