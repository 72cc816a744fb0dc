/*
 * Who is this, and for whom does it log in? One call: auth_verify. Behind it the throttle, the
 * proof (a password, a certificate, a token), and the chain of sources. Runs on one worker's loop
 * and is never shared.
 *
 * An asynchronous request is embedded in its owner. It answers exactly once, later, never inside
 * auth_verify, and never after auth_cancel has returned.
 */
#ifndef IMAPMUX_AUTH_AUTH_H
#define IMAPMUX_AUTH_AUTH_H

#include "auth/shared_throttle.h"
#include "auth/source.h"
#include "auth/token/token.h"

struct auth; /* one worker's */

enum auth_proof { AUTH_BY_PASSWORD, AUTH_BY_CERTIFICATE, AUTH_BY_TOKEN };

/* Who a session is for. The texts are valid during the call that tells. */
struct auth_identity {
    const char *user;         /* canonical, normalised name */
    const char *backend_user; /* "": no source has told */
    const char *shard;        /* "": no source has told */
    const char *master;       /* who logs in as `user`; NULL: the user itself */
};

struct auth_request {
    /* Set by the owner; borrowed until the answer. */
    enum auth_proof proof;
    const char *user;             /* of whoever logs in, normalised, NUL-terminated */
    const char *login_as;         /* for whom, normalised; "": for itself (RFC 4616 2) */
    const struct secret *secret;  /* the password, not empty; NULL with a certificate */
    const union address *address; /* of the client */
    void (*on_answer)(struct auth_request *request, const struct auth_identity *identity,
                      const struct err *err); /* err->kind ERR_NONE: verified; else only
                                                 identity->user is told, as far as known */
    void *owner;

    /* Private. */
    struct auth *auth;
    struct auth_question question;
    struct throttle_attempt attempt;
    struct shared_throttle_request shared;
    struct token_request token;
    uint64_t delay_ms;
    uv_timer_t *timer; /* a delay, then the deadline; NULL until somebody must be waited for */
    struct turn_task task;
    struct err err;
    char claimed[USERNAME_MAX + 1]; /* the name in a good token */
    char who[USERNAME_MAX + 1];     /* the canonical name that `question` has led to */
    char master[USERNAME_MAX + 1];  /* who logs in as `who`; "": the user itself */
    bool counted;                   /* `attempt` has begun */
    bool known;                     /* the cache knows the password to be right */
    bool active;
};

/*
 * NULL with *err set. `env` is copied, with the configuration as it is; what it points to, and the
 * process's throttle, are borrowed until the loop has run out after auth_close.
 */
struct auth *auth_open(const struct env *env, struct throttle *throttle, struct err *err);

/*
 * Answers: ERR_NONE, CREDENTIALS (unknown user, wrong password, or an address that the user may not
 * come from: all alike), AUTHORIZATION (may not log in as that user), LIMIT, UNAVAILABLE (also at
 * the deadline), EXPIRED, ADMIN (disabled), CONFIG, INTERNAL.
 */
void auth_verify(struct auth *auth, struct auth_request *request);

/* After this the request does not answer. Harmless on one that is not under way. */
void auth_cancel(struct auth_request *request);

/* Forgets what is remembered of this user, or, with NULL, of all. */
void auth_forget(struct auth *auth, const char *user);

/* What it is made of, borrowed. */
const struct env *auth_env(const struct auth *auth);
struct chain *auth_chain(const struct auth *auth);
struct throttle *auth_throttle(const struct auth *auth);

/* As chain_close. No request may be under way. */
void auth_close(struct auth **auth);

/* Another one has its place: it is closed once its requests have ended. Nulls the pointer. */
void auth_retire(struct auth **auth);

/* A request of those that are beside auth_verify begins, and ends: the last that it does. */
void auth_enter(struct auth *auth);
void auth_leave(struct auth *auth);

#endif
