/*
 * Where is this user's mail? One call: router_find. Behind it, in the configured order, the sources
 * (struct route_source): Redis, the user's directory entry, a static file, a ring of shards for new
 * users, a default. Runs on one worker's
 * loop and is never shared. Requests keep the same promise as auth's: one answer, later, none after
 * the cancel.
 */
#ifndef IMAPMUX_ROUTING_ROUTE_H
#define IMAPMUX_ROUTING_ROUTE_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "routing/freshness.h"

enum { SHARD_NAME_MAX = 63, BACKEND_USER_MAX = 255 };

enum route_state {
    ROUTE_ACTIVE,
    ROUTE_MOVING,    /* logins are held; the user is, or was, at `shard` */
    ROUTE_COMMITTED, /* the same, but there is no way back to `shard` */
    ROUTE_DISABLED,
    ROUTE_GONE /* never in an answer; of router_learn: Redis has no hash of the user any more */
};

struct route {
    char shard[SHARD_NAME_MAX + 1];
    char backend_user[BACKEND_USER_MAX + 1]; /* the name at the store; never empty in an answer */
    char target[SHARD_NAME_MAX + 1];         /* where it goes, of MOVING and COMMITTED; else "" */
    enum route_state state;
    uint64_t epoch;     /* raised by each change of the route in Redis; else 0 */
    const char *source; /* which one knew it; a constant */
    uint64_t age_ms;    /* since that source was asked; 0: just now */
    bool stale;         /* Redis does not answer, and this is what it said last */
};

struct router; /* the chain of one worker */

/* What a router is shown of the process around it. */
struct router_view {
    struct freshness *freshness; /* NULL: nothing remembered is ever to be trusted */
    /*
     * How many of the new users the shard with this id shall take, in relation to others; 0: none.
     * NULL: as in the configuration.
     */
    uint32_t (*ring_weight)(void *owner, size_t shard_id);
    void *owner;
    size_t worker_count; /* among whom conf->route.max_known is divided; 0 counts as 1 */
    /* Whose place it may take: they remember together until then. NULL: nobody's. */
    struct router *before;
};

/* When something was asked: by the clock, and after how many events. */
struct route_moment {
    uint64_t ms, event;
};

struct route_request {
    /* Set by the owner; borrowed until the answer. */
    const char *user;              /* normalised, NUL-terminated */
    const char *told_shard;        /* by the user's directory entry; "": nothing */
    const char *told_backend_user; /* the same; counts where the route names none */
    bool look_only;                /* nothing is written to Redis, nothing remembered */
    /*
     * err->kind ERR_NONE: *route is valid during the call. ADMIN: nobody knows the user, or the
     * user is disabled. UNAVAILABLE: a source did not answer (an error never falls through to the
     * next source), the user is being moved (also when that is committed), or what a source said
     * makes no sense (logged as an error). *route is also valid, and its state tells, for a user
     * who is disabled or being moved; else it is NULL.
     */
    void (*on_answer)(struct route_request *request, const struct route *route,
                      const struct err *err);
    void *owner;

    /* Private to the chain. */
    struct router *router;
    size_t source_index;
    unsigned tries;            /* answers that did not count */
    struct route_moment asked; /* the source */
    uv_timer_t *deadline;
    uint64_t limit_ms; /* of the whole look-up, on the loop's clock */
    struct route route;
    struct err err;
    struct turn_task task;
    bool active;
    bool found; /* `route` holds what a source has said */

    /* Private to the source that is being asked. */
    void *operation;
};

/*
 * The sources of conf->route.sources; NULL with *err set. Both are copied, with the configuration
 * as it is; what they point to is borrowed until the end of router_close.
 */
struct router *router_open(const struct env *env, const struct router_view *view, struct err *err);
void router_find(struct router *router, struct route_request *request);
void router_cancel(struct route_request *request);
void router_close(struct router **router);

/* What it was opened with, but for `before`; borrowed. */
const struct router_view *router_view(const struct router *router);

/*
 * The configuration of `router` is in force from now on: it takes the place of *before, which it
 * was opened with, and which is closed once its requests have ended. Nulls the pointer.
 */
void router_take_over(struct router *router, struct router **before);

/*
 * What an event has told of a user's route. What is remembered of it counts no more unless it is
 * the same, and an answer of Redis that is older, under way now or later, is asked for again.
 */
void router_learn(struct router *router, const char *user, uint64_t epoch, enum route_state state);

/* A user's active route as it is remembered; the texts are borrowed. */
struct known_route {
    const char *user, *shard;
    const char *backend_user; /* "": Redis names none */
    uint64_t epoch;
    uint64_t age_ms; /* since Redis was asked */
};

/*
 * All that may serve while Redis is away, on the worker's thread, who came last first. Snapshots
 * are made of it: snapshot.h.
 */
void router_known_each(const struct router *router,
                       void (*visit)(void *owner, const struct known_route *route), void *owner);

/*
 * Remembers what a process before this one has known (source "snapshot"): it serves only while
 * Redis is away. Before the worker's thread runs, or on it. What is known better stays; what does
 * not fit (no such shard, no memory, route.max_known) is left out.
 */
void router_know(struct router *router, const struct known_route *route);

/*
 * A source: const struct, one file, one word in proxy.conf. The chain defers answers given inside
 * `find`.
 */
struct route_source {
    const char *name;
    bool is_remembered; /* with Redis among the sources, its routes are those of Redis */
    void *(*open)(const struct env *env, const struct router_view *view, struct err *err);
    void (*find)(void *state, struct route_request *request);
    void (*cancel)(void *state, struct route_request *request);
    void (*close)(void *state);
};

enum route_verdict {
    ROUTE_FOUND,
    ROUTE_UNKNOWN_USER,
    ROUTE_NO_ANSWER, /* nobody could be asked; what is remembered may serve */
    ROUTE_FAILED     /* there was an answer, and it makes no sense */
};

/*
 * For FOUND, `route` is copied (an empty backend_user becomes told_backend_user, or the user's
 * name); for NO_ANSWER and FAILED, `err` tells why.
 */
void route_source_answer(struct route_request *request, enum route_verdict verdict,
                         const struct route *route, const struct err *err);

extern const struct route_source route_source_redis;
extern const struct route_source route_source_attribute;
extern const struct route_source route_source_file;
extern const struct route_source route_source_ring;
extern const struct route_source route_source_default;

#endif
