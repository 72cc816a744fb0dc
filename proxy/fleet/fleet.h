/*
 * This process among the others that share its Redis: they know of one another, hear what changes,
 * and are asked together. It works without Redis, too; then there are no others. On the control
 * thread (docs/architecture.md, "Proxies among themselves").
 */
#ifndef IMAPMUX_FLEET_FLEET_H
#define IMAPMUX_FLEET_FLEET_H

#include "proxy/process/control.h"
#include "routing/freshness.h"

#include <jansson.h>

struct fleet;

/* --- life; the order is that of these lines --- */

/*
 * Borrows the control thread, whose connection to Redis is there, until the close. `heir_of` is the
 * fleet_id of a process that lives and gives its place to this one, or NULL. NULL with *err set.
 */
struct fleet *fleet_open(struct control *control, const char *heir_of, struct err *err);

/*
 * Runs the loop until Redis knows of this process, or it turns out that Redis is away. False with
 * *err set: then an heir that asks Redis for routes has to wait, for moves would not wait for it.
 */
bool fleet_join(struct fleet *fleet, struct err *err);

/* An heir's, when the other process has released that: takes over what is known of routes. */
void fleet_inherit(struct fleet *fleet);

/* Workers are open, and their threads do not run yet: their routers learn what is known. */
void fleet_teach(struct fleet *fleet, struct workers *workers);

/* Workers have started: from now on changes are heard. False with *err set. */
bool fleet_serve(struct fleet *fleet, struct err *err);

/* Runs the loop until what is known of routes is kept as this process's. */
void fleet_keep(struct fleet *fleet);

/* Workers are about to end: runs the loop until what they know has been kept. */
void fleet_stop(struct fleet *fleet);

/*
 * Workers have ended, so nobody is served any more: runs the loop until Redis knows, or a second
 * has passed.
 */
void fleet_leave(struct fleet *fleet);

/* The control thread's inbox has been emptied. Nulls the pointer; harmless on NULL. */
void fleet_close(struct fleet **fleet);

/* --- giving its place to an heir --- */

/*
 * Gives up what is known of routes, as it is now; consents to moves wait from now on. `on_released`
 * follows, unless it is taken back before; false if there is nothing to wait for.
 */
bool fleet_release(struct fleet *fleet, void (*on_released)(void *owner), void *owner);

/* The heir has failed: all is as it was before. */
void fleet_take_back(struct fleet *fleet);

/* The heir serves, and consents to moves as well: this process does so for its own sessions. */
void fleet_has_heir(struct fleet *fleet);

/* --- for others --- */

/* 16 hex digits: the process, for as long as it runs. */
const char *fleet_id(const struct fleet *fleet);

/* For the routers of workers; NULL without Redis. */
struct freshness *fleet_freshness(struct fleet *fleet);

/*
 * From a worker's thread: this user, who is held since `epoch`, has no connection to a store any
 * more. Told to Redis on the control thread.
 */
void fleet_tell_held(struct control *control, const char *user, uint64_t epoch);

/*
 * `on_changed` hears which shard's state has changed in Redis; NULL: any may have. It also comes
 * when the events begin to be heard.
 */
void fleet_watch_shards(struct fleet *fleet, void (*on_changed)(void *owner, const char *shard),
                        void *owner);

/* A question to all proxies, this one included; proxy/fleet/answer.h lists what can be asked. */
struct fleet_question {
    /* Set by the owner; the object is borrowed for the call. */
    json_t *question;
    /* A piece of what one proxy says: a list of items, of which a reference may be kept. */
    void (*on_items)(struct fleet_question *question, json_t *items);
    /*
     * Last of all. *err names those who have not answered within two seconds, or tells why there
     * may be more than was said.
     */
    void (*on_done)(struct fleet_question *question, const struct err *err);
    void *owner;

    /* Private. */
    struct asking *asking;
};

/* Answers come later, never inside the call. False with *err set: nobody is asked. */
bool fleet_ask(struct fleet *fleet, struct fleet_question *question, struct err *err);

/* After this nothing is answered; what was asked is done all the same. Harmless when it is over. */
void fleet_ask_cancel(struct fleet_question *question);

#endif
