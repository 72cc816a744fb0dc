/*
 * The throttle's levels for all proxies together, in Redis, by the same rules as throttle.h: how
 * long a login has to wait for what has failed at any of them. It comes beside the local throttle,
 * which still decides alone when Redis does not answer. Of one worker, on its connection.
 *
 * So that the same wrong password again is no guess, Redis keeps a tag of each: 16 bits of an HMAC
 * under a random key that the proxies share by way of Redis. Whoever reads all that can rule out
 * passwords, but confirm none: one in 65536 of all passwords has the same tag.
 */
#ifndef IMAPMUX_AUTH_SHARED_THROTTLE_H
#define IMAPMUX_AUTH_SHARED_THROTTLE_H

#include "auth/throttle.h"
#include "proxy/base/env.h"

#include <sys/queue.h>

enum { SHARED_THROTTLE_ANSWER_MAX_MS = 500 };

struct shared_throttle;
struct redis_command;

struct shared_throttle_request {
    /* Set by the owner; borrowed until the answer. */
    const union address *address;
    const char *user;
    /* How long to wait before the password is looked at: 0 also when Redis does not answer. */
    void (*on_answer)(struct shared_throttle_request *request, uint64_t delay_ms);
    void *owner;

    /* Private. */
    struct shared_throttle *throttle; /* NULL: not under way */
    TAILQ_ENTRY(shared_throttle_request) link;
    struct redis_command *command; /* NULL once it is answered */
    struct turn_task task;
    uint64_t asked_ms, delay_ms;
};

/* Borrows env, whose connection to Redis must be there until the close. NULL with *err set. */
struct shared_throttle *shared_throttle_open(const struct env *env, struct err *err);

/*
 * The answer comes later, once, within SHARED_THROTTLE_ANSWER_MAX_MS, and never after
 * shared_throttle_cancel. After a late one, nobody is kept waiting for a while.
 */
void shared_throttle_ask(struct shared_throttle *throttle, struct shared_throttle_request *request);

/* After this the request does not answer. Harmless on one that is not under way. */
void shared_throttle_cancel(struct shared_throttle_request *request);

/* What came of a login that has asked. Nothing is waited for. */
void shared_throttle_report(struct shared_throttle *throttle, const union address *address,
                            const char *user, const struct secret *password,
                            enum throttle_outcome outcome);

/*
 * No request may be under way. Nulls the pointer; memory goes in the last close callback. Harmless
 * on NULL.
 */
void shared_throttle_close(struct shared_throttle **throttle);

#endif
