/*
 * A router on a loop of its own, with up to eight shards, s0 to s7, and the real Redis of
 * redis_server.h if that is among its sources. One user is asked for at a time.
 */
#ifndef IMAPMUX_TESTS_ROUTE_BENCH_H
#define IMAPMUX_TESTS_ROUTE_BENCH_H

#include "proxy/net/redis_link.h"
#include "routing/route.h"
#include "tests/unit/redis_server.h"

#include <string.h>

enum { SHARDS_MAX = 8 };

struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    struct conf conf;
    struct conf_shard shards[SHARDS_MAX];
    char titles[SHARDS_MAX][4];
    char *title_list[SHARDS_MAX];
    struct conf_ring rings[2];
    char *sources[4];
    char address[64];
    uint32_t weights[SHARDS_MAX]; /* what the view says */
    struct freshness freshness;
    struct env env;
    struct router *router;
};

struct asked {
    struct route_request request;
    unsigned answers;
    bool has_route;
    struct route route;
    struct err err;
};

static inline uint64_t now_ms(void)
{
    return uv_hrtime() / 1000000;
}

static inline uint32_t bench_weight(void *owner, size_t shard_index)
{
    return ((struct bench *)owner)->weights[shard_index];
}

/* All of equal weight, one ring of all of them. Then it may be changed, until bench_open. */
static inline void bench_init(struct bench *b, size_t shard_count, const char *first,
                              const char *second, const char *third)
{
    const char *const sources[] = {first, second, third};

    memset(b, 0, sizeof *b);
    assert_int_equal(uv_loop_init(&b->loop), 0);
    turn_init(&b->turn, &b->loop);
    for (size_t i = 0; i < SHARDS_MAX; i++) {
        snprintf(b->titles[i], sizeof b->titles[i], "s%zu", i);
        b->shards[i].title = b->title_list[i] = b->titles[i];
        b->shards[i].id = i;
        b->shards[i].weight = b->weights[i] = 100;
    }
    b->rings[0].title = b->rings[1].title = (char *)"new";
    b->conf.shards = b->shards;
    b->conf.shard_count = shard_count;
    b->conf.shard_titles = (struct conf_words){b->title_list, shard_count};
    b->conf.rings = b->rings;
    b->conf.ring_count = 1;
    b->conf.route.timeout = 10000;
    b->conf.route.max_known = 1000;
    b->conf.route.cache_ttl = 60000;
    b->conf.route.default_shard = (char *)"s0";
    b->conf.route.sources.items = b->sources;
    for (size_t i = 0; i < 3 && sources[i] != NULL; i++)
        b->sources[b->conf.route.sources.count++] = (char *)sources[i];
    snprintf(b->address, sizeof b->address, "127.0.0.1:%d", server.port);
    b->conf.redis.address = b->address;
    b->conf.redis.user = (char *)"";
    b->conf.redis.prefix = (char *)"t:";
    b->conf.redis.connect_timeout = 5000;
    b->conf.redis.timeout = 5000;
    b->conf.redis.retry_max = 400;
    atomic_store(&b->freshness.fence_ms, UINT64_MAX); /* Redis knows of us */
    b->env = (struct env){
        .loop = &b->loop, .turn = &b->turn, .conf = &b->conf, .counters = &b->counters};
}

static inline void bench_open(struct bench *b)
{
    const struct router_view view = {
        .freshness = &b->freshness, .ring_weight = bench_weight, .owner = b, .worker_count = 1};
    struct err err = {0};

    for (size_t i = 0; i < b->conf.route.sources.count; i++)
        if (strcmp(b->sources[i], "redis") == 0)
            b->env.redis = redis_link_open(&b->env, &err);
    b->router = router_open(&b->env, &view, &err);
    if (b->router == NULL)
        fail_msg("%s", err.text);
}

static inline void bench_release(struct bench *b)
{
    router_close(&b->router);
    redis_link_close(&b->env.redis);
    turn_release(&b->turn);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
}

static inline void on_answer(struct route_request *request, const struct route *route,
                             const struct err *err)
{
    struct asked *a = request->owner;

    a->answers++;
    a->err = *err;
    a->has_route = route != NULL;
    if (err->kind == ERR_NONE)
        assert_non_null(route);
    else
        assert_true(route == NULL || route->state != ROUTE_ACTIVE);
    if (route != NULL)
        a->route = *route;
}

static inline void start(struct bench *b, struct asked *a, const char *user)
{
    bool look_only = a->request.look_only;

    memset(a, 0, sizeof *a);
    a->request = (struct route_request){.user = user,
                                        .told_shard = "",
                                        .told_backend_user = "",
                                        .look_only = look_only,
                                        .on_answer = on_answer,
                                        .owner = a};
    router_find(b->router, &a->request);
    assert_int_equal(a->answers, 0);
}

static inline void wait_for(struct bench *b, struct asked *a)
{
    while (a->answers == 0)
        uv_run(&b->loop, UV_RUN_ONCE);
    assert_int_equal(a->answers, 1);
}

static inline enum err_kind ask(struct bench *b, struct asked *a, const char *user)
{
    start(b, a, user);
    wait_for(b, a);
    return a->err.kind;
}

/* Just looks. */
static inline enum err_kind look(struct bench *b, struct asked *a, const char *user)
{
    a->request.look_only = true;
    return ask(b, a, user);
}

/* Asks until Redis is there again. */
static inline void ask_until(struct bench *b, struct asked *a, const char *user,
                             enum err_kind expected)
{
    uint64_t end = now_ms() + 20000;

    while (ask(b, a, user) != expected) {
        assert_true(now_ms() < end);
        uv_run(&b->loop, UV_RUN_ONCE);
    }
}

static inline uint64_t count_of(const _Atomic uint64_t *counter)
{
    return atomic_load(counter);
}

/* What a field of a hash holds; "" when it is not there. Good until the next call. */
static inline const char *field(const char *user, const char *name)
{
    static char value[256];
    redisContext *context = admin_connect();
    redisReply *reply = redisCommand(context, "HGET t:user:{%s} %s", user, name);

    assert_non_null(reply);
    snprintf(value, sizeof value, "%s", reply->type == REDIS_REPLY_STRING ? reply->str : "");
    freeReplyObject(reply);
    redisFree(context);
    return value;
}

#endif
