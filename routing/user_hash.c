/* Owns the reading of a user's hash. */
#include "routing/user_hash.h"

#include "proxy/base/log.h"
#include "proxy/base/span.h"
#include "routing/words.h"

#include <string.h>

enum field { FIELD_SHARD, FIELD_STATE, FIELD_TARGET, FIELD_BACKEND_USER, FIELD_EPOCH };

const char *const user_hash_fields[USER_HASH_FIELDS] = {"shard", "state", "target", "backend_user",
                                                        "epoch"};

static bool is_busy(const redisReply *reply);
static enum route_verdict judge_without_shard(enum route_state state, struct err *err);
static bool read_fields(const redisReply *reply, struct span fields_out[USER_HASH_FIELDS],
                        struct err *err);
static bool read_text(struct span value, const char *field, char *text_out, size_t max,
                      struct err *err);
static bool read_state(struct span value, enum route_state *state_out, struct err *err);
static bool read_epoch(struct span value, uint64_t *epoch_out, struct err *err);
static void log_bad_reply(const struct route_request *request, const struct err *err);

void user_hash_answer(struct route_request *request, const redisReply *reply, const struct err *err)
{
    struct route route;
    struct err bad = {0};
    enum route_verdict verdict;

    if (reply == NULL) {
        route_source_answer(request, ROUTE_NO_ANSWER, NULL, err);
        return;
    }
    verdict = user_hash_read(reply, &route, &bad);
    if (verdict == ROUTE_FAILED || verdict == ROUTE_NO_ANSWER)
        log_bad_reply(request, &bad);
    route_source_answer(request, verdict, &route, &bad);
}

enum route_verdict user_hash_read(const redisReply *reply, struct route *route_out, struct err *err)
{
    struct span fields[USER_HASH_FIELDS] = {{NULL, 0}};

    *route_out = (struct route){.state = ROUTE_ACTIVE};
    if (is_busy(reply)) {
        err_set(err, ERR_UNAVAILABLE, "redis: %.*s", (int)reply->len, reply->str);
        return ROUTE_NO_ANSWER;
    }
    if (!read_fields(reply, fields, err) ||
        !read_state(fields[FIELD_STATE], &route_out->state, err) ||
        !read_epoch(fields[FIELD_EPOCH], &route_out->epoch, err) ||
        !read_text(fields[FIELD_BACKEND_USER], "backend_user", route_out->backend_user,
                   BACKEND_USER_MAX, err) ||
        !read_text(fields[FIELD_TARGET], "target", route_out->target, SHARD_NAME_MAX, err))
        return ROUTE_FAILED;
    if (fields[FIELD_SHARD].ptr == NULL)
        return judge_without_shard(route_out->state, err);
    if (!read_text(fields[FIELD_SHARD], "shard", route_out->shard, SHARD_NAME_MAX, err))
        return ROUTE_FAILED;
    if (route_out->shard[0] != '\0')
        return ROUTE_FOUND;
    err_set(err, ERR_UNAVAILABLE, "redis: shard is empty");
    return ROUTE_FAILED;
}

/* Does Redis say that it cannot answer, whatever the key? */
static bool is_busy(const redisReply *reply)
{
    return reply->type == REDIS_REPLY_ERROR &&
           strncmp(reply->str, "WRONGTYPE", strlen("WRONGTYPE")) != 0;
}

/* Whoever is disabled, or between two shards, must not fall through to a default. */
static enum route_verdict judge_without_shard(enum route_state state, struct err *err)
{
    if (state == ROUTE_ACTIVE)
        return ROUTE_UNKNOWN_USER;
    if (state == ROUTE_DISABLED)
        return ROUTE_FOUND;
    err_set(err, ERR_UNAVAILABLE, "redis: shard is missing");
    return ROUTE_FAILED;
}

/* An absent field becomes a span whose ptr is NULL. */
static bool read_fields(const redisReply *reply, struct span fields_out[USER_HASH_FIELDS],
                        struct err *err)
{
    if (reply->type == REDIS_REPLY_ERROR)
        return err_set(err, ERR_UNAVAILABLE, "redis: %.*s", (int)reply->len, reply->str);
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != USER_HASH_FIELDS)
        return err_set(err, ERR_UNAVAILABLE, "redis: unexpected reply of type %d", reply->type);
    for (size_t i = 0; i < USER_HASH_FIELDS; i++) {
        const redisReply *element = reply->element[i];

        if (element->type == REDIS_REPLY_NIL)
            fields_out[i] = (struct span){NULL, 0};
        else if (element->type == REDIS_REPLY_STRING)
            fields_out[i] = (struct span){element->str, (size_t)element->len};
        else
            return err_set(err, ERR_UNAVAILABLE, "redis: %s is of type %d", user_hash_fields[i],
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
    return value.ptr == NULL || words_is_number(value, epoch_out) ||
           err_set(err, ERR_UNAVAILABLE, "redis: epoch is no number of 64 bits");
}

static void log_bad_reply(const struct route_request *request, const struct err *err)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_ERROR, "redis reply unusable");
    log_text(&line, "user", request->user);
    log_err(&line, err);
    log_write_limited(&line, err->text);
}
