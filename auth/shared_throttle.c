/*
 * Owns what is asked of Redis and told to it about failed logins. All arithmetic is in two scripts,
 * on Redis' own clock, so that proxies need not agree on the time.
 */
#include "auth/shared_throttle.h"

#include "proxy/base/keyed_hash.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/networks.h"
#include "proxy/net/redis_link.h"

#include <assert.h>
#include <inttypes.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

enum {
    SILENCE_MS = 2000, /* after a late answer nobody asks */
    NUMBER_MAX = 24,
    SUBJECT_MAX = 264
};

TAILQ_HEAD(request_list, shared_throttle_request);

struct shared_throttle {
    const struct env *env;
    struct networks trusted;
    struct redis_script ask, report;
    unsigned char offered_key[KEYED_HASH_SIZE]; /* for a Redis that has none yet */
    unsigned char key[KEYED_HASH_SIZE];         /* that it has; of `hash` */
    struct keyed_hash *hash;                    /* NULL before the first answer */
    struct request_list asking;                 /* in the order of their deadlines */
    uv_timer_t deadline;                        /* of the first of them */
    uint64_t silent_until_ms;
};

/*
 * What both scripts begin with; ARGV[1] is `forget`. The level, less what time has forgiven; from
 * when on it forgives more; the tags of the latest guesses.
 */
#define READ                                                                                       \
    "local forget = tonumber(ARGV[1])\n"                                                           \
    "local time = redis.call('TIME')\n"                                                            \
    "local now = time[1] * 1000 + math.floor(time[2] / 1000)\n"                                    \
    "local function read(key)\n"                                                                   \
    "  local fields = redis.call('HMGET', key, 'level', 'failed_ms', 'guesses')\n"                 \
    "  local level, failed = tonumber(fields[1]) or 0, tonumber(fields[2]) or now\n"               \
    "  local steps = math.max(0, math.floor((now - failed) / forget))\n"                           \
    "  return math.max(0, level - steps), failed + steps * forget, fields[3] or ''\n"              \
    "end\n"

/*
 * KEYS: address, user, the shared key. ARGV: forget, free_failures, delay, max_delay,
 * max_user_delay, a key in case there is none.
 */
static const char ask_text[] =
    READ "local function delay_of(key, max)\n"
         "  local level = read(key)\n"
         "  if level <= tonumber(ARGV[2]) then return 0 end\n"
         "  return math.min(ARGV[3] * 2 ^ (level - ARGV[2] - 1), max)\n"
         "end\n"
         "redis.call('SET', KEYS[3], ARGV[6], 'NX')\n"
         "local delay = math.max(delay_of(KEYS[1], ARGV[4]), delay_of(KEYS[2], ARGV[5]))\n"
         "return {delay, redis.call('GET', KEYS[3])}\n";

/*
 * KEYS: address, user. ARGV: forget, the tag of a wrong password; or "" after the right one. What
 * is kept lasts an hour longer than its level: a telephone that has an old password comes again.
 */
static const char report_text[] =
    READ "local function fail(key)\n"
         "  local level, failed, guesses = read(key)\n"
         "  local kept, is_known = {}, false\n"
         "  for guess in string.gmatch(guesses, '%d+') do\n"
         "    table.insert(kept, guess)\n"
         "    is_known = is_known or guess == ARGV[2]\n"
         "  end\n"
         "  if not is_known then\n"
         "    table.insert(kept, ARGV[2])\n"
         "    if #kept > 8 then table.remove(kept, 1) end\n"
         "    if level == 0 then failed = now end\n"
         "    level = math.min(level + 1, 32)\n"
         "    redis.call('HSET', key, 'level', level, 'failed_ms', failed, 'guesses', "
         "table.concat(kept, ' '))\n"
         "  end\n"
         "  redis.call('PEXPIRE', key, level * forget + 3600000)\n"
         "end\n"
         "if ARGV[2] ~= '' then\n"
         "  fail(KEYS[1])\n"
         "  fail(KEYS[2])\n"
         "elseif redis.call('EXISTS', KEYS[2]) == 1 then\n"
         "  redis.call('HSET', KEYS[2], 'level', 0)\n"
         "end\n";

static void on_deadline(uv_timer_t *timer);
static void answer(struct turn_task *task);

static const struct conf_throttle *settings(const struct shared_throttle *throttle)
{
    return &throttle->env->conf->throttle;
}

static uint64_t now_ms(const struct shared_throttle *throttle)
{
    return uv_now(throttle->env->loop);
}

/* --- life --- */

static void timer_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

static bool open_scripts(struct shared_throttle *throttle, struct err *err)
{
    if (RAND_bytes(throttle->offered_key, sizeof throttle->offered_key) != 1)
        return err_set(err, ERR_INTERNAL, "throttle: no random octets");
    return redis_script_init(&throttle->ask, ask_text, err) &&
           redis_script_init(&throttle->report, report_text, err);
}

struct shared_throttle *shared_throttle_open(const struct env *env, struct err *err)
{
    struct shared_throttle *throttle = mem_new(sizeof *throttle);

    if (throttle == NULL) {
        err_set(err, ERR_INTERNAL, "throttle: no memory");
        return NULL;
    }
    throttle->env = env;
    TAILQ_INIT(&throttle->asking);
    uv_timer_init(env->loop, &throttle->deadline);
    throttle->deadline.data = throttle;
    if (!open_scripts(throttle, err) ||
        !networks_init(&throttle->trusted, &settings(throttle)->trusted, "throttle.trusted", err))
        shared_throttle_close(&throttle);
    return throttle;
}

void shared_throttle_close(struct shared_throttle **throttle)
{
    struct shared_throttle *t = *throttle;

    *throttle = NULL;
    if (t == NULL)
        return;
    assert(TAILQ_EMPTY(&t->asking));
    networks_release(&t->trusted);
    keyed_hash_close(&t->hash);
    secret_wipe(t->key, sizeof t->key);
    secret_wipe(t->offered_key, sizeof t->offered_key);
    uv_close((uv_handle_t *)&t->deadline, timer_closed);
}

/* --- keys --- */

struct keys {
    char address[REDIS_KEY_MAX], user[REDIS_KEY_MAX], shared[REDIS_KEY_MAX];
};

static bool make_keys(const struct shared_throttle *throttle, const union address *address,
                      const char *user, struct keys *keys_out)
{
    const struct conf_redis *redis = &throttle->env->conf->redis;
    char origin[ADDRESS_TEXT_MAX], subject[SUBJECT_MAX];

    address_origin_text(address, origin);
    snprintf(subject, sizeof subject, "address %s", origin);
    if (!redis_key(keys_out->address, redis, "throttle", subject) ||
        !redis_key(keys_out->shared, redis, "throttle-key", NULL))
        return false;
    snprintf(subject, sizeof subject, "user %s", user);
    return redis_key(keys_out->user, redis, "throttle", subject);
}

/* The key that Redis has: another one after it has lost its data. */
static void learn_key(struct shared_throttle *throttle, const redisReply *key)
{
    struct keyed_hash *hash;

    if (key->type != REDIS_REPLY_STRING || key->len != KEYED_HASH_SIZE ||
        (throttle->hash != NULL && memcmp(key->str, throttle->key, KEYED_HASH_SIZE) == 0))
        return;
    memcpy(throttle->key, key->str, KEYED_HASH_SIZE);
    hash = keyed_hash_open_with(throttle->key);
    keyed_hash_close(&throttle->hash);
    throttle->hash = hash;
}

/* --- to ask --- */

static void post_answer(struct shared_throttle_request *request, uint64_t delay_ms)
{
    request->delay_ms = delay_ms;
    request->task.run = answer;
    turn_post(request->throttle->env->turn, &request->task);
}

static void post_unknown(struct shared_throttle_request *request)
{
    counter_add(&request->throttle->env->counters->throttle_unknown, 1);
    post_answer(request, 0);
}

static void stop_asking(struct shared_throttle_request *request)
{
    if (request->command != NULL)
        redis_command_cancel(request->command);
    request->command = NULL;
    TAILQ_REMOVE(&request->throttle->asking, request, link);
}

/* From hiredis: only noted. */
static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct shared_throttle_request *request = owner;
    struct shared_throttle *throttle = request->throttle;
    const struct conf_throttle *conf = settings(throttle);
    uint64_t max = conf->max_delay > conf->max_user_delay ? conf->max_delay : conf->max_user_delay;

    (void)err; /* the link has logged it */
    request->command = NULL;
    stop_asking(request);
    if (reply != NULL && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
        reply->element[0]->type == REDIS_REPLY_INTEGER && reply->element[0]->integer >= 0) {
        uint64_t delay = (uint64_t)reply->element[0]->integer;

        learn_key(throttle, reply->element[1]);
        post_answer(request, delay < max ? delay : max);
        return;
    }
    if (reply != NULL && reply->type == REDIS_REPLY_ERROR)
        log_event_limited(LOG_LEVEL_ERROR, "throttle refused", "%.*s", (int)reply->len, reply->str);
    post_unknown(request);
}

static struct redis_command *send_ask(struct shared_throttle *throttle,
                                      struct shared_throttle_request *request)
{
    const struct conf_throttle *conf = settings(throttle);
    const uint64_t values[] = {conf->forget, (uint64_t)conf->free_failures, conf->delay,
                               conf->max_delay, conf->max_user_delay};
    enum { VALUE_COUNT = sizeof values / sizeof values[0] };
    char numbers[VALUE_COUNT][NUMBER_MAX];
    struct span arguments[3 + VALUE_COUNT + 1];
    struct keys keys;
    struct err err;

    if (!make_keys(throttle, request->address, request->user, &keys))
        return NULL;
    arguments[0] = span_of(keys.address);
    arguments[1] = span_of(keys.user);
    arguments[2] = span_of(keys.shared);
    for (size_t i = 0; i < VALUE_COUNT; i++) {
        snprintf(numbers[i], NUMBER_MAX, "%" PRIu64, values[i]);
        arguments[3 + i] = span_of(numbers[i]);
    }
    arguments[3 + VALUE_COUNT] =
        (struct span){(const char *)throttle->offered_key, sizeof throttle->offered_key};
    return redis_link_call(throttle->env->redis, &throttle->ask, arguments, 3 + VALUE_COUNT + 1, 3,
                           on_reply, request, &err);
}

void shared_throttle_ask(struct shared_throttle *throttle, struct shared_throttle_request *request)
{
    assert(request->throttle == NULL);
    request->throttle = throttle;
    request->task = (struct turn_task){0};
    request->command = NULL;
    if (networks_contain(&throttle->trusted, request->address)) {
        post_answer(request, 0);
        return;
    }
    if (now_ms(throttle) >= throttle->silent_until_ms)
        request->command = send_ask(throttle, request);
    if (request->command == NULL) {
        post_unknown(request);
        return;
    }
    request->asked_ms = now_ms(throttle);
    if (TAILQ_EMPTY(&throttle->asking))
        uv_timer_start(&throttle->deadline, on_deadline, SHARED_THROTTLE_ANSWER_MAX_MS, 0);
    TAILQ_INSERT_TAIL(&throttle->asking, request, link);
}

static void on_deadline(uv_timer_t *timer)
{
    struct shared_throttle *throttle = timer->data;
    struct shared_throttle_request *first = TAILQ_FIRST(&throttle->asking);

    if (first == NULL)
        return;
    uint64_t age = now_ms(throttle) - first->asked_ms;
    if (age < SHARED_THROTTLE_ANSWER_MAX_MS) {
        uv_timer_start(timer, on_deadline, SHARED_THROTTLE_ANSWER_MAX_MS - age, 0);
        return;
    }
    throttle->silent_until_ms = now_ms(throttle) + SILENCE_MS;
    while ((first = TAILQ_FIRST(&throttle->asking)) != NULL) { /* they need not wait, either */
        stop_asking(first);
        post_unknown(first);
    }
}

static void answer(struct turn_task *task)
{
    struct shared_throttle_request *request =
        (struct shared_throttle_request *)((char *)task -
                                           offsetof(struct shared_throttle_request, task));

    request->throttle = NULL;
    request->on_answer(request, request->delay_ms);
}

void shared_throttle_cancel(struct shared_throttle_request *request)
{
    struct shared_throttle *throttle = request->throttle;

    if (throttle == NULL)
        return;
    if (request->task.link == NULL) /* no answer is on its way */
        stop_asking(request);
    turn_cancel(throttle->env->turn, &request->task);
    request->throttle = NULL;
}

/* --- to report --- */

/* The tag in decimal; false while there is no key for it. */
static bool make_tag(struct shared_throttle *throttle, const char *user,
                     const struct secret *password, char tag_out[NUMBER_MAX])
{
    const struct span parts[] = {{user, strlen(user) + 1}, secret_span(password)};
    unsigned char full[KEYED_HASH_SIZE];

    if (throttle->hash == NULL || !keyed_hash_of(throttle->hash, parts, 2, full))
        return false;
    snprintf(tag_out, NUMBER_MAX, "%u", (unsigned)full[0] << 8 | full[1]);
    secret_wipe(full, sizeof full);
    return true;
}

void shared_throttle_report(struct shared_throttle *throttle, const union address *address,
                            const char *user, const struct secret *password,
                            enum throttle_outcome outcome)
{
    char forget[NUMBER_MAX], tag[NUMBER_MAX] = "";
    struct keys keys;
    struct err err;

    if (outcome == THROTTLE_UNKNOWN || networks_contain(&throttle->trusted, address) ||
        (outcome == THROTTLE_REFUSED && !make_tag(throttle, user, password, tag)) ||
        !make_keys(throttle, address, user, &keys))
        return;
    snprintf(forget, sizeof forget, "%" PRIu64, settings(throttle)->forget);
    const struct span arguments[] = {span_of(keys.address), span_of(keys.user), span_of(forget),
                                     span_of(tag)};
    redis_link_call(throttle->env->redis, &throttle->report, arguments, 4, 2, NULL, NULL, &err);
}
