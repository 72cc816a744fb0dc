/*
 * The source `redis`: a user's route is a hash (user_hash.h), read with one HMGET.
 *
 * The name is one argument of the command and may hold any octet. (A } in it ends Redis Cluster's
 * hash tag early, which changes the slot, not the key.)
 */
#include "proxy/net/redis_link.h"
#include "routing/user_hash.h"

#include <string.h>

static bool send_lookup(const struct env *env, struct route_request *request, struct err *err);
static void on_reply(void *owner, const redisReply *reply, const struct err *err);

/* The link is the worker's; the state is where to find it. */
static void *redis_open(const struct env *env, const struct router_view *view, struct err *err)
{
    (void)view;
    if (env->redis == NULL)
        err_set(err, ERR_INTERNAL, "redis: no connection was opened");
    return env->redis == NULL ? NULL : (void *)env;
}

static void redis_find(void *state, struct route_request *request)
{
    struct err err = {0};

    if (!send_lookup(state, request, &err))
        route_source_answer(request, ROUTE_NO_ANSWER, NULL, &err);
}

static bool send_lookup(const struct env *env, struct route_request *request, struct err *err)
{
    const char *argv[2 + USER_HASH_FIELDS] = {"HMGET"};
    size_t argv_len[2 + USER_HASH_FIELDS] = {strlen("HMGET")};
    char key[REDIS_KEY_MAX];

    if (!redis_key(key, &env->conf->redis, "user", request->user))
        return err_set(err, ERR_UNAVAILABLE, "redis: no room for the key");
    argv[1] = key;
    argv_len[1] = strlen(key);
    for (size_t i = 0; i < USER_HASH_FIELDS; i++) {
        argv[2 + i] = user_hash_fields[i];
        argv_len[2 + i] = strlen(user_hash_fields[i]);
    }
    request->operation =
        redis_link_send(env->redis, 2 + USER_HASH_FIELDS, argv, argv_len, on_reply, request, err);
    return request->operation != NULL;
}

static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct route_request *request = owner;

    request->operation = NULL;
    user_hash_answer(request, reply, err);
}

static void redis_cancel(void *state, struct route_request *request)
{
    (void)state;
    if (request->operation != NULL)
        redis_command_cancel(request->operation);
    request->operation = NULL;
}

static void redis_close(void *state)
{
    (void)state;
}

const struct route_source route_source_redis = {
    .name = "redis",
    .is_remembered = true,
    .open = redis_open,
    .find = redis_find,
    .cancel = redis_cancel,
    .close = redis_close,
};
