/* Owns which series there are of each shard, as rows of a table. */
#include "proxy/store/store_metrics.h"

#include "proxy/base/metrics.h"

static uint64_t is_up(const struct store *store)
{
    return !atomic_load(&store->is_down);
}

static uint64_t order_is_up(const struct store *store)
{
    return atomic_load(&store->order) == STORE_UP;
}

static uint64_t order_is_drain(const struct store *store)
{
    return atomic_load(&store->order) == STORE_DRAIN;
}

static uint64_t order_is_down(const struct store *store)
{
    return atomic_load(&store->order) == STORE_DOWN;
}

static uint64_t weight(const struct store *store)
{
    return atomic_load(&store->weight);
}

static uint64_t sessions(const struct store *store)
{
    return atomic_load(&store->sessions);
}

static uint64_t logins_ok(const struct store *store)
{
    return atomic_load(&store->logins_ok);
}

static uint64_t logins_failed(const struct store *store)
{
    return atomic_load(&store->logins_failed);
}

static uint64_t logins_in_flight(const struct store *store)
{
    return atomic_load(&store->logins.used);
}

static uint64_t logins_in_flight_limit(const struct store *store)
{
    return atomic_load(&store->logins.limit);
}

static uint64_t waiting(const struct store *store)
{
    return atomic_load(&store->logins.waiting) + atomic_load(&store->connections.waiting);
}

static uint64_t connections(const struct store *store)
{
    return atomic_load(&store->connections.used);
}

static uint64_t connections_limit(const struct store *store)
{
    return atomic_load(&store->connections.limit);
}

static uint64_t addresses_down(const struct store *store)
{
    return store_addresses_down(store);
}

/* As in metrics.def; `label` is "", or a further one. */
static const struct row {
    const char *name, *label, *type, *help;
    uint64_t (*value)(const struct store *store);
} rows[] = {
    {"imapmux_shard_up", "", "gauge", "Whether the shard answers", is_up},
    {"imapmux_shard_order", ",order=\"up\"", "gauge", "What operators want of the shard: 1 is it",
     order_is_up},
    {"imapmux_shard_order", ",order=\"drain\"", "gauge", "", order_is_drain},
    {"imapmux_shard_order", ",order=\"down\"", "gauge", "", order_is_down},
    {"imapmux_shard_weight", "", "gauge", "Its share of new users", weight},
    {"imapmux_shard_sessions", "", "gauge", "Sessions that have a connection to the shard",
     sessions},
    {"imapmux_shard_logins_total", ",result=\"ok\"", "counter",
     "Logins that were led to the shard, by result", logins_ok},
    {"imapmux_shard_logins_total", ",result=\"failed\"", "counter", "", logins_failed},
    {"imapmux_shard_logins_in_flight", "", "gauge", "Sessions that connect or log in to the shard",
     logins_in_flight},
    {"imapmux_shard_logins_in_flight_limit", "", "gauge", "How many may", logins_in_flight_limit},
    {"imapmux_shard_waiting", "", "gauge", "Sessions in the queue before the shard", waiting},
    {"imapmux_shard_connections", "", "gauge", "Connections to the shard, in whatever state",
     connections},
    {"imapmux_shard_connections_limit", "", "gauge", "How many there may be; 0 is no limit",
     connections_limit},
    {"imapmux_shard_addresses_down", "", "gauge", "Its addresses that do not answer the checks",
     addresses_down},
};

static void print_row(FILE *out, const struct row *row, const struct store *store)
{
    fprintf(out, "%s{shard=\"", row->name);
    metrics_print_label(out, store->title);
    fprintf(out, "\"%s} %llu\n", row->label, (unsigned long long)row->value(store));
}

void store_metrics_print(FILE *out, const struct stores *stores)
{
    for (const struct row *row = rows; row < rows + sizeof rows / sizeof rows[0]; row++) {
        if (row->help[0] != '\0')
            fprintf(out, "# HELP %s %s.\n# TYPE %s %s\n", row->name, row->help, row->name,
                    row->type);
        for (size_t i = 0; i < CONF_SHARD_IDS; i++)
            if (stores->by_id[i] != NULL && !atomic_load(&stores->by_id[i]->is_removed))
                print_row(out, row, stores->by_id[i]);
    }
}
