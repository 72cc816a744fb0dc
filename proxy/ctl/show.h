/*
 * Shows a result to people: a text as it is, an object as names and values, a list of objects as a
 * table with all their names at its head, another list line by line, null as nothing. What is an
 * object or a table within an object comes below its other lines. A number that is named
 * ..._seconds is shown as a duration, ..._bytes as a size. Control characters are made harmless.
 */
#ifndef IMAPMUX_CTL_SHOW_H
#define IMAPMUX_CTL_SHOW_H

#include "proxy/base/span.h"

#include <jansson.h>
#include <stdio.h>

void show_result(FILE *out, const json_t *result);

/* "PREFIX: TEXT" as one line. */
void show_prefixed(FILE *out, const char *prefix, struct span text);

/* A text alone, which ends with a line's end then. */
void show_text(FILE *out, const char *text);

#endif
