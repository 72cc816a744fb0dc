/* Owns how metrics are shown: each row of metrics.def as lines that Prometheus reads. */
#include "proxy/base/metrics.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

enum metric_kind { COUNTER, GAUGE, HISTOGRAM };

static const struct metric {
    const char *name, *help;
    enum metric_kind kind;
    size_t offset;
} metrics[] = {
#define X(kind, field, name, help) {name, help, kind, offsetof(struct counters, field)},
    METRICS(X)
#undef X
};

static const uint64_t bounds_ms[HISTOGRAM_BUCKETS - 1] = {1,   2,   5,    10,   20,   50,    100,
                                                          200, 500, 1000, 2000, 5000, 10000, 30000};

void histogram_add(struct histogram *histogram, uint64_t ms)
{
    size_t i = 0;

    while (i < HISTOGRAM_BUCKETS - 1 && ms > bounds_ms[i])
        i++;
    counter_add(&histogram->buckets[i], 1);
    counter_add(&histogram->sum_ms, ms);
}

uint64_t metric_value(const struct counters *counters, size_t offset)
{
    const void *at = (const char *)counters + offset;

    return atomic_load_explicit((const _Atomic uint64_t *)at, memory_order_relaxed);
}

/* The sum over all workers of what lies at this offset. */
static uint64_t sum(const struct counters *const *list, size_t count, size_t offset)
{
    uint64_t total = 0;

    for (size_t i = 0; i < count; i++)
        total += metric_value(list[i], offset);
    return total;
}

static void print_histogram(FILE *out, const struct metric *metric,
                            const struct counters *const *list, size_t count)
{
    uint64_t below = 0;

    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        size_t offset = offsetof(struct histogram, buckets) + i * sizeof(_Atomic uint64_t);

        below += sum(list, count, metric->offset + offset);
        if (i < HISTOGRAM_BUCKETS - 1)
            fprintf(out, "%s_bucket{le=\"%g\"} %llu\n", metric->name, (double)bounds_ms[i] / 1000,
                    (unsigned long long)below);
    }
    fprintf(out, "%s_bucket{le=\"+Inf\"} %llu\n", metric->name, (unsigned long long)below);
    fprintf(out, "%s_count %llu\n", metric->name, (unsigned long long)below);
    fprintf(out, "%s_sum %.3f\n", metric->name,
            (double)sum(list, count, metric->offset + offsetof(struct histogram, sum_ms)) / 1000);
}

static void print_metric(FILE *out, const struct metric *metric, const struct counters *const *list,
                         size_t count)
{
    static const char *const types[] = {"counter", "gauge", "histogram"};
    int base_len = (int)strcspn(metric->name, "{");

    if (metric->help[0] != '\0') /* the first row of a metric tells for all of them */
        fprintf(out, "# HELP %.*s %s.\n# TYPE %.*s %s\n", base_len, metric->name, metric->help,
                base_len, metric->name, types[metric->kind]);
    if (metric->kind == HISTOGRAM)
        print_histogram(out, metric, list, count);
    else
        fprintf(out, "%s %llu\n", metric->name,
                (unsigned long long)sum(list, count, metric->offset));
}

void metrics_print(FILE *out, const struct counters *const *list, size_t count)
{
    for (size_t i = 0; i < sizeof metrics / sizeof metrics[0]; i++)
        print_metric(out, &metrics[i], list, count);
}

bool metrics_save(const struct counters *const *list, size_t count, const char *path,
                  struct err *err)
{
    char temporary[PATH_MAX];
    FILE *out = NULL;

    errno = ENAMETOOLONG;
    if (snprintf(temporary, sizeof temporary, "%s.new", path) < (int)sizeof temporary)
        out = fopen(temporary, "we");
    if (out == NULL)
        return err_set(err, ERR_CONFIG, "metrics: %s: %s", path, strerrordesc_np(errno));
    metrics_print(out, list, count);
    bool good = ferror(out) == 0;
    good = fclose(out) == 0 && good;
    if (good && rename(temporary, path) == 0)
        return true;
    err_set(err, ERR_UNAVAILABLE, "metrics: %s: %s", path, strerrordesc_np(errno));
    unlink(temporary);
    return false;
}
