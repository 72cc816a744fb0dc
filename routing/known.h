/*
 * What a worker remembers of its users' routes in Redis, so that most logins need not ask, and that
 * known users are served while Redis is away. How far it may be trusted stands in struct freshness.
 * Bounded: who has not come for longest makes room.
 */
#ifndef IMAPMUX_ROUTING_KNOWN_H
#define IMAPMUX_ROUTING_KNOWN_H

#include "proxy/base/conf.h"
#include "proxy/base/metrics.h"
#include "routing/route.h"

struct known;

enum known_use {
    KNOWN_FRESH, /* without asking: it is young, and all changes since then have been heard of */
    KNOWN_LAST   /* because Redis does not answer */
};

/*
 * The caller holds it; without memory NULL, and *err set. The counters are borrowed, and what *view
 * points to; without view->freshness nothing serves.
 */
struct known *known_open(const struct conf *conf, const struct router_view *view,
                         struct counters *counters, struct err *err);

/* Of those who have it in common, on one thread; the last one to release it forgets all. */
struct known *known_hold(struct known *known);
void known_release(struct known **known); /* nulls the pointer; harmless on NULL */

/* Another configuration is in force. What is remembered of its shards stays. */
void known_use(struct known *known, const struct conf *conf);

/*
 * Is there a route that may be used so now? It is active; `backend_user` is as Redis has it,
 * `stale` is false.
 */
bool known_find(struct known *known, const char *user, enum known_use use, struct route *route_out);

/* When a question is asked, for the two calls below. */
struct route_moment known_moment(const struct known *known);

/*
 * Is this answer, `epoch` being 0 when Redis does not know the user, older than what events have
 * told? Then it does not count.
 */
bool known_is_outdated(const struct known *known, const char *user, struct route_moment asked,
                       uint64_t epoch);

/*
 * An answer: an active route to a shard of the configuration, which `source` (a constant) has
 * given; or anything else.
 */
void known_keep(struct known *known, const char *user, struct route_moment asked,
                const struct route *route, const char *source);
void known_forget(struct known *known, const char *user);

/* These are router_learn, router_known_each and router_know. */
void known_learn(struct known *known, const char *user, uint64_t epoch, enum route_state state);
void known_each(const struct known *known,
                void (*visit)(void *owner, const struct known_route *route), void *owner);
void known_add(struct known *known, const struct known_route *route);

#endif
