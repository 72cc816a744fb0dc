/* The source `default`: conf->route.default_shard, for everybody who is asked for. */
#include "routing/route.h"

#include <stdio.h>

static void *default_open(const struct env *env, const struct router_view *view, struct err *err)
{
    (void)view;
    if (conf_find_shard(env->conf, env->conf->route.default_shard) != NULL)
        return (void *)(uintptr_t)env;
    err_set(err, ERR_CONFIG, "route: default_shard \"%s\" is no shard",
            env->conf->route.default_shard);
    return NULL;
}

static void default_find(void *state, struct route_request *request)
{
    const struct env *env = state;
    struct route route = {.state = ROUTE_ACTIVE};

    snprintf(route.shard, sizeof route.shard, "%s", env->conf->route.default_shard);
    route_source_answer(request, ROUTE_FOUND, &route, NULL);
}

/* It always answers at once. */
static void default_cancel(void *state, struct route_request *request)
{
    (void)state;
    (void)request;
}

static void default_close(void *state)
{
    (void)state;
}

const struct route_source route_source_default = {
    .name = "default",
    .open = default_open,
    .find = default_find,
    .cancel = default_cancel,
    .close = default_close,
};
