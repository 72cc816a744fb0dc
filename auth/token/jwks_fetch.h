/* Where a key set comes from: its octets, out of a file or from a URL. Blocks: for pool threads. */
#ifndef IMAPMUX_AUTH_JWKS_FETCH_H
#define IMAPMUX_AUTH_JWKS_FETCH_H

#include "proxy/base/buf.h"
#include "proxy/base/conf.h"
#include "proxy/base/file_version.h"

#include <stdatomic.h>

enum { JWKS_FETCH_MAX_MS = 5000 };

/*
 * Appends what conf->keys names to the empty `out`, whose ceiling it must keep. A URL has
 * JWKS_FETCH_MAX_MS, the look-up of its name included; redirects are not followed; *stop, set by
 * another thread, ends it soon. *file_out is the file that was read, or could not be. False with
 * *err set (UNAVAILABLE).
 */
bool jwks_fetch(const struct conf_oauth *conf, const atomic_bool *stop, struct buf *out,
                struct file_version *file_out, struct err *err);

/* Is it a URL? Else it is a path. */
bool jwks_is_url(const char *keys);

#endif
