/* Owns the state of each store that all workers have in common. */
#include "proxy/store/store.h"

#include "proxy/base/clock.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"

#include <stdio.h>

enum { DOUBT_MS = 1000 }; /* so long after a greeting a failure is an accident */

const char *const store_order_names[] = {
    [STORE_UP] = "up", [STORE_DRAIN] = "drain", [STORE_DOWN] = "down"};

static void free_store(struct store *store)
{
    gate_release(&store->connections);
    gate_release(&store->logins);
    mem_free(store);
}

static struct store *new_store(const char *title, size_t id, size_t worker_count)
{
    struct store *store = mem_new(sizeof *store);

    if (store == NULL)
        return NULL;
    store->id = id;
    snprintf(store->title, sizeof store->title, "%s", title);
    atomic_store(&store->changed_ms, clock_ms());
    if (gate_init(&store->connections, 0, 0, 0, worker_count) &&
        gate_init(&store->logins, 0, 0, 0, worker_count))
        return store;
    free_store(store);
    return NULL;
}

struct stores *stores_open(const struct conf *conf, size_t worker_count)
{
    struct stores *stores = mem_new(sizeof *stores);

    if (stores == NULL)
        return NULL;
    stores->worker_count = worker_count;
    if (stores_prepare(stores, conf))
        stores_commit(stores, conf);
    else
        stores_close(&stores);
    return stores;
}

void stores_close(struct stores **stores)
{
    struct stores *s = *stores;

    *stores = NULL;
    for (size_t i = 0; s != NULL && i < CONF_SHARD_IDS; i++)
        if (s->by_id[i] != NULL)
            free_store(s->by_id[i]);
    mem_free(s);
}

/* --- another configuration --- */

bool stores_prepare(struct stores *stores, const struct conf *conf)
{
    for (size_t i = 0; i < conf->shard_count; i++) {
        const struct conf_shard *shard = &conf->shards[i];
        struct store **place = &stores->by_id[shard->id];

        if (*place == NULL &&
            (*place = new_store(shard->title, shard->id, stores->worker_count)) == NULL)
            return false;
    }
    return true;
}

void stores_discard(struct stores *stores, const struct conf *in_force)
{
    for (size_t i = in_force->shard_titles.count; i < CONF_SHARD_IDS; i++) {
        if (stores->by_id[i] != NULL)
            free_store(stores->by_id[i]);
        stores->by_id[i] = NULL;
    }
}

static uint32_t weight_of(const struct store *store)
{
    return store->ordered_weight == 0 ? store->conf_weight : store->ordered_weight;
}

static void follow(struct store *store, bool refused_before);

static void commit_one(struct stores *stores, const struct conf *conf, struct store *store)
{
    const struct conf_shard *shard = conf_shard_of(conf, store->id);
    const struct conf_shard *replica = shard == NULL ? NULL : conf_find_shard(conf, shard->replica);
    bool refused_before = store_refuses(store), is_checked = conf->health.interval > 0;

    atomic_store(&store->replica, replica == NULL ? NULL : stores_of(stores, replica));
    atomic_store(&store->is_removed, shard == NULL);
    /* Nothing is known of it by those who are to say so from now on. */
    if (shard == NULL || (is_checked && !atomic_load(&store->is_checked)))
        atomic_store(&store->is_down, false);
    atomic_store(&store->is_checked, is_checked);
    if (shard != NULL) {
        uint32_t queue = (uint32_t)shard->max_queue;

        store->conf_weight = (uint32_t)shard->weight;
        atomic_store(&store->weight, weight_of(store));
        gate_change(&store->connections, (uint32_t)shard->max_connections, queue, 0);
        gate_change(&store->logins, (uint32_t)shard->max_logins_in_flight, queue,
                    shard->slow_start);
    }
    follow(store, refused_before);
}

void stores_commit(struct stores *stores, const struct conf *conf)
{
    for (size_t i = 0; i < CONF_SHARD_IDS; i++)
        if (stores->by_id[i] != NULL)
            commit_one(stores, conf, stores->by_id[i]);
}

/* --- what workers meet --- */

static void set_down(struct store *store, bool is_down, const char *why)
{
    atomic_store(&store->is_down, is_down);
    atomic_store(&store->changed_ms, clock_ms());
    if (is_down)
        log_event(LOG_LEVEL_WARNING, "store is down", "no address of shard %s answers%s%s",
                  store->title, *why == '\0' ? "" : ": ", why);
    else
        log_event(LOG_LEVEL_WARNING, "store is back", "shard %s answers again", store->title);
}

void store_was_reached(struct store *store)
{
    atomic_store(&store->reached_ms, clock_ms());
    if (store_refuses(store))
        return;
    gate_start_slowly(&store->logins); /* or an operator has had it begun already */
    if (atomic_exchange(&store->is_down, false))
        set_down(store, false, "");
}

bool store_was_not_reached(struct store *store, uint64_t started_ms)
{
    store_doubt(store);
    if (atomic_load(&store->is_checked) || started_ms < atomic_load(&store->reached_ms) + DOUBT_MS)
        return false; /* one that goes wrong among many that go well */
    if (!gate_hold(&store->logins))
        return started_ms > atomic_load(&store->down_ms);
    atomic_store(&store->down_ms, clock_ms());
    set_down(store, true, "");
    return false;
}

void store_doubt(struct store *store)
{
    uv_async_t *on_doubt = atomic_load(&store->on_doubt);

    if (on_doubt != NULL && !atomic_exchange(&store->is_doubted, true))
        uv_async_send(on_doubt);
}

/* --- who takes logins --- */

static bool has_order(const struct store *store, enum store_order order)
{
    return atomic_load(&store->order) == (uint32_t)order;
}

/* What logins have found out alone refuses none: they are the ones to find out that it is over. */
static bool is_checked_down(const struct store *store)
{
    return atomic_load(&store->is_checked) && atomic_load(&store->is_down);
}

bool store_refuses(const struct store *store)
{
    return has_order(store, STORE_DOWN) || is_checked_down(store) ||
           atomic_load(&store->is_removed);
}

void store_tell_refusal(const struct store *store, struct err *err)
{
    if (atomic_load(&store->is_removed))
        err_set(err, ERR_UNAVAILABLE, "shard %s is not configured any more", store->title);
    else
        err_set(err, ERR_UNAVAILABLE, "shard %s is down: %s", store->title,
                has_order(store, STORE_DOWN) ? "an operator has said so"
                                             : "no address of it answers health checks");
}

const struct store *store_serving(const struct store *store)
{
    const struct store *replica = atomic_load(&store->replica);
    bool is_wanted = store_refuses(store) || has_order(store, STORE_DRAIN);

    return is_wanted && replica != NULL && has_order(replica, STORE_UP) && !store_refuses(replica)
               ? replica
               : store;
}

/*
 * A store that does not answer keeps its share. Its users' mail is there: if a ring gave them to
 * another one for as long as an outage lasts, they would find empty mailboxes, and new mail where
 * it is not looked for afterwards. Only an operator can know that nobody has mail there.
 */
uint32_t store_ring_weight(void *stores, size_t id)
{
    const struct store *store = ((const struct stores *)stores)->by_id[id];

    return has_order(store, STORE_UP) && !atomic_load(&store->is_removed)
               ? atomic_load(&store->weight)
               : 0;
}

/* --- addresses --- */

/* FNV-1a of its text; two that are alike would cost no more than the order of dialling. */
static uint64_t digest_of(const union address *address)
{
    uint64_t digest = UINT64_C(14695981039346656037);
    char text[ADDRESS_TEXT_MAX];

    address_text(address, text);
    for (const char *at = text; *at != '\0'; at++)
        digest = (digest ^ (unsigned char)*at) * UINT64_C(1099511628211);
    return digest == 0 ? 1 : digest;
}

/* Where this digest is; STORE_DOWN_ADDRESSES: nowhere. */
static size_t place_of(const struct store *store, uint64_t digest)
{
    size_t i = 0;

    while (i < STORE_DOWN_ADDRESSES && atomic_load(&store->down_addresses[i]) != digest)
        i++;
    return i;
}

bool store_address_is_down(const struct store *store, const union address *address)
{
    return address->any.sa_family != AF_UNSPEC &&
           place_of(store, digest_of(address)) < STORE_DOWN_ADDRESSES;
}

size_t store_addresses_down(const struct store *store)
{
    size_t count = 0;

    for (size_t i = 0; i < STORE_DOWN_ADDRESSES; i++)
        count += atomic_load(&store->down_addresses[i]) != 0;
    return count;
}

void store_address_found(struct store *store, const union address *address, bool is_down)
{
    uint64_t digest = digest_of(address);
    size_t place = place_of(store, digest);

    if (is_down == (place < STORE_DOWN_ADDRESSES))
        return;
    if (is_down)
        place = place_of(store, 0);
    if (place < STORE_DOWN_ADDRESSES)
        atomic_store(&store->down_addresses[place], is_down ? digest : 0);
}

void store_leave_down_addresses(struct store *store)
{
    atomic_fetch_add(&store->down_address_news, 1);
    gate_call(&store->logins);
}

/* --- what the control thread decides --- */

void store_watch(struct store *store, uv_async_t *on_doubt)
{
    atomic_store(&store->on_doubt, on_doubt);
}

/* Begins to refuse logins, or to take them again. */
static void follow(struct store *store, bool refused_before)
{
    bool refuses = store_refuses(store);

    if (refuses && !refused_before) {
        gate_hold(&store->logins);
        gate_call(&store->logins); /* all workers: those that are under way are to be answered */
    } else if (!refuses && refused_before) {
        gate_start_slowly(&store->logins);
    }
}

void store_found(struct store *store, bool is_down, const char *why)
{
    bool refused_before = store_refuses(store);

    if (atomic_load(&store->is_down) == is_down)
        return;
    set_down(store, is_down, why);
    follow(store, refused_before);
}

bool store_set_operator(struct store *store, enum store_order order, uint32_t weight)
{
    bool refused_before = store_refuses(store);
    uint32_t wanted = weight == 0 ? store->conf_weight : weight;

    store->ordered_weight = weight;
    if (has_order(store, order) && atomic_load(&store->weight) == wanted)
        return false;
    atomic_store(&store->weight, wanted);
    atomic_store(&store->order, (uint32_t)order);
    log_event(LOG_LEVEL_WARNING, "store is set", "shard %s: %s, weight %u, by an operator",
              store->title, store_order_names[order], wanted);
    follow(store, refused_before);
    return true;
}
