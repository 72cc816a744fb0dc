/*
 * Owns what operators have said about the shards. What a hash holds comes as the answer to a look,
 * or to the script that has just changed it, and is acted upon in the same way.
 *
 * Answers come inside hiredis, where nothing may be done but to take notes: `settle` does the rest.
 */
#include "proxy/process/orders.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/redis_link.h"
#include "proxy/process/ask.h"
#include "proxy/session/users.h"

#include <inttypes.h>
#include <stdio.h>
#include <utlist.h>

enum { LOOK_AGAIN_MS = 1000, DIGITS_MAX = 20, FIELDS = 4 };

/* What a hash says. */
struct order {
    enum store_order state;
    uint32_t weight; /* 0: that of proxy.conf */
    bool lets_go;
    uint64_t let_go_ms;
    uint64_t changed_ms; /* when the state was set last, by Redis' clock, never twice the same */
};

struct shard_orders {
    struct orders *orders;
    struct store *store;
    struct redis_command *look; /* under way */
    bool wanted;                /* it is to be looked at */
    bool refused;               /* and Redis would not: again in a moment */
    bool heard;                 /* `order` is news */
    struct order order;
    uint64_t acted_ms; /* the last `changed_ms` that was acted upon */
};

struct orders {
    struct control *control;
    struct redis_script script;
    struct shard_orders *shards[CONF_SHARD_IDS]; /* by shard id */
    size_t count;
    struct order_request *requests; /* under way */
    struct turn_task task;
    uv_timer_t again; /* a look has failed */
};

/*
 * KEYS: the hash. ARGV: the state, or ""; how long to let go, or ""; the weight, or ""; who says
 * so; the channel of events; the event. Answers as a look does.
 */
static const char script_text[] =
    "if ARGV[1] ~= '' then\n"
    "  local time = redis.call('TIME')\n"
    "  local now = time[1] * 1000 + math.floor(time[2] / 1000)\n"
    "  local last = tonumber(redis.call('HGET', KEYS[1], 'changed_ms') or '') or 0\n"
    "  redis.call('HSET', KEYS[1], 'state', ARGV[1], 'by', ARGV[4],\n"
    "             'changed_ms', string.format('%.0f', math.max(now, last + 1)))\n"
    "  redis.call('HDEL', KEYS[1], 'let_go_ms')\n"
    "  if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'let_go_ms', ARGV[2]) end\n"
    "end\n"
    "if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'weight', ARGV[3], 'by', ARGV[4]) end\n"
    "redis.call('PUBLISH', ARGV[5], ARGV[6])\n"
    "return redis.call('HMGET', KEYS[1], 'state', 'weight', 'let_go_ms', 'changed_ms')\n";

static void on_again(uv_timer_t *timer);
static void settle(struct turn_task *task);

/* --- life --- */

struct orders *orders_open(struct control *control, struct err *err)
{
    struct orders *orders = mem_new(sizeof *orders);

    if (orders == NULL) {
        err_set(err, ERR_INTERNAL, "shards: no memory");
        return NULL;
    }
    orders->control = control;
    orders->task.run = settle;
    uv_timer_init(control->env.loop, &orders->again);
    orders->again.data = orders;
    if (!orders_prepare(orders, control->env.conf))
        err_set(err, ERR_INTERNAL, "shards: no memory");
    else if (redis_script_init(&orders->script, script_text, err)) {
        orders_commit(orders);
        return orders;
    }
    orders_close(&orders);
    return NULL;
}

/* What is made for a configuration that does not come into force serves the next one. */
bool orders_prepare(struct orders *orders, const struct conf *conf)
{
    for (size_t id = orders->count; id < conf->shard_titles.count; id++) {
        if (orders->shards[id] == NULL &&
            (orders->shards[id] = mem_new(sizeof *orders->shards[id])) == NULL)
            return false;
        orders->shards[id]->orders = orders;
    }
    return true;
}

void orders_commit(struct orders *orders)
{
    const struct stores *stores = workers_stores(orders->control->workers);

    for (; orders->count < orders->control->env.conf->shard_titles.count; orders->count++)
        orders->shards[orders->count]->store = stores->by_id[orders->count];
    orders_look(orders, NULL);
}

static void again_closed(uv_handle_t *handle)
{
    struct orders *orders = handle->data;

    for (size_t id = 0; id < CONF_SHARD_IDS; id++)
        mem_free(orders->shards[id]);
    mem_free(orders);
}

static void answer(struct order_request *request)
{
    DL_DELETE(request->orders->requests, request);
    request->on_answer(request, &request->err);
}

void orders_close(struct orders **orders)
{
    struct orders *o = *orders;

    *orders = NULL;
    if (o == NULL)
        return;
    turn_cancel(o->control->env.turn, &o->task);
    for (size_t i = 0; i < o->count; i++)
        if (o->shards[i]->look != NULL)
            redis_command_cancel(o->shards[i]->look);
    while (o->requests != NULL) {
        struct order_request *request = o->requests;

        if (request->command != NULL) {
            redis_command_cancel(request->command);
            err_set(&request->err, ERR_UNAVAILABLE, "the process ends");
        }
        answer(request);
    }
    uv_close((uv_handle_t *)&o->again, again_closed);
}

/* --- what a hash says --- */

static bool is_absent(const redisReply *field)
{
    return field->type == REDIS_REPLY_NIL;
}

/* False when it is there, and no decimal number up to this one. */
static bool read_number(const redisReply *field, uint64_t max, uint64_t *number_out)
{
    *number_out = 0;
    if (is_absent(field))
        return true;
    if (field->type != REDIS_REPLY_STRING || field->len == 0 || field->len >= DIGITS_MAX)
        return false;
    for (size_t i = 0; i < field->len; i++) {
        if (field->str[i] < '0' || field->str[i] > '9')
            return false;
        *number_out = *number_out * 10 + (uint64_t)(field->str[i] - '0');
    }
    return *number_out <= max;
}

static bool read_state(const redisReply *field, enum store_order *state_out)
{
    *state_out = STORE_UP;
    if (is_absent(field))
        return true;
    for (int state = STORE_UP; state <= STORE_DOWN; state++) {
        *state_out = (enum store_order)state;
        if (field->type == REDIS_REPLY_STRING && strcmp(field->str, store_order_names[state]) == 0)
            return true;
    }
    return false;
}

static bool read_order(const redisReply *reply, struct order *order_out)
{
    uint64_t weight;

    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != FIELDS ||
        !read_state(reply->element[0], &order_out->state) ||
        !read_number(reply->element[1], STORE_WEIGHT_MAX, &weight) ||
        !read_number(reply->element[2], UINT64_MAX, &order_out->let_go_ms) ||
        !read_number(reply->element[3], UINT64_MAX, &order_out->changed_ms))
        return false;
    order_out->weight = (uint32_t)weight;
    order_out->lets_go = !is_absent(reply->element[2]);
    return true;
}

/* Notes what it says; what makes no sense changes nothing. */
static void hear(struct shard_orders *shard, const redisReply *reply)
{
    struct order order;

    if (!read_order(reply, &order)) {
        log_event(LOG_LEVEL_ERROR, "shard state unusable", "shard %s: %s", shard->store->title,
                  reply->type == REDIS_REPLY_ERROR ? reply->str : "its hash is malformed");
        return;
    }
    shard->order = order;
    shard->heard = true;
}

/* --- acting upon it --- */

/* A letter to all workers. */
struct letting_go {
    struct ask ask; /* first member */
    const struct store *store;
    uint64_t within_ms;
};

static void let_go_here(struct ask *ask, struct home *home, size_t number)
{
    const struct letting_go *letting = (const struct letting_go *)ask;

    (void)number;
    users_let_go(home, letting->store->id, letting->within_ms);
}

static void all_told(struct ask *ask)
{
    mem_free(ask);
}

static void let_go(struct orders *orders, const struct store *store, uint64_t within_ms)
{
    struct letting_go *letting = mem_new(sizeof *letting);

    if (letting != NULL) {
        *letting =
            (struct letting_go){{.visit = let_go_here, .on_done = all_told}, store, within_ms};
        if (ask_workers(&letting->ask, orders->control->workers, &orders->control->inbox))
            return;
        mem_free(letting);
    }
    log_event(LOG_LEVEL_ERROR, "sessions not let go", "shard %s: no memory", store->title);
}

/* Sessions are let go once for each word of an operator, however often it is read. */
static void act(struct shard_orders *shard)
{
    const struct order *order = &shard->order;
    const struct conf_shard *conf =
        conf_shard_of(shard->orders->control->env.conf, shard->store->id);
    bool is_news = order->changed_ms != shard->acted_ms;

    shard->heard = false;
    shard->acted_ms = order->changed_ms;
    store_set_operator(shard->store, order->state, order->weight);
    if (conf != NULL && is_news && order->state != STORE_UP &&
        (order->lets_go || order->state == STORE_DOWN))
        let_go(shard->orders, shard->store, order->lets_go ? order->let_go_ms : conf->drain_time);
}

static void count_withdrawn(struct orders *orders)
{
    uint64_t count = 0;

    for (size_t i = 0; i < orders->count; i++)
        count += atomic_load(&orders->shards[i]->store->order) != STORE_UP;
    atomic_store(&orders->control->env.counters->stores_withdrawn, count);
}

/* --- looking --- */

static void on_look(void *owner, const redisReply *reply, const struct err *err)
{
    struct shard_orders *shard = owner;

    (void)err; /* the link has logged it */
    shard->look = NULL;
    if (reply != NULL)
        hear(shard, reply);
    else
        shard->wanted = true;
    if (reply != NULL && reply->type == REDIS_REPLY_ERROR) { /* it may pass, as that it is busy */
        shard->refused = true;
        uv_timer_start(&shard->orders->again, on_again, LOOK_AGAIN_MS, 0);
    }
    turn_post(shard->orders->control->env.turn, &shard->orders->task);
}

/* False: not now. */
static bool look(struct shard_orders *shard)
{
    const struct env *env = &shard->orders->control->env;
    char key[REDIS_KEY_MAX];
    const char *words[] = {"HMGET", key, "state", "weight", "let_go_ms", "changed_ms"};

    if (!redis_key(key, &env->conf->redis, "shard", shard->store->title))
        return false;
    shard->look = redis_link_send(env->redis, 6, words, NULL, on_look, shard, NULL);
    return shard->look != NULL;
}

/* All that are wanted; one whose look is under way is looked at once more after it. */
static void look_at_wanted(struct orders *orders)
{
    for (size_t i = 0; i < orders->count; i++) {
        struct shard_orders *shard = orders->shards[i];

        if (shard->wanted && shard->look == NULL)
            shard->wanted = !look(shard);
        if (shard->wanted && shard->look == NULL)
            uv_timer_start(&orders->again, on_again, LOOK_AGAIN_MS, 0);
    }
}

static void on_again(uv_timer_t *timer)
{
    struct orders *orders = timer->data;

    for (size_t i = 0; i < orders->count; i++) {
        orders->shards[i]->wanted = orders->shards[i]->wanted || orders->shards[i]->refused;
        orders->shards[i]->refused = false;
    }
    look_at_wanted(orders);
}

void orders_look(struct orders *orders, const char *shard)
{
    if (orders->control->env.redis == NULL)
        return;
    for (size_t i = 0; i < orders->count; i++)
        if (shard == NULL || strcmp(shard, orders->shards[i]->store->title) == 0)
            orders->shards[i]->wanted = true;
    turn_post(orders->control->env.turn, &orders->task);
}

/* --- orders --- */

static struct shard_orders *of_request(struct order_request *request)
{
    return request->orders->shards[request->store->id];
}

static void on_given(void *owner, const redisReply *reply, const struct err *err)
{
    struct order_request *request = owner;

    request->command = NULL;
    request->answered = true;
    if (reply == NULL)
        request->err = *err;
    else if (reply->type == REDIS_REPLY_ERROR)
        err_set(&request->err, ERR_UNAVAILABLE, "redis: %s", reply->str);
    else
        hear(of_request(request), reply);
    turn_post(request->orders->control->env.turn, &request->orders->task);
}

/* For people who look into Redis: where it was said. */
static void name_host(char out[64])
{
    size_t size = 64;

    if (uv_os_gethostname(out, &size) != 0)
        snprintf(out, 64, "?");
}

static bool give_to_redis(struct order_request *request)
{
    const struct env *env = &request->orders->control->env;
    char key[REDIS_KEY_MAX], channel[REDIS_KEY_MAX], host[64], event[128];

    name_host(host);
    /* A title has no character that JSON would want escaped. */
    snprintf(event, sizeof event, "{\"event\":\"shard\",\"shard\":\"%s\"}", request->store->title);
    if (!redis_key(key, &env->conf->redis, "shard", request->store->title) ||
        !redis_key(channel, &env->conf->redis, "events", NULL))
        return err_set(&request->err, ERR_INTERNAL, "redis: a name is too long");

    const struct span arguments[] = {
        span_of(key),
        span_of(request->sets_state ? store_order_names[request->state] : ""),
        span_of(request->let_go),
        span_of(request->weight),
        span_of(host),
        span_of(channel),
        span_of(event)};

    request->command =
        redis_link_call(env->redis, &request->orders->script, arguments,
                        sizeof arguments / sizeof *arguments, 1, on_given, request, &request->err);
    return request->command != NULL;
}

/* Without Redis, as if the hash had said so. */
static void give_here(struct order_request *request)
{
    struct shard_orders *shard = of_request(request);
    struct order *order = &shard->order;

    if (request->sets_state) {
        order->state = request->state;
        order->lets_go = *request->let_go != '\0';
        order->let_go_ms = strtoull(request->let_go, NULL, 10);
        order->changed_ms++;
    }
    if (*request->weight != '\0')
        order->weight = (uint32_t)strtoul(request->weight, NULL, 10);
    shard->heard = true;
}

void orders_give(struct orders *orders, struct order_request *request)
{
    request->orders = orders;
    request->command = NULL;
    request->err = (struct err){0};
    request->answered = false;
    DL_APPEND(orders->requests, request);
    if (orders->control->env.redis == NULL)
        give_here(request);
    else if (give_to_redis(request))
        return;
    request->answered = true;
    turn_post(orders->control->env.turn, &orders->task);
}

/* --- what was noted --- */

static void settle(struct turn_task *task)
{
    struct orders *orders = (struct orders *)((char *)task - offsetof(struct orders, task));
    struct order_request *next;

    for (size_t i = 0; i < orders->count; i++)
        if (orders->shards[i]->heard)
            act(orders->shards[i]);
    count_withdrawn(orders);
    for (struct order_request *request = orders->requests; request != NULL; request = next) {
        next = request->next;
        if (request->answered)
            answer(request);
    }
    look_at_wanted(orders);
}
