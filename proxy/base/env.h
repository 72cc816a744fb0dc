/*
 * What auth, routing and net get to know of the worker they run in: its loop, its next turn, the
 * configuration and the worker's counters. Everything in it outlives whoever borrows it.
 */
#ifndef IMAPMUX_BASE_ENV_H
#define IMAPMUX_BASE_ENV_H

#include "proxy/base/conf.h"
#include "proxy/base/metrics.h"
#include "proxy/base/turn.h"

#include <uv.h>

struct env {
    uv_loop_t *loop;
    struct turn *turn;
    const struct conf *conf;
    struct counters *counters;
};

#endif
