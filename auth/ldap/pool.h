/*
 * The connections to directory servers that are all the same (one is as good as another), and who
 * waits for one. Searches share connections bound as the service account; each bind has a
 * connection to itself while it runs. Connections are made when somebody waits for them.
 */
#ifndef IMAPMUX_AUTH_LDAP_POOL_H
#define IMAPMUX_AUTH_LDAP_POOL_H

#include "auth/ldap/handle.h"

struct ldap_group;
struct ldap_pool;

/* One search or bind that waits, or is under way; embedded in its owner's. */
struct ldap_job {
    struct ldap_operation operation; /* first: the handles give this back */
    /* Private. */
    struct ldap_group *group;
    struct ldap_handle *handle; /* NULL while it waits */
    uint64_t newer_than;        /* connections with this serial or an older one will not do */
    bool retried, cancelled;
};

struct ldap_pool_events {
    /* A connection is there: ldap_handle_search or ldap_handle_bind, once. */
    void (*send)(struct ldap_job *job, struct ldap_handle *handle);
    /* The job is over. It may come inside ldap_pool_submit and ldap_pool_cancel (of another job).
     */
    void (*on_answer)(struct ldap_job *job, const struct ldap_answer *answer);
    void (*on_failure)(struct ldap_job *job, const char *why);
    /* ldap_pool_close is done: the pool is no more. */
    void (*on_closed)(void *owner);
};

/* NULL without memory. All is borrowed, and outlives the pool. */
struct ldap_pool *ldap_pool_open(const struct env *env, const struct conf_words *uris,
                                 bool start_tls, const struct ldap_pool_events *events,
                                 void *owner);

/* Tells of each server, the most preferred one first. */
struct auth_server;
void ldap_pool_each_server(const struct ldap_pool *pool,
                           void (*tell)(void *owner, const struct auth_server *server),
                           void *owner);

size_t ldap_pool_waiting(const struct ldap_pool *pool);

/*
 * One that is lost with its connection is tried once more on a newer one: a connection that the
 * directory had closed while idle must not fail a login.
 */
void ldap_pool_submit(struct ldap_pool *pool, struct ldap_job *job, enum ldap_handle_kind kind);

/*
 * True: the job is off the pool. False: it is a bind that is under way, and its connection is not
 * free before the result has come; on_answer or on_failure will.
 */
bool ldap_pool_cancel(struct ldap_job *job);

/* Nulls the pointer. Jobs that ldap_pool_cancel has left come back; no other may be there. */
void ldap_pool_close(struct ldap_pool **pool);

#endif
