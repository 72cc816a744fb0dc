/*
 * A worker's connections to the stores, lent to sessions. A lease is embedded in its session; it
 * answers once, later, never after pool_return. Today every lease is a new connection that ends
 * with it.
 */
#ifndef IMAPMUX_PROXY_POOL_H
#define IMAPMUX_PROXY_POOL_H

#include "proxy/backend.h"

struct pool;

struct lease {
    /* Set by the owner; the login is borrowed until the answer. */
    struct backend_login login;
    void (*on_answer)(struct lease *lease, const struct err *err); /* kinds: see backend_open */
    void *owner;

    /* Set with the answer ERR_NONE: the owner's until pool_return. */
    struct backend *backend;

    struct pool *pool; /* private */
};

/* NULL without memory. `env` and `tls` are borrowed until pool_close. */
struct pool *pool_open(const struct env *env, const struct tls *tls);

/* False without memory; then there is no answer. */
bool pool_lease(struct pool *pool, struct lease *lease, const struct conf_shard *shard);

/* Gives the backend back, or ends a lease under way. Harmless on one that is neither. */
void pool_return(struct lease *lease);

/* No lease may be out. Nulls the pointer. */
void pool_close(struct pool **pool);

#endif
