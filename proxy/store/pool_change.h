/*
 * Another configuration for a pool, in two steps: the first gathers what is needed for it, the
 * second cannot fail. On the worker's thread. A pool begins in the same way, with the first one.
 */
#ifndef IMAPMUX_STORE_POOL_CHANGE_H
#define IMAPMUX_STORE_POOL_CHANGE_H

#include "proxy/store/pooled.h"

struct pool_change;

/* NULL without memory. The stores have made their first step (stores_prepare). */
struct pool_change *pool_prepare(struct pool *pool, const struct conf *conf, const struct tls *tls);

/*
 * The configuration is in force. New connections are made by it; idle ones whose shard has changed
 * are closed, and lent ones are not kept when they come back. Nulls the pointer.
 */
void pool_commit(struct pool *pool, struct pool_change **change);

/* All stays as it is. Nulls the pointer; harmless on NULL. */
void pool_discard(struct pool_change **change);

/* New connections use this TLS from now on. */
void pool_use_tls(struct pool *pool, const struct tls *tls);

/* All connections have gone, and no store's gate is asked any more. */
void pool_free_shards(struct pool *pool);

#endif
