/*
 * One connection to the Redis of the settings (conf->redis) on one loop, kept up: its name looked
 * up, connected, authenticated, given a database, and made again with a growing, jittered pause
 * whenever it ends. With sentinels these are asked each time, one after the other, until one names
 * a server that is reached and says that it is a master; while they answer, the pause stays short.
 * What travels over the connection is its owner's: commands, by hiredis' asynchronous calls on the
 * context; or requests whose replies come as they like, as those of a subscriber do.
 */
#ifndef IMAPMUX_NET_REDIS_CONNECTION_H
#define IMAPMUX_NET_REDIS_CONNECTION_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"

#include <hiredis/async.h>
#include <hiredis/hiredis.h>

struct redis_connection;

/* Not called in redis_connection_close, nor after it. */
struct redis_connection_handlers {
    const char *purpose; /* for logs: "commands" */

    /* It is good: redis_connection_context is there. Runs inside hiredis. */
    void (*on_up)(void *owner);

    /*
     * It has ended, its commands have come back; or, was_up false, none came about. *err
     * (UNAVAILABLE) tells why. The next attempt comes by itself. May run inside hiredis: the callee
     * only takes notes and posts a task.
     */
    void (*on_down)(void *owner, bool was_up, const struct err *err);

    /*
     * NULL: each reply belongs to a command that hiredis knows. Else every reply that comes while
     * it is up, valid during the call; runs outside hiredis, and the callee may drop or close the
     * connection.
     */
    void (*on_reply)(void *owner, const redisReply *reply);
};

/*
 * NULL with *err set when the address cannot be read or memory is short; a Redis that is down is no
 * failure. Borrows the handlers.
 */
struct redis_connection *redis_connection_open(const struct env *env,
                                               const struct redis_connection_handlers *handlers,
                                               void *owner, struct err *err);

/* Outside hiredis only; commands come back before it returns. Memory goes in the last callback. */
void redis_connection_close(struct redis_connection **connection);

/* NULL while there is no good one. */
redisAsyncContext *redis_connection_context(const struct redis_connection *connection);

/* Where it leads, or the present attempt: host:port, or unix:/path. Borrowed until it changes. */
const char *redis_connection_address(const struct redis_connection *connection);

/*
 * Is there one, or is one being made? A pause ends by this, unless the last attempt is too recent;
 * then false, with *err (UNAVAILABLE) telling why there is none.
 */
bool redis_connection_want(struct redis_connection *connection, struct err *err);

/*
 * Sends a request whose replies come to on_reply (for owners that have one), while it is up. False
 * when there is no memory for it.
 */
bool redis_connection_request(struct redis_connection *connection, int argc, const char **argv,
                              const size_t *argv_len);

/*
 * Ends a connection that is up, because of *why; harmless without one. Another one is made soon. A
 * server that is rejected is of no use as it is: if the next one is rejected, too, the pause grows.
 */
void redis_connection_drop(struct redis_connection *connection, const struct err *why);
void redis_connection_reject(struct redis_connection *connection, const struct err *why);

#endif
