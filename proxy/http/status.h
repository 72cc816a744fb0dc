/*
 * What the process is doing now, as JSON: what the status page shows, and others may read. No names
 * of users are in it. On the control thread.
 */
#ifndef IMAPMUX_HTTP_STATUS_H
#define IMAPMUX_HTTP_STATUS_H

#include "proxy/http/trend.h"
#include "proxy/process/control.h"

#include <jansson.h>

struct status_view {
    const struct control *control; /* whose workers have started */
    const struct trend *trend;
    const json_t *proxies; /* as a roster lists them; NULL: not known, or there are no others */
};

/* The caller has the reference; NULL without memory. */
json_t *status_describe(const struct status_view *view);

/* A moment of clock_ms, in unix seconds. */
int64_t status_unix_time(uint64_t moment_ms);

#endif
