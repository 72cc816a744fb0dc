/*
 * Where is this user's mail? One call: router_find. Behind it, in the configured order, the sources
 * (struct route_source): Redis, the user's directory entry, a static file. Runs on one worker's
 * loop and is never shared. Requests keep the same promise as auth's: one answer, later, none after
 * the cancel.
 */
#ifndef IMAPMUX_ROUTING_ROUTE_H
#define IMAPMUX_ROUTING_ROUTE_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"

enum { SHARD_NAME_MAX = 63, BACKEND_USER_MAX = 255 };

enum route_state { ROUTE_ACTIVE, ROUTE_MOVING, ROUTE_DISABLED };

struct route {
    char shard[SHARD_NAME_MAX + 1];
    char backend_user[BACKEND_USER_MAX + 1]; /* the name at the store; never empty in an answer */
    enum route_state state;
    uint64_t epoch;
};

struct router; /* the chain of one worker */

struct route_request {
    /* Set by the owner; borrowed until the answer. */
    const char *user;              /* normalised, NUL-terminated */
    const char *told_shard;        /* by the user's directory entry; "": nothing */
    const char *told_backend_user; /* the same; counts where the route names none */
    /*
     * err->kind ERR_NONE: *route is valid during the call. ADMIN: nobody knows the user, or the
     * user is disabled. UNAVAILABLE: a source did not answer (an error never falls through to the
     * next source), the user is being moved, or what a source said makes no sense (logged as an
     * error). *route is also valid, and its state tells, for a user who is disabled or being moved;
     * else it is NULL.
     */
    void (*on_answer)(struct route_request *request, const struct route *route,
                      const struct err *err);
    void *owner;

    /* Private to the chain. */
    struct router *router;
    size_t source_index;
    uv_timer_t *deadline;
    struct route route;
    struct err err;
    struct turn_task task;
    bool active;
    bool known; /* `route` holds what a source has said */

    /* Private to the source that is being asked. */
    void *operation;
};

/*
 * The sources of conf->route.sources; NULL with *err set. `env` is borrowed until the end of
 * router_close.
 */
struct router *router_open(const struct env *env, struct err *err);
void router_find(struct router *router, struct route_request *request);
void router_cancel(struct route_request *request);
void router_close(struct router **router);

/*
 * A source: const struct, one file, one word in proxy.conf. The chain defers answers given inside
 * `find`.
 */
struct route_source {
    const char *name;
    void *(*open)(const struct env *env, struct err *err);
    void (*find)(void *state, struct route_request *request);
    void (*cancel)(void *state, struct route_request *request);
    void (*close)(void *state);
};

enum route_verdict { ROUTE_FOUND, ROUTE_UNKNOWN_USER, ROUTE_FAILED };

/*
 * For FOUND, `route` is copied (an empty backend_user becomes told_backend_user, or the user's
 * name); for FAILED, `err` tells why.
 */
void route_source_answer(struct route_request *request, enum route_verdict verdict,
                         const struct route *route, const struct err *err);

extern const struct route_source route_source_redis;
extern const struct route_source route_source_attribute;
extern const struct route_source route_source_file;

#endif
