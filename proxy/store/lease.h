/*
 * A request for a connection to a store that is logged in as a user: what a session asks the pool.
 */
#ifndef IMAPMUX_STORE_LEASE_H
#define IMAPMUX_STORE_LEASE_H

#include "proxy/store/backend.h"
#include "proxy/store/gate.h"

struct pool;
struct pooled; /* a connection; the session's while lent */

enum lease_kind { LEASE_NEW, LEASE_WARM, LEASE_PARKED, LEASE_RESET, LEASE_KINDS };

/* How a session leaves its connection. */
enum lease_end {
    LEASE_CLEAN,          /* nothing of it is left at the store */
    LEASE_CLEAN_SELECTED, /* but a selected mailbox */
    LEASE_DONE,           /* clean, but it shall not be used again */
    LEASE_UNCLEAN,
    LEASE_LOST /* the store has ended it */
};

/* What makes a parked connection fit for a session; digests under a key of the pool. */
struct lease_identity {
    unsigned char proof[16], backend_user[16], client_id[16];
};

/* Embedded in its owner. */
struct lease_request {
    /* Set by the owner; borrowed until the answer. */
    const char *user; /* normalised name */
    struct store_client client;
    /*
     * ERR_NONE: `connection` is the owner's until pool_return. Else as backend_open and
     * backend_log_in, with `referral` set for REFERRAL; BUSY: no login could begin in time; FULL:
     * no connection was free in time.
     */
    void (*on_answer)(struct lease_request *request, struct pooled *connection,
                      const struct err *err);
    void *owner;
    struct url referral;

    /* Private. */
    struct pool *pool; /* NULL while not under way */
    struct pool_shard *at;
    struct pooled *pooled; /* the one that is being made ready */
    struct gate_ticket ticket;
    struct lease_identity identity;
    uint64_t waiting_since_ms; /* 0: does not wait */
    bool has_login_place;
};

#endif
