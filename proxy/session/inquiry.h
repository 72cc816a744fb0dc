/*
 * What is known of one user, for administration: her sources are asked for her account and her
 * route, and the worker on which all about her happens tells the rest. Nothing is changed by it.
 *
 * An inquiry is embedded in its owner, which lives until on_done, come what may: it travels between
 * threads and cannot be called back. It takes as long as the sources may take to answer.
 */
#ifndef IMAPMUX_SESSION_INQUIRY_H
#define IMAPMUX_SESSION_INQUIRY_H

#include "auth/look.h"
#include "proxy/session/home.h"

enum { INQUIRY_NETWORKS_MAX = 16 };

struct inquiry {
    /* Set by the owner. */
    char user[USERNAME_MAX + 1];              /* normalised */
    void (*on_done)(struct inquiry *inquiry); /* once, on the loop of the inbox; may free it */

    /* The answer. */
    bool stopped;                /* the process ends: nothing else is set */
    char name[USERNAME_MAX + 1]; /* what her sources call her, normalised */
    struct err account;          /* as auth_look's */
    char source[16];             /* of the account; "": none has decided */
    char told_shard[HOST_MAX];   /* by that source; "": nothing */
    char told_backend_user[BACKEND_USER_MAX + 1];
    struct network networks[INQUIRY_NETWORKS_MAX];
    size_t network_count; /* of the source; may be more than are kept here */
    struct auth_memory memory;
    struct route route; /* if it has one */
    bool has_route;
    struct err route_err; /* as router_find's */
    bool is_held;
    uint64_t held_epoch;
    size_t sessions, parked; /* of this process */
    bool sessions_known;     /* with limits.shared, unless Redis does not answer */
    uint64_t all_sessions;   /* of all proxies */
    struct history_end ends[HISTORY_ENDS];
    size_t end_count;
    struct history_refusal refusal;

    /* Private. */
    struct letter letter;
    struct inbox *inbox;
    struct home *home; /* where it is now */
    struct inquiry *next, **link;
    struct auth_look look;
    struct route_request request;
    struct redis_command *count;
    struct turn_task task;
};

/*
 * Begins: what is to be posted to the worker of inquiry->user. `inbox` is of the loop that asks;
 * on_done comes by it.
 */
struct letter *inquiry_begin(struct inquiry *inquiry, struct inbox *inbox);

/* A worker ends: those that are here are done. */
void inquiries_end(struct home *home);

#endif
