/*
 * What the control thread has, for those who work on it; header only, and owned by main. It
 * outlives all of them.
 */
#ifndef IMAPMUX_PROCESS_CONTROL_H
#define IMAPMUX_PROCESS_CONTROL_H

#include "proxy/base/env.h"
#include "proxy/base/inbox.h"
#include "proxy/process/worker.h"
#include "proxy/store/health.h"

#include <limits.h>

struct admin;
struct certificates;
struct cutovers;
struct ending;
struct fleet;
struct handover;
struct health;
struct launcher;
struct listeners;
struct orders;
struct reload;
struct pulse;
struct router;
struct tls;

struct control {
    /*
     * With counters and a connection to Redis of its own. Its configuration, which it holds, its
     * tls and its router may be others in the next turn of the loop.
     */
    struct env env;
    const struct tls *tls; /* held; replaced by certificates_use */
    struct certificates *certificates;
    struct router *router;       /* for administration, which only looks */
    struct cutovers *cutovers;   /* NULL without Redis */
    struct fleet *fleet;         /* this process among the others; until the inbox is closed */
    struct listeners *listeners; /* NULL once clients are to come no more */
    struct workers *workers;     /* NULL before they start, and once they have ended */
    struct orders *orders;       /* what operators want of the shards */
    struct health *health;       /* checks of the stores; idle while health.interval is 0 */
    const struct pulse *pulse;   /* whether the workers answer */
    struct inbox inbox;          /* for letters of the workers; open until they have ended */
    char conf_path[PATH_MAX];
    uint64_t started_ms; /* of the loop's clock */
    struct ending *ending;
    struct reload *reload;     /* puts another configuration in force */
    struct admin *admin;       /* NULL without a socket */
    struct launcher *launcher; /* NULL: no new process can be started */
    struct handover *handover; /* another process is about to take the place of this one */
    /* Main's part of a hand-over: gives up what only one process can have, or has it back. */
    void (*give_up)(struct control *control, bool back);
    bool serving;  /* all is open, and clients are let in */
    bool stopping; /* no new clients: it ends once all sessions have gone */
    bool draining; /* and lets them go one by one */
    bool has_heir; /* another process has taken its place */
};

#endif
