/* Owns how numbers with a unit are read. */
#include "proxy/ctl/amount.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool amount_read(const char *text, const struct amount_unit *units, uint64_t *number_out,
                 uint64_t *unit_ms_out)
{
    char *end = NULL;

    errno = 0;
    *number_out = strtoull(text, &end, 10);
    if (errno != 0 || *text < '0' || *text > '9' || *number_out < 1 || *number_out > 1000000)
        return false;
    while (units->name != NULL && strcmp(units->name, end) != 0)
        units++;
    *unit_ms_out = units->ms;
    return units->name != NULL;
}

bool amount_read_duration(const char *text, uint64_t *ms_out)
{
    static const struct amount_unit units[] = {
        {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {NULL, 0}};
    uint64_t number, unit_ms;

    if (!amount_read(text, units, &number, &unit_ms))
        return false;
    *ms_out = number * unit_ms;
    return true;
}
