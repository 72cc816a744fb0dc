/*
 * The source `redis`: a user's route is the hash
 *     <prefix>user:{<name>}    shard state target backend_user epoch
 * read with one HMGET. Without `shard` the user is unknown; `state` is active (also when absent),
 * moving, committed or disabled; `epoch` is a decimal number, 0 when absent; `target` is the shard
 * that a user goes to who is moving or committed. Whatever does not look like this is a failure,
 * never "unknown": what Redis says is checked for type, length and octets.
 *
 * The name is one argument of the command and may hold any octet. (A } in it ends Redis Cluster's
 * hash tag early, which changes the slot, not the key.)
 */
#include "routing/route.h"

#include "proxy/base/log.h"
#include "proxy/net/redis_link.h"

#include <string.h>

/* The fields in the order of the command and of its reply. */
enum field { FIELD_SHARD, FIELD_STATE, FIELD_TARGET, FIELD_BACKEND_USER, FIELD_EPOCH, FIELD_COUNT };

static const char *const field_names[FIELD_COUNT] = {"shard", "state", "target", "backend_user",
                                                     "epoch"};

static bool send_lookup(const struct env *env, struct route_request *request, struct err *err);
static void on_reply(void *owner, const redisReply *reply, const struct err *err);
static enum route_verdict read_reply(const redisReply *reply, struct route *route_out,
                                     struct err *err);
static bool read_fields(const redisReply *reply, struct span fields_out[FIELD_COUNT],
                        struct err *err);
static bool read_text(struct span value, const char *field, char *text_out, size_t max,
                      struct err *err);
static bool read_state(struct span value, enum route_state *state_out, struct err *err);
static bool read_epoch(struct span value, uint64_t *epoch_out, struct err *err);
static void log_bad_reply(const struct route_request *request, const struct err *err);

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
        route_source_answer(request, ROUTE_FAILED, NULL, &err);
}

static bool send_lookup(const struct env *env, struct route_request *request, struct err *err)
{
    const char *argv[2 + FIELD_COUNT] = {"HMGET"};
    size_t argv_len[2 + FIELD_COUNT] = {strlen("HMGET")};
    char key[REDIS_KEY_MAX];

    if (!redis_key(key, &env->conf->redis, "user", request->user))
        return err_set(err, ERR_UNAVAILABLE, "redis: no room for the key");
    argv[1] = key;
    argv_len[1] = strlen(key);
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        argv[2 + i] = field_names[i];
        argv_len[2 + i] = strlen(field_names[i]);
    }
    request->operation =
        redis_link_send(env->redis, 2 + FIELD_COUNT, argv, argv_len, on_reply, request, err);
    return request->operation != NULL;
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

static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct route_request *request = owner;
    struct route route = {.state = ROUTE_ACTIVE};
    struct err bad = {0};
    enum route_verdict verdict;

    request->operation = NULL;
    if (reply == NULL) {
        route_source_answer(request, ROUTE_FAILED, NULL, err);
        return;
    }
    verdict = read_reply(reply, &route, &bad);
    if (verdict == ROUTE_FAILED)
        log_bad_reply(request, &bad);
    route_source_answer(request, verdict, &route, &bad);
}

static enum route_verdict read_reply(const redisReply *reply, struct route *route_out,
                                     struct err *err)
{
    struct span fields[FIELD_COUNT] = {{NULL, 0}};

    if (!read_fields(reply, fields, err) ||
        !read_state(fields[FIELD_STATE], &route_out->state, err) ||
        !read_epoch(fields[FIELD_EPOCH], &route_out->epoch, err) ||
        !read_text(fields[FIELD_BACKEND_USER], "backend_user", route_out->backend_user,
                   BACKEND_USER_MAX, err) ||
        !read_text(fields[FIELD_TARGET], "target", route_out->target, SHARD_NAME_MAX, err))
        return ROUTE_FAILED;
    /* Whoever is disabled must not fall through to a default. */
    if (fields[FIELD_SHARD].ptr == NULL)
        return route_out->state == ROUTE_DISABLED ? ROUTE_FOUND : ROUTE_UNKNOWN_USER;
    if (!read_text(fields[FIELD_SHARD], "shard", route_out->shard, SHARD_NAME_MAX, err))
        return ROUTE_FAILED;
    if (route_out->shard[0] != '\0')
        return ROUTE_FOUND;
    err_set(err, ERR_UNAVAILABLE, "redis: shard is empty");
    return ROUTE_FAILED;
}

/* An absent field becomes a span whose ptr is NULL. */
static bool read_fields(const redisReply *reply, struct span fields_out[FIELD_COUNT],
                        struct err *err)
{
    if (reply->type == REDIS_REPLY_ERROR)
        return err_set(err, ERR_UNAVAILABLE, "redis: %.*s", (int)reply->len, reply->str);
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != FIELD_COUNT)
        return err_set(err, ERR_UNAVAILABLE, "redis: unexpected reply of type %d", reply->type);
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        const redisReply *element = reply->element[i];

        if (element->type == REDIS_REPLY_NIL)
            fields_out[i] = (struct span){NULL, 0};
        else if (element->type == REDIS_REPLY_STRING)
            fields_out[i] = (struct span){element->str, (size_t)element->len};
        else
            return err_set(err, ERR_UNAVAILABLE, "redis: %s is of type %d", field_names[i],
                           element->type);
    }
    return true;
}

/* Copies a name of at most `max` octets, none of them a control character; "" when absent. */
static bool read_text(struct span value, const char *field, char *text_out, size_t max,
                      struct err *err)
{
    if (value.len > max)
        return err_set(err, ERR_UNAVAILABLE, "redis: %s is longer than %zu octets", field, max);
    for (size_t i = 0; i < value.len; i++) {
        unsigned char ch = (unsigned char)value.ptr[i];

        if (ch < 0x20 || ch == 0x7f)
            return err_set(err, ERR_UNAVAILABLE, "redis: %s holds a control character", field);
        text_out[i] = value.ptr[i];
    }
    text_out[value.len] = '\0';
    return true;
}

static bool read_state(struct span value, enum route_state *state_out, struct err *err)
{
    static const char *const words[] = {[ROUTE_ACTIVE] = "active",
                                        [ROUTE_MOVING] = "moving",
                                        [ROUTE_COMMITTED] = "committed",
                                        [ROUTE_DISABLED] = "disabled"};

    *state_out = ROUTE_ACTIVE;
    if (value.ptr == NULL)
        return true;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (!span_equal(value, span_of(words[i])))
            continue;
        *state_out = (enum route_state)i;
        return true;
    }
    return err_set(err, ERR_UNAVAILABLE,
                   "redis: state is none of active, moving, committed, disabled");
}

static bool read_epoch(struct span value, uint64_t *epoch_out, struct err *err)
{
    *epoch_out = 0;
    if (value.ptr == NULL)
        return true;
    if (value.len == 0)
        return err_set(err, ERR_UNAVAILABLE, "redis: epoch is empty");
    for (size_t i = 0; i < value.len; i++) {
        unsigned digit = (unsigned)(unsigned char)value.ptr[i] - '0';

        if (digit > 9 || *epoch_out > (UINT64_MAX - digit) / 10)
            return err_set(err, ERR_UNAVAILABLE, "redis: epoch is no number of 64 bits");
        *epoch_out = *epoch_out * 10 + digit;
    }
    return true;
}

static void log_bad_reply(const struct route_request *request, const struct err *err)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_ERROR, "redis reply unusable");
    log_text(&line, "user", request->user);
    log_err(&line, err);
    log_write(&line);
}

const struct route_source route_source_redis = {
    .name = "redis",
    .open = redis_open,
    .find = redis_find,
    .cancel = redis_cancel,
    .close = redis_close,
};
