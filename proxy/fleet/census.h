/*
 * All client sessions of this process, told on the control thread: copies, a few at a time, so that
 * no thread is kept from its work however many there are. Each worker's list is gone through in
 * steps, a letter for each. Who comes while that goes on may be missed; who changes its worker
 * then, told twice.
 *
 * A census is embedded in its owner, which lives until on_done, come what may: letters cannot be
 * called back.
 */
#ifndef IMAPMUX_FLEET_CENSUS_H
#define IMAPMUX_FLEET_CENSUS_H

#include "auth/username.h"
#include "proxy/base/address.h"
#include "proxy/process/control.h"

enum { CENSUS_TITLE_MAX = 64 };

struct census_session {
    char id[24];
    char user[USERNAME_MAX + 1];   /* "": it has not told yet; may be a claim, unless has_user */
    char master[USERNAME_MAX + 1]; /* who has logged in for the user, or "" */
    char shard[CENSUS_TITLE_MAX];  /* "": not known yet */
    char listener[CENSUS_TITLE_MAX];
    const char *phase, *tls, *method, *lease; /* constants; "" for what is not there yet */
    union address peer, store;                /* `store` is zeroed before the login there */
    uint64_t age_ms, idle_ms;                 /* idle: since the last byte, once relayed */
    uint64_t bytes_in, bytes_out, commands;   /* of the client, and to it, once relayed */
    bool has_user;                            /* verified, and on its way to a store or there */
    bool is_relayed;                          /* is or was logged in at a store */
};

struct census_part;

struct census {
    /* Set by the owner. */
    /* On workers' threads, several at a time: is this one to be told of? NULL: all are. */
    bool (*wants)(const struct census *census, const struct census_session *session);
    void (*on_sessions)(struct census *census, const struct census_session *list, size_t count);
    void (*on_done)(struct census *census); /* once, last; may free it */

    /* Private. */
    struct control *control;
    struct census_part *parts; /* for each worker */
    size_t part_count, parts_left;
    size_t step_max; /* sessions that one worker tells of at a time */
    bool paused;
    _Atomic bool cancelled;
};

/* Nothing is told inside the call. False without memory: then nothing comes. */
bool census_begin(struct census *census, struct control *control);

/* Paused, it goes on with what is under way already, 512 sessions at the most, and then rests. */
void census_pause(struct census *census);
void census_go_on(struct census *census);

/* No session is told of any more; on_done follows, later, as ever. */
void census_cancel(struct census *census);

#endif
