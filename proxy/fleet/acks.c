/* Owns the moves that this process has consented to, until they are over, and how Redis is told. */
#include "proxy/fleet/acks.h"

#include "proxy/base/hash.h"
#include "proxy/base/log.h"
#include "proxy/net/redis_link.h"

#include <inttypes.h>
#include <stdio.h>

enum { NUMBER_MAX = 24 };

struct ack {
    UT_hash_handle hh;
    struct acks *acks;
    uint64_t epoch;
    struct redis_command *command; /* it is being told */
    bool told;                     /* and Redis knows, or it matters no more */
    char user[];
};

struct acks {
    const struct env *env;
    const char *id;
    bool (*may_tell)(void *owner, const char *user, uint64_t epoch);
    void *owner;
    struct redis_script script;
    struct ack *by_user;
};

/*
 * KEYS: the user's hash, her acks. ARGV: id, epoch, channel of events, user.
 * Only the move that is under way is consented to; acks that are left behind go after a day.
 */
static const char script_text[] =
    "local route = redis.call('HMGET', KEYS[1], 'state', 'epoch')\n"
    "if route[1] ~= 'moving' or tonumber(route[2]) ~= tonumber(ARGV[2]) then return 0 end\n"
    "redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])\n"
    "redis.call('EXPIRE', KEYS[2], 86400)\n"
    "redis.call('PUBLISH', ARGV[3], cjson.encode({event = 'ack', user = ARGV[4],\n"
    "  epoch = tonumber(ARGV[2]), proxy = ARGV[1]}))\n"
    "return 1\n";

struct acks *acks_open(const struct env *env, const char *id,
                       bool (*may_tell)(void *owner, const char *user, uint64_t epoch), void *owner,
                       struct err *err)
{
    struct acks *acks = mem_new(sizeof *acks);

    if (acks == NULL)
        err_set(err, ERR_INTERNAL, "fleet: no memory");
    if (acks == NULL || !redis_script_init(&acks->script, script_text, err)) {
        mem_free(acks);
        return NULL;
    }
    acks->env = env;
    acks->id = id;
    acks->may_tell = may_tell;
    acks->owner = owner;
    return acks;
}

static void cancel(struct ack *ack)
{
    if (ack->command != NULL)
        redis_command_cancel(ack->command);
    ack->command = NULL;
}

static void remove_ack(struct acks *acks, struct ack *ack)
{
    cancel(ack);
    HASH_DEL(acks->by_user, ack);
    mem_free(ack);
}

void acks_close(struct acks **acks)
{
    struct acks *a = *acks;

    *acks = NULL;
    if (a == NULL)
        return;
    while (a->by_user != NULL)
        remove_ack(a, a->by_user);
    mem_free(a);
}

/* From hiredis: only noted. */
static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct ack *ack = owner;

    (void)err; /* the link has logged it */
    ack->command = NULL;
    ack->told = reply != NULL && reply->type == REDIS_REPLY_INTEGER;
    if (ack->told && reply->integer == 1)
        counter_add(&ack->acks->env->counters->fleet_acks, 1);
    if (reply != NULL && reply->type == REDIS_REPLY_ERROR)
        log_event_limited(LOG_LEVEL_ERROR, "ack refused", "%.*s", (int)reply->len, reply->str);
}

static void tell(struct ack *ack)
{
    const struct acks *acks = ack->acks;
    const struct conf_redis *conf = &acks->env->conf->redis;
    char route[REDIS_KEY_MAX], consents[REDIS_KEY_MAX], channel[REDIS_KEY_MAX], epoch[NUMBER_MAX];
    struct err err;

    if (ack->command != NULL || redis_link_connection(acks->env->redis) == 0 ||
        !redis_key(route, conf, "user", ack->user) ||
        !redis_key(consents, conf, "acks", ack->user) ||
        !redis_key(channel, conf, "events", NULL) ||
        !acks->may_tell(acks->owner, ack->user, ack->epoch))
        return;
    snprintf(epoch, sizeof epoch, "%" PRIu64, ack->epoch);

    const struct span arguments[] = {span_of(route), span_of(consents), span_of(acks->id),
                                     span_of(epoch), span_of(channel),  span_of(ack->user)};

    ack->command = redis_link_call(acks->env->redis, &acks->script, arguments,
                                   sizeof arguments / sizeof *arguments, 2, on_reply, ack, &err);
}

static struct ack *ack_new(struct acks *acks, const char *user)
{
    size_t len = strlen(user);
    struct ack *ack = mem_new(sizeof *ack + len + 1);

    if (ack == NULL)
        return NULL;
    memcpy(ack->user, user, len);
    ack->acks = acks;
    HASH_ADD_STR(acks->by_user, user, ack);
    if (ack->hh.tbl != NULL)
        return ack;
    mem_free(ack);
    return NULL;
}

bool acks_add(struct acks *acks, const char *user, uint64_t epoch)
{
    struct ack *ack;

    HASH_FIND_STR(acks->by_user, user, ack);
    if (ack == NULL)
        ack = ack_new(acks, user);
    if (ack == NULL)
        return false;
    cancel(ack); /* of another one; a Redis that has lost data may count epochs anew */
    ack->epoch = epoch;
    ack->told = false;
    tell(ack);
    return true;
}

void acks_drop(struct acks *acks, const char *user, uint64_t epoch)
{
    struct ack *ack;

    HASH_FIND_STR(acks->by_user, user, ack);
    if (ack != NULL && ack->epoch <= epoch)
        remove_ack(acks, ack);
}

void acks_retry(struct acks *acks)
{
    for (struct ack *ack = acks->by_user; ack != NULL; ack = ack->hh.next)
        if (!ack->told)
            tell(ack);
}

void acks_repeat(struct acks *acks)
{
    for (struct ack *ack = acks->by_user; ack != NULL; ack = ack->hh.next) {
        ack->told = false;
        tell(ack);
    }
}
