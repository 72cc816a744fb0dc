/*
 * Who shows this token? It verifies bearer tokens of OAuth 2 that are signed JWTs (jwt.h) with the
 * keys of the configured issuer (jwks_source.h). Runs on one worker's loop and is never shared.
 *
 * An asynchronous request is embedded in its owner. It answers exactly once, later, never inside
 * token_verify, and never after token_cancel has returned.
 */
#ifndef IMAPMUX_AUTH_TOKEN_H
#define IMAPMUX_AUTH_TOKEN_H

#include "auth/token/jwt.h"
#include "proxy/base/env.h"
#include "proxy/base/secret.h"

struct token_verifier;

struct token_request {
    /* Set by the owner, the rest zeroed; borrowed until the answer. */
    const struct secret *token;
    /* err->kind ERR_NONE: it is good, and *identity, gone after the call, says whose it is. */
    void (*on_answer)(struct token_request *request, const struct token_identity *identity,
                      const struct err *err);
    void *owner;

    /* Private. */
    struct token_verifier *verifier; /* NULL when not under way */
    struct token_request *prev, *next;
    uint64_t asked_ns;
    bool waiting; /* for keys */
};

/*
 * conf->oauth must be configured (its keys set). NULL with *err set, also when the keys are in a
 * file that holds none. `env` is borrowed until the end of token_close.
 */
struct token_verifier *token_open(const struct env *env, struct err *err);

/*
 * Answers: ERR_NONE; CREDENTIALS (malformed, expired, by or for somebody else, not signed by one of
 * the keys); UNAVAILABLE (there are no keys, or a key is unknown and new ones cannot be had);
 * INTERNAL. err->text is for the log and holds nothing of the token but its key's name, issuer and
 * algorithm.
 *
 * A token by an unknown key waits until it is certain that the issuer has not published that key
 * before: for a URL up to 5 s plus the answer's time. The caller has a deadline of its own.
 */
void token_verify(struct token_verifier *verifier, struct token_request *request);

/* After this the request does not answer. Harmless on one that is not under way. */
void token_cancel(struct token_request *request);

/*
 * Nulls the pointer; memory goes in the last callback: the loop must run until then. No request may
 * be under way.
 */
void token_close(struct token_verifier **verifier);

#endif
