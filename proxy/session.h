/*
 * A client's session, from accept to the end:
 *
 *     proxy header > tls > command > moving > verify > route > lease > relay > linger > gone
 *
 * If the store is lost, a session may be stranded between relay and linger.
 *
 * session.c holds the table of these phases; entry.c holds those up to the lease, and relaying.c
 * those after it. A session lives on one worker (its home), and changes
 * home once for each login, as soon as the user's name is known, so that everything about a user
 * happens on one thread.
 */
#ifndef IMAPMUX_PROXY_SESSION_H
#define IMAPMUX_PROXY_SESSION_H

#include "auth/auth.h"
#include "proxy/base/inbox.h"
#include "proxy/imap/caps.h"
#include "proxy/net/tls.h"
#include "proxy/pool.h"
#include "routing/route.h"

struct session;
struct phase;

const struct phase *session_phases(void); /* the table, for the homes */

/*
 * What a session gets from its worker. All of it outlives the session, and is used on the worker's
 * thread only.
 */
struct home {
    struct env env;
    const struct phase *phases; /* session_phases() */
    const struct tls *tls;
    struct auth *auth;
    struct router *router;
    struct pool *pool;
    struct inbox inbox;
    struct caps_filter filter;
    struct span
        *shard_capabilities; /* by shard, as last heard after a login; for policy = common */
    char *scratch;
    size_t scratch_size;
    struct session *sessions; /* list of those at home here */
    bool stopping;

    struct home *(*home_of)(struct home *home,
                            const char *user);  /* the worker that serves this user */
    void (*on_session_gone)(struct home *home); /* after its memory was freed */
};

/* Takes over an accepted socket. False without memory or descriptors; then the socket is closed. */
bool session_accept(struct home *home, int fd, const union address *peer,
                    const struct conf_listener *listener);

/*
 * Orderly: every session of this home is told BYE, those in a command when it is done. Sets
 * home->stopping.
 */
void sessions_stop(struct home *home);

/* At once: every session of this home is cut off. */
void sessions_cut_off(struct home *home);

#endif
