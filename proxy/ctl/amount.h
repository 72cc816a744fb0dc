/* Numbers with a unit, as they are given on the command line: "60s", "60/min". */
#ifndef IMAPMUX_CTL_AMOUNT_H
#define IMAPMUX_CTL_AMOUNT_H

#include <stdbool.h>
#include <stdint.h>

struct amount_unit {
    const char *name; /* NULL ends a list of them */
    uint64_t ms;
};

/* A number from 1 to a million, and what its unit stands for. False: it is none. */
bool amount_read(const char *text, const struct amount_unit *units, uint64_t *number_out,
                 uint64_t *unit_ms_out);

/* A time: "500ms", "60s", "2m", "1h". */
bool amount_read_duration(const char *text, uint64_t *ms_out);

#endif
