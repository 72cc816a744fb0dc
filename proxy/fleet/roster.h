/*
 * The records of all proxies, as people see them; and how one is taken away whose process an
 * operator knows to be dead. On the control thread.
 */
#ifndef IMAPMUX_FLEET_ROSTER_H
#define IMAPMUX_FLEET_ROSTER_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "proxy/net/redis_link.h"

#include <jansson.h>

struct roster_request {
    /* Set by the owner; borrowed until the answer. */
    const struct env *env; /* with a connection to Redis */
    const char *id;        /* the process's own */
    const char *forget;    /* whose record is to go; NULL: all are listed */
    /*
     * ERR_NONE: `list`, borrowed, has objects {id, host, pid, seen_seconds, sessions, state}, the
     * state being self, live or silent; NULL of one to be forgotten. Else PEER: there is no such
     * record, or its process lives; UNAVAILABLE: Redis does not answer.
     */
    void (*on_answer)(struct roster_request *request, json_t *list, const struct err *err);
    void *owner;

    /* Private. */
    struct redis_script script;
    struct redis_command *command;
    struct turn_task task;
    json_t *list;
    struct err err;
};

/* The answer comes later, once; none after roster_cancel, which is harmless when it has come. */
void roster_ask(struct roster_request *request);
void roster_cancel(struct roster_request *request);

#endif
