/* Owns the arithmetic between two samples. */
#include "proxy/ctl/figures.h"

#include "proxy/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SERIES_MAX = 160, BUCKETS_MAX = 32 };

struct two {
    const struct sample *before, *now;
    double seconds;
};

/* How much a counter has grown in a second. */
static double rate(const struct two *two, const char *name)
{
    double grown = sample_value(two->now, name) - sample_value(two->before, name);

    return grown > 0 && two->seconds > 0 ? grown / two->seconds : 0;
}

static double sum_of_phases(const struct sample *now, const char *const *phases)
{
    char name[SERIES_MAX];
    double sum = 0;

    for (; *phases != NULL; phases++) {
        snprintf(name, sizeof name, "imapmux_sessions{phase=\"%s\"}", *phases);
        sum += sample_value(now, name);
    }
    return sum;
}

static double number_of(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

/* --- latencies --- */

struct bucket {
    double below, count; /* so many took at most so long, since the sample before */
};

/* Those of one histogram, in order; the last one has no bound. */
static size_t read_buckets(const struct two *two, const char *metric,
                           struct bucket buckets[BUCKETS_MAX])
{
    char start[SERIES_MAX];
    size_t count = 0, len;

    len = (size_t)snprintf(start, sizeof start, "%s_bucket{le=\"", metric);
    for (const struct series *series = two->now->series; series != NULL; series = series->hh.next) {
        if (strncmp(series->name, start, len) != 0 || count == BUCKETS_MAX)
            continue;
        buckets[count].below = strtod(series->name + len, NULL); /* "+Inf" is infinite */
        buckets[count].count = series->value - sample_value(two->before, series->name);
        count++;
    }
    return count;
}

/* Within a bucket they are taken to be spread evenly, as Prometheus does. */
static double quantile(const struct bucket *buckets, size_t count, double part)
{
    double wanted = count == 0 ? 0 : part * buckets[count - 1].count;
    double from = 0, before = 0;
    size_t i = 0;

    if (count == 0 || buckets[count - 1].count <= 0)
        return -1;
    for (; i < count - 1 && buckets[i].count < wanted; i++) {
        from = buckets[i].below;
        before = buckets[i].count;
    }
    if (i == count - 1 || buckets[i].count <= before)
        return from;
    return from + (buckets[i].below - from) * (wanted - before) / (buckets[i].count - before);
}

static void measure(const struct two *two, struct figures_latency *latency)
{
    struct bucket buckets[BUCKETS_MAX];
    size_t count = read_buckets(two, latency->metric, buckets);
    char name[SERIES_MAX];

    snprintf(name, sizeof name, "%s_count", latency->metric);
    latency->is_used = sample_value(two->now, name) > 0;
    latency->per_second = rate(two, name);
    latency->p50 = quantile(buckets, count, 0.5);
    latency->p95 = quantile(buckets, count, 0.95);
    latency->p99 = quantile(buckets, count, 0.99);
}

/* --- shards --- */

/* The series of a shard: "imapmux_shard_<what>{shard="<name>"<label>}". */
static const char *shard_series(char out[SERIES_MAX], const char *what, const char *name,
                                const char *label)
{
    snprintf(out, SERIES_MAX, "imapmux_shard_%s{shard=\"%s\"%s}", what, name, label);
    return out;
}

static const char *read_order(const struct sample *now, const char *shard)
{
    static const struct {
        const char *order, *label;
    } orders[] = {
        {"up", ",order=\"up\""}, {"drain", ",order=\"drain\""}, {"down", ",order=\"down\""}};
    char name[SERIES_MAX];

    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++)
        if (sample_value(now, shard_series(name, "order", shard, orders[i].label)) > 0)
            return orders[i].order;
    return "";
}

static void read_shard(const struct two *two, struct figures_shard *shard)
{
    const struct sample *now = two->now;
    char name[SERIES_MAX];

    shard->is_up = sample_value(now, shard_series(name, "up", shard->name, "")) > 0;
    shard->order = read_order(now, shard->name);
    shard->sessions = sample_value(now, shard_series(name, "sessions", shard->name, ""));
    shard->connections = sample_value(now, shard_series(name, "connections", shard->name, ""));
    shard->logins_in_flight =
        sample_value(now, shard_series(name, "logins_in_flight", shard->name, ""));
    shard->waiting = sample_value(now, shard_series(name, "waiting", shard->name, ""));
    shard->logins_per_second =
        rate(two, shard_series(name, "logins_total", shard->name, ",result=\"ok\""));
    shard->failures_per_second =
        rate(two, shard_series(name, "logins_total", shard->name, ",result=\"failed\""));
}

static bool read_shards(struct figures *figures, const struct two *two)
{
    static const char start[] = "imapmux_shard_up{shard=\"";
    size_t len = sizeof start - 1;

    for (const struct series *series = two->now->series; series != NULL; series = series->hh.next)
        figures->shard_count += strncmp(series->name, start, len) == 0;
    figures->shards = mem_array(figures->shard_count + 1, sizeof *figures->shards);
    figures->shard_count = 0;
    if (figures->shards == NULL)
        return false;
    for (const struct series *series = two->now->series; series != NULL; series = series->hh.next) {
        if (strncmp(series->name, start, len) != 0)
            continue;
        struct figures_shard *shard = &figures->shards[figures->shard_count++];
        snprintf(shard->name, sizeof shard->name, "%.*s", (int)strcspn(series->name + len, "\""),
                 series->name + len);
        read_shard(two, shard);
    }
    return true;
}

static int compare_numbers(double a, double b)
{
    return (a < b) - (a > b);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct figures_shard *)a)->name, ((const struct figures_shard *)b)->name);
}

static int by_sessions(const void *a, const void *b)
{
    const struct figures_shard *one = a, *other = b;
    int order = compare_numbers(one->sessions, other->sessions);

    return order != 0 ? order : by_name(a, b);
}

static int by_logins(const void *a, const void *b)
{
    const struct figures_shard *one = a, *other = b;
    int order = compare_numbers(one->logins_per_second, other->logins_per_second);

    return order != 0 ? order : by_name(a, b);
}

static int by_waiting(const void *a, const void *b)
{
    const struct figures_shard *one = a, *other = b;
    int order = compare_numbers(one->waiting + one->logins_in_flight,
                                other->waiting + other->logins_in_flight);

    return order != 0 ? order : by_name(a, b);
}

void figures_sort(struct figures *figures, enum figures_order order)
{
    static int (*const compare[])(const void *, const void *) = {
        [FIGURES_BY_NAME] = by_name,
        [FIGURES_BY_SESSIONS] = by_sessions,
        [FIGURES_BY_LOGINS] = by_logins,
        [FIGURES_BY_WAITING] = by_waiting,
    };

    if (figures->shard_count > 0)
        qsort(figures->shards, figures->shard_count, sizeof *figures->shards, compare[order]);
}

/* --- workers --- */

static bool read_workers(struct figures *figures, const struct two *two)
{
    const json_t *before = json_object_get(two->before->status, "worker_threads"),
                 *now = json_object_get(two->now->status, "worker_threads");
    size_t count = json_array_size(now);

    figures->workers = mem_array(count + 1, sizeof *figures->workers);
    if (figures->workers == NULL)
        return false;
    figures->worker_count = count;
    for (size_t i = 0; i < count; i++) {
        const json_t *row = json_array_get(now, i), *old = json_array_get(before, i);
        const char *state = json_string_value(json_object_get(row, "state"));
        double logins = number_of(row, "logins_ok") - number_of(old, "logins_ok");

        figures->workers[i] = (struct figures_worker){
            .number = json_integer_value(json_object_get(row, "worker")),
            .is_well = state != NULL && strcmp(state, "well") == 0,
            .relayed = number_of(row, "relayed"),
            .logins_per_second = old != NULL && logins > 0 ? logins / two->seconds : 0};
    }
    return true;
}

/* --- all of it --- */

static void read_sessions(struct figures *figures, const struct sample *now)
{
    static const char *const before_login[] = {"proxy header", "tls", "command", NULL};
    static const char *const logging_in[] = {"moving", "verify", "admit", "route",
                                             "lease",  "held",   NULL};
    static const char *const relayed[] = {"relay", NULL};
    static const char *const ending[] = {"stranded", "linger", NULL};

    figures->sessions = number_of(now->status, "sessions");
    figures->max_sessions = number_of(now->status, "max_sessions");
    figures->before_login = sum_of_phases(now, before_login);
    figures->logging_in = sum_of_phases(now, logging_in);
    figures->relayed = sum_of_phases(now, relayed);
    figures->ending = sum_of_phases(now, ending);
}

static void read_rates(struct figures *figures, const struct two *two)
{
    double new = rate(two, "imapmux_leases_total{kind=\"new\"}"),
           kept = rate(two, "imapmux_leases_total{kind=\"warm\"}") +
                  rate(two, "imapmux_leases_total{kind=\"parked\"}") +
                  rate(two, "imapmux_leases_total{kind=\"reset\"}");

    figures->connections_per_second = rate(two, "imapmux_sessions_opened_total");
    figures->in_per_second = rate(two, "imapmux_bytes_from_clients_total");
    figures->out_per_second = rate(two, "imapmux_bytes_to_clients_total");
    figures->logins_ok_per_second = rate(two, "imapmux_logins_ok_total");
    figures->logins_refused_per_second = rate(two, "imapmux_logins_refused_total");
    figures->leases_per_second = new + kept;
    figures->hits_percent = new + kept > 0 ? 100 * kept / (new + kept) : -1;
    figures->redis_per_second = rate(two, "imapmux_redis_commands_total");
    figures->ldap_per_second =
        rate(two, "imapmux_ldap_searches_total") + rate(two, "imapmux_ldap_binds_total");
    figures->cpu_percent = 100 * rate(two, "process_cpu_seconds_total");
}

static void read_gauges(struct figures *figures, const struct sample *now)
{
    figures->logins_in_flight = sample_value(now, "imapmux_logins_in_flight");
    figures->waiting = sample_value(now, "imapmux_leases_waiting");
    figures->open = sample_value(now, "imapmux_backends_open");
    figures->warm = sample_value(now, "imapmux_backends_warm");
    figures->parked = sample_value(now, "imapmux_backends_parked");
}

bool figures_make(struct figures *figures_out, const struct sample *before,
                  const struct sample *now)
{
    static const struct figures_latency latencies[] = {
        [FIGURES_LOGIN] = {.name = "login", .metric = "imapmux_login_seconds"},
        [FIGURES_QUEUE] = {.name = "queue", .metric = "imapmux_queue_wait_seconds"},
        [FIGURES_LDAP_SEARCH] = {.name = "LDAP search", .metric = "imapmux_ldap_search_seconds"},
        [FIGURES_LDAP_BIND] = {.name = "LDAP bind", .metric = "imapmux_ldap_bind_seconds"},
        [FIGURES_REDIS] = {.name = "Redis", .metric = "imapmux_redis_seconds"},
    };
    const struct two two = {before, now, (double)(now->at_ms - before->at_ms) / 1000};

    *figures_out = (struct figures){.seconds = two.seconds};
    read_sessions(figures_out, now);
    read_rates(figures_out, &two);
    read_gauges(figures_out, now);
    for (size_t i = 0; i < FIGURES_LATENCIES; i++) {
        figures_out->latencies[i] = latencies[i];
        measure(&two, &figures_out->latencies[i]);
    }
    return read_shards(figures_out, &two) && read_workers(figures_out, &two);
}

void figures_release(struct figures *figures)
{
    mem_free(figures->shards);
    mem_free(figures->workers);
    *figures = (struct figures){0};
}

/* --- for programs --- */

static json_t *ms_or_null(double seconds)
{
    return seconds < 0 ? json_null() : json_real(1000 * seconds);
}

static json_t *describe_latencies(const struct figures *figures)
{
    json_t *list = json_array();

    for (size_t i = 0; i < FIGURES_LATENCIES; i++) {
        const struct figures_latency *latency = &figures->latencies[i];

        json_array_append_new(
            list, json_pack("{s:s, s:f, s:o, s:o, s:o}", "of", latency->name, "per_second",
                            latency->per_second, "p50_ms", ms_or_null(latency->p50), "p95_ms",
                            ms_or_null(latency->p95), "p99_ms", ms_or_null(latency->p99)));
    }
    return list;
}

static json_t *describe_shards(const struct figures *figures)
{
    json_t *list = json_array();

    for (size_t i = 0; i < figures->shard_count; i++) {
        const struct figures_shard *shard = &figures->shards[i];

        json_array_append_new(
            list,
            json_pack("{s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "shard", shard->name,
                      "state", shard->order, "health", shard->is_up ? "up" : "down", "sessions",
                      shard->sessions, "connections", shard->connections, "logins_per_second",
                      shard->logins_per_second, "failures_per_second", shard->failures_per_second,
                      "logins_in_flight", shard->logins_in_flight, "waiting", shard->waiting));
    }
    return list;
}

static json_t *describe_workers(const struct figures *figures)
{
    json_t *list = json_array();

    for (size_t i = 0; i < figures->worker_count; i++) {
        const struct figures_worker *worker = &figures->workers[i];

        json_array_append_new(list, json_pack("{s:I, s:s, s:f, s:f}", "worker", worker->number,
                                              "state", worker->is_well ? "well" : "silent",
                                              "relayed", worker->relayed, "logins_per_second",
                                              worker->logins_per_second));
    }
    return list;
}

json_t *figures_describe(const struct figures *figures, const struct sample *now)
{
    json_t *described = json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:f}",
        "seconds", figures->seconds, "sessions", figures->sessions, "before_login",
        figures->before_login, "logging_in", figures->logging_in, "relayed", figures->relayed,
        "ending", figures->ending, "connections_per_second", figures->connections_per_second,
        "in_bytes_per_second", figures->in_per_second, "out_bytes_per_second",
        figures->out_per_second, "logins_ok_per_second", figures->logins_ok_per_second,
        "logins_refused_per_second", figures->logins_refused_per_second, "leases_per_second",
        figures->leases_per_second, "hits_percent",
        figures->hits_percent < 0 ? json_null() : json_real(figures->hits_percent), "open",
        figures->open, "parked", figures->parked, "waiting", figures->waiting);

    json_object_set(described, "state", json_object_get(now->status, "state"));
    json_object_set_new(described, "latencies", describe_latencies(figures));
    json_object_set_new(described, "workers", describe_workers(figures));
    json_object_set_new(described, "shards", describe_shards(figures));
    return described;
}
