/*
 * Owns the way of a lease request: parked connection, or place for a login, then warm connection,
 * or place for a connection and a new one. What is idle is idle.c's.
 *
 * A connection is in one state; when what its backend does is over, the state's row tells who goes
 * on.
 */
#include "proxy/store/pool.h"

#include "proxy/store/idle.h"
#include "proxy/store/pool_change.h"

#include "proxy/base/mem.h"
#include "proxy/imap/caps.h"

#include <assert.h>
#include <sys/random.h>
#include <sys/resource.h>

enum { JANITOR_MS = 200, LET_GO_AT_ONCE = 4, SCARCE_PART = 16 };

static void on_answer(void *owner, const struct err *err);
static void on_lost(void *owner);
static void on_wake(uv_async_t *async);
static void fail_line(struct gate_side *side, const struct err *err);
static void sweep(uv_timer_t *timer);
static void look_after(struct pool *pool);
static bool begin_login(struct lease_request *request, struct err *err);
static bool open_new(struct lease_request *request, struct err *err);
static void opened(struct pooled *p);
static void not_opened(struct pooled *p, const struct err *err);
static void logged_in(struct pooled *p);
static void not_logged_in(struct pooled *p, const struct err *err);
static void checked(struct pooled *p);
static void not_checked(struct pooled *p, const struct err *err);
static void has_left(struct pooled *p);
static void not_clean(struct pooled *p, const struct err *err);
static void spare_opened(struct pooled *p);
static void spare_not_opened(struct pooled *p, const struct err *err);
static void was_reset(struct pooled *p);

/* What follows on the answer of the backend. A state without a row has nothing under way. */
static const struct {
    void (*done)(struct pooled *p);
    void (*failed)(struct pooled *p, const struct err *err);
} states[POOLED_STATE_COUNT] = {
    [POOLED_OPENING] = {opened, not_opened},     [POOLED_LOGGING_IN] = {logged_in, not_logged_in},
    [POOLED_CHECKING] = {checked, not_checked},  [POOLED_LEAVING] = {has_left, not_clean},
    [POOLED_RESETTING] = {was_reset, not_clean}, [POOLED_SPARE] = {spare_opened, spare_not_opened},
};

static const struct backend_events events = {on_answer, on_lost};

/* --- life --- */

static bool open_handles(struct pool *pool)
{
    uv_timer_init(pool->env->loop, &pool->janitor);
    pool->janitor.data = pool;
    pool->handles_open = 1;
    if (uv_async_init(pool->env->loop, &pool->wake, on_wake) != 0)
        return false;
    pool->wake.data = pool;
    pool->handles_open = 2;
    return true;
}

/* As the configuration in force has it. */
static bool open_shards(struct pool *pool, const struct tls *tls)
{
    struct pool_change *change = pool_prepare(pool, pool->env->conf, tls);

    if (change != NULL)
        pool_commit(pool, &change);
    return pool->shards != NULL;
}

struct pool *pool_open(const struct env *env, const struct tls *tls, const struct stores *stores,
                       size_t index)
{
    struct pool *pool = mem_new(sizeof *pool);
    struct rlimit descriptors = {.rlim_cur = 1024};

    if (pool == NULL)
        return NULL;
    pool->env = env;
    pool->stores = stores;
    pool->index = index;
    pool->events = &events;
    getrlimit(RLIMIT_NOFILE, &descriptors);
    pool->scarce_fd = (int)(descriptors.rlim_cur - descriptors.rlim_cur / SCARCE_PART);
    pool->hash = keyed_hash_open();
    if (!open_handles(pool) || pool->hash == NULL || !open_shards(pool, tls))
        pool_close(&pool);
    return pool;
}

static void handle_closed(uv_handle_t *handle)
{
    struct pool *pool = handle->data;

    if (--pool->handles_open > 0)
        return;
    pool_free_shards(pool);
    keyed_hash_close(&pool->hash);
    mem_free(pool);
}

/* Ends all that belongs to no session. */
static void drop_own(struct pool *pool)
{
    struct pooled *next;

    for (struct pooled *p = pool->all; p != NULL; p = next) {
        next = p->all_next;
        if (p->state >= POOLED_LEAVING)
            pooled_drop(p, &pool->env->counters->drops_shutdown);
    }
}

void pool_retire(struct pool *pool)
{
    pool->keeps_nothing = true;
    drop_own(pool);
}

void pool_stop(struct pool *pool)
{
    struct err err = {0};

    pool->stopping = true;
    pool_retire(pool);
    err_set(&err, ERR_UNAVAILABLE, "the proxy stops");
    for (size_t i = 0; i < pool->shard_count; i++) {
        fail_line(&pool->shards[i]->logins, &err);
        fail_line(&pool->shards[i]->connections, &err);
    }
}

void pool_close(struct pool **pool)
{
    struct pool *p = *pool;

    *pool = NULL;
    if (p == NULL)
        return;
    pool_stop(p);
    assert(p->all == NULL);
    uv_close((uv_handle_t *)&p->janitor, handle_closed);
    if (p->handles_open == 2)
        uv_close((uv_handle_t *)&p->wake, handle_closed);
}

/* --- answers --- */

static void on_answer(void *owner, const struct err *err)
{
    struct pooled *p = owner;

    if (err->kind == ERR_NONE)
        states[p->state].done(p);
    else
        states[p->state].failed(p, err);
}

static void on_lost(void *owner)
{
    struct pooled *p = owner; /* warm or parked */

    if (p->state == POOLED_WARM)
        idle_spare_lost(p->at);
    pooled_drop(p, &p->pool->env->counters->drops_stale);
}

/* --- who fits whom --- */

static void digest(const struct pool *pool, const struct span *parts, size_t count,
                   unsigned char out[16])
{
    unsigned char full[KEYED_HASH_SIZE];

    if (!keyed_hash_of(pool->hash, parts, count, full) && getrandom(full, 16, 0) != 16)
        secret_wipe(full, sizeof full); /* without memory it is like nothing else */
    memcpy(out, full, 16);
    secret_wipe(full, sizeof full);
}

/* Whoever comes by another proof, or as another master, is not given the same connection. */
static void identify(struct lease_request *request)
{
    const struct store_client *client = &request->client;
    const char *master = client->master == NULL ? "" : client->master;
    const struct secret *secret = client->password != NULL ? client->password : client->token;
    const struct span proof[] = {span_of(client->password != NULL ? "password"
                                         : client->token != NULL  ? "token"
                                                                  : "none"),
                                 {master, strlen(master) + 1},
                                 secret == NULL ? span_of("") : secret_span(secret)};
    const struct span user = span_of(client->user);

    digest(request->pool, proof, 3, request->identity.proof);
    digest(request->pool, &user, 1, request->identity.backend_user);
    digest(request->pool, &client->id, 1, request->identity.client_id);
}

void pool_forget_user(struct pool *pool, const char *user)
{
    struct pooled *next;

    for (struct pooled *p = pool->all; p != NULL; p = next) {
        next = p->all_next;
        if ((p->state == POOLED_LEAVING || p->state == POOLED_PARKED ||
             p->state == POOLED_RESETTING) &&
            (user == NULL || strcmp(p->user_name, user) == 0))
            pooled_drop(p, &pool->env->counters->drops_purged);
    }
}

size_t pool_parked(const struct pool *pool, const char *user)
{
    const struct parked_user *parked;

    HASH_FIND_STR(pool->users, user, parked);
    return parked == NULL ? 0 : parked->count;
}

void pool_each_parked(const struct pool *pool,
                      void (*tell)(void *owner, const char *user, const struct conf_shard *shard,
                                   size_t count),
                      void *owner)
{
    for (const struct parked_user *user = pool->users; user != NULL; user = user->hh.next)
        tell(owner, user->name, pool_shard_conf(user->first->at), user->count);
}

static size_t *count_of(struct pool_counts *counts, enum pooled_state state)
{
    switch (state) {
    case POOLED_LENT:
        return &counts->leased;
    case POOLED_WARM:
        return &counts->warm;
    case POOLED_PARKED:
        return &counts->parked;
    default:
        return &counts->other;
    }
}

void pool_count(const struct pool *pool, struct pool_counts *counts, size_t id_count)
{
    uint64_t now = pool_now(pool);

    for (const struct pooled *p = pool->all; p != NULL; p = p->all_next) {
        struct pool_counts *of_shard = &counts[p->at->store->id];
        uint64_t age = now - p->born_ms;

        if (p->at->store->id >= id_count)
            continue;
        of_shard->open++;
        ++*count_of(of_shard, (enum pooled_state)p->state);
        of_shard->oldest_ms = age > of_shard->oldest_ms ? age : of_shard->oldest_ms;
    }
    for (size_t i = 0; i < pool->shard_count && i < id_count; i++) {
        const struct pool_shard *at = pool->shards[i];

        counts[i].logging_in += at->logging_in;
        counts[i].waiting +=
            atomic_load(&at->logins.waiting) + atomic_load(&at->connections.waiting);
        for (size_t kind = 0; kind < LEASE_KINDS; kind++)
            counts[i].leases[kind] += at->leases[kind];
    }
}

/* --- a request --- */

static struct lease_request *request_of(struct gate_ticket *ticket)
{
    return (struct lease_request *)((char *)ticket - offsetof(struct lease_request, ticket));
}

static void wait_in_line(struct lease_request *request)
{
    request->waiting_since_ms = pool_now(request->pool);
    gauge_add(&request->pool->env->counters->leases_waiting, 1);
}

static void wait_is_over(struct lease_request *request)
{
    struct counters *counters = request->pool->env->counters;

    if (request->waiting_since_ms == 0)
        return;
    gate_cancel(&request->ticket);
    histogram_add(&counters->queue_wait_seconds,
                  pool_now(request->pool) - request->waiting_since_ms);
    gauge_add(&counters->leases_waiting, -1);
    request->waiting_since_ms = 0;
}

/* The request is under way no more: it keeps no place. */
static void leave(struct lease_request *request)
{
    wait_is_over(request);
    if (request->has_login_place) {
        request->has_login_place = false;
        request->at->logging_in--;
        gauge_add(&request->pool->env->counters->logins_in_flight, -1);
        gate_leave(&request->at->logins);
    }
    request->pool = NULL;
}

/* The last thing a caller does. */
static void fail(struct lease_request *request, const struct err *err)
{
    atomic_fetch_add(&request->at->store->logins_failed, 1);
    leave(request);
    request->on_answer(request, NULL, err);
}

static void count_lease(struct counters *counters, enum lease_kind kind)
{
    _Atomic uint64_t *const by_kind[] = {
        [LEASE_NEW] = &counters->leases_new,
        [LEASE_WARM] = &counters->leases_warm,
        [LEASE_PARKED] = &counters->leases_parked,
        [LEASE_RESET] = &counters->leases_reset,
    };

    counter_add(by_kind[kind], 1);
}

/* The last thing a caller does. */
static void lend(struct pooled *p)
{
    struct lease_request *request = p->request;

    count_lease(p->pool->env->counters, (enum lease_kind)p->kind);
    atomic_fetch_add(&p->at->store->sessions, 1);
    atomic_fetch_add(&p->at->store->logins_ok, 1);
    p->at->leases[p->kind]++;
    p->state = POOLED_LENT;
    p->request = NULL;
    request->pooled = NULL;
    leave(request);
    request->on_answer(request, p, &(struct err){0});
}

/* Ends the connection that was being made ready; the request goes on without it. */
static struct lease_request *part(struct pooled *p, _Atomic uint64_t *reason)
{
    struct lease_request *request = p->request;

    request->pooled = NULL;
    pooled_drop(p, reason);
    return request;
}

static void join(struct pooled *p, struct lease_request *request, enum pooled_state state)
{
    p->state = (uint8_t)state;
    p->request = request;
    request->pooled = p;
}

static bool has_place_for_login(struct lease_request *request, struct err *err)
{
    request->has_login_place = true;
    request->at->logging_in++;
    gauge_add(&request->pool->env->counters->logins_in_flight, 1);
    return begin_login(request, err);
}

static void on_login_place(struct gate_ticket *ticket)
{
    struct lease_request *request = request_of(ticket);
    struct err err = {0};

    wait_is_over(request);
    if (!has_place_for_login(request, &err))
        fail(request, &err);
}

/* A login begins when the store can stand one more. */
static bool queue_up(struct lease_request *request, struct err *err)
{
    request->ticket.on_place = on_login_place;
    switch (gate_enter(&request->at->logins, &request->ticket)) {
    case GATE_IN:
        return has_place_for_login(request, err);
    case GATE_WAITS:
        wait_in_line(request);
        return true;
    default:
        return err_set(err, ERR_BUSY, "shard %s: max_queue sessions are waiting already",
                       request->at->store->title);
    }
}

bool pool_waits(const struct lease_request *request)
{
    return request->pool != NULL && request->waiting_since_ms != 0;
}

const char *pool_shard_title(const struct pool *pool, const struct conf_shard *shard)
{
    return stores_of(pool->stores, shard)->title;
}

const struct conf_shard *pool_serving(struct pool *pool, const struct conf_shard *shard)
{
    const struct store *serving = store_serving(stores_of(pool->stores, shard));
    const struct conf_shard *replica =
        serving->id == shard->id ? NULL : conf_shard_of(pool->env->conf, serving->id);

    if (replica == NULL)
        return shard;
    counter_add(&pool->env->counters->replica_logins, 1);
    return replica;
}

bool pool_lease(struct pool *pool, struct lease_request *request, const struct conf_shard *shard,
                struct err *err)
{
    struct pool_shard *at = pool->shards[shard->id];

    assert(request->pool == NULL);
    if (pool->stopping)
        return err_set(err, ERR_UNAVAILABLE, "the proxy stops");
    if (store_refuses(at->store)) {
        atomic_fetch_add(&at->store->logins_failed, 1);
        store_tell_refusal(at->store, err);
        return false;
    }
    request->pool = pool;
    request->at = at;
    at->last_lease_ms = pool_now(pool);
    look_after(pool);
    identify(request);
    idle_purge(pool, request->user, at, &request->identity); /* just verified, and routed anew */

    struct pooled *parked = idle_take_parked(at, request->user, &request->identity);

    if (parked != NULL) {
        join(parked, request, POOLED_CHECKING);
        parked->kind = LEASE_PARKED;
        backend_check(parked->backend);
        return true;
    }
    if (queue_up(request, err))
        return true;
    atomic_fetch_add(&at->store->logins_failed, 1);
    leave(request);
    return false;
}

void pool_cancel(struct lease_request *request)
{
    if (request->pool == NULL)
        return;
    if (request->pooled != NULL)
        part(request->pooled, &request->pool->env->counters->drops_unclean);
    leave(request);
}

static void checked(struct pooled *p)
{
    lend(p);
}

static void not_checked(struct pooled *p, const struct err *err)
{
    struct lease_request *request = part(p, &p->pool->env->counters->drops_stale);
    struct err why = *err;

    if (!queue_up(request, &why))
        fail(request, &why);
}

/* --- a login --- */

/* Refuses all who wait here. */
static void fail_line(struct gate_side *side, const struct err *err)
{
    while (side->first != NULL)
        fail(request_of(side->first), err);
}

static bool log_in_at(struct pooled *p, struct lease_request *request, struct err *err)
{
    join(p, request, POOLED_LOGGING_IN);
    p->user_name = mem_copy_text(request->user, strlen(request->user));
    if (p->user_name == NULL) {
        part(p, &p->pool->env->counters->drops_unclean);
        return err_set(err, ERR_INTERNAL, "no memory for a connection");
    }
    p->identity = request->identity;
    backend_log_in(p->backend, &request->client);
    return true;
}

/* The request may log in now. False: it failed at once. */
static bool begin_login(struct lease_request *request, struct err *err)
{
    struct pooled *warm = idle_take_warm(request->at);

    if (warm == NULL)
        return open_new(request, err);
    if (!log_in_at(warm, request, err))
        return false;
    idle_refill(request->at);
    return true;
}

static bool has_place_to_open(struct lease_request *request, struct err *err)
{
    struct pool_shard *at = request->at;
    bool by_proxy_header = pool_shard_conf(at)->client_address == CLIENT_ADDRESS_PROXY;
    struct pooled *p = pooled_new(at, POOLED_OPENING);

    if (p == NULL) {
        gate_leave(&at->connections);
        return err_set(err, ERR_INTERNAL, "no memory for a connection");
    }
    join(p, request, POOLED_OPENING);
    p->kind = LEASE_NEW;
    p->backend = backend_open(at->pool->env, &p->target->target,
                              by_proxy_header ? &request->client : NULL, &events, p);
    if (p->backend != NULL)
        return true;
    part(p, &at->pool->env->counters->drops_unclean);
    return err_set(err, ERR_INTERNAL, "no memory for a connection");
}

static void on_connection_place(struct gate_ticket *ticket)
{
    struct lease_request *request = request_of(ticket);
    struct err err = {0};

    wait_is_over(request);
    if (!has_place_to_open(request, &err))
        fail(request, &err);
}

/* Idle connections, here or with the other workers, make room if the store's limit is reached. */
static bool open_new(struct lease_request *request, struct err *err)
{
    struct pool_shard *at = request->at;

    request->ticket.on_place = on_connection_place;
    switch (gate_enter(&at->connections, &request->ticket)) {
    case GATE_IN:
        return has_place_to_open(request, err);
    case GATE_WAITS:
        wait_in_line(request);
        if (!idle_drop_oldest_of(at))
            gate_call(at->connections.gate);
        return true;
    default:
        return err_set(err, ERR_FULL, "shard %s: max_queue sessions are waiting already",
                       at->store->title);
    }
}

static void opened(struct pooled *p)
{
    struct lease_request *request = p->request;
    struct err err = {0};

    store_was_reached(p->at->store);
    if (log_in_at(p, request, &err))
        idle_refill(request->at);
    else
        fail(request, &err);
}

static void not_opened(struct pooled *p, const struct err *err)
{
    struct pool *pool = p->pool;
    bool lacks_descriptor = err->kind == ERR_LIMIT;
    uint64_t started_ms = p->started_ms;
    struct lease_request *request = part(p, &pool->env->counters->drops_refused);
    struct err why = *err;

    if (lacks_descriptor && idle_drop_oldest(pool)) {
        if (!open_new(request, &why))
            fail(request, &why);
        return;
    }
    if (!lacks_descriptor && store_was_not_reached(request->at->store, started_ms))
        fail_line(&request->at->logins, &why); /* the others would not fare better */
    fail(request, &why);
}

static void logged_in(struct pooled *p)
{
    p->at->spare_pause_ms = 0; /* the store is well */
    lend(p);
}

/* A warm connection may have ended just when it was wanted. */
static void not_logged_in(struct pooled *p, const struct err *err)
{
    struct counters *counters = p->pool->env->counters;
    bool again = p->kind != LEASE_NEW && backend_is_stale(p->backend);

    if (err->kind == ERR_UNAVAILABLE)
        store_doubt(p->at->store);
    if (err->kind == ERR_REFERRAL)
        p->request->referral = *backend_referral(p->backend);

    struct lease_request *request =
        part(p, again ? &counters->drops_stale : &counters->drops_refused);
    struct err why = *err;

    if (!again || !open_new(request, &why))
        fail(request, &why);
}

/* --- the end of a lease --- */

struct backend *pooled_backend(struct pooled *connection)
{
    return connection->backend;
}

enum lease_kind pooled_kind(const struct pooled *connection)
{
    return (enum lease_kind)connection->kind;
}

static bool can(const struct pooled *p, const char *capability)
{
    return caps_has(backend_capabilities(p->backend), capability);
}

bool pool_would_keep(const struct pooled *connection)
{
    const struct pooled *p = connection;
    struct pool *pool = p->pool;

    return !pool->keeps_nothing && !store_refuses(p->at->store) && !pooled_is_outdated(p) &&
           pool_now(pool) - p->born_ms < pool_conf(pool)->lifetime &&
           (pool_conf(pool)->park_time > 0 || idle_can_reset(p)) && can(p, "UNSELECT") &&
           !gate_is_crowded(p->at->connections.gate) &&
           conn_fd(backend_conn(p->backend)) < pool->scarce_fd;
}

void pool_return(struct pooled **connection, enum lease_end end)
{
    struct pooled *p = *connection;

    *connection = NULL;
    if (p == NULL)
        return;
    assert(p->state == POOLED_LENT);
    atomic_fetch_sub(&p->at->store->sessions, 1);

    struct counters *counters = p->pool->env->counters;

    if (end == LEASE_LOST) {
        store_doubt(p->at->store);
        pooled_drop(p, &counters->drops_lost);
    } else if (end == LEASE_UNCLEAN) {
        pooled_drop(p, &counters->drops_unclean);
    } else if (end == LEASE_DONE || !pool_would_keep(p)) {
        backend_log_out(p->backend);
        pooled_drop(p, &counters->drops_limit);
    } else {
        p->state = POOLED_LEAVING;
        backend_leave(p->backend, end == LEASE_CLEAN_SELECTED);
    }
}

static void has_left(struct pooled *p)
{
    look_after(p->pool);
    idle_park(p);
}

static void not_clean(struct pooled *p, const struct err *err)
{
    (void)err;
    pooled_drop(p, &p->pool->env->counters->drops_unclean);
}

static void was_reset(struct pooled *p)
{
    mem_free(p->user_name);
    p->user_name = NULL;
    p->kind = LEASE_RESET;
    look_after(p->pool);
    idle_add_warm(p);
}

/* --- spares --- */

static void spare_opened(struct pooled *p)
{
    store_was_reached(p->at->store);
    look_after(p->pool);
    idle_spare_opened(p);
}

static void spare_not_opened(struct pooled *p, const struct err *err)
{
    if (err->kind != ERR_LIMIT)
        store_was_not_reached(p->at->store, p->started_ms);
    idle_spare_failed(p);
}

/* --- what comes round --- */

void pool_relieve(struct pool *pool, int fd)
{
    if (fd >= pool->scarce_fd)
        idle_drop_oldest(pool);
}

uint64_t pool_letting_go_delay(struct pool *pool, const struct conf_shard *shard)
{
    struct pool_shard *at = pool->shards[shard->id];
    uint64_t now = pool_now(pool), drain_ms = pool_shard_conf(at)->drain_time;
    uint32_t random = 0;

    if (now - at->losses_since_ms >= 1000) {
        at->losses_since_ms = now;
        at->loss_count = 0;
    }
    if (++at->loss_count <= LET_GO_AT_ONCE || drain_ms == 0 ||
        getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
        return 0;
    return random % drain_ms + 1;
}

/* A connection that is being made ready for somebody; NULL: none. */
static struct pooled *find_under_way(const struct pool_shard *at)
{
    struct pooled *p = at->pool->all;

    while (p != NULL && (p->at != at || p->request == NULL))
        p = p->all_next;
    return p;
}

/* The store is down: nobody waits for it, and nothing that is idle is of use. */
static void refuse_all(struct pool_shard *at)
{
    struct counters *counters = at->pool->env->counters;
    struct pooled *p;
    struct err err = {0};

    store_tell_refusal(at->store, &err);
    fail_line(&at->logins, &err);
    fail_line(&at->connections, &err);
    while ((p = find_under_way(at)) != NULL)
        fail(part(p, &counters->drops_refused), &err);
    while (idle_drop_oldest_of(at))
        ;
}

/* One that is opened for somebody, or logs in, at an address that was found down. */
static struct pooled *find_at_down_address(const struct pool_shard *at)
{
    struct pooled *p = at->pool->all;

    while (p != NULL &&
           (p->at != at || (p->state != POOLED_OPENING && p->state != POOLED_LOGGING_IN) ||
            !store_address_is_down(at->store, backend_address(p->backend))))
        p = p->all_next;
    return p;
}

/*
 * An address was found down, and others of its store may be well. Who has not sent its login yet
 * begins anew, and comes to these first; a login that was sent is not sent twice.
 */
static void leave_down_addresses(struct pool_shard *at)
{
    uint32_t news = atomic_load(&at->store->down_address_news);
    struct counters *counters = at->pool->env->counters;
    struct pooled *p;
    struct err err = {0};

    if (news == at->down_address_news)
        return;
    at->down_address_news = news;
    idle_drop_at_down_addresses(at);
    while ((p = find_at_down_address(at)) != NULL) {
        bool was_sent = p->state == POOLED_LOGGING_IN;
        struct lease_request *request = part(p, &counters->drops_refused);

        err_set(&err, ERR_UNAVAILABLE, "shard %s: its address was found down", at->store->title);
        if (was_sent || !open_new(request, &err))
            fail(request, &err);
    }
}

/* Others have freed places for us, or want ours; or a store has been found down. */
static void on_wake(uv_async_t *async)
{
    struct pool *pool = async->data;

    for (size_t i = 0; i < pool->shard_count; i++) {
        struct pool_shard *at = pool->shards[i];

        if (store_refuses(at->store))
            refuse_all(at);
        leave_down_addresses(at);
        gate_serve(&at->logins);
        gate_serve(&at->connections);

        uint32_t wanted = atomic_load(&at->store->connections.waiting);

        while (wanted-- > 0 && idle_drop_oldest_of(at))
            ;
    }
}

/* Refuses those at the head of the line who have waited too long. */
static void time_out(struct gate_side *side, uint64_t now, enum err_kind kind, const char *what)
{
    while (side->first != NULL) {
        struct lease_request *request = request_of(side->first);
        const struct conf_shard *shard = pool_shard_conf(request->at);
        struct err err = {0};

        if (now - request->waiting_since_ms < shard->queue_timeout)
            return;
        err_set(&err, kind, "shard %s: %s within queue_timeout", shard->title, what);
        fail(request, &err);
    }
}

/* Whether time will bring something about here: an end of waiting, or a spare that is wanted. */
static bool needs_care(const struct pool_shard *at, uint64_t now)
{
    return at->warm != NULL || at->parked != NULL || at->logins.first != NULL ||
           at->connections.first != NULL ||
           (at->last_lease_ms != 0 && now - at->last_lease_ms < pool_conf(at->pool)->warm_time);
}

/* Something is to be ended or opened in time: the periodic work goes on. */
static void look_after(struct pool *pool)
{
    if (!uv_is_active((uv_handle_t *)&pool->janitor))
        uv_timer_start(&pool->janitor, sweep, JANITOR_MS, JANITOR_MS);
}

/* All periodic work of a worker's pool; it rests when there is nothing to look after. */
static void sweep(uv_timer_t *timer)
{
    struct pool *pool = timer->data;
    uint64_t now = pool_now(pool);
    bool anything = false;

    for (size_t i = 0; i < pool->shard_count; i++) {
        struct pool_shard *at = pool->shards[i];

        gate_serve(&at->logins); /* a slow start raises its limit as time goes by */
        time_out(&at->logins, now, ERR_BUSY, "no login could begin");
        time_out(&at->connections, now, ERR_FULL, "no connection was free");
        idle_expire(at);
        idle_refill(at);
        anything = anything || needs_care(at, now);
    }
    if (!anything)
        uv_timer_stop(timer);
}
