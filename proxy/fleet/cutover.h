/*
 * The steps of a cutover, which moves a user to another store (docs/architecture.md, "Cutovers"):
 *     begin > look, again and again > commit     or abort
 * Each is a script that Redis carries out at once, and harmless to repeat for the same move:
 * whoever has lost an answer asks again. What the next step relies on is waited for on
 * redis.replicas replicas. Of the control thread.
 */
#ifndef IMAPMUX_FLEET_CUTOVER_H
#define IMAPMUX_FLEET_CUTOVER_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"

#include <jansson.h>

enum {
    CUTOVER_MOVE_TEXT = 16,  /* digits of the id of a move */
    CUTOVER_LEASE_MS = 30000 /* a move that is not looked at for so long is over */
};

struct cutovers;
struct redis_command;

/* Where the user's mail is to be looked for, as far as it is known when a request is answered. */
enum cutover_place {
    CUTOVER_UNKNOWN, /* the answer of Redis was lost: ask again */
    CUTOVER_OLD,     /* still at the old store */
    CUTOVER_BETWEEN, /* at none: committed, so from here it only goes forward */
    CUTOVER_NEW      /* at the new one, and the move is done */
};

struct cutover_request {
    /* Set by the owner; borrowed until the answer. */
    const char *user;
    const char *move;         /* its id, see cutover_is_move */
    const char *to;           /* begin: title of a shard */
    const char *from;         /* begin: where a user is whom Redis does not know; "" nowhere */
    const char *backend_user; /* begin: such a user's name there; "": the same */
    /*
     * ERR_NONE: `state` is what Redis has now, an object {state, epoch, shard, target, from, done,
     * acked, missing: [{id, host, pid, seen_seconds, until_seconds}], lacking}, of which the callee
     * may keep a reference; `done`: by this move, to the end; `missing` lists 20, `lacking` counts
     * all. Else *err tells why not (PEER: refused, UNAVAILABLE: Redis), and `state` may be NULL.
     */
    void (*on_answer)(struct cutover_request *request, json_t *state, enum cutover_place place,
                      const struct err *err);
    void *owner;

    /* Private. */
    struct cutovers *cutovers;
    struct redis_command *command;
    struct turn_task task;
    int step;
    bool waits; /* for the replicas */
    uint64_t connection;
    json_t *state;
    enum cutover_place place;
    struct err err;
};

/*
 * Has a connection to Redis of its own, for it is blocked while replicas are waited for, and that
 * must delay no heartbeat. NULL with *err set.
 */
struct cutovers *cutovers_open(const struct env *env, struct err *err);

/* No request may be under way. Nulls the pointer; harmless on NULL. */
void cutovers_close(struct cutovers **cutovers);

/* A new id; false when there are no random octets. */
bool cutover_new_move(char move_out[CUTOVER_MOVE_TEXT + 1]);

/* Is this text an id of a move? */
bool cutover_is_move(const char *text);

/* The user is held from now on, by all proxies. */
void cutover_begin(struct cutovers *cutovers, struct cutover_request *request);

/* Who holds her already? The move goes on for another CUTOVER_LEASE_MS. */
void cutover_look(struct cutovers *cutovers, struct cutover_request *request);

/* All proxies hold her: her mail is at the new store from now on. */
void cutover_commit(struct cutovers *cutovers, struct cutover_request *request);

/* All as before; refused once it is committed. */
void cutover_abort(struct cutovers *cutovers, struct cutover_request *request);

/* After this the request does not answer. Harmless on one that is not under way. */
void cutover_cancel(struct cutover_request *request);

#endif
