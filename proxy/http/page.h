/*
 * The status page: one document, with its style and script in it, that loads nothing from anywhere.
 * What is on it without JavaScript is written here: the verdict, and tables of all that
 * /status.json has. The script then shows the same with graphs, and keeps it up to date.
 */
#ifndef IMAPMUX_HTTP_PAGE_H
#define IMAPMUX_HTTP_PAGE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

enum { PAGE_POLICY_MAX = 512 };

/*
 * The Content-Security-Policy that lets a browser take this style and this script and nothing else:
 * both are known by their hash. False when OpenSSL has failed.
 */
bool page_policy(char policy_out[PAGE_POLICY_MAX]);

/* `status` is what status_describe tells. */
void page_print(FILE *out, const json_t *status);

#endif
