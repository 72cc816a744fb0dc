/* Owns the question for the token. Its answer is there before that of what is asked behind it. */
#include "routing/server_check.h"

#include "proxy/net/redis_link.h"

#include <stdlib.h>
#include <string.h>

/*
 * KEYS: proxies. ARGV: whose record. It writes, without changing anything: a server that has become
 * a replica refuses that, and is left (redis_link.h).
 */
static const char script_text[] = "redis.call('HDEL', KEYS[1], '')\n"
                                  "return redis.call('HGET', KEYS[1], ARGV[1])\n";

bool server_check_init(struct server_check *check, const struct env *env,
                       const struct freshness *freshness, struct err *err)
{
    *check = (struct server_check){.env = env, .freshness = freshness};
    return redis_script_init(&check->script, script_text, err);
}

static uint64_t wanted(const struct server_check *check)
{
    return atomic_load(&check->freshness->token);
}

static uint64_t wanted_before(const struct server_check *check)
{
    return atomic_load(&check->freshness->token_before);
}

static bool is_ours(const struct server_check *check)
{
    return check->token != 0 &&
           (check->token == wanted(check) || check->token == wanted_before(check));
}

/* The present connection. */
static bool is_answered(const struct server_check *check)
{
    return check->connection != 0 && check->connection == redis_link_connection(check->env->redis);
}

bool server_check_is_good(const struct server_check *check)
{
    return check->freshness == NULL || check->freshness->proxy == NULL ||
           (is_answered(check) && is_ours(check));
}

/* As membership.c has written it. */
static uint64_t token_of(const char *record)
{
    static const char name[] = "\"token\":\"";
    const char *at = strstr(record, name);

    return at == NULL ? 0 : strtoull(at + strlen(name), NULL, 16);
}

/* From hiredis: only noted. */
static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct server_check *check = owner;

    (void)err; /* the link has logged it */
    check->command = NULL;
    check->connection = reply == NULL ? 0 : redis_link_connection(check->env->redis);
    check->token = reply != NULL && reply->type == REDIS_REPLY_STRING ? token_of(reply->str) : 0;
    check->beats = atomic_load(&check->freshness->beats);
}

/*
 * Is the answer that of another server than the one which has confirmed this process? One that has
 * no record at all may be the same, restarted without its data, until another beat has come there.
 */
static bool is_of_another(const struct server_check *check)
{
    return is_answered(check) && check->wanted == wanted(check) &&
           check->wanted_before == check->wanted && wanted_before(check) == check->wanted &&
           (check->token != 0 || atomic_load(&check->freshness->beats) > check->beats);
}

void server_check_before(struct server_check *check)
{
    char proxies[REDIS_KEY_MAX];
    struct err err;

    if (server_check_is_good(check) || check->command != NULL ||
        !redis_key(proxies, &check->env->conf->redis, "proxies", NULL))
        return;
    if (is_of_another(check))
        redis_link_reject(check->env->redis, "it is not the server that confirms this process");
    check->wanted = wanted(check);
    check->wanted_before = wanted_before(check);

    const struct span arguments[] = {span_of(proxies), span_of(check->freshness->proxy)};

    check->command =
        redis_link_call(check->env->redis, &check->script, arguments, 2, 1, on_reply, check, &err);
}

void server_check_cancel(struct server_check *check)
{
    if (check->command != NULL)
        redis_command_cancel(check->command);
    check->command = NULL;
}
