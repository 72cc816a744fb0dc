/*
 * The sources of conf->auth.sources, in their order, and the cache before them: asks one question
 * at a time for each owner. A source that does not know the user passes on to the next one; one
 * that knows the user and finds the password wrong refuses; one that is down makes the answer
 * UNAVAILABLE, unless a later source says yes, or the cache does and auth_cache.stale_while_down
 * lets that count.
 */
#ifndef IMAPMUX_AUTH_CHAIN_H
#define IMAPMUX_AUTH_CHAIN_H

#include "auth/source.h"

/* NULL with *err set. `env` is borrowed until the end of chain_close. */
struct chain *chain_open(const struct env *env, struct err *err);

/* Begins a question: what the cache knows. VERIFIED: question->facts are set, and that is all. */
enum cache_verdict chain_recall(struct chain *chain, struct auth_question *question);

/*
 * Goes on with one that chain_recall has begun: on_answer comes once, later, never inside the call
 * and never after chain_cancel. Answers: ERR_NONE, CREDENTIALS (unknown user and wrong password
 * alike), UNAVAILABLE, EXPIRED, ADMIN (disabled), CONFIG, INTERNAL.
 */
void chain_ask(struct auth_question *question);

/* Answers now, in place of the source that does not; on_answer does not come. */
void chain_give_up(struct auth_question *question);

/* Ends the question and lets its facts go. Harmless on one that is not under way, or zeroed. */
void chain_cancel(struct auth_question *question);

/* The name of the source that has given the answer; "" when none has. A constant. */
const char *chain_source(const struct auth_question *question);

/* As auth_cache_remembers; UNKNOWN without a cache. */
enum cache_verdict chain_remembers(const struct chain *chain, const char *user,
                                   uint64_t *age_ms_out);

/* Tells of the servers of all sources, in their order. */
void chain_each_server(const struct chain *chain,
                       void (*tell)(void *owner, const struct auth_server *server), void *owner);

/* Forgets what the cache knows of this user, or, with NULL, of all. */
void chain_forget(struct chain *chain, const char *user);

/*
 * Nulls the pointer; memory goes in the last close callback, which comes when threads that connect
 * or compute hashes are done: the loop must run until then. No question may be under way.
 */
void chain_close(struct chain **chain);

#endif
