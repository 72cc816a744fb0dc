/*
 * A small HTTP server on one loop, for whoever looks after the process: libmicrohttpd has the
 * protocol, this the sockets, the time that a client may take, whom a request may be meant for, and
 * the headers that keep browsers from doing anything but show what they get. It only answers GET
 * and HEAD; what there is to answer is its owner's.
 */
#ifndef IMAPMUX_HTTP_HTTP_H
#define IMAPMUX_HTTP_HTTP_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"

#include <stdio.h>

struct http;

/* What is at a path. */
struct http_page {
    const char *path, *type;
    const char *policy; /* Content-Security-Policy; NULL: nothing is loaded or run */
    /* Writes it, and returns the status. */
    unsigned (*write)(void *owner, FILE *out);
};

/*
 * Listens as section `http` says. `pages`, ended by one without a path, and all else is borrowed
 * until the loop has run out after http_close. NULL with *err set.
 */
struct http *http_open(const struct env *env, const struct http_page *pages, void *owner,
                       struct err *err);

/* Closes all connections. Nulls the pointer; harmless on NULL. */
void http_close(struct http **http);

/*
 * Whether a request with this header Host is meant for us. Else a page of somebody else, whose name
 * leads to our address (DNS rebinding), is about to read in the user's browser what is here. NULL:
 * no browser.
 */
bool http_host_is_ours(const char *host, const struct conf_words *names);

#endif
