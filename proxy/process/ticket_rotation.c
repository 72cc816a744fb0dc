/*
 * Owns the ring of ticket keys, and what Redis is asked of it: each call of the script offers a new
 * key, if one seems to be due, and brings all that there are. A shared key is for new tickets after
 * a quarter of tls.ticket_rotation, in which each proxy asks several times.
 *
 * In Redis: the hash <prefix>ticket-keys, when each was made -> the key in base64.
 */
#include "proxy/process/ticket_rotation.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/redis_link.h"
#include "proxy/net/tickets.h"
#include "proxy/process/ticket_ring.h"

#include <inttypes.h>
#include <stdio.h>

enum { LEAD_PART = 4, TICK_PART = 16, TICK_MIN_MS = 100, TICK_MAX_MS = 60000, RETRY_MS = 1000 };
enum { NUMBER_MAX = 24 };
#define AGE_MAX_MS (INT64_MAX / 4) /* a number that a script has made of anything */

/*
 * KEYS: the hash. ARGV: a new key, or ""; how long one is the newest; how long those before it are
 * kept once it is there; when all are forgotten if nobody asks any more. Answers with the age of
 * each and the key. One from the future has a clock's error in it, and would keep new ones away.
 */
static const char script_text[] =
    "local time = redis.call('TIME')\n"
    "local now = time[1] * 1000 + math.floor(time[2] / 1000)\n"
    "local rotation, keep = tonumber(ARGV[2]), tonumber(ARGV[3])\n"
    "local fields = redis.call('HGETALL', KEYS[1])\n"
    "local known, answer = {}, {}\n"
    "for i = 1, #fields, 2 do\n"
    "  local made = tonumber(fields[i])\n"
    "  if made and made <= now + rotation then\n"
    "    table.insert(known, {made, fields[i], fields[i + 1]})\n"
    "  else\n"
    "    redis.call('HDEL', KEYS[1], fields[i])\n"
    "  end\n"
    "end\n"
    "table.sort(known, function(a, b) return a[1] > b[1] end)\n"
    "if ARGV[1] ~= '' and (not known[1] or now - known[1][1] >= rotation) then\n"
    "  local field = string.format('%.0f', now)\n"
    "  redis.call('HSET', KEYS[1], field, ARGV[1])\n"
    "  table.insert(known, 1, {now, field, ARGV[1]})\n"
    "end\n"
    "for i, key in ipairs(known) do\n"
    "  if i > 1 and now - known[i - 1][1] >= keep then\n"
    "    redis.call('HDEL', KEYS[1], key[2])\n"
    "  else\n"
    "    table.insert(answer, now - key[1])\n"
    "    table.insert(answer, key[3])\n"
    "  end\n"
    "end\n"
    "if known[1] then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end\n"
    "return answer\n";

struct ticket_rotation {
    const struct env *env;
    bool shared;
    int64_t rotation_ms, lifetime_ms;
    struct ticket_ring ring;
    char in_use[TICKET_NAME_SIZE]; /* name of the key for new tickets */
    uv_timer_t timer;

    /* Redis. */
    struct redis_script script;
    char key[REDIS_KEY_MAX];
    struct redis_command *command; /* NULL while none is under way */
    struct turn_task task;         /* it has been answered */
    struct ring_key heard[TICKET_KEYS_MAX];
    size_t heard_count;
    bool good, unusable; /* the answer; it is told in the log that it is not */
};

static void on_timer(uv_timer_t *timer);
static void ask(struct ticket_rotation *rotation);
static void on_reply(void *owner, const redisReply *reply, const struct err *err);
static void settle(struct turn_task *task);

static int64_t now_ms(const struct ticket_rotation *rotation)
{
    return (int64_t)uv_now(rotation->env->loop);
}

/* How long a key that is followed by a newer one may still be needed. */
static int64_t keep_ms(const struct ticket_rotation *rotation)
{
    /* Others may give tickets by the old one until the lead of the new one is over. */
    return rotation->lifetime_ms + (rotation->shared ? rotation->rotation_ms : 0);
}

/* NULL before Redis has told of any. */
static const struct ring_key *newest_shared(const struct ticket_rotation *rotation)
{
    for (size_t i = 0; i < rotation->ring.count; i++)
        if (rotation->ring.keys[i].shared)
            return &rotation->ring.keys[i];
    return NULL;
}

static void schedule(struct ticket_rotation *rotation)
{
    int64_t tick = rotation->rotation_ms / TICK_PART;
    bool waits = rotation->shared && newest_shared(rotation) == NULL;
    int64_t most = waits ? RETRY_MS : TICK_MAX_MS;

    tick = tick > most ? most : tick;
    uv_timer_start(&rotation->timer, on_timer, (uint64_t)(tick < TICK_MIN_MS ? TICK_MIN_MS : tick),
                   0);
}

/* Without memory those in force stay, until the next time. */
static void put_in_force(struct ticket_rotation *rotation)
{
    int64_t lead = rotation->shared ? rotation->rotation_ms / LEAD_PART : 0;
    struct ticket_keys keys;

    ticket_ring_expire(&rotation->ring, now_ms(rotation));
    if (!ticket_ring_keys(&rotation->ring, now_ms(rotation), lead, &keys))
        return;
    if (memcmp(rotation->in_use, keys.keys[0].bytes, TICKET_NAME_SIZE) != 0)
        log_event(LOG_LEVEL_INFO, "new ticket key", "%zu are known", keys.count);
    memcpy(rotation->in_use, keys.keys[0].bytes, TICKET_NAME_SIZE);
    tickets_use(&keys);
}

/* --- life --- */

struct ticket_rotation *ticket_rotation_open(const struct env *env, const struct conf_tls *conf,
                                             struct err *err)
{
    struct ticket_rotation *rotation = mem_new(sizeof *rotation);

    if (rotation == NULL)
        err_set(err, ERR_INTERNAL, "no memory for ticket keys");
    if (rotation == NULL || !redis_script_init(&rotation->script, script_text, err) ||
        !ticket_ring_make(&rotation->ring, (int64_t)uv_now(env->loop), 0, err)) {
        mem_free(rotation);
        return NULL;
    }
    rotation->env = env;
    rotation->shared = conf->ticket_keys == TICKET_KEYS_REDIS;
    redis_key(rotation->key, &env->conf->redis, "ticket-keys",
              NULL); /* fits: conf_check has looked */
    rotation->task.run = settle;
    ticket_rotation_set(rotation, conf);
    memcpy(rotation->in_use, rotation->ring.keys[0].key.bytes, TICKET_NAME_SIZE);
    put_in_force(rotation);
    uv_timer_init(env->loop, &rotation->timer);
    rotation->timer.data = rotation;
    uv_timer_start(&rotation->timer, on_timer, 0, 0);
    return rotation;
}

void ticket_rotation_set(struct ticket_rotation *rotation, const struct conf_tls *conf)
{
    rotation->rotation_ms = (int64_t)conf->ticket_rotation;
    rotation->lifetime_ms = (int64_t)conf->session_lifetime;
}

static void forget_heard(struct ticket_rotation *rotation)
{
    for (size_t i = 0; i < rotation->heard_count; i++)
        secret_release(&rotation->heard[i].key);
    rotation->heard_count = 0;
}

static void timer_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

void ticket_rotation_close(struct ticket_rotation **rotation)
{
    struct ticket_rotation *r = *rotation;

    *rotation = NULL;
    if (r == NULL)
        return;
    if (r->command != NULL)
        redis_command_cancel(r->command);
    turn_cancel(r->env->turn, &r->task);
    forget_heard(r);
    ticket_ring_release(&r->ring);
    uv_close((uv_handle_t *)&r->timer, timer_closed);
}

static void on_timer(uv_timer_t *timer)
{
    struct ticket_rotation *rotation = timer->data;
    int64_t now = now_ms(rotation);

    if (rotation->shared)
        ask(rotation);
    else if (rotation->ring.keys[0].made_ms + rotation->rotation_ms <= now)
        (void)ticket_ring_make(&rotation->ring, now, keep_ms(rotation), NULL); /* else next time */
    put_in_force(rotation);
    schedule(rotation);
}

/* --- Redis --- */

/* A new one is offered only when that may be wanted: it goes over the net in clear. */
static bool write_offer(const struct ticket_rotation *rotation, char text_out[TICKET_KEY_TEXT])
{
    const struct ring_key *newest = newest_shared(rotation);
    struct secret offer = {0};

    text_out[0] = '\0';
    if (newest != NULL && newest->until_ms == INT64_MAX &&
        newest->made_ms + rotation->rotation_ms > now_ms(rotation))
        return true;
    if (!ticket_key_make(&offer, NULL))
        return false;
    ticket_key_write(&offer, text_out);
    secret_release(&offer);
    return true;
}

static void ask(struct ticket_rotation *rotation)
{
    const struct env *env = rotation->env;
    char offer[TICKET_KEY_TEXT];
    char age[NUMBER_MAX], keep[NUMBER_MAX], all[NUMBER_MAX];

    if (env->redis == NULL || rotation->command != NULL || rotation->task.link != NULL ||
        !write_offer(rotation, offer))
        return;
    snprintf(age, sizeof age, "%" PRId64, rotation->rotation_ms);
    snprintf(keep, sizeof keep, "%" PRId64, keep_ms(rotation));
    snprintf(all, sizeof all, "%" PRId64, rotation->rotation_ms + keep_ms(rotation));

    const struct span arguments[] = {span_of(rotation->key), span_of(offer), span_of(age),
                                     span_of(keep), span_of(all)};

    rotation->command =
        redis_link_call(env->redis, &rotation->script, arguments,
                        sizeof arguments / sizeof *arguments, 1, on_reply, rotation, NULL);
    secret_wipe(offer, sizeof offer);
}

/* How old it is, and the key. */
static bool hear_one(struct ticket_rotation *rotation, const redisReply *age,
                     const redisReply *text)
{
    struct ring_key *heard = &rotation->heard[rotation->heard_count];

    if (rotation->heard_count == TICKET_KEYS_MAX || age->type != REDIS_REPLY_INTEGER ||
        age->integer < -AGE_MAX_MS || age->integer > AGE_MAX_MS ||
        text->type != REDIS_REPLY_STRING ||
        !ticket_key_read((struct span){text->str, text->len}, &heard->key, NULL))
        return false;
    secret_wipe(text->str, text->len);
    heard->made_ms = now_ms(rotation) - age->integer;
    rotation->heard_count++;
    return true;
}

static bool hear(struct ticket_rotation *rotation, const redisReply *reply)
{
    bool good = reply->type == REDIS_REPLY_ARRAY && reply->elements % 2 == 0;

    for (size_t i = 0; good && i < reply->elements; i += 2)
        good = hear_one(rotation, reply->element[i], reply->element[i + 1]);
    if (!good && !rotation->unusable)
        log_event(LOG_LEVEL_ERROR, "ticket keys unusable", "redis: %s; those known before stay",
                  reply->type == REDIS_REPLY_ERROR ? reply->str : "what it has are no keys");
    rotation->unusable = !good;
    return good;
}

static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct ticket_rotation *rotation = owner;

    (void)err; /* the link has told it */
    rotation->command = NULL;
    rotation->good = reply != NULL && hear(rotation, reply);
    turn_post(rotation->env->turn, &rotation->task);
}

static void settle(struct turn_task *task)
{
    struct ticket_rotation *rotation =
        (struct ticket_rotation *)((char *)task - offsetof(struct ticket_rotation, task));

    if (rotation->good)
        ticket_ring_merge(&rotation->ring, rotation->heard, rotation->heard_count, now_ms(rotation),
                          keep_ms(rotation));
    forget_heard(rotation);
    put_in_force(rotation);
    schedule(rotation);
}
