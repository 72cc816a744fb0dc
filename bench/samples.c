/* Owns the samples of one run. */
#include "bench/samples.h"

#include "proxy/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void samples_add(struct samples *samples, uint64_t nanoseconds)
{
    if (samples->count == samples->room) {
        samples->room = samples->room == 0 ? 1024 : 2 * samples->room;
        samples->nanoseconds =
            mem_resize(samples->nanoseconds, samples->room * sizeof *samples->nanoseconds);
        if (samples->nanoseconds == NULL) {
            perror("samples");
            exit(1);
        }
    }
    samples->nanoseconds[samples->count++] = nanoseconds;
}

static int compare(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

void samples_sort(struct samples *samples)
{
    if (samples->count > 0)
        qsort(samples->nanoseconds, samples->count, sizeof *samples->nanoseconds, compare);
}

double samples_ms(const struct samples *samples, double share)
{
    if (samples->count == 0)
        return 0;
    size_t index = (size_t)(share * (double)samples->count);
    if (index >= samples->count)
        index = samples->count - 1;
    return (double)samples->nanoseconds[index] / 1e6;
}

void samples_release(struct samples *samples)
{
    mem_free(samples->nanoseconds);
    *samples = (struct samples){0};
}
