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

/* All that is in struct counters is numbers of one kind. */
void metrics_sum(struct counters *sum_out, const struct counters *const *list, size_t count)
{
    for (size_t offset = 0; offset < sizeof *sum_out; offset += sizeof(_Atomic uint64_t)) {
        void *at = (char *)sum_out + offset;
        uint64_t total = 0;

        for (size_t i = 0; i < count; i++)
            total += metric_value(list[i], offset);
        atomic_store_explicit((_Atomic uint64_t *)at, total, memory_order_relaxed);
    }
}

double histogram_quantile(const uint64_t buckets[HISTOGRAM_BUCKETS], double part)
{
    uint64_t total = 0, below = 0;
    size_t i = 0;

    for (size_t j = 0; j < HISTOGRAM_BUCKETS; j++)
        total += buckets[j];

    double wanted = part * (double)total;

    while (i < HISTOGRAM_BUCKETS - 1 && (double)(below + buckets[i]) < wanted)
        below += buckets[i++];
    if (total == 0 || i == HISTOGRAM_BUCKETS - 1) /* of the last bucket only its start is known */
        return total == 0 ? 0 : (double)bounds_ms[HISTOGRAM_BUCKETS - 2];

    double from = i == 0 ? 0 : (double)bounds_ms[i - 1];

    if (buckets[i] == 0)
        return from;
    return from + ((double)bounds_ms[i] - from) * (wanted - (double)below) / (double)buckets[i];
}

static void print_histogram(FILE *out, const struct metric *metric, const struct counters *sum)
{
    uint64_t below = 0;

    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        size_t offset = offsetof(struct histogram, buckets) + i * sizeof(_Atomic uint64_t);

        below += metric_value(sum, metric->offset + offset);
        if (i < HISTOGRAM_BUCKETS - 1)
            fprintf(out, "%s_bucket{le=\"%g\"} %llu\n", metric->name, (double)bounds_ms[i] / 1000,
                    (unsigned long long)below);
    }
    fprintf(out, "%s_bucket{le=\"+Inf\"} %llu\n", metric->name, (unsigned long long)below);
    fprintf(out, "%s_count %llu\n", metric->name, (unsigned long long)below);
    fprintf(out, "%s_sum %.3f\n", metric->name,
            (double)metric_value(sum, metric->offset + offsetof(struct histogram, sum_ms)) / 1000);
}

static void print_metric(FILE *out, const struct metric *metric, const struct counters *sum)
{
    static const char *const types[] = {"counter", "gauge", "histogram"};
    int base_len = (int)strcspn(metric->name, "{");

    if (metric->help[0] != '\0') /* the first row of a metric tells for all of them */
        fprintf(out, "# HELP %.*s %s.\n# TYPE %.*s %s\n", base_len, metric->name, metric->help,
                base_len, metric->name, types[metric->kind]);
    if (metric->kind == HISTOGRAM)
        print_histogram(out, metric, sum);
    else
        fprintf(out, "%s %llu\n", metric->name,
                (unsigned long long)metric_value(sum, metric->offset));
}

void metrics_print(FILE *out, const struct counters *sum)
{
    for (size_t i = 0; i < sizeof metrics / sizeof metrics[0]; i++)
        print_metric(out, &metrics[i], sum);
}

void metrics_print_label(FILE *out, const char *value)
{
    for (; *value != '\0'; value++) {
        if (*value == '\n')
            fputs("\\n", out);
        else if (*value == '"' || *value == '\\')
            fprintf(out, "\\%c", *value);
        else
            fputc(*value, out);
    }
}

bool metrics_save(const char *path, void (*print)(FILE *out, const void *what), const void *what,
                  struct err *err)
{
    char temporary[PATH_MAX];
    FILE *out = NULL;

    errno = ENAMETOOLONG;
    if (snprintf(temporary, sizeof temporary, "%s.new", path) < (int)sizeof temporary)
        out = fopen(temporary, "we");
    if (out == NULL)
        return err_set(err, ERR_CONFIG, "metrics: %s: %s", path, strerrordesc_np(errno));
    print(out, what);
    bool good = ferror(out) == 0;
    good = fclose(out) == 0 && good;
    if (good && rename(temporary, path) == 0)
        return true;
    err_set(err, ERR_UNAVAILABLE, "metrics: %s: %s", path, strerrordesc_np(errno));
    unlink(temporary);
    return false;
}
