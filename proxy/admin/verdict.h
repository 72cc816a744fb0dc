/*
 * What the next login of a user would come to, in one sentence, out of what an inquiry has found; a
 * pure function.
 */
#ifndef IMAPMUX_ADMIN_VERDICT_H
#define IMAPMUX_ADMIN_VERDICT_H

#include "proxy/session/inquiry.h"

enum { VERDICT_MAX = 512 };

struct verdict_view {
    const struct conf *conf;
    const struct inquiry *inquiry;
    const struct conf_shard *serving; /* NULL: no shard is known */
    const struct err *refusal;        /* of that shard; ERR_NONE: it takes logins */
};

void verdict_tell(const struct verdict_view *view, char verdict_out[VERDICT_MAX]);

#endif
