/*
 * Counters of one worker, written by that worker alone with relaxed atomics, summed by whoever
 * shows them.
 */
#ifndef IMAPMUX_BASE_METRICS_H
#define IMAPMUX_BASE_METRICS_H

#include "proxy/base/metrics.def"

#include <stdatomic.h>
#include <stdint.h>

struct counters {
#define X(kind, field, name, help) _Atomic uint64_t field;
    METRICS(X)
#undef X
};

static inline void counter_add(_Atomic uint64_t *counter, uint64_t amount)
{
    /* One writer: a load and a store are enough, and cheaper than a locked add. */
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);

    atomic_store_explicit(counter, now + amount, memory_order_relaxed);
}

#endif
