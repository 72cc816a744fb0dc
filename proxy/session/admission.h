/*
 * Whether a user who has proved who she is may have one session more: by the counts of this process
 * (limits), and, with limits.shared, by those of all proxies (registry). While Redis does not
 * answer the former alone decide. Of one worker.
 */
#ifndef IMAPMUX_SESSION_ADMISSION_H
#define IMAPMUX_SESSION_ADMISSION_H

#include "proxy/session/limits.h"
#include "proxy/session/registry.h"

struct admission;

/* Where a session is counted, in its own struct; zeroed, it is not. */
struct admission_place {
    struct limits_place here;
    struct registry_entry *shared;
};

struct admission_request {
    /* Set by the owner; borrowed until the answer. */
    const char *user;
    const union address *address;
    struct admission_place *place; /* empty */
    /* ERR_NONE: it is counted, until admission_leave. Else as limits_enter. */
    void (*on_answer)(struct admission_request *request, const struct err *err);
    void *owner;

    /* Private. */
    struct admission *admission;
    struct registry_request shared;
};

/* `registry` may be NULL. Both are borrowed. NULL without memory. */
struct admission *admission_open(const struct env *env, struct limits *limits,
                                 struct registry *registry);

/* All sessions have left. Nulls the pointer; harmless on NULL. */
void admission_close(struct admission **admission);

/*
 * IN: it is counted. REFUSED: it is not, with *err set. WAITS: the answer comes later, once, never
 * after admission_cancel.
 */
enum admission_answer { ADMISSION_IN, ADMISSION_REFUSED, ADMISSION_WAITS };
enum admission_answer admission_enter(struct admission *admission,
                                      struct admission_request *request, struct err *err);

/* After this the request does not answer, and nothing is counted. Harmless on one that is done. */
void admission_cancel(struct admission_request *request);

/* A connection that has not logged in: as limits_await, limits_leave. */
bool admission_await(struct admission *admission, struct limits_place *place,
                     const union address *address);
void admission_await_no_more(struct admission *admission, struct limits_place *place);

/* The session has ended. Harmless on an empty place. */
void admission_leave(struct admission *admission, struct admission_place *place);

#endif
