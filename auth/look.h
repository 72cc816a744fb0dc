/*
 * What is known of a user, for those who ask after her without a proof: nothing is remembered of
 * it, nobody is counted, kept waiting or let in. On the worker's loop.
 */
#ifndef IMAPMUX_AUTH_LOOK_H
#define IMAPMUX_AUTH_LOOK_H

#include "auth/auth.h"

struct auth_look {
    /* Set by the owner; borrowed until the answer. */
    const char *user;                          /* normalised */
    void (*on_answer)(struct auth_look *look); /* once, later, never after auth_look_cancel */
    void *owner;

    /*
     * The answer, during on_answer. ERR_NONE: there is such a user, who may log in. CREDENTIALS: no
     * source knows her. EXPIRED, ADMIN: one does, and she may not. Else nobody can be asked.
     */
    struct err err;
    const char *source;             /* which one has decided; "": none */
    const struct auth_facts *facts; /* NULL: none are told */
    char name[USERNAME_MAX + 1];    /* her own one, normalised */

    /* Private. */
    struct auth *auth;
    struct auth_question question;
    uv_timer_t *deadline;
    struct turn_task task;
    bool active;
};

/* Asks the sources, within auth.timeout. */
void auth_look(struct auth *auth, struct auth_look *look);

/* Harmless on one that is not under way. */
void auth_look_cancel(struct auth_look *look);

/* What is remembered under this name, now. */
struct auth_memory {
    enum cache_verdict password; /* the last one that was verified: VERIFIED, STALE, or UNKNOWN */
    uint64_t password_age_ms;
    unsigned failures; /* of the throttle: those that are not forgiven yet */
    uint64_t delay_ms; /* that her next login has to wait for them */
};

void auth_recall(const struct auth *auth, const char *user, struct auth_memory *memory_out);

#endif
