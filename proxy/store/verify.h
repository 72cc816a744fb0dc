/*
 * Are a user's mailboxes at two stores the same? Logs in to both as the user, by the shards'
 * passwordless way, lets each tell of its mailboxes, and compares (inventory.h). On the control
 * loop; the connections are its own, and go by no gate. Within conf->cutover.verify_timeout.
 */
#ifndef IMAPMUX_STORE_VERIFY_H
#define IMAPMUX_STORE_VERIFY_H

#include "proxy/base/env.h"
#include "proxy/net/tls.h"
#include "proxy/store/inventory.h"

struct verify;

struct verify_request {
    /* Set by the owner; borrowed until the answer. */
    const struct conf_shard *from, *to; /* of the configuration in force when it starts */
    const char *from_user, *to_user;    /* her names there */
    /*
     * ERR_NONE: `comparison` tells, and is valid during the call. Else a store did not answer, or
     * what it said is of no use, and it is NULL.
     */
    void (*on_answer)(struct verify_request *request, const struct inventory_comparison *comparison,
                      const struct err *err);
    void *owner;

    /* Private. */
    struct verify *verify;
};

/*
 * False with *err set, and no answer follows: a shard has no passwordless way, or no memory. Else
 * the answer comes later.
 */
bool verify_start(const struct env *env, const struct tls *tls, struct verify_request *request,
                  struct err *err);

/* After this the request does not answer. Harmless on one that is not under way. */
void verify_cancel(struct verify_request *request);

#endif
