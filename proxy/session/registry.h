/*
 * Which sessions there are on this worker, told to Redis, so that proxies know of one another's. A
 * worker is a node there: a random name, with a key that lives as long as it is refreshed, and
 * counts under that name in the hashes of users and addresses (docs/architecture.md, "Redis"). What
 * a dead node has left does not count, and goes when it is met.
 *
 * Redis may be away: whoever asks is told so, at once or within the time below, and nothing waits.
 * When it is back, the worker takes a new name and tells all its sessions again, as it does
 * whenever it cannot know what Redis has counted. Of one worker, never shared.
 */
#ifndef IMAPMUX_SESSION_REGISTRY_H
#define IMAPMUX_SESSION_REGISTRY_H

#include "proxy/base/address.h"
#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "proxy/net/redis_link.h"

enum { REGISTRY_ANSWER_MAX_MS = 1000 }; /* or redis.timeout, if that is less */

struct registry;
struct registry_entry; /* the sessions of one user from one address */

enum registry_verdict {
    REGISTRY_COUNTED, /* it is one of the sessions now */
    REGISTRY_USER_FULL,
    REGISTRY_ADDRESS_FULL,
    REGISTRY_USER_ADDRESS_FULL,
    REGISTRY_UNKNOWN /* Redis does not answer: registry_add, if it is to be let in */
};

struct registry_request {
    /* Set by the owner; borrowed until the answer. 0 is no limit. */
    const char *user;
    const union address *address;
    uint32_t user_max, address_max, user_address_max;
    /* `entry` is to be given to registry_leave; NULL unless COUNTED. */
    void (*on_answer)(struct registry_request *request, enum registry_verdict verdict,
                      struct registry_entry *entry);
    void *owner;

    /* Private. */
    struct registry_call *call;
};

/* Borrows env, whose connection to Redis must be there until the close. NULL with *err set. */
struct registry *registry_open(const struct env *env, struct err *err);

/*
 * May there be one session more, on all proxies together? The answer comes later, once, and never
 * after registry_cancel. False: it is UNKNOWN, and no answer comes.
 */
bool registry_ask(struct registry *registry, struct registry_request *request);

/* After this the request does not answer. Harmless on one that is not under way. */
void registry_cancel(struct registry_request *request);

/* There is one more, whatever the limits. NULL without memory: then it is not told. */
struct registry_entry *registry_add(struct registry *registry,
                                    const struct registry_request *request);

/* There is one less. Nulls the pointer; harmless on NULL. */
void registry_leave(struct registry *registry, struct registry_entry **entry);

/*
 * Asks how many sessions of this user there are on all proxies together: the reply is a number.
 * NULL: it cannot be sent, and no reply comes.
 */
struct redis_command *registry_count(struct registry *registry, const char *user,
                                     redis_reply_fn *on_reply, void *owner);

/*
 * The worker ends: Redis is told that the node is no more. `on_retired` follows when it knows, or
 * the time is up. False if there is nothing to wait for. Nothing is told after this.
 */
bool registry_retire(struct registry *registry, void (*on_retired)(void *owner), void *owner);

/*
 * No session may be there, no request under way. Nulls the pointer; memory goes in the last close
 * callback. Harmless on NULL.
 */
void registry_close(struct registry **registry);

#endif
