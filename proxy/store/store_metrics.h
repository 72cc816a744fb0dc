/* The stores as Prometheus reads them: series of each shard, labelled with its title. */
#ifndef IMAPMUX_STORE_STORE_METRICS_H
#define IMAPMUX_STORE_STORE_METRICS_H

#include "proxy/store/store.h"

#include <stdio.h>

/* Of those whose shard is configured. On the control thread. */
void store_metrics_print(FILE *out, const struct stores *stores);

#endif
