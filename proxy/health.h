/*
 * Looks whether the stores answer: each resolved address of each shard is connected to at each
 * health.interval, with TLS as the shard has it, must greet, and, if the shard has a probe user,
 * must log it in. What is found is told to the stores (store_found), which all workers read. Lives
 * on the control thread. Settings: conf->health.
 */
#ifndef IMAPMUX_PROXY_HEALTH_H
#define IMAPMUX_PROXY_HEALTH_H

#include "proxy/base/env.h"
#include "proxy/net/tls.h"
#include "proxy/store.h"

struct health;

/*
 * Begins, the shards spread over the first interval. NULL with *err set. All that is given is
 * borrowed: `stores`, which are in use by workers already, until these have ended; the rest until
 * the loop has run out after health_close, which comes after the workers' end; `tls` is held.
 */
struct health *health_open(const struct env *env, const struct tls *tls, struct store *stores,
                           struct err *err);
void health_close(struct health **health); /* nulls the pointer; harmless on NULL */

/* Checks that begin from now on use these contexts, which are held instead. */
void health_use_tls(struct health *health, const struct tls *tls);

/* No further checks; what was found stands. */
void health_stop(struct health *health);

/*
 * What is known of the addresses of a shard, by its number in the configuration; `why` is "", or
 * why the last check failed. `address` is NULL, once, while its names have none.
 */
struct health_address {
    const union address *address;
    bool is_down;
    const char *why;
};
void health_each_address(const struct health *health, size_t index,
                         void (*visit)(void *owner, const struct health_address *address),
                         void *owner);

#endif
