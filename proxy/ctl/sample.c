/* Owns the reading of metrics as Prometheus reads them. */
#include "proxy/ctl/sample.h"

#include "proxy/base/mem.h"

#include <stdlib.h>
#include <string.h>

/* "name{label=\"value\"} 12.5", of so many octets. False without memory. */
static bool take_line(struct sample *sample, const char *line, size_t len)
{
    const char *blank = memrchr(line, ' ', len);
    struct series *series;
    size_t name_len;

    if (len == 0 || *line == '#' || blank == NULL)
        return true;
    name_len = (size_t)(blank - line);
    series = mem_new(sizeof *series + name_len + 1);
    if (series == NULL)
        return false;
    memcpy(series->name, line, name_len);
    series->value = strtod(blank + 1, NULL); /* which ends at the line's end */
    HASH_ADD_STR(sample->series, name, series);
    if (series->hh.tbl != NULL)
        return true;
    mem_free(series);
    return false;
}

bool sample_read(struct sample *sample_out, uint64_t at_ms, const char *metrics, json_t *status)
{
    bool good = true;

    *sample_out = (struct sample){.at_ms = at_ms, .status = status};
    while (*metrics != '\0' && good) {
        size_t len = strcspn(metrics, "\n");

        good = take_line(sample_out, metrics, len);
        metrics += len + (metrics[len] == '\n');
    }
    return good;
}

void sample_release(struct sample *sample)
{
    struct series *series, *next;

    HASH_ITER(hh, sample->series, series, next)
    {
        HASH_DEL(sample->series, series);
        mem_free(series);
    }
    json_decref(sample->status);
    *sample = (struct sample){0};
}

double sample_value(const struct sample *sample, const char *name)
{
    const struct series *series = NULL;

    if (sample->series != NULL)
        HASH_FIND_STR(sample->series, name, series);
    return series == NULL ? 0 : series->value;
}
