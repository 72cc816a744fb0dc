/*
 * Is the server that a worker's connection to Redis leads to the one that the process's own beats
 * go to (proxy/fleet/membership.h)? For a while there may be two masters, and an old one that is
 * cut off from the others still says where users were before they were moved.
 *
 * The process's record in the hash `proxies` has a token, another one for each connection of the
 * beats. Before the first question over each of its own connections, and when the token has
 * changed, the worker asks for it; whoever shows another one is left. Of one worker's loop.
 */
#ifndef IMAPMUX_ROUTING_SERVER_CHECK_H
#define IMAPMUX_ROUTING_SERVER_CHECK_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "proxy/net/redis_script.h"
#include "routing/freshness.h"

struct redis_command;

struct server_check { /* private */
    const struct env *env;
    const struct freshness *freshness;
    struct redis_script script;
    struct redis_command *command;
    uint64_t wanted, wanted_before; /* the tokens when it was asked last */
    uint64_t connection;            /* of the link, over which there was an answer; 0: none yet */
    uint64_t token;                 /* that it told; 0: none */
    uint64_t beats;                 /* how many there had been by then */
};

/* Borrows both; `freshness` may be NULL: then all is well. False with *err set. */
bool server_check_init(struct server_check *check, const struct env *env,
                       const struct freshness *freshness, struct err *err);

/*
 * Something is about to be asked over the link: asks for the token first, if need be, and leaves a
 * server that has shown another one than is wanted. Not inside a callback of the link.
 */
void server_check_before(struct server_check *check);

/* Whether what has just been answered over the link counts. */
bool server_check_is_good(const struct server_check *check);

/* Nothing is under way any more. */
void server_check_cancel(struct server_check *check);

#endif
