/* The stores as Prometheus reads them: series of each shard, labelled with its title. Any thread. */
#ifndef IMAPMUX_PROXY_STORE_METRICS_H
#define IMAPMUX_PROXY_STORE_METRICS_H

#include "proxy/store.h"

#include <stdio.h>

void store_metrics_print(FILE *out, const struct store *stores, size_t count);

#endif
