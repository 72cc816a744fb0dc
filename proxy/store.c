/* Owns the state of each store that all workers have in common. */
#include "proxy/store.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"

enum { DOUBT_MS = 1000 }; /* so long after a greeting a failure is an accident */

const char *const store_order_names[] = {
    [STORE_UP] = "up", [STORE_DRAIN] = "drain", [STORE_DOWN] = "down"};

static uint64_t now_ms(void)
{
    return uv_hrtime() / 1000000;
}

static bool open_one(struct store *stores, size_t index, const struct conf *conf,
                     size_t worker_count)
{
    struct store *store = &stores[index];
    const struct conf_shard *shard = &conf->shards[index];
    const struct conf_shard *replica = conf_find_shard(conf, shard->replica);
    uint32_t queue = (uint32_t)shard->max_queue;

    store->shard = shard;
    store->replica = replica == NULL ? NULL : &stores[replica - conf->shards];
    store->is_checked = conf->health.interval > 0;
    atomic_store(&store->weight, (uint32_t)shard->weight);
    atomic_store(&store->changed_ms, now_ms());
    return gate_init(&store->connections, (uint32_t)shard->max_connections, queue, 0,
                     worker_count) &&
           gate_init(&store->logins, (uint32_t)shard->max_logins_in_flight, queue,
                     shard->slow_start, worker_count);
}

struct store *stores_open(const struct conf *conf, size_t worker_count)
{
    struct store *stores = mem_array(conf->shard_count, sizeof *stores);
    bool good = stores != NULL;

    for (size_t i = 0; good && i < conf->shard_count; i++)
        good = open_one(stores, i, conf, worker_count);
    if (!good)
        stores_close(&stores, conf->shard_count);
    return stores;
}

void stores_close(struct store **stores, size_t count)
{
    struct store *list = *stores;

    *stores = NULL;
    for (size_t i = 0; list != NULL && i < count; i++) {
        gate_release(&list[i].connections);
        gate_release(&list[i].logins);
    }
    mem_free(list);
}

/* --- what workers meet --- */

static void set_down(struct store *store, bool is_down, const char *why)
{
    atomic_store(&store->is_down, is_down);
    atomic_store(&store->changed_ms, now_ms());
    if (is_down)
        log_event(LOG_LEVEL_WARNING, "store is down", "no address of shard %s answers%s%s",
                  store->shard->title, *why == '\0' ? "" : ": ", why);
    else
        log_event(LOG_LEVEL_WARNING, "store is back", "shard %s answers again",
                  store->shard->title);
}

void store_was_reached(struct store *store)
{
    atomic_store(&store->reached_ms, now_ms());
    if (store_refuses(store))
        return;
    gate_start_slowly(&store->logins); /* or an operator has had it begun already */
    if (atomic_exchange(&store->is_down, false))
        set_down(store, false, "");
}

bool store_was_not_reached(struct store *store, uint64_t started_ms)
{
    store_doubt(store);
    if (store->is_checked || started_ms < atomic_load(&store->reached_ms) + DOUBT_MS)
        return false; /* one that goes wrong among many that go well */
    if (!gate_hold(&store->logins))
        return started_ms > atomic_load(&store->down_ms);
    atomic_store(&store->down_ms, now_ms());
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
    return store->is_checked && atomic_load(&store->is_down);
}

bool store_refuses(const struct store *store)
{
    return has_order(store, STORE_DOWN) || is_checked_down(store);
}

void store_tell_refusal(const struct store *store, struct err *err)
{
    err_set(err, ERR_UNAVAILABLE, "shard %s is down: %s", store->shard->title,
            has_order(store, STORE_DOWN) ? "an operator has said so"
                                         : "no address of it answers health checks");
}

const struct conf_shard *store_serving(const struct store *stores, const struct conf_shard *shard)
{
    const struct store *store = &stores[shard - stores->shard];
    const struct store *replica = store->replica;
    bool is_wanted = store_refuses(store) || has_order(store, STORE_DRAIN);

    return is_wanted && replica != NULL && has_order(replica, STORE_UP) && !store_refuses(replica)
               ? replica->shard
               : shard;
}

/*
 * A store that does not answer keeps its share. Its users' mail is there: if a ring gave them to
 * another one for as long as an outage lasts, they would find empty mailboxes, and new mail where
 * it is not looked for afterwards. Only an operator can know that nobody has mail there.
 */
uint32_t store_ring_weight(void *stores, size_t index)
{
    const struct store *store = (const struct store *)stores + index;

    return has_order(store, STORE_UP) ? atomic_load(&store->weight) : 0;
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
    if (is_down) {
        atomic_fetch_add(&store->down_address_news, 1);
        gate_call(&store->logins);
    }
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
    uint32_t wanted = weight == 0 ? (uint32_t)store->shard->weight : weight;

    if (has_order(store, order) && atomic_load(&store->weight) == wanted)
        return false;
    atomic_store(&store->weight, wanted);
    atomic_store(&store->order, (uint32_t)order);
    log_event(LOG_LEVEL_WARNING, "store is set", "shard %s: %s, weight %u, by an operator",
              store->shard->title, store_order_names[order], wanted);
    follow(store, refused_before);
    return true;
}
