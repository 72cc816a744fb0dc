/*
 * Where users and passwords are kept: what a source is asked, and what it answers. A source is a
 * const struct with these verbs, in one file, under one word of proxy.conf. The chain asks the
 * sources in turn.
 */
#ifndef IMAPMUX_AUTH_SOURCE_H
#define IMAPMUX_AUTH_SOURCE_H

#include "auth/cache.h"
#include "auth/facts.h"
#include "auth/username.h"
#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "proxy/base/secret.h"

struct chain;

/* Embedded in its owner; see chain.h for how it is asked. */
struct auth_question {
    /* Set by the owner; borrowed until the answer. */
    const char *user;              /* normalised name, NUL-terminated */
    const struct secret *password; /* not empty; NULL: only whether there is such a user, who has
                                      been proven otherwise, and may log in */
    bool uncached; /* what is remembered does not count, and the answer is not remembered */
    void (*on_answer)(struct auth_question *question);
    void *owner;

    /* The answer, while and after on_answer; `facts` are released by the next question or
       chain_cancel. */
    struct err err; /* ERR_NONE: yes */
    bool stood_in;  /* yes, but only because nobody could be asked */
    struct auth_facts *facts;

    /* Private to the chain. */
    struct chain *chain;
    size_t source_index;
    struct turn_task task;
    struct cache_key key;
    uint8_t cached; /* enum cache_verdict: what was known before anybody was asked */
    bool active;

    /* Private to the source that is being asked: its operation. */
    void *operation;
};

/* A server that a source asks, as this worker sees it; all is borrowed, for the call. */
struct auth_server {
    const char *address;
    const char *state;  /* "up", "in doubt", "down" */
    size_t connections; /* that are ready */
};

/*
 * `verify` answers through auth_source_answer, later or inside the call (the chain defers it to the
 * next turn); one that answers later sets question->operation until then. `cancel` comes only while
 * that is set; it ends what `verify` started and must leave nothing that points at the question.
 * `close` may leave work that ends on the loop.
 */
struct auth_source {
    const char *name;
    void *(*open)(const struct env *env, struct err *err);
    void (*verify)(void *state, struct auth_question *question);
    void (*cancel)(void *state, struct auth_question *question);
    void (*close)(void *state);
    /* NULL, or: tells of each of its servers, as chain_each_server. */
    void (*each_server)(void *state, void (*tell)(void *owner, const struct auth_server *server),
                        void *owner);
};

enum auth_verdict { AUTH_VERIFIED, AUTH_UNKNOWN_USER, AUTH_REFUSED, AUTH_FAILED };

/*
 * `facts`, for VERIFIED, may be NULL; the chain takes them over. `err` tells why for REFUSED
 * (CREDENTIALS, EXPIRED, ADMIN) and FAILED (UNAVAILABLE, CONFIG, INTERNAL); else it may be NULL.
 */
void auth_source_answer(struct auth_question *question, enum auth_verdict verdict,
                        struct auth_facts *facts, const struct err *err);

extern const struct auth_source auth_source_passwd;
extern const struct auth_source auth_source_ldap;

#endif
