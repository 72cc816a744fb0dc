/* Owns the judgement of what stores refer to. */
#include "proxy/store/referral.h"

#include "routing/shards.h"

#include <stdio.h>
#include <string.h>

void referral_start(struct referral *referral, const struct route *route)
{
    *referral = (struct referral){.epoch = route->epoch,
                                  .in_redis = strcmp(route->source, "redis") == 0 && !route->stale};
}

static bool was_there(const struct referral *referral, const struct conf_shard *shard)
{
    for (size_t i = 0; i < referral->hops; i++)
        if (referral->been[i] == shard->id)
            return true;
    return false;
}

static const struct conf_shard *find(const struct conf *conf, const struct conf_shard *at,
                                     const struct url *url, struct err *err)
{
    size_t count;
    const struct conf_shard *shard = shards_with_host(conf, url->host, url->port, &count);

    if (shard == NULL)
        err_set(err, ERR_REFERRAL, "shard %s refers to %s, port %u: %s", at->title, url->host,
                (unsigned)url->port, count == 0 ? "that is no shard" : "several shards are there");
    return shard;
}

/*
 * The name is only compared: at the next store she logs in under the same one. Stores that do not
 * distinguish case tell it as they have it.
 */
static const struct conf_shard *judge(const struct referral *referral, const struct conf *conf,
                                      const struct conf_shard *at, const char *user,
                                      const struct url *url, struct err *err)
{
    size_t max = (size_t)conf->route.follow_referrals;
    const struct conf_shard *shard = NULL;

    if (max == 0)
        err_set(err, ERR_REFERRAL, "shard %s refers to %s, but route.follow_referrals is 0",
                at->title, url->host);
    else if (strcasecmp(url->user, user) != 0)
        err_set(err, ERR_REFERRAL, "shard %s refers to %s, but for another user: \"%s\"", at->title,
                url->host, url->user);
    else
        shard = find(conf, at, url, err);
    if (shard == NULL)
        return NULL;
    if (shard->id == at->id || was_there(referral, shard)) {
        err_set(err, ERR_REFERRAL, "shard %s refers back to shard %s", at->title, shard->title);
        return NULL;
    }
    if (referral->hops < max)
        return shard;
    err_set(err, ERR_REFERRAL,
            "shard %s refers to shard %s: more than route.follow_referrals in a row", at->title,
            shard->title);
    return NULL;
}

const struct conf_shard *referral_follow(struct referral *referral, const struct conf *conf,
                                         const struct conf_shard *at, const char *user,
                                         const struct url *url, struct err *err)
{
    const struct conf_shard *shard = judge(referral, conf, at, user, url, err);

    if (shard == NULL)
        return NULL;
    if (referral->hops == 0)
        snprintf(referral->from, sizeof referral->from, "%s", at->title);
    referral->been[referral->hops++] = at->id;
    snprintf(referral->to, sizeof referral->to, "%s", shard->title);
    return shard;
}

void referral_keep(const struct referral *referral, struct corrector *corrector, const char *user)
{
    if (referral->to[0] != '\0' && referral->in_redis && corrector != NULL)
        corrector_change(corrector, user, referral->from, referral->epoch, referral->to);
}
