/*
 * Host names to addresses without stopping the loop: getaddrinfo runs on libuv's thread pool. A
 * request is embedded in its owner; it answers exactly once, later, never inside resolve, and never
 * after resolve_cancel has returned.
 */
#ifndef IMAPMUX_NET_RESOLVE_H
#define IMAPMUX_NET_RESOLVE_H

#include "proxy/base/address.h"
#include "proxy/base/env.h"
#include "proxy/base/err.h"

enum { RESOLVE_ADDRESSES_MAX = 16 };

struct resolve_request {
    /*
     * Set by the owner. err->kind ERR_NONE: `list` holds 1..RESOLVE_ADDRESSES_MAX addresses with
     * the port filled in, in the order in which they should be tried (RFC 6724), borrowed during
     * the call. UNAVAILABLE: the name has no address or the name servers did not answer; INTERNAL:
     * no memory. The callee may free or reuse the request.
     */
    void (*on_answer)(struct resolve_request *request, const union address *list, size_t count,
                      const struct err *err);
    void *owner;

    /* Private; zero before the first use. */
    const struct env *env;
    struct resolve_lookup *lookup; /* runs on the thread pool; outlives a cancelled request */
    struct turn_task task;
    union address numeric;
    struct err err;
};

/*
 * Looks `host` up (a name, or a number without brackets; copied). The request must not be under
 * way.
 */
void resolve(const struct env *env, struct resolve_request *request, const char *host,
             uint16_t port);

/* After this the request does not answer. Harmless on one that is not under way. */
void resolve_cancel(struct resolve_request *request);

#endif
