/*
 * The process as Prometheus' own clients show it: process_*, and which version runs. What the
 * system does not tell is left out. Any thread.
 */
#ifndef IMAPMUX_BASE_PROCESS_METRICS_H
#define IMAPMUX_BASE_PROCESS_METRICS_H

#include <stdio.h>
#include <time.h>

/* Reads /proc/self/statm and lists /proc/self/fd. */
void process_metrics_print(FILE *out, time_t started_at);

/* How many descriptors are open; -1: it is not told. */
int process_count_descriptors(void);

#endif
