/*
 * The key set of one worker, kept up to date: conf->oauth.keys, a file that is read again when it
 * has changed, or a URL that is asked again each conf->oauth.refresh. A set that cannot be had or
 * read leaves the old one in place; it is tried again, after pauses that grow to a minute.
 *
 * Loads run in the thread pool, one at a time for each source.
 */
#ifndef IMAPMUX_AUTH_JWKS_SOURCE_H
#define IMAPMUX_AUTH_JWKS_SOURCE_H

#include "auth/token/jwks.h"
#include "proxy/base/env.h"

struct jwks_source;

/*
 * A file is read at once: NULL with *err set when it holds no keys. A URL is asked in the
 * background. `on_load` comes at the end of each load, good or not, from the loop. `env` is
 * borrowed until the end of jwks_source_close.
 */
struct jwks_source *jwks_source_open(const struct env *env, void (*on_load)(void *owner),
                                     void *owner, struct err *err);

/* Are there keys in the file that conf->keys names? Reads it, here and now. False with *err set. */
bool jwks_source_check(const struct conf_oauth *conf, struct err *err);

/*
 * The set to use now, borrowed until the loop turns. NULL when there is none yet, and while a file
 * that was seen to have changed is being read.
 */
const struct jwks *jwks_source_keys(struct jwks_source *source);

enum jwks_news {
    JWKS_NO_NEWS,   /* jwks_source_keys knows what the issuer says */
    JWKS_NEWS_SOON, /* on_load will come: look and ask again */
    JWKS_NEWS_FAIL  /* *err says why */
};

/*
 * May there be keys that were published before `asked_ns` (uv_hrtime) and are not in the set? If
 * so, sees to it that they are loaded: a URL is not asked for that more than once in 5 s, or in
 * conf->oauth.refresh if that is less.
 */
enum jwks_news jwks_source_ask(struct jwks_source *source, uint64_t asked_ns, struct err *err);

/*
 * Nulls the pointer; on_load does not come any more. Memory goes in the last callback: the loop
 * must run until a load that is under way has ended.
 */
void jwks_source_close(struct jwks_source **source);

#endif
