/*
 * Who is this? One call: auth_verify. Behind it a cache and, in the configured order, the sources
 * (struct auth_source): a password file, a directory. Runs on one worker's loop and is never
 * shared.
 *
 * An asynchronous request is embedded in its owner. It answers exactly once, later, never inside
 * auth_verify, and never after auth_cancel has returned.
 */
#ifndef IMAPMUX_AUTH_AUTH_H
#define IMAPMUX_AUTH_AUTH_H

#include "auth/cache.h"
#include "auth/throttle.h"
#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "proxy/base/secret.h"

enum { USERNAME_MAX = 255 };

struct auth; /* the chain of one worker */

struct auth_request {
    /* Set by the owner; borrowed until the answer. */
    const char *user;              /* normalised name (username_normalise), NUL-terminated */
    const struct secret *password; /* not empty: the caller refuses an empty one */
    const union address *address;  /* of the client */
    void (*on_answer)(struct auth_request *request,
                      const struct err *err); /* err->kind ERR_NONE: verified */
    void *owner;

    /* Private to the chain. */
    struct auth *auth;
    size_t source_index;
    uv_timer_t *deadline;
    struct err err;
    struct turn_task task;
    struct cache_digest digest;
    struct throttle_attempt attempt;
    uint8_t cached; /* enum cache_verdict: what was known before anybody was asked */
    bool has_digest;
    bool counted; /* `attempt` has begun */
    bool active;

    /* Private to the source that is being asked: links, its operation. */
    void *operation;
};

/*
 * The sources of conf->auth.sources; NULL with *err set. `env` and the process's throttle are
 * borrowed until the end of auth_close.
 */
struct auth *auth_open(const struct env *env, struct throttle *throttle, struct err *err);

/*
 * Asks the cache, then the sources in turn. A source that does not know the user passes on to the
 * next one; one that knows the user and finds the password wrong refuses; one that is down makes
 * the answer UNAVAILABLE, unless a later source verifies or the password was verified before and
 * auth_cache.stale_while_down lets that count. Answers: ERR_NONE, CREDENTIALS (unknown user and
 * wrong password alike), UNAVAILABLE (also at the deadline), EXPIRED, ADMIN (disabled), INTERNAL.
 */
void auth_verify(struct auth *auth, struct auth_request *request);

/* After this the request does not answer. Harmless on one that is not under way. */
void auth_cancel(struct auth_request *request);

/*
 * Closes everything and nulls the pointer; memory goes in the last close callback, which comes when
 * threads that connect or compute hashes are done: the loop must run until then. No request may be
 * under way.
 */
void auth_close(struct auth **auth);

/*
 * A source: const struct with these verbs, one file, one word in proxy.conf. `verify` answers
 * through auth_source_answer, later or inside the call (the chain defers it to the next turn); one
 * that answers later sets request->operation until then. `cancel` comes only while that is set; it
 * ends what `verify` started and must leave nothing that points at the request. `close` may leave
 * work that ends on the loop.
 */
struct auth_source {
    const char *name;
    void *(*open)(const struct env *env, struct err *err);
    void (*verify)(void *state, struct auth_request *request);
    void (*cancel)(void *state, struct auth_request *request);
    void (*close)(void *state);
};

enum auth_verdict { AUTH_VERIFIED, AUTH_UNKNOWN_USER, AUTH_REFUSED, AUTH_FAILED };

/*
 * `err` tells why for REFUSED (CREDENTIALS, EXPIRED, ADMIN) and FAILED (UNAVAILABLE, INTERNAL);
 * else it may be NULL.
 */
void auth_source_answer(struct auth_request *request, enum auth_verdict verdict,
                        const struct err *err);

extern const struct auth_source auth_source_passwd;
extern const struct auth_source auth_source_ldap;

#endif
