/* What a session gets from its worker; header only, for whoever is below the session. */
#ifndef IMAPMUX_SESSION_HOME_H
#define IMAPMUX_SESSION_HOME_H

#include "auth/auth.h"
#include "proxy/base/inbox.h"
#include "proxy/imap/caps.h"
#include "proxy/net/tls.h"
#include "proxy/session/admission.h"
#include "proxy/session/history.h"
#include "proxy/store/pool.h"
#include "routing/correction.h"
#include "routing/route.h"

struct inquiry;
struct phase;
struct phase_walk;
struct session;
struct traces;
struct users;
struct worker_change;

/*
 * All of it outlives the session, and is used on the worker's thread only. With another
 * configuration (worker_change.h) come another env.conf, tls, auth and router, between two turns of
 * the loop.
 */
struct home {
    struct env env;             /* its configuration is held */
    const struct phase *phases; /* session_phases() */
    const struct tls *tls;      /* held; may be another one in the next turn (workers_use_tls) */
    struct auth *auth;
    struct router *router;
    struct corrector *corrector; /* of routes; NULL without Redis */
    struct registry *registry;   /* NULL unless limits.shared */
    struct admission *admission;
    struct pool *pool;
    struct history *history;
    struct inbox inbox;
    struct caps_filter filter;
    struct worker_change *change; /* prepared; NULL: none */
    /* By shard id, as last heard after a login; for policy = common. */
    struct span *shard_capabilities;
    size_t shard_count; /* of them */
    char *scratch;
    size_t scratch_size;
    struct session *sessions;  /* list of those at home here */
    struct phase_walk *walks;  /* along that list, which go on later */
    struct inquiry *inquiries; /* list of those that are here */
    struct traces *traces;     /* who is listened to */
    struct users *users;       /* the same by name, once they are verified */
    bool stopping;
    uint64_t drained_ms; /* by then all are to have been let go, of uv_now; 0: they may stay */

    struct home *(*home_of)(struct home *home,
                            const char *user);  /* the worker that serves this user */
    void (*on_session_gone)(struct home *home); /* after its memory was freed */
    /* A user who is held has no connection to a store any more; see users_hold. May be NULL. */
    void (*on_held)(struct home *home, const char *user, uint64_t epoch);
};

#endif
