/*
 * This process's record among the proxies, in Redis' hash `proxies`, which says how long a move of
 * a user must wait for its consent; and the fence, the moment until which users may be served
 * without a word from Redis (docs/architecture.md, "Proxies among themselves"). On one loop.
 */
#ifndef IMAPMUX_FLEET_MEMBERSHIP_H
#define IMAPMUX_FLEET_MEMBERSHIP_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "routing/freshness.h"

enum { PROXY_ID_MAX = 17 }; /* 16 hex digits and a NUL */

/*
 * The process that served the same users before this one. As long as its record has been there no
 * move has gone on without it, so what it has left of routes is good. One that is dead has its
 * record taken away; one that lives goes on beside this one.
 */
struct predecessor {
    const char *id; /* "": there was none */
    bool lives;
};

struct membership;

/* What it asks and tells; never inside a call of its own. */
struct membership_events {
    size_t (*count_sessions)(void *owner);
    void (*on_beat)(void *owner); /* was confirmed, or was not: after each */
    /* The record had been taken away: moves may have been completed without us. */
    void (*on_forgotten)(void *owner);
    /*
     * The fence comes near: nobody may be left after this time. Then: it has passed;
     * membership_is_cut_off follows when nobody is left, later or inside the call.
     */
    void (*let_go)(void *owner, uint64_t within_ms);
    void (*cut_off)(void *owner);
};

/*
 * Sends the first beat; further ones follow each third of redis.node_expiry. `id` is the process's.
 * All is borrowed until the close, but for the predecessor. Writes freshness->known_since_ms and,
 * if Redis is asked for routes, fence_ms. NULL with *err set.
 */
struct membership *membership_open(const struct env *env, const char *id,
                                   const struct predecessor *predecessor,
                                   struct freshness *freshness,
                                   const struct membership_events *events, void *owner,
                                   struct err *err);

/* All sessions that there were at the fence have ended: the next beat may move it. */
void membership_is_cut_off(struct membership *membership);

/*
 * Until Redis confirms this process its users may be served until then, of clock_ms, from what its
 * predecessor has left. 0: not at all.
 */
void membership_inherit(struct membership *membership, uint64_t fence_ms);

/* Until then users may be served without Redis; of clock_ms, 0: nothing says so. */
uint64_t membership_fence_ms(const struct membership *membership);

/* Whether the last beat was confirmed. */
bool membership_is_confirmed(const struct membership *membership);

/* Whether membership_leave would have Redis forget this process. */
bool membership_can_leave(const struct membership *membership);

/*
 * No session is left, and none comes: the record goes. `on_left` follows when Redis has done so, or
 * the time is up. False if there is nothing to wait for. No beat follows.
 */
bool membership_leave(struct membership *membership, void (*on_left)(void *owner));

/* Nulls the pointer; memory goes in the last close callback. Harmless on NULL. */
void membership_close(struct membership **membership);

#endif
