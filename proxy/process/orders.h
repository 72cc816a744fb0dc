/*
 * What operators want of the shards (struct store): kept in Redis, in the hash shard:{title} of
 * each, so that all proxies act alike and a restart remembers; without Redis, for this process
 * alone. While Redis is away the last word counts. On the control thread.
 */
#ifndef IMAPMUX_PROCESS_ORDERS_H
#define IMAPMUX_PROCESS_ORDERS_H

#include "proxy/process/control.h"

struct orders;

/* Begins to read what there is. Borrows `control`, until the close. NULL with *err set. */
struct orders *orders_open(struct control *control, struct err *err);

/*
 * Workers have ended. Orders under way are answered with UNAVAILABLE. Nulls the pointer; harmless
 * on NULL.
 */
void orders_close(struct orders **orders);

/*
 * Another configuration, which has stores for all its shards: first, what is needed for new ones,
 * false without memory; then, when it is in force, they are looked at.
 */
bool orders_prepare(struct orders *orders, const struct conf *conf);
void orders_commit(struct orders *orders);

/* The hash of this shard has changed; of any, if it is NULL. */
void orders_look(struct orders *orders, const char *shard);

/* Embedded in its owner, which lives until the answer: an order cannot be called back. */
struct order_request {
    /* Set by the owner. */
    struct store *store; /* of a shard that is configured */
    bool sets_state;     /* `state` and `let_go` count */
    enum store_order state;
    const char *let_go; /* in ms, in digits; "": as the state has it. Sessions are let go so long */
    const char *weight; /* in digits; "": as it is */
    /*
     * Once, later: ERR_NONE: it is so, and here it is acted upon. UNAVAILABLE: nothing has changed,
     * or, if the connection broke meanwhile, it may have.
     */
    void (*on_answer)(struct order_request *request, const struct err *err);

    /* Private. */
    struct orders *orders;
    struct order_request *prev, *next;
    struct redis_command *command;
    struct err err;
    bool answered;
};

void orders_give(struct orders *orders, struct order_request *request);

#endif
