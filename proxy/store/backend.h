/*
 * One connection to one store, through all its life: it is opened until it is warm (connected, TLS
 * done, greeted, capabilities known), logs a user in, is lent to a relay, is cleaned and parked,
 * checked and lent again, or reset to be warm once more (RFC 8437).
 *
 *     opening > warm > logging in > ready <> relay
 *                ^                    ^        |
 *                |                 checking    v
 *                +--- resetting <--- parked < leaving
 *
 * TLS comes before anything that tells who the user is; capabilities are those that the store shows
 * after login.
 */
#ifndef IMAPMUX_STORE_BACKEND_H
#define IMAPMUX_STORE_BACKEND_H

#include "proxy/base/buf.h"
#include "proxy/base/shared_text.h"
#include "proxy/imap/url.h"
#include "proxy/net/conn.h"
#include "proxy/store/store.h"
#include "proxy/store/store_login.h"

/* What a worker has for each shard; it outlives the backends. */
struct backend_target {
    const struct conf_shard *shard;
    const struct store *store;   /* knows which addresses are down; NULL: nobody does */
    SSL_CTX *tls;                /* NULL where the shard's tls is none */
    struct tls_memory *memories; /* one for each of shard->address */
    size_t source_turn;          /* which of shard->source_address is next */
    /* What the store last said that most connections hear alike. */
    struct shared_text *greeting_capabilities, *login_capabilities, *login_text;
};

struct backend;

struct backend_events {
    /*
     * Once for each operation (open, log_in, leave, check, reset), later, never after
     * backend_close. Other than ERR_NONE: the backend is of no use any more, and the owner closes
     * it.
     */
    void (*on_answer)(void *owner, const struct err *err);
    /* While warm or parked: it ended, or said what it must not. The owner closes it. */
    void (*on_lost)(void *owner);
};

/*
 * Begins to open; ERR_NONE: warm. `client` is needed where the shard says client_address = proxy,
 * and borrowed until the answer; else it may be NULL. NULL without memory. Fails with UNAVAILABLE,
 * and with LIMIT when descriptors have run out.
 */
struct backend *backend_open(const struct env *env, struct backend_target *target,
                             const struct store_client *client, const struct backend_events *events,
                             void *owner);

/*
 * From warm; `client` is borrowed until the answer. ERR_NONE: ready. Fails with UNAVAILABLE (store
 * slow, hangs up, speaks nonsense, or refuses the master user), CREDENTIALS, EXPIRED, ADMIN, LIMIT
 * as the store refuses the user, and REFERRAL when it says that the user is elsewhere (RFC 2221).
 */
void backend_log_in(struct backend *backend, const struct store_client *client);

/*
 * After a failed log_in: the connection had ended before the store said a word about it, as when
 * the store has just got tired of waiting. Nothing speaks against trying on another one.
 */
bool backend_is_stale(const struct backend *backend);

/* After log_in has failed with REFERRAL: where the store says that the user is. */
const struct url *backend_referral(const struct backend *backend);

/*
 * From the hands of a relay that says it is clean: unselects the mailbox, if one was `selected`,
 * and waits until all that is under way has come. ERR_NONE: parked.
 */
void backend_leave(struct backend *backend, bool selected);

/* From parked: asks whether it is still there, unless it has just spoken. ERR_NONE: ready. */
void backend_check(struct backend *backend);

/* From parked: UNAUTHENTICATE. ERR_NONE: warm. */
void backend_reset(struct backend *backend);

/* From ready, of a clean session: says LOGOUT, for the store's log, before it is closed. */
void backend_log_out(struct backend *backend);

/* Closes at any time; memory goes in the last close callback. Nulls the pointer. */
void backend_close(struct backend **backend);

/*
 * While ready. All are borrowed until backend_close; the relay makes itself the connection's owner.
 */
struct conn *backend_conn(struct backend *backend);
struct span backend_capabilities(const struct backend *backend); /* the store's own list */
struct span backend_login_text(const struct backend *backend);   /* human text of its OK */
struct buf *
backend_notices(struct backend *backend); /* alerts that are for the user; the taker empties it */
struct buf *
backend_rest(struct backend *backend); /* bytes read behind the OK: the session's first */
const union address *backend_address(const struct backend *backend);

#endif
