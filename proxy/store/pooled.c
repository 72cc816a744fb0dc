/* Owns the life of a connection in the pool, its place in the pool's lists, and how it is made. */
#include "proxy/store/pooled.h"

#include "proxy/base/clock.h"
#include "proxy/base/mem.h"

#include <utlist.h>

/* --- how connections are made --- */

struct pool_target *pool_target_new(const struct conf *conf, const struct conf_shard *shard,
                                    struct store *store, const struct tls *tls)
{
    struct pool_target *target = mem_new(sizeof *target);
    struct tls_memory *memories = mem_array(shard->address.count, sizeof *memories);

    if (target == NULL || memories == NULL) {
        mem_free(memories);
        mem_free(target);
        return NULL;
    }
    target->target = (struct backend_target){.shard = shard, .store = store, .memories = memories};
    target->conf = conf_hold(conf);
    target->holders = 1;
    pool_target_use_tls(target, tls);
    return target;
}

struct pool_target *pool_target_hold(struct pool_target *target)
{
    target->holders++;
    return target;
}

void pool_target_release(struct pool_target **target)
{
    struct pool_target *t = *target;

    *target = NULL;
    if (t == NULL || --t->holders > 0)
        return;
    for (size_t i = 0; i < t->target.shard->address.count; i++)
        tls_memory_release(&t->target.memories[i]);
    mem_free(t->target.memories);
    shared_text_release(&t->target.greeting_capabilities);
    shared_text_release(&t->target.login_capabilities);
    shared_text_release(&t->target.login_text);
    SSL_CTX_free(t->target.tls);
    conf_release(&t->conf);
    mem_free(t);
}

/* Of a shard that was removed it has none: what is under way goes on with the old one. */
void pool_target_use_tls(struct pool_target *target, const struct tls *tls)
{
    SSL_CTX *context = tls_shard_context(tls, target->target.shard);

    if (context == NULL)
        return;
    SSL_CTX_up_ref(context);
    SSL_CTX_free(target->target.tls);
    target->target.tls = context;
}

/* --- connections --- */

struct pooled *pooled_new(struct pool_shard *at, enum pooled_state state)
{
    struct pool *pool = at->pool;
    struct pooled *p = mem_new(sizeof *p);

    if (p == NULL)
        return NULL;
    p->pool = pool;
    p->at = at;
    p->target = pool_target_hold(at->target);
    p->state = (uint8_t)state;
    p->started_ms = clock_ms();
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
    pool_target_release(&p->target);
    mem_free(p->user_name);
    gate_leave(&p->at->connections);
    mem_free(p);
}
