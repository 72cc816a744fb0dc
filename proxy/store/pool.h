/*
 * A worker's connections to the stores, lent to sessions. A session asks by a lease request, and
 * gets a connection that is logged in as its user: one that was parked when this user's last
 * session ended, else one that was kept warm, else a new one. How many may exist and log in at once
 * is decided by gates that all workers share; who finds no place waits in a line, for a bounded
 * time.
 *
 * One session never sees anything of another: a connection is kept only if the relay vouches that
 * it is clean (dialog_is_clean), and lent again only to the same user, verified anew by the same
 * proof.
 */
#ifndef IMAPMUX_STORE_POOL_H
#define IMAPMUX_STORE_POOL_H

#include "proxy/store/lease.h"
#include "proxy/store/store.h"

/*
 * NULL without memory or descriptors. `stores` is shared by as many pools as it has workers, of
 * which this is number `index`; all that is given, but `tls`, is borrowed until the end of
 * pool_close.
 */
struct pool *pool_open(const struct env *env, const struct tls *tls, const struct stores *stores,
                       size_t index);

/* The shard's title, for as long as the process lives. */
const char *pool_shard_title(const struct pool *pool, const struct conf_shard *shard);

/* Who serves a user of this shard now: it, or its replica (store_serving). For pool_lease. */
const struct conf_shard *pool_serving(struct pool *pool, const struct conf_shard *shard);

/*
 * Answers once, later, never inside the call and never after pool_cancel. False with *err set, and
 * no answer, when the line is too long or memory short.
 */
bool pool_lease(struct pool *pool, struct lease_request *request, const struct conf_shard *shard,
                struct err *err);
void pool_cancel(struct lease_request *request); /* harmless on one that is not under way */

/* Whether it waits in a line, and nothing has been done for it yet. */
bool pool_waits(const struct lease_request *request);

struct backend *pooled_backend(struct pooled *connection);
enum lease_kind pooled_kind(const struct pooled *connection);

/* Whether a clean connection of this shard would be kept now: no use in keeping it clean if not. */
bool pool_would_keep(const struct pooled *connection);

/* Gives a connection back, and nulls the pointer. A clean one may be kept. Harmless on NULL. */
void pool_return(struct pooled **connection, enum lease_end end);

/*
 * Ends what is logged in as this user (NULL: as anybody) and belongs to no session: parked, or on
 * its way there or from there.
 */
void pool_forget_user(struct pool *pool, const char *user);

/* How many connections are parked for this user. */
size_t pool_parked(const struct pool *pool, const char *user);

/* Tells of each user with parked connections: how many, and at which shard the oldest one is. */
void pool_each_parked(const struct pool *pool,
                      void (*tell)(void *owner, const char *user, const struct conf_shard *shard,
                                   size_t count),
                      void *owner);

/* What a pool has for one shard. */
struct pool_counts {
    size_t open; /* connections: */
    size_t leased, warm, parked, other;
    uint64_t oldest_ms;           /* the age of the oldest one; 0: there is none */
    size_t logging_in;            /* requests that have a place at the gate of logins */
    size_t waiting;               /* in a line */
    uint64_t leases[LEASE_KINDS]; /* since the start, by enum lease_kind */
};

/* Adds what there is to the counts of each shard, by its id, of which there are so many. */
void pool_count(const struct pool *pool, struct pool_counts *counts, size_t id_count);

/* A descriptor was given out: a high number means that they run short, and an idle one must go. */
void pool_relieve(struct pool *pool, int fd);

/*
 * For a session whose store was lost: how long its idle client shall wait to hear of it. The first
 * few are told at once, a crowd is spread over shard.drain_time.
 */
uint64_t pool_letting_go_delay(struct pool *pool, const struct conf_shard *shard);

/* Ends what is idle, and keeps nothing from now on; sessions go on and may still come. */
void pool_retire(struct pool *pool);

/* The same, and who waits for a connection is refused. */
void pool_stop(struct pool *pool);

/*
 * No lease may be out or under way. Nulls the pointer; memory goes in the last close callback.
 */
void pool_close(struct pool **pool);

#endif
