/*
 * The source `ldap`: the shard that the user's directory entry has named (ldap.shard_attribute), by
 * its title or by the host name of one of its addresses, as mailHost has it. An entry that names
 * none leaves the user to the next source; one that names a shard that is not configured fails.
 */
#include "routing/route.h"

#include "proxy/base/log.h"
#include "routing/shards.h"

#include <string.h>

/* NULL when no shard has that title, and none, or more than one, that host. */
static const struct conf_shard *find(const struct conf *conf, const char *name)
{
    const struct conf_shard *shard = conf_find_shard(conf, name);

    return shard != NULL ? shard : shards_with_host(conf, name, 0, NULL);
}

static void *attribute_open(const struct env *env, const struct router_view *view, struct err *err)
{
    (void)view;
    (void)err;
    return (void *)(uintptr_t)env;
}

static void attribute_find(void *state, struct route_request *request)
{
    const struct env *env = state;
    struct route route = {.state = ROUTE_ACTIVE};
    struct err err = {0};

    if (request->told_shard[0] == '\0') {
        route_source_answer(request, ROUTE_UNKNOWN_USER, NULL, NULL);
        return;
    }

    const struct conf_shard *shard = find(env->conf, request->told_shard);

    if (shard == NULL) {
        log_event(LOG_LEVEL_ERROR, "route to unknown shard", "the directory's entry of %s says %s",
                  request->user, request->told_shard);
        err_set(&err, ERR_UNAVAILABLE, "ldap: shard %s is not configured", request->told_shard);
        route_source_answer(request, ROUTE_FAILED, NULL, &err);
        return;
    }
    memcpy(route.shard, shard->title, strlen(shard->title) + 1); /* conf_check bounds titles */
    route_source_answer(request, ROUTE_FOUND, &route, NULL);
}

/* It always answers at once. */
static void attribute_cancel(void *state, struct route_request *request)
{
    (void)state;
    (void)request;
}

static void attribute_close(void *state)
{
    (void)state;
}

const struct route_source route_source_attribute = {
    .name = "ldap",
    .open = attribute_open,
    .find = attribute_find,
    .cancel = attribute_cancel,
    .close = attribute_close,
};
