/*
 * Where a store has referred a user to, at login (RFC 2221): whether the session may go on there.
 * Only to a shard that is configured, for the same user, and not in circles.
 */
#ifndef IMAPMUX_STORE_REFERRAL_H
#define IMAPMUX_STORE_REFERRAL_H

#include "proxy/base/conf.h"
#include "proxy/base/err.h"
#include "proxy/imap/url.h"
#include "routing/correction.h"
#include "routing/route.h"

enum { REFERRAL_HOPS_MAX = 3 };

/* What the stores have said in one login. */
struct referral {
    size_t been[REFERRAL_HOPS_MAX]; /* ids of the shards that sent her away, in this order */
    size_t hops;
    char from[SHARD_NAME_MAX + 1]; /* the first of them */
    char to[SHARD_NAME_MAX + 1];   /* where she was sent last; "": nowhere yet */
    uint64_t epoch;                /* of the route that has led to the first one */
    bool in_redis;                 /* where it stands, and may be corrected */
};

/* A login begins with this route. */
void referral_start(struct referral *referral, const struct route *route);

/*
 * Shard `at` has refused `user`, as it knows her, with this URL: at which shard of `conf` to go on.
 * NULL with *err set (REFERRAL) if referrals are not followed, or not this one.
 */
const struct conf_shard *referral_follow(struct referral *referral, const struct conf *conf,
                                         const struct conf_shard *at, const char *user,
                                         const struct url *url, struct err *err);

/* The login is done: if she was sent elsewhere, her route shall lead there at once next time. */
void referral_keep(const struct referral *referral, struct corrector *corrector, const char *user);

#endif
