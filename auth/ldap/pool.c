/*
 * Owns the connections of both kinds and the lines before them: who is served when one is free, and
 * who is sent away because nothing is to be hoped for.
 */
#include "auth/ldap/pool.h"

#include "auth/ldap/servers.h"
#include "auth/source.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"

#include <assert.h>
#include <utlist.h>

enum {
    /* In flight on one connection: slapd ends an anonymous one with 100 (conn_max_pending). */
    SEARCHES_MAX = 64
};

/* The connections of one kind, and who waits for one. */
struct ldap_group {
    struct ldap_pool *pool;
    enum ldap_handle_kind kind;
    struct ldap_handle *handles;
    size_t handle_count;
    size_t operations_max; /* at once, on each handle */
    struct ldap_operation *waiting;
    size_t waiting_count;
};

struct ldap_pool {
    const struct env *env;
    const struct ldap_pool_events *events;
    void *owner;
    struct ldap_servers servers;
    struct ldap_group search, bind;
    size_t part_count;    /* handles and `servers`, until released */
    uint64_t last_serial; /* connections are numbered as they become ready */
    bool closing;
};

static bool open_group(struct ldap_group *group, struct ldap_pool *pool, enum ldap_handle_kind kind,
                       int64_t handle_count);
static void dispatch(struct ldap_group *group);
static void on_connect(struct ldap_handle *handle, const struct err *err);
static void on_answer(struct ldap_handle *handle, struct ldap_operation *operation,
                      const struct ldap_answer *answer);
static void on_lost(struct ldap_handle *handle, struct ldap_operation *operation, bool timed_out);
static void on_closed(struct ldap_handle *handle);
static void on_released(struct ldap_handle *handle);
static void servers_changed(struct ldap_servers *servers);
static void servers_released(struct ldap_servers *servers);
static void part_released(struct ldap_pool *pool);
static void free_pool(struct ldap_pool *pool);

static const struct ldap_handle_events handle_events = {
    .on_connect = on_connect,
    .on_answer = on_answer,
    .on_lost = on_lost,
    .on_closed = on_closed,
    .on_released = on_released,
};

/* --- life --- */

struct ldap_pool *ldap_pool_open(const struct env *env, const struct conf_words *uris,
                                 bool start_tls, const struct ldap_pool_events *events, void *owner)
{
    const struct conf_ldap *conf = &env->conf->ldap;
    struct ldap_pool *pool = mem_new(sizeof *pool);

    if (pool == NULL)
        return NULL;
    pool->env = env;
    pool->events = events;
    pool->owner = owner;
    if (!open_group(&pool->search, pool, LDAP_HANDLE_SEARCH, conf->search_handles) ||
        !open_group(&pool->bind, pool, LDAP_HANDLE_BIND, conf->bind_handles) ||
        !ldap_servers_init(&pool->servers, env, uris, start_tls, servers_changed,
                           servers_released)) {
        free_pool(pool);
        return NULL;
    }
    for (size_t i = 0; i < pool->search.handle_count; i++)
        ldap_handle_init(&pool->search.handles[i], LDAP_HANDLE_SEARCH, env, &handle_events,
                         &pool->search);
    for (size_t i = 0; i < pool->bind.handle_count; i++)
        ldap_handle_init(&pool->bind.handles[i], LDAP_HANDLE_BIND, env, &handle_events,
                         &pool->bind);
    pool->part_count = pool->search.handle_count + pool->bind.handle_count + 1;
    return pool;
}

static bool open_group(struct ldap_group *group, struct ldap_pool *pool, enum ldap_handle_kind kind,
                       int64_t handle_count)
{
    assert(handle_count > 0);
    group->pool = pool;
    group->kind = kind;
    group->operations_max = kind == LDAP_HANDLE_BIND ? 1 : SEARCHES_MAX;
    group->handle_count = (size_t)handle_count;
    group->handles = mem_array(group->handle_count, sizeof *group->handles);
    return group->handles != NULL;
}

static void close_group(struct ldap_group *group)
{
    assert(group->waiting == NULL);
    for (size_t i = 0; i < group->handle_count; i++)
        ldap_handle_release(&group->handles[i]);
}

void ldap_pool_close(struct ldap_pool **pool)
{
    struct ldap_pool *p = *pool;

    *pool = NULL;
    p->closing = true;
    close_group(&p->search);
    close_group(&p->bind);
    ldap_servers_release(&p->servers);
}

static size_t connections_to(const struct ldap_group *group, size_t server)
{
    size_t count = 0;

    for (size_t i = 0; i < group->handle_count; i++)
        count += group->handles[i].state == LDAP_HANDLE_READY && group->handles[i].server == server;
    return count;
}

void ldap_pool_each_server(const struct ldap_pool *pool,
                           void (*tell)(void *owner, const struct auth_server *server), void *owner)
{
    for (size_t i = 0; i < pool->servers.count; i++) {
        const struct ldap_server *server = &pool->servers.list[i];

        tell(owner,
             &(struct auth_server){
                 .address = server->target.uri,
                 .state = server->down       ? "down"
                          : server->in_doubt ? "in doubt"
                                             : "up",
                 .connections = connections_to(&pool->search, i) + connections_to(&pool->bind, i),
             });
    }
}

static void on_released(struct ldap_handle *handle)
{
    part_released(((struct ldap_group *)handle->owner)->pool);
}

static struct ldap_pool *pool_of(struct ldap_servers *servers)
{
    return (struct ldap_pool *)((char *)servers - offsetof(struct ldap_pool, servers));
}

static void servers_released(struct ldap_servers *servers)
{
    part_released(pool_of(servers));
}

static void part_released(struct ldap_pool *pool)
{
    void (*tell)(void *owner) = pool->events->on_closed;
    void *owner = pool->owner;

    if (--pool->part_count > 0)
        return;
    free_pool(pool);
    tell(owner);
}

static void free_pool(struct ldap_pool *pool)
{
    mem_free(pool->search.handles);
    mem_free(pool->bind.handles);
    mem_free(pool);
}

/* --- the lines --- */

size_t ldap_pool_waiting(const struct ldap_pool *pool)
{
    return pool->search.waiting_count + pool->bind.waiting_count;
}

static void enqueue(struct ldap_job *job, struct ldap_group *group, bool first)
{
    job->group = group;
    job->handle = NULL;
    if (first)
        DL_PREPEND(group->waiting, &job->operation);
    else
        DL_APPEND(group->waiting, &job->operation);
    group->waiting_count++;
    gauge_add(&group->pool->env->counters->ldap_waiting, 1);
}

static void dequeue(struct ldap_job *job)
{
    struct ldap_group *group = job->group;

    DL_DELETE(group->waiting, &job->operation);
    group->waiting_count--;
    gauge_add(&group->pool->env->counters->ldap_waiting, -1);
}

void ldap_pool_submit(struct ldap_pool *pool, struct ldap_job *job, enum ldap_handle_kind kind)
{
    struct ldap_group *group = kind == LDAP_HANDLE_BIND ? &pool->bind : &pool->search;

    job->retried = job->cancelled = false;
    job->newer_than = 0;
    enqueue(job, group, false);
    dispatch(group);
}

bool ldap_pool_cancel(struct ldap_job *job)
{
    struct ldap_group *group = job->group;

    job->cancelled = job->handle != NULL && group->kind == LDAP_HANDLE_BIND;
    if (job->cancelled)
        return false;
    if (job->handle != NULL)
        ldap_handle_abandon(job->handle, &job->operation);
    else
        dequeue(job);
    dispatch(group);
    return true;
}

static bool may_use(const struct ldap_handle *handle)
{
    const struct ldap_group *group = handle->owner;

    return handle->state == LDAP_HANDLE_READY &&
           ldap_servers_may_use(&group->pool->servers, handle->server);
}

/* The least busy connection that can take the job. */
static struct ldap_handle *pick(const struct ldap_group *group, const struct ldap_job *job)
{
    struct ldap_handle *best = NULL;

    for (size_t i = 0; i < group->handle_count; i++) {
        struct ldap_handle *handle = &group->handles[i];

        if (may_use(handle) && handle->serial > job->newer_than &&
            handle->operation_count < group->operations_max &&
            (best == NULL || handle->operation_count < best->operation_count))
            best = handle;
    }
    return best;
}

static size_t count_in_state(const struct ldap_group *group, enum ldap_handle_state state)
{
    size_t count = 0;

    for (size_t i = 0; i < group->handle_count; i++)
        count += group->handles[i].state == state;
    return count;
}

/*
 * Starts closed handles until `wanted_count` are on their way to the best server. The first goes
 * alone: if the server hangs, one thread waits for it, and not all.
 */
static void connect_more(struct ldap_group *group, size_t wanted_count)
{
    const struct ldap_servers *servers = &group->pool->servers;
    size_t connecting_count = count_in_state(group, LDAP_HANDLE_CONNECTING), server;

    if (group->pool->closing || !ldap_servers_best(servers, &server))
        return;
    if (wanted_count > 1 && count_in_state(group, LDAP_HANDLE_READY) == 0)
        wanted_count = 1;
    for (size_t i = 0; i < group->handle_count && connecting_count < wanted_count; i++) {
        struct ldap_handle *handle = &group->handles[i];

        if (handle->state != LDAP_HANDLE_CLOSED)
            continue;
        handle->server = server;
        ldap_handle_connect(handle, ldap_servers_target(servers, server));
        connecting_count++;
    }
}

/* Is there anything under way after which the job may be sent? */
static bool has_hope(const struct ldap_group *group, const struct ldap_job *job)
{
    if (ldap_servers_has_hope(&group->pool->servers))
        return true;
    for (size_t i = 0; i < group->handle_count; i++) {
        const struct ldap_handle *handle = &group->handles[i];

        if ((may_use(handle) && handle->serial > job->newer_than) ||
            handle->state == LDAP_HANDLE_CONNECTING)
            return true;
    }
    return false;
}

/* Lets idle connections go that shall not be used any more. */
static void retire(struct ldap_group *group)
{
    for (size_t i = 0; i < group->handle_count; i++) {
        struct ldap_handle *handle = &group->handles[i];

        if (handle->state == LDAP_HANDLE_READY && handle->operation_count == 0 && !may_use(handle))
            ldap_handle_disconnect(handle);
    }
}

/*
 * Serves who waits, as far as connections are free; makes more; sends away who would wait for
 * nothing.
 */
static void dispatch(struct ldap_group *group)
{
    retire(group);
    while (group->waiting != NULL) {
        struct ldap_job *job = (struct ldap_job *)group->waiting;
        struct ldap_handle *handle = pick(group, job);

        if (handle != NULL) {
            bool shared = handle->operation_count > 0;

            dequeue(job);
            job->handle = handle;
            group->pool->events->send(job, handle);
            connect_more(group, shared ? 1 : 0);
            continue;
        }
        connect_more(group, group->waiting_count);
        if (has_hope(group, job))
            return;
        dequeue(job);
        group->pool->events->on_failure(job, "no directory server answers");
    }
}

/* --- what the connections and servers tell --- */

static void dispatch_all(struct ldap_pool *pool)
{
    dispatch(&pool->search);
    dispatch(&pool->bind);
}

static void on_connect(struct ldap_handle *handle, const struct err *err)
{
    struct ldap_pool *pool = ((struct ldap_group *)handle->owner)->pool;

    if (err->kind == ERR_NONE) {
        handle->serial = ++pool->last_serial;
        log_event(LOG_LEVEL_DEBUG, "ldap connected", "%s", handle->target.uri);
    } else {
        ldap_servers_failed(&pool->servers, handle->server, err);
    }
    dispatch_all(pool);
}

static void servers_changed(struct ldap_servers *servers)
{
    dispatch_all(pool_of(servers));
}

static void on_closed(struct ldap_handle *handle)
{
    dispatch(handle->owner);
}

static void on_answer(struct ldap_handle *handle, struct ldap_operation *operation,
                      const struct ldap_answer *answer)
{
    struct ldap_group *group = handle->owner;

    if (answer->code >= 0)
        ldap_servers_answered(&group->pool->servers, handle->server);
    group->pool->events->on_answer((struct ldap_job *)operation, answer);
    dispatch(group);
}

/* The next try is for who is still waiting, and has not had one. */
static void on_lost(struct ldap_handle *handle, struct ldap_operation *operation, bool timed_out)
{
    struct ldap_group *group = handle->owner;
    struct ldap_pool *pool = group->pool;
    struct ldap_job *job = (struct ldap_job *)operation;

    if (timed_out) {
        counter_add(&pool->env->counters->ldap_timeouts, 1);
        ldap_servers_doubt(&pool->servers, handle->server);
        pool->events->on_failure(job, "no answer within ldap.timeout");
    } else if (job->cancelled || pool->closing) {
        pool->events->on_failure(job, "the connection was lost");
    } else if (job->retried) {
        ldap_servers_doubt(&pool->servers, handle->server);
        pool->events->on_failure(job, "the connection was lost twice");
    } else {
        job->retried = true;
        job->newer_than = pool->last_serial;
        enqueue(job, group, true);
    }
}
