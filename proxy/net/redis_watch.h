/*
 * The descriptor of one hiredis context on a loop. hiredis ends a context from many places, always
 * through its cleanup hook: that is on_gone, the only place where an owner lets go of one.
 */
#ifndef IMAPMUX_NET_REDIS_WATCH_H
#define IMAPMUX_NET_REDIS_WATCH_H

#include "proxy/base/err.h"

#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <uv.h>

struct redis_watch;

struct redis_watch_handlers {
    /*
     * Once for each watch: the context is being freed, and every command it held has come back with
     * a NULL reply. *why (UNAVAILABLE) is what redis_watch_end was given, or what hiredis has
     * found; `refused` in the latter case, if it never connected. May run inside hiredis.
     */
    void (*on_gone)(void *owner, const struct err *why, bool refused);

    /*
     * After redis_watch_take_any: each reply, valid during the call; runs outside hiredis, and the
     * callee may end the watch.
     */
    void (*on_reply)(void *owner, const redisReply *reply);
};

/*
 * Takes the context over, puts a poll handle under it, and bounds what it reads. A reply that no
 * command waits for ends it. NULL with *err set, and the context freed, when that fails.
 */
struct redis_watch *redis_watch_open(uv_loop_t *loop, redisAsyncContext *context,
                                     const struct redis_watch_handlers *handlers, void *owner,
                                     struct err *err);

/* Borrowed until on_gone. */
redisAsyncContext *redis_watch_context(const struct redis_watch *watch);

/* From now on replies belong to no command; they go to on_reply. */
void redis_watch_take_any(struct redis_watch *watch);

/* Sends a request whose replies go to on_reply. False when there is no memory for it. */
bool redis_watch_request(struct redis_watch *watch, int argc, const char **argv,
                         const size_t *argv_len);

/* Ends it, now or, from inside hiredis, when that returns. */
void redis_watch_end(struct redis_watch *watch, const struct err *why);

/* Whether octets are left behind the last reply that was asked for: then it may not be ours. */
bool redis_has_leftover(const redisAsyncContext *context);

#endif
