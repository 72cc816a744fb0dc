/*
 * A Lua script that runs inside Redis, all at once: nothing else happens there meanwhile. Called by
 * redis_link_call. Ours make keys out of their arguments, so Redis Cluster does not take them.
 */
#ifndef IMAPMUX_NET_REDIS_SCRIPT_H
#define IMAPMUX_NET_REDIS_SCRIPT_H

#include "proxy/base/err.h"

enum { REDIS_SHA1_TEXT = 40 };

struct redis_script {
    const char *text; /* a constant */
    char sha1[REDIS_SHA1_TEXT + 1];
};

/* False with *err set when OpenSSL fails. */
bool redis_script_init(struct redis_script *script, const char *text, struct err *err);

#endif
