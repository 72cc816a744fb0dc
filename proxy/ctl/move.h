/*
 * Moves one user to another shard, with the steps that imapmux offers (cutover begin, look, verify,
 * commit, abort) and the commands of whoever moves. It blocks; several threads may move one each.
 */
#ifndef IMAPMUX_CTL_MOVE_H
#define IMAPMUX_CTL_MOVE_H

#include "proxy/base/span.h"

#include <jansson.h>
#include <stdint.h>

enum { MOVE_ID_DIGITS = 16, MOVE_NAME_MAX = 255 };

#define MOVE_VERIFY_BUILTIN "builtin"

/* What all moves have in common; borrowed while they go on. */
struct move_plan {
    const char *socket;
    const char *presync, *sync, *verify; /* commands of the shell; NULL: none */
    uint64_t timeout_ms; /* for the proxies to let go of a user, or for Redis to be back */
    int give_up_at;      /* so many interrupts, see interrupt.h */
    /* A line for people: of a command's output, or of ours. Called by the thread that moves. */
    void (*say)(void *owner, const char *user, struct span line);
    void *owner;
};

enum move_end {
    MOVE_READY,  /* of move_look_up: it can begin */
    MOVE_MOVED,  /* the user is at the new shard */
    MOVE_THERE,  /* and was so before */
    MOVE_FAILED, /* the user is not at the new shard, or at least not by us */
    MOVE_UNSURE  /* it will end by itself, at the one or the other: look again later */
};

struct move {
    const struct move_plan *plan;
    const char *user, *to; /* borrowed */
    /* Set by move_look_up: */
    char id[MOVE_ID_DIGITS + 1], from[MOVE_NAME_MAX + 1];
    char name[MOVE_NAME_MAX + 1], backend_user[MOVE_NAME_MAX + 1]; /* of the user, made uniform */
    char state[16];                                                /* of the route */
    uint64_t epoch;
    /* Set by move_run: */
    uint64_t hold_ms;               /* how long logins were held */
    json_int_t mailboxes, messages; /* that were compared; -1: none were */
    char why[640];                  /* of FAILED and UNSURE, also of move_look_up */
    /* Private. */
    json_t *missing;             /* the proxies that have not let go */
    uint64_t looked_ms, tell_ms; /* was asked for last; why is said, if it is still tried then */
    bool held, committed;
    bool lost; /* it is over, but not by us: Redis has forgotten it, or was away for too long */
};

/* Where is the user, and could she be moved? Changes nothing. `plan`, `user`, `to` are set. */
enum move_end move_look_up(struct move *move);

/* Moves the user, who is MOVE_READY. */
enum move_end move_run(struct move *move);

/*
 * Ends a move that somebody has left alone, and waits until the user is at the one shard or the
 * other; as move_look_up. UNSURE, with the old id, if it cannot be found out where she is.
 */
enum move_end move_settle(struct move *move, const char *old_id);

/*
 * What became of the user, as results have it: {user, from, to, state, hold_ms, ..., why}, where
 * `state` is "moved", "there", "failed" or "unsure". The caller has the reference.
 */
json_t *move_describe(const struct move *move, enum move_end end);

#endif
