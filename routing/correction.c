/* Owns the script that corrects a route. */
#include "routing/correction.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/redis_link.h"

#include <inttypes.h>
#include <stdio.h>

struct corrector {
    const struct env *env;
    struct redis_script script;
};

/*
 * KEYS: the user's hash. ARGV: user, the shard and the epoch that were read, the new shard, the
 * channel of events. It answers what is to be logged, for who has asked may be gone by then.
 */
static const char script_text[] =
    "local shard, state, epoch = unpack(redis.call('HMGET', KEYS[1], 'shard', 'state', 'epoch'))\n"
    "if shard ~= ARGV[2] or (epoch or '0') ~= ARGV[3] or (state or 'active') ~= 'active' then\n"
    "  return {ARGV[1], ARGV[4], 'it was changed meanwhile'}\n"
    "end\n"
    "epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)\n"
    "redis.call('HSET', KEYS[1], 'shard', ARGV[4])\n"
    "redis.call('PUBLISH', ARGV[5], cjson.encode({event = 'route', user = ARGV[1], epoch = epoch,\n"
    "  state = 'active'}))\n"
    "return {ARGV[1], ARGV[4]}\n";

struct corrector *corrector_open(const struct env *env, struct err *err)
{
    struct corrector *corrector = mem_new(sizeof *corrector);

    if (corrector == NULL)
        err_set(err, ERR_INTERNAL, "route: no memory");
    if (corrector == NULL || !redis_script_init(&corrector->script, script_text, err)) {
        mem_free(corrector);
        return NULL;
    }
    corrector->env = env;
    return corrector;
}

void corrector_close(struct corrector **corrector)
{
    mem_free(*corrector);
    *corrector = NULL;
}

static struct span text_of(const redisReply *reply, size_t index)
{
    const redisReply *element = index < reply->elements ? reply->element[index] : NULL;

    return element != NULL && element->type == REDIS_REPLY_STRING
               ? (struct span){element->str, element->len}
               : span_of("");
}

static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    bool done = reply != NULL && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2;
    struct log_line line;

    (void)owner;
    log_begin(&line, done ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING,
              done ? "route corrected" : "route not corrected");
    if (reply == NULL) {
        log_err(&line, err);
    } else if (reply->type == REDIS_REPLY_ARRAY) {
        log_span(&line, "user", text_of(reply, 0));
        log_span(&line, "shard", text_of(reply, 1));
        log_span(&line, "why", text_of(reply, 2));
    } else if (reply->type == REDIS_REPLY_ERROR) {
        log_span(&line, "why", (struct span){reply->str, reply->len});
    }
    log_write(&line);
}

void corrector_change(struct corrector *corrector, const char *user, const char *from,
                      uint64_t epoch, const char *to)
{
    const struct env *env = corrector->env;
    char key[REDIS_KEY_MAX], channel[REDIS_KEY_MAX], number[24];
    struct err err = {0};

    snprintf(number, sizeof number, "%" PRIu64, epoch);
    if (!redis_key(key, &env->conf->redis, "user", user) ||
        !redis_key(channel, &env->conf->redis, "events", NULL))
        return; /* neither was it read */

    const struct span arguments[] = {span_of(key),    span_of(user), span_of(from),
                                     span_of(number), span_of(to),   span_of(channel)};

    if (redis_link_call(env->redis, &corrector->script, arguments, 6, 1, on_reply, NULL, &err) ==
        NULL)
        on_reply(NULL, NULL, &err);
}
