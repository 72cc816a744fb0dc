/* Measured times, and what is said about them: median, 99th percentile, maximum. */
#ifndef IMAPMUX_BENCH_SAMPLES_H
#define IMAPMUX_BENCH_SAMPLES_H

#include <stddef.h>
#include <stdint.h>

struct samples {
    uint64_t *nanoseconds;
    size_t count, room;
};

uint64_t now_ns(void);

/* Ends the program when there is no memory. */
void samples_add(struct samples *samples, uint64_t nanoseconds);

/* Sorts; for `samples_ms`. */
void samples_sort(struct samples *samples);

/* The time in milliseconds that `share` (0 to 1) of the sorted samples do not exceed; 0 of none. */
double samples_ms(const struct samples *samples, double share);

void samples_release(struct samples *samples);

#endif
