/*
 * Looks whether the stores answer: each resolved address of each shard is connected to at each
 * health.interval, with TLS as the shard has it, must greet, and, if the shard has a probe user,
 * must log it in. What is found is told to the stores (store_found), which all workers read. Lives
 * on the control thread. Settings: conf->health.
 */
#ifndef IMAPMUX_STORE_HEALTH_H
#define IMAPMUX_STORE_HEALTH_H

#include "proxy/base/env.h"
#include "proxy/net/tls.h"
#include "proxy/store/store.h"

struct health;

/*
 * Begins, the shards spread over the first interval. NULL with *err set. `env` and `stores` are
 * borrowed: these, which are in use by workers already, until the workers have ended; the rest
 * until the loop has run out after health_close, which comes after the workers' end; `tls` is held.
 */
struct health *health_open(const struct env *env, const struct tls *tls,
                           const struct stores *stores, struct err *err);
void health_close(struct health **health); /* nulls the pointer; harmless on NULL */

/*
 * Another configuration, in two steps: what is needed for new shards, false without memory; and,
 * when it is in force and the stores know it, the checks go by it. What was found of a shard counts
 * until it is found otherwise; what is under way begins anew.
 */
bool health_prepare(struct health *health, const struct conf *conf);
void health_commit(struct health *health, const struct conf *conf, const struct tls *tls);

/* Checks that begin from now on use these contexts, which are held instead. */
void health_use_tls(struct health *health, const struct tls *tls);

/* No further checks; what was found stands. */
void health_stop(struct health *health);

/*
 * What is known of the addresses of a shard of the configuration that is in force. Without checks,
 * or while its names have no address, nobody knows more than that says.
 */
struct health_address {
    const char *text;  /* "192.0.2.1:143"; not checked: as it is in proxy.conf; "": none is known */
    const char *state; /* "up", "down", "not checked" */
    const char *why;   /* why the last check failed; "": it has not */
};
void health_each_address(const struct health *health, const struct conf_shard *shard,
                         void (*visit)(void *owner, const struct health_address *address),
                         void *owner);

#endif
