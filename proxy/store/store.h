/*
 * What all workers share about the stores: how many connections and logins each one may have now,
 * whether it answers, and what operators want of it. The table is made before the workers and
 * outlives them. Workers read, and tell what they meet; the control thread alone decides.
 */
#ifndef IMAPMUX_STORE_STORE_H
#define IMAPMUX_STORE_STORE_H

#include "proxy/base/address.h"
#include "proxy/base/conf.h"
#include "proxy/store/gate.h"

/* What an operator wants: DRAIN takes no new users, DOWN no logins at all. */
enum store_order { STORE_UP, STORE_DRAIN, STORE_DOWN };
extern const char *const store_order_names[]; /* "up", "drain", "down" */

enum {
    STORE_DOWN_ADDRESSES = 32, /* that are remembered; of more the order of dialling is as usual */
    STORE_WEIGHT_MAX = 1000
};

struct store {
    size_t id; /* of the shard */
    char title[CONF_TITLE_MAX + 1];
    _Atomic(struct store *) replica; /* has the same mail; NULL: none */
    _Atomic bool is_checked;   /* health checks say whether it is down; else logins find out */
    _Atomic bool is_removed;   /* from the configuration */
    struct gate connections;   /* places: connections of this process to the store */
    struct gate logins;        /* places: sessions between connecting and the end of the login */
    _Atomic uint32_t sessions; /* that have a connection to it */
    _Atomic uint64_t logins_ok, logins_failed; /* that were led to it */
    _Atomic uint64_t reached_ms;               /* when it greeted last; clock_ms */
    _Atomic uint64_t down_ms;                  /* when logins have found it down */
    _Atomic uint64_t changed_ms; /* when it was found down, or well again, or the start */
    _Atomic bool is_down;
    _Atomic uint32_t order, weight;
    uint32_t conf_weight, ordered_weight; /* the control thread's; 0: an operator has not said */
    _Atomic bool is_doubted;              /* a login has failed, or a session was lost */
    _Atomic(uv_async_t *) on_doubt;
    _Atomic uint64_t down_addresses[STORE_DOWN_ADDRESSES]; /* digests; 0: a free place */
    _Atomic uint32_t down_address_news;                    /* grows when one is to be left */
};

/*
 * By shard id. Nothing in it ever moves or goes while it is open, for others keep pointers to
 * stores; a store whose shard was removed waits for its return.
 */
struct stores {
    size_t worker_count;
    struct store *by_id[CONF_SHARD_IDS];
};

/* One for each shard; NULL without memory. */
struct stores *stores_open(const struct conf *conf, size_t worker_count);
void stores_close(struct stores **stores);

/* The store of this shard of a configuration. */
static inline struct store *stores_of(const struct stores *stores, const struct conf_shard *shard)
{
    return stores->by_id[shard->id];
}

/* --- any thread --- */

/*
 * What an attempt met that began at `started_ms` (clock_ms): it was greeted, or no address
 * answered, and nobody else was greeted meanwhile or a moment ago. With health checks that brings
 * the next one forward, and no more. Without them the store is down then: its gate for logins is
 * held, so that one at a time tries; when it is back they begin slowly (shard.slow_start).
 * `not_reached` tells whether that is the second failure: then there is no use in waiting.
 */
void store_was_reached(struct store *store);
bool store_was_not_reached(struct store *store, uint64_t started_ms);

/* A session was lost, or a login got no answer: is it still well? */
void store_doubt(struct store *store);

/* Whether logins are refused at once, and why: it is down by its checks or by an operator. */
bool store_refuses(const struct store *store);
void store_tell_refusal(const struct store *store, struct err *err);

/*
 * Who serves a user of this store now: it, or its replica while it refuses logins or drains and the
 * replica is up.
 */
const struct store *store_serving(const struct store *store);

/*
 * The store's share of the users that a ring is to place; 0: none. For a routing view, whose owner
 * is struct stores.
 */
uint32_t store_ring_weight(void *stores, size_t id);

/*
 * Whether the checks have found this address of the store down: it is dialled last. A zeroed one is
 * none.
 */
bool store_address_is_down(const struct store *store, const union address *address);

/* How many of its addresses the checks have found down. */
size_t store_addresses_down(const struct store *store);

/* --- the control thread --- */

/*
 * Another configuration, in two steps: stores for its new shards (false without memory, and nothing
 * has changed); then what it says counts, and a store whose shard it has not refuses logins. To
 * discard the first step give the configuration that stays in force. Workers hear of a new shard
 * after the first step.
 */
bool stores_prepare(struct stores *stores, const struct conf *conf);
void stores_discard(struct stores *stores, const struct conf *in_force);
void stores_commit(struct stores *stores, const struct conf *conf);

/*
 * From now on `on_doubt` is sent when is_doubted is set; NULL: nothing is. What is given lives as
 * long as the workers.
 */
void store_watch(struct store *store, uv_async_t *on_doubt);

/*
 * What the checks have found out. A store that is down refuses logins: all that are under way are
 * answered. One that is back takes them slowly. `why` is for the log.
 */
void store_found(struct store *store, bool is_down, const char *why);

/* The same for one address: it is dialled last. */
void store_address_found(struct store *store, const union address *address, bool is_down);

/* While others of its addresses are well: what is under way at those that are down begins anew. */
void store_leave_down_addresses(struct store *store);

/* What an operator wants; `weight` 0 is that of the configuration. True: something has changed. */
bool store_set_operator(struct store *store, enum store_order order, uint32_t weight);

#endif
