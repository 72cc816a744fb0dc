/*
 * The connections of a pool that wait for somebody: warm ones for anyone, parked ones for their
 * user.
 */
#ifndef IMAPMUX_STORE_IDLE_H
#define IMAPMUX_STORE_IDLE_H

#include "proxy/store/pooled.h"

/* A clean one that has left its session, or one that was reset or opened as a spare. */
void idle_park(struct pooled *p);
void idle_add_warm(struct pooled *p);

/* The one to lend, taken out of the lists; NULL: none. */
struct pooled *idle_take_parked(struct pool_shard *at, const char *user,
                                const struct lease_identity *identity);
struct pooled *idle_take_warm(struct pool_shard *at);

/*
 * Drops what is parked for a user but does not fit `identity` at this shard: of another password,
 * shard or name there.
 */
void idle_purge(struct pool *pool, const char *user, const struct pool_shard *at,
                const struct lease_identity *identity);

/* Drops the one that has been idle for longest; false when there is none. */
bool idle_drop_oldest_of(struct pool_shard *at);
bool idle_drop_oldest(struct pool *pool);

/* Drops those at addresses that were found down. */
void idle_drop_at_down_addresses(struct pool_shard *at);

/* Opens a spare, if one is wanted now. */
void idle_refill(struct pool_shard *at);

/* A spare that has opened, or has not. */
void idle_spare_opened(struct pooled *p);
void idle_spare_failed(struct pooled *p);

/* A warm one has ended: the next spare waits, longer each time until a login goes well. */
void idle_spare_lost(struct pool_shard *at);

/* Whether a logged-in one can be made a warm one. */
bool idle_can_reset(const struct pooled *p);

/* Ends what has waited long enough. */
void idle_expire(struct pool_shard *at);

#endif
