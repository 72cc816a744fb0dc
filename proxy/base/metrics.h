/*
 * Metrics of one worker, written by that worker alone with relaxed atomics, summed by whoever shows
 * them. What there is to count stands in metrics.def.
 */
#ifndef IMAPMUX_BASE_METRICS_H
#define IMAPMUX_BASE_METRICS_H

#include "proxy/base/err.h"
#include "proxy/base/metrics.def"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { HISTOGRAM_BUCKETS = 15 }; /* the last one has no upper bound */

/* How often something took how long; bounds are in metrics.c. */
struct histogram {
    _Atomic uint64_t buckets[HISTOGRAM_BUCKETS]; /* each counts its own, not those below */
    _Atomic uint64_t sum_ms;
};

#define METRIC_TYPE_COUNTER   _Atomic uint64_t
#define METRIC_TYPE_GAUGE     _Atomic uint64_t
#define METRIC_TYPE_HISTOGRAM struct histogram
struct counters {
#define X(kind, field, name, help) METRIC_TYPE_##kind field;
    METRICS(X)
#undef X
};

/* One writer: a load and a store are enough, and cheaper than a locked add. */
static inline void counter_add(_Atomic uint64_t *counter, uint64_t amount)
{
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);

    atomic_store_explicit(counter, now + amount, memory_order_relaxed);
}

/* A gauge goes down, too. */
static inline void gauge_add(_Atomic uint64_t *gauge, int64_t amount)
{
    counter_add(gauge, (uint64_t)amount);
}

static inline void gauge_set(_Atomic uint64_t *gauge, uint64_t value)
{
    atomic_store_explicit(gauge, value, memory_order_relaxed);
}

void histogram_add(struct histogram *histogram, uint64_t ms);

/* The counter or gauge at this offset of struct counters; from any thread. */
uint64_t metric_value(const struct counters *counters, size_t offset);

/* Adds up `count` threads' counters, each as it is at this moment. */
void metrics_sum(struct counters *sum_out, const struct counters *const *list, size_t count);

/*
 * Below which value, in ms, the part `part` (0 to 1) of what was counted lies, or nearly: within a
 * bucket values are taken to be spread evenly. `buckets` as in struct histogram. 0 if it has none.
 */
double histogram_quantile(const uint64_t buckets[HISTOGRAM_BUCKETS], double part);

/* Prints them in Prometheus' text format. */
void metrics_print(FILE *out, const struct counters *sum);

/* Prints a label's value, which stands in quotation marks, as that format has it. */
void metrics_print_label(FILE *out, const char *value);

/*
 * Has `print` write the file; readers find the old file or the new one, never half of it. False
 * with *err set.
 */
bool metrics_save(const char *path, void (*print)(FILE *out, const void *what), const void *what,
                  struct err *err);

#endif
