/* Texts from outside as JSON. */
#ifndef IMAPMUX_BASE_JSON_TEXT_H
#define IMAPMUX_BASE_JSON_TEXT_H

#include <jansson.h>

/*
 * A text as JSON, with a "?" in the place of each octet above 127 if it is no UTF-8: names are cut,
 * or were never meant to be. The caller has the reference; NULL without memory.
 */
json_t *json_text(const char *text);

#endif
