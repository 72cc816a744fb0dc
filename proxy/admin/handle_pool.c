/* Owns the command `pool`: the connections to the stores, as the workers' pools have them. */
#include "proxy/admin/handlers.h"

#include "proxy/base/mem.h"
#include "proxy/process/ask.h"
#include "proxy/process/control.h"

struct pool_call {
    struct ask ask;          /* first member */
    struct admin_call *call; /* NULL: nobody waits for the answer any more */
    struct control *control;
    bool by_worker;
    size_t worker_count, id_count;
    struct pool_counts *counts; /* by worker and shard id */
};

static void visit(struct ask *ask, struct home *home, size_t worker)
{
    struct pool_call *pool = (struct pool_call *)ask;

    pool_count(home->pool, pool->counts + worker * pool->id_count, pool->id_count);
}

/* --- rows --- */

static void add(struct pool_counts *sum, const struct pool_counts *part)
{
    sum->open += part->open;
    sum->leased += part->leased;
    sum->warm += part->warm;
    sum->parked += part->parked;
    sum->other += part->other;
    sum->oldest_ms = part->oldest_ms > sum->oldest_ms ? part->oldest_ms : sum->oldest_ms;
    sum->logging_in += part->logging_in;
    sum->waiting += part->waiting;
    for (size_t kind = 0; kind < LEASE_KINDS; kind++)
        sum->leases[kind] += part->leases[kind];
}

/* A connection that was there already is a hit. */
static json_t *describe(const struct conf_shard *shard, const struct pool_counts *counts)
{
    const uint64_t *leases = counts->leases;

    return json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "shard",
        shard->title, "open", (json_int_t)counts->open, "limit", (json_int_t)shard->max_connections,
        "leased", (json_int_t)counts->leased, "warm", (json_int_t)counts->warm, "parked",
        (json_int_t)counts->parked, "other", (json_int_t)counts->other, "oldest_seconds",
        (json_int_t)(counts->oldest_ms / 1000), "logging_in", (json_int_t)counts->logging_in,
        "login_limit", (json_int_t)shard->max_logins_in_flight, "waiting",
        (json_int_t)counts->waiting, "hits_parked", (json_int_t)leases[LEASE_PARKED], "hits_warm",
        (json_int_t)leases[LEASE_WARM], "hits_reset", (json_int_t)leases[LEASE_RESET], "misses",
        (json_int_t)leases[LEASE_NEW]);
}

/* False without memory. */
static bool add_row(json_t *rows, json_t *row, const struct pool_call *pool, size_t worker)
{
    if (row != NULL && pool->by_worker)
        json_object_set_new(row, "worker", json_integer((json_int_t)worker));
    return json_array_append_new(rows, row) == 0;
}

static json_t *list_rows(const struct pool_call *pool)
{
    const struct conf *conf = pool->control->env.conf;
    json_t *rows = json_array();
    bool good = rows != NULL;

    for (size_t i = 0; i < conf->shard_count && good; i++) {
        const struct conf_shard *shard = &conf->shards[i];
        struct pool_counts sum = {0};

        if (shard->id >= pool->id_count) /* it has come meanwhile */
            continue;
        for (size_t worker = 0; worker < pool->worker_count && good; worker++) {
            const struct pool_counts *part = &pool->counts[worker * pool->id_count + shard->id];

            if (pool->by_worker)
                good = add_row(rows, describe(shard, part), pool, worker);
            else
                add(&sum, part);
        }
        if (!pool->by_worker)
            good = good && add_row(rows, describe(shard, &sum), pool, 0);
    }
    if (good)
        return rows;
    json_decref(rows);
    return NULL;
}

/* --- the call --- */

static void release(struct pool_call *pool)
{
    mem_free(pool->counts);
    mem_free(pool);
}

static void on_asked(struct ask *ask)
{
    struct pool_call *pool = (struct pool_call *)ask;

    if (pool->call != NULL)
        admin_answer(pool->call, list_rows(pool));
    release(pool);
}

static void cancel(struct admin_call *call)
{
    ((struct pool_call *)call->state)->call = NULL;
}

void run_pool(struct admin_call *call)
{
    struct control *control = call->context;
    const char *by = admin_argument(call, "by");
    struct pool_call *pool = mem_new(sizeof *pool);

    if (pool == NULL) {
        admin_answer(call, NULL);
        return;
    }
    pool->ask = (struct ask){.visit = visit, .on_done = on_asked};
    pool->call = call;
    pool->control = control;
    pool->by_worker = by != NULL && strcmp(by, "worker") == 0;
    pool->worker_count = workers_count(control->workers);
    pool->id_count = control->env.conf->shard_titles.count;
    pool->counts = mem_array(pool->worker_count * pool->id_count, sizeof *pool->counts);
    if (pool->counts == NULL || !ask_workers(&pool->ask, control->workers, &control->inbox)) {
        release(pool);
        admin_answer(call, NULL);
        return;
    }
    call->state = pool;
    call->cancel = cancel;
}
