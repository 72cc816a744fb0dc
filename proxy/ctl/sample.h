/*
 * What imapmux says of itself at one moment, for imapmuxctl top: metrics by name, and its status.
 */
#ifndef IMAPMUX_CTL_SAMPLE_H
#define IMAPMUX_CTL_SAMPLE_H

#include "proxy/base/hash.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* One line of the metrics; in a sample they are in their order. */
struct series {
    UT_hash_handle hh;
    double value;
    char name[]; /* with its labels: "imapmux_sessions{phase=\"relay\"}" */
};

struct sample {
    uint64_t at_ms; /* clock_ms; 0: there is none */
    struct series *series;
    json_t *status;
};

/*
 * Reads the text of the metrics; takes over the reference to the status. False without memory; the
 * sample is to be released in either case.
 */
bool sample_read(struct sample *sample_out, uint64_t at_ms, const char *metrics, json_t *status);

void sample_release(struct sample *sample);

/* The value of the series of exactly this name; 0 if there is none. */
double sample_value(const struct sample *sample, const char *name);

#endif
