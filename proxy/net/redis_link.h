/*
 * One connection to Redis on one loop, kept up: connected at open, authenticated, given a database,
 * made again with a growing pause whenever it ends. Commands travel over it in order; each is
 * answered exactly once, never inside the call that sends it, and never after redis_command_cancel
 * has returned. All that a worker asks Redis goes over one link. Settings: conf->redis.
 */
#ifndef IMAPMUX_NET_REDIS_LINK_H
#define IMAPMUX_NET_REDIS_LINK_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "proxy/base/span.h"
#include "proxy/net/redis_script.h"

#include <hiredis/hiredis.h>

enum {
    REDIS_COMMANDS_MAX =
        4096,                 /* held at once, sent or waiting for a connection; more are refused */
    REDIS_ARGUMENTS_MAX = 16, /* of a script */
    REDIS_KEY_MAX = 1024      /* with its NUL */
};

struct redis_link;
struct redis_command; /* one command, owned by the link */

/*
 * What became of a command; it is gone when this is called, so the owner forgets its pointer.
 * `reply` may be an error reply of Redis, and is valid during the call; it is NULL when there is
 * none, and then *err (UNAVAILABLE) tells why. Runs inside hiredis: the callee must not use the
 * link here, only take notes and post a task.
 */
typedef void redis_reply_fn(void *owner, const redisReply *reply, const struct err *err);

/*
 * NULL with *err set when the address cannot be read or memory is short; a Redis that is down is no
 * failure.
 */
struct redis_link *redis_link_open(const struct env *env, struct err *err);

/*
 * Drops the connection and all commands without an answer. Memory goes in the last close callback.
 */
void redis_link_close(struct redis_link **link);

/*
 * Sends a command (arguments may hold any octet; copied), or keeps it while a connection is being
 * made. A command that is under way when the connection breaks is sent once more over the next one;
 * it must be harmless to repeat. So is one that is refused by a server that is not the master any
 * more, or not ready yet (READONLY, MASTERDOWN, LOADING). NULL with *err (UNAVAILABLE, INTERNAL)
 * when Redis is down, too many commands are held, or memory is short.
 */
struct redis_command *redis_link_send(struct redis_link *link, int argc, const char **argv,
                                      const size_t *argv_len, redis_reply_fn *on_reply, void *owner,
                                      struct err *err);

/*
 * Calls a script with `count` arguments, of which the first `key_count` are keys. A server that has
 * forgotten the script is taught it. The call is never done twice: if the connection breaks
 * meanwhile it is answered with UNAVAILABLE, and may have been done or not. Without `on_reply`
 * nobody wants to know. Else as redis_link_send.
 */
struct redis_command *redis_link_call(struct redis_link *link, const struct redis_script *script,
                                      const struct span *arguments, size_t count, size_t key_count,
                                      redis_reply_fn *on_reply, void *owner, struct err *err);

/* After this the command does not answer; what comes for it is dropped. */
void redis_command_cancel(struct redis_command *command);

/* Which of the link's connections there is now, counted from 1; 0 while there is none. */
uint64_t redis_link_connection(const struct redis_link *link);

/*
 * The server of the present connection is of no use: it is left for another one, if there is one by
 * now. Commands that are under way fare as when the connection breaks. Not inside a callback.
 */
void redis_link_reject(struct redis_link *link, const char *why);

/*
 * Its address, host:port or unix:/path, borrowed until the loop goes on; NULL while there is none.
 */
const char *redis_link_address(const struct redis_link *link);

/* "<prefix>kind:{name}", or "<prefix>kind" without a name. False when it does not fit. */
bool redis_key(char key_out[REDIS_KEY_MAX], const struct conf_redis *conf, const char *kind,
               const char *name);

#endif
