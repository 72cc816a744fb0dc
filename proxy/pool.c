/* Owns the lending of backends to sessions. */
#include "proxy/pool.h"

#include "proxy/base/mem.h"

#include <assert.h>

struct pool {
    const struct env *env;
    const struct tls *tls;
    size_t lent_count; /* leases out or under way */
};

struct pool *pool_open(const struct env *env, const struct tls *tls)
{
    struct pool *pool = mem_new(sizeof *pool);

    if (pool != NULL)
        *pool = (struct pool){.env = env, .tls = tls};
    return pool;
}

void pool_close(struct pool **pool)
{
    assert(*pool == NULL || (*pool)->lent_count == 0);
    mem_free(*pool);
    *pool = NULL;
}

static void on_login(void *owner, const struct err *err)
{
    struct lease *lease = owner;

    if (err->kind != ERR_NONE)
        pool_return(lease);
    lease->on_answer(lease, err);
}

bool pool_lease(struct pool *pool, struct lease *lease, const struct conf_shard *shard)
{
    lease->backend = backend_open(pool->env, pool->tls, shard, &lease->login, on_login, lease);
    if (lease->backend == NULL)
        return false;
    lease->pool = pool;
    pool->lent_count++;
    return true;
}

void pool_return(struct lease *lease)
{
    if (lease->backend == NULL)
        return;
    lease->pool->lent_count--;
    backend_close(&lease->backend);
}
