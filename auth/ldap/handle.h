/*
 * One connection to a directory. It connects in a thread of libuv's pool (ldap_dial.h), then lives
 * on the loop: operations are sent, their results come when the descriptor is readable. Whoever
 * owns it hears of everything through events, all of them on the loop.
 *
 *     CLOSED --connect--> CONNECTING --ok--> READY --lost, time-out--> CLOSING --> CLOSED
 *                              `--failed--> CLOSED
 *
 * After an error nothing is ever sent again on the same LDAP*: libldap would reconnect by itself,
 * on the loop and without StartTLS.
 */
#ifndef IMAPMUX_AUTH_LDAP_HANDLE_H
#define IMAPMUX_AUTH_LDAP_HANDLE_H

#include "auth/ldap/dial.h"
#include "proxy/base/env.h"
#include "proxy/base/span.h"

enum ldap_handle_kind { LDAP_HANDLE_SEARCH, LDAP_HANDLE_BIND };

enum ldap_handle_state {
    LDAP_HANDLE_CLOSED,
    LDAP_HANDLE_CONNECTING,
    LDAP_HANDLE_READY,
    LDAP_HANDLE_CLOSING
};

enum {
    LDAP_ENTRIES_MAX = 2, /* of one search: enough to see that a user is not unique */
    LDAP_URLS_MAX = 8     /* that one search refers to */
};

/*
 * One search or bind, embedded in its owner's. The links belong to the list that holds it: a queue,
 * or a handle. All else is the handle's while it is there.
 */
struct ldap_operation {
    struct ldap_operation *prev, *next;
    int message_id;
    uint64_t sent_at, expires_at; /* loop time */
    LDAPMessage *entry;           /* the first one that came */
    unsigned entry_count;
    char *urls[LDAP_URLS_MAX]; /* where the directory says that there is more */
    size_t url_count;
    bool urls_lost; /* there were more, or there was no memory for them */
};

struct ldap_query {
    const char *base, *filter;
    int scope; /* LDAP_SCOPE_... */
    char **attributes;
};

/* What the directory said; all of it is valid during the event. */
struct ldap_answer {
    int code; /* LDAP_SUCCESS ..., or libldap's own negative ones when the operation could not be
                 made */
    unsigned entry_count;
    LDAP *ldap;         /* to read these with */
    LDAPMessage *entry; /* the first one; NULL without one */
    LDAPControl **controls;
    const char *diagnostic; /* never NULL */
    char *const *urls;      /* references, and where a referral leads (RFC 4511 4.1.10, 4.5.3) */
    size_t url_count;
    bool urls_lost; /* not all of them */
};

struct ldap_handle;

struct ldap_handle_events {
    /* Connected (ERR_NONE) or not. */
    void (*on_connect)(struct ldap_handle *handle, const struct err *err);
    /*
     * The operation is over and off the handle. May come inside ldap_handle_search and
     * ldap_handle_bind.
     */
    void (*on_answer)(struct ldap_handle *handle, struct ldap_operation *operation,
                      const struct ldap_answer *answer);
    /*
     * The operation is off the handle without an answer: in its time (timed_out), or because the
     * connection went. May come inside ldap_handle_search and ldap_handle_bind; must not send
     * anything.
     */
    void (*on_lost)(struct ldap_handle *handle, struct ldap_operation *operation, bool timed_out);
    /* The connection went; the handle is CLOSED and may connect again. */
    void (*on_closed)(struct ldap_handle *handle);
    /* ldap_handle_release is done: the memory is the owner's again. */
    void (*on_released)(struct ldap_handle *handle);
};

/*
 * The owner may read kind, state, operation_count and target, and keeps in serial and server what
 * it likes; all else is ldap_handle.c's.
 */
struct ldap_handle {
    enum ldap_handle_kind kind;
    enum ldap_handle_state state;
    struct ldap_operation *operations; /* in flight, oldest first */
    size_t operation_count;
    struct ldap_target target; /* of the present connection, or the last attempt */
    uint64_t serial;
    size_t server;

    const struct env *env;
    const struct ldap_handle_events *events;
    void *owner;
    bool releasing;
    LDAP *ldap;
    int descriptor;
    struct err connect_err;
    uv_work_t connect;
    uv_poll_t poll;
    uv_timer_t deadline;
    struct turn_task drain;
};

/* CLOSED, with nothing but a timer. `env`, `events` and `owner` outlive it. */
void ldap_handle_init(struct ldap_handle *handle, enum ldap_handle_kind kind, const struct env *env,
                      const struct ldap_handle_events *events, void *owner);

/* Only when CLOSED; for searches, binds the service account. Ends with on_connect. */
void ldap_handle_connect(struct ldap_handle *handle, const struct ldap_target *target);

/*
 * Only when READY; a bind handle has one operation at a time. The texts are borrowed for the call.
 */
void ldap_handle_search(struct ldap_handle *handle, struct ldap_operation *operation,
                        const struct ldap_query *query);
void ldap_handle_bind(struct ldap_handle *handle, struct ldap_operation *operation, const char *dn,
                      struct span password);

/* Ends a search that is in flight: it is off the handle, and no event comes for it. */
void ldap_handle_abandon(struct ldap_handle *handle, struct ldap_operation *operation);

/* Ends the connection of a handle that is READY and has nothing to do; on_closed comes later. */
void ldap_handle_disconnect(struct ldap_handle *handle);

/*
 * Closes for good: operations in flight come back through on_lost during the call, on_released
 * comes later; while a thread connects, only when it has given up. The loop must run until then.
 */
void ldap_handle_release(struct ldap_handle *handle);

#endif
