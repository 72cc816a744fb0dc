/*
 * What a router remembers of Redis: when it asks, what serves while Redis is away, and what events
 * do to that; with the real Redis.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/route_bench.h"

enum { HOUR_MS = 3600000 };

static void set(_Atomic uint64_t *at, uint64_t ms)
{
    atomic_store(at, ms);
}

/* As the control thread has it when all is well. */
static void trust_all(struct bench *b)
{
    set(&b->freshness.complete_since_ms, now_ms());
    set(&b->freshness.events_until_ms, now_ms() + HOUR_MS);
    set(&b->freshness.fence_ms, now_ms() + HOUR_MS);
}

static void open_trusting(struct bench *b, const char *second)
{
    admin("FLUSHALL");
    bench_init(b, 2, "redis", second, NULL);
    trust_all(b);
    bench_open(b);
}

static void check(struct bench *b, struct asked *a, const char *user, const char *shard, bool stale)
{
    assert_int_equal(ask(b, a, user), ERR_NONE);
    assert_string_equal(a->route.shard, shard);
    assert_true(a->route.stale == stale);
}

static void a_young_route_is_not_asked_for(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    open_trusting(&b, NULL);
    admin("HSET t:user:{ann} shard s0 epoch 3 backend_user store");
    check(&b, &a, "ann", "s0", false);
    assert_int_equal(count_of(&b.counters.routes_known), 1);
    admin("HSET t:user:{ann} shard s1"); /* behind everybody's back */
    for (int i = 0; i < 3; i++) {
        check(&b, &a, "ann", "s0", false);
        assert_string_equal(a.route.source, "redis");
        assert_string_equal(a.route.backend_user, "store");
        assert_int_equal(a.route.epoch, 3);
    }
    assert_int_equal(count_of(&b.counters.redis_commands), 1);
    assert_int_equal(count_of(&b.counters.route_cache_hits), 3);
    assert_int_equal(count_of(&b.counters.route_cache_misses), 1);
    bench_release(&b);
    assert_int_equal(count_of(&b.counters.routes_known), 0);
}

/* What must hold for that, each taken away once. */
static void otherwise_it_is(void **state)
{
    (void)state;
    for (int missing = 0; missing < 4; missing++) {
        struct bench b;
        struct asked a = {0};

        open_trusting(&b, NULL);
        admin("HSET t:user:{ann} shard s0");
        check(&b, &a, "ann", "s0", false);
        admin("HSET t:user:{ann} shard s1");
        check(&b, &a, "ann", "s0", false);
        if (missing == 0)
            set(&b.freshness.events_until_ms, now_ms()); /* nothing was heard for too long */
        else if (missing == 1)
            set(&b.freshness.complete_since_ms, now_ms() + 1); /* something may have been missed */
        else if (missing == 2)
            b.conf.route.cache_ttl = 0;
        else
            set(&b.freshness.known_since_ms, now_ms() + 1);
        check(&b, &a, "ann", "s1", false);
        bench_release(&b);
    }
}

static void it_grows_old(void **state)
{
    struct bench b;
    struct asked a = {0};
    uint64_t read_ms;

    (void)state;
    open_trusting(&b, NULL);
    b.conf.route.cache_ttl = 50;
    admin("HSET t:user:{ann} shard s0");
    check(&b, &a, "ann", "s0", false);
    read_ms = now_ms(); /* or before */
    admin("HSET t:user:{ann} shard s1");
    while (now_ms() < read_ms + 50)
        poll(NULL, 0, 5);
    check(&b, &a, "ann", "s1", false);
    bench_release(&b);
}

/* The name that the directory tells is told anew with each login, and is not the route's. */
static void the_entry_s_name_is_not_remembered(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    open_trusting(&b, NULL);
    admin("HSET t:user:{ann} shard s0");
    start(&b, &a, "ann");
    a.request.told_backend_user = "first";
    wait_for(&b, &a);
    assert_string_equal(a.route.backend_user, "first");
    start(&b, &a, "ann");
    a.request.told_backend_user = "second";
    wait_for(&b, &a);
    assert_string_equal(a.route.backend_user, "second");
    assert_int_equal(count_of(&b.counters.route_cache_hits), 1);
    bench_release(&b);
}

/* --- while Redis is away --- */

static void the_last_known_serves_until_the_fence(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    open_trusting(&b, "default");
    admin("HSET t:user:{ann} shard s1 epoch 4");
    check(&b, &a, "ann", "s1", false);
    server_kill();
    set(&b.freshness.events_until_ms, 0);
    set(&b.freshness.complete_since_ms, now_ms() + HOUR_MS); /* means nothing to this */
    for (int i = 0; i < 3; i++) {
        check(&b, &a, "ann", "s1", true);
        assert_int_equal(a.route.epoch, 4);
        assert_string_equal(a.route.source, "redis");
        assert_int_equal(ask(&b, &a, "bob"), ERR_UNAVAILABLE); /* never the default */
    }
    assert_int_equal(count_of(&b.counters.route_cache_stale), 3);
    set(&b.freshness.fence_ms, now_ms());
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    assert_false(a.has_route);
    set(&b.freshness.fence_ms, now_ms() + HOUR_MS);
    check(&b, &a, "ann", "s1", true);
    set(&b.freshness.known_since_ms, now_ms() + 1); /* what was known is void */
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    set(&b.freshness.known_since_ms, 0);
    server_run();
    admin("HSET t:user:{ann} shard s0 epoch 6");
    do
        assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    while (a.route.stale);
    assert_string_equal(a.route.shard, "s0");
    bench_release(&b);
}

/* Redis answers, but moves need not wait for this process: it may be moved the next moment. */
static void nothing_is_served_beyond_the_fence(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    open_trusting(&b, "default");
    admin("HSET t:user:{ann} shard s0 epoch 4");
    check(&b, &a, "ann", "s0", false);
    set(&b.freshness.fence_ms, now_ms());
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    assert_int_equal(ask(&b, &a, "bob"), ERR_UNAVAILABLE); /* nor the default */
    set(&b.freshness.fence_ms, now_ms() + HOUR_MS);
    check(&b, &a, "ann", "s0", false);
    bench_release(&b);
}

/* An old master does not, and says where users were before they were moved. */
static void only_the_server_that_knows_this_process_counts(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    open_trusting(&b, "default");
    b.conf.route.cache_ttl = 0;
    b.freshness.proxy = "p1";
    set(&b.freshness.token, 0xa1);
    admin("HSET t:user:{ann} shard s1");
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    admin("HSET t:proxies p1 {\"token\":\"00000000000000a1\"}");
    ask_until(&b, &a, "ann", ERR_NONE);
    check(&b, &a, "ann", "s1", false);

    uint64_t connects = count_of(&b.counters.redis_connects);
    assert_int_equal(connects, 1);        /* who has no record of it yet is not left */
    set(&b.freshness.token_before, 0xa1); /* another beat is on its way, over another connection */
    set(&b.freshness.token, 0xa2);
    check(&b, &a, "ann", "s1", false);
    assert_int_equal(count_of(&b.counters.redis_connects), connects);
    admin("HSET t:proxies p1 {\"token\":\"00000000000000a2\"}");
    set(&b.freshness.token_before, 0xa2); /* and was answered, by the same server */
    check(&b, &a, "ann", "s1", false);
    assert_int_equal(count_of(&b.counters.redis_connects), connects);
    set(&b.freshness.token, 0xa3);
    set(&b.freshness.token_before, 0xa3); /* the next one by another one */
    admin("HSET t:user:{ann} shard s0");
    check(&b, &a, "ann", "s1", true);
    assert_int_equal(ask(&b, &a, "bob"), ERR_UNAVAILABLE); /* never the default */
    admin("HSET t:proxies p1 {\"token\":\"00000000000000a3\"}");
    do
        assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    while (a.route.stale);
    assert_true(count_of(&b.counters.redis_connects) > connects);
    assert_string_equal(a.route.shard, "s0");
    bench_release(&b);
}

/* A server that hangs keeps no known user waiting for the whole of redis.timeout. */
static void a_hanging_redis_is_not_waited_for(void **state)
{
    struct bench b;
    struct asked a = {0};
    uint64_t began_ms;

    (void)state;
    open_trusting(&b, NULL);
    b.conf.route.cache_ttl = 0;
    b.conf.redis.timeout = b.conf.redis.connect_timeout = b.conf.route.timeout = 100000;
    admin("HSET t:user:{ann} shard s0");
    check(&b, &a, "ann", "s0", false);
    server_freeze();
    began_ms = now_ms();
    check(&b, &a, "ann", "s0", true);
    assert_true(now_ms() - began_ms < 20000);
    b.conf.route.timeout = 1500;
    assert_int_equal(ask(&b, &a, "bob"), ERR_UNAVAILABLE);
    assert_non_null(strstr(a.err.text, "1500 ms"));
    set(&b.freshness.fence_ms, 0);
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    assert_non_null(strstr(a.err.text, "not confirmed"));
    set(&b.freshness.fence_ms, now_ms() + HOUR_MS);
    kill(server.pid, SIGCONT);
    ask_until(&b, &a, "ann", ERR_NONE);
    bench_release(&b);
}

/* Redis answers that it cannot: that is as good as no answer. But nonsense about a user is one. */
static void what_is_an_answer(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    open_trusting(&b, NULL);
    b.conf.route.cache_ttl = 0;
    admin("HSET t:user:{ann} shard s0");
    check(&b, &a, "ann", "s0", false);
    admin("ACL SETUSER default -hmget");
    check(&b, &a, "ann", "s0", true); /* NOPERM */
    admin("ACL SETUSER default +hmget");
    check(&b, &a, "ann", "s0", false);
    admin("HSET t:user:{ann} state odd");
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    admin("DEL t:user:{ann}");
    admin("SET t:user:{ann} odd");
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    server_kill();
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE); /* it was the last word */
    server_run();
    bench_release(&b);
}

/* The last word about a user that is no active route: nothing serves while Redis is away. */
static void what_redis_said_last_counts(void **state)
{
    static const char *const changes[] = {
        "DEL t:user:{ann}",
        "HSET t:user:{ann} state moving target s1 epoch 2",
        "HSET t:user:{ann} state committed target s1 epoch 2",
        "HSET t:user:{ann} state disabled",
        "HSET t:user:{ann} shard elsewhere",
    };

    (void)state;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct bench b;
        struct asked a = {0};

        open_trusting(&b, NULL);
        b.conf.route.cache_ttl = 0;
        admin("HSET t:user:{ann} shard s0 epoch 1");
        check(&b, &a, "ann", "s0", false);
        admin(changes[i]);
        assert_int_not_equal(look(&b, &a, "ann"), ERR_NONE); /* looking changes nothing */
        a.request.look_only = false;
        assert_int_equal(count_of(&b.counters.routes_known), 1);
        assert_int_not_equal(ask(&b, &a, "ann"), ERR_NONE);
        assert_int_equal(count_of(&b.counters.routes_known), 0);
        server_kill();
        assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
        assert_false(a.has_route);
        bench_release(&b);
        server_run();
    }
}

static void looking_is_not_remembered(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    open_trusting(&b, NULL);
    admin("HSET t:user:{ann} shard s0");
    assert_int_equal(look(&b, &a, "ann"), ERR_NONE);
    assert_int_equal(count_of(&b.counters.routes_known), 0);
    assert_int_equal(count_of(&b.counters.route_cache_misses), 0);
    a.request.look_only = false;
    check(&b, &a, "ann", "s0", false);
    assert_int_equal(look(&b, &a, "ann"), ERR_NONE); /* but looks at what is */
    assert_int_equal(count_of(&b.counters.redis_commands), 2);
    assert_int_equal(count_of(&b.counters.route_cache_hits), 0);
    bench_release(&b);
}

static void what_the_ring_wrote_is_remembered(void **state)
{
    struct bench b;
    struct asked a = {0};
    char shard[SHARD_NAME_MAX + 1];

    (void)state;
    open_trusting(&b, "ring");
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    snprintf(shard, sizeof shard, "%s", a.route.shard);
    router_learn(b.router, "ann", 1, ROUTE_ACTIVE); /* its own event comes back */
    check(&b, &a, "ann", shard, false);
    assert_int_equal(count_of(&b.counters.route_cache_hits), 1);
    server_kill();
    set(&b.freshness.events_until_ms, 0);
    check(&b, &a, "ann", shard, true);
    assert_string_equal(a.route.source, "ring");
    assert_int_equal(ask(&b, &a, "bob"), ERR_UNAVAILABLE); /* the ring guesses nothing */
    server_run();
    bench_release(&b);
}

/* --- events --- */

static void an_event_ends_trust(void **state)
{
    static const struct {
        uint64_t epoch;
        enum route_state state;
        bool is_same;
    } events[] = {
        {4, ROUTE_ACTIVE, true},  {5, ROUTE_ACTIVE, false},    {5, ROUTE_MOVING, false},
        {4, ROUTE_MOVING, false}, {5, ROUTE_COMMITTED, false}, {5, ROUTE_DISABLED, false},
        {4, ROUTE_GONE, false},   {3, ROUTE_ACTIVE, false} /* of a Redis that began anew */};

    (void)state;
    for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
        struct bench b;
        struct asked a = {0};

        open_trusting(&b, NULL);
        admin("HSET t:user:{ann} shard s0 epoch 4");
        check(&b, &a, "ann", "s0", false);
        router_learn(b.router, "ann", events[i].epoch, events[i].state);
        router_learn(b.router, "bob", 9, ROUTE_MOVING); /* of another one */
        server_kill();
        if (events[i].is_same)
            check(&b, &a, "ann", "s0", false);
        else
            assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
        server_run();
        bench_release(&b);
    }
}

/* What Redis says after the event counts again. */
static void what_is_read_after_the_event_serves(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    open_trusting(&b, NULL);
    admin("HSET t:user:{ann} shard s0 epoch 4");
    check(&b, &a, "ann", "s0", false);
    admin("HSET t:user:{ann} shard s1 epoch 6");
    router_learn(b.router, "ann", 5, ROUTE_MOVING);
    router_learn(b.router, "ann", 6, ROUTE_ACTIVE);
    check(&b, &a, "ann", "s1", false);
    check(&b, &a, "ann", "s1", false);
    assert_int_equal(count_of(&b.counters.route_cache_hits), 1);
    server_kill();
    set(&b.freshness.events_until_ms, 0);
    check(&b, &a, "ann", "s1", true);
    server_run();
    bench_release(&b);
}

/* The question has been asked, the answer is in the socket, and the event is heard before it. */
static void an_answer_that_was_under_way_is_asked_for_again(void **state)
{
    static const struct {
        const char *change;
        uint64_t epoch;
        enum route_state state;
        enum err_kind answer;
    } cases[] = {
        {"HSET t:user:{ann} state moving target s1 epoch 5", 5, ROUTE_MOVING, ERR_UNAVAILABLE},
        {"HSET t:user:{ann} shard s1 epoch 6", 6, ROUTE_ACTIVE, ERR_NONE},
        {"DEL t:user:{ann}", 4, ROUTE_GONE, ERR_ADMIN},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bench b;
        struct asked a = {0}, warm = {0};
        uint64_t asked;

        open_trusting(&b, NULL);
        admin("HSET t:user:{ann} shard s0 epoch 4");
        assert_int_equal(ask(&b, &warm, "other"), ERR_ADMIN);
        asked = count_of(&b.counters.redis_commands);
        start(&b, &a, "ann");
        while (count_of(&b.counters.redis_commands) == asked)
            uv_run(&b.loop, UV_RUN_NOWAIT);
        uv_run(&b.loop, UV_RUN_NOWAIT); /* now it is on its way; and Redis does answer */
        if (a.answers == 0)
            admin(cases[i].change);
        router_learn(b.router, "ann", cases[i].epoch, cases[i].state);
        if (a.answers == 0) {
            wait_for(&b, &a);
            assert_int_equal(a.err.kind, cases[i].answer);
            if (cases[i].answer == ERR_NONE)
                assert_string_equal(a.route.shard, "s1");
        } else {
            print_message("case %zu: the answer was there already\n", i);
        }
        bench_release(&b);
    }
}

/* A server that was cut off from the others answers with what was. */
static void a_redis_behind_its_events_does_not_count(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    open_trusting(&b, "default");
    admin("HSET t:user:{ann} shard s0 epoch 4");
    router_learn(b.router, "ann", 6, ROUTE_ACTIVE);
    router_learn(b.router, "new", 1, ROUTE_ACTIVE);
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    assert_non_null(strstr(a.err.text, "less than its events"));
    assert_false(a.has_route);
    assert_int_equal(count_of(&b.counters.redis_commands), 3);
    assert_int_equal(ask(&b, &a, "new"), ERR_UNAVAILABLE); /* unknown: no reason to go on */
    admin("HSET t:user:{new} shard s1 epoch 1");
    check(&b, &a, "new", "s1", false);
    /* Events come anew, perhaps from a Redis that was filled anew: then epochs tell nothing. */
    while (now_ms() <= atomic_load(&b.freshness.complete_since_ms))
        poll(NULL, 0, 1);
    set(&b.freshness.complete_since_ms, now_ms() + 1);
    check(&b, &a, "ann", "s0", false);
    bench_release(&b);
}

/* --- bounds --- */

static void ask_for_many(struct bench *b, int from, int to)
{
    struct asked a = {0};
    char user[16];

    for (int i = from; i < to; i++) {
        snprintf(user, sizeof user, "user%d", i);
        assert_int_equal(ask(b, &a, user), ERR_NONE);
    }
}

static bool is_known(struct bench *b, const char *user)
{
    struct asked a = {0};

    return ask(b, &a, user) == ERR_NONE && a.route.stale;
}

static void who_came_longest_ago_makes_room(void **state)
{
    struct bench b;
    struct asked a = {0};
    char user[16];

    (void)state;
    admin("FLUSHALL");
    bench_init(&b, 2, "redis", "ring", NULL);
    b.conf.route.max_known = 99;
    trust_all(&b);
    bench_open(&b);
    ask_for_many(&b, 0, 100);
    ask_for_many(&b, 0, 1); /* comes again */
    ask_for_many(&b, 100, 110);
    assert_int_equal(count_of(&b.counters.routes_known), 100);
    for (int i = 0; i < 1000; i++) { /* what is heard of others takes a quarter */
        snprintf(user, sizeof user, "other%d", i);
        router_learn(b.router, user, 7, ROUTE_MOVING);
    }
    assert_in_range(count_of(&b.counters.routes_known), 70, 80);
    server_kill();
    set(&b.freshness.events_until_ms, 0);
    assert_true(is_known(&b, "user0"));
    assert_true(is_known(&b, "user109"));
    assert_false(is_known(&b, "user1"));
    assert_false(is_known(&b, "user10"));
    server_run();
    ask_until(&b, &a, "user1", ERR_NONE);
    bench_release(&b);
}

/* An event that had to make room is not as if it had never been. */
static void lost_events_cost_a_second_question(void **state)
{
    struct bench b;
    struct asked a = {0};
    char user[16];
    uint64_t asked;

    (void)state;
    admin("FLUSHALL");
    bench_init(&b, 2, "redis", NULL, NULL);
    b.conf.route.max_known = 7;
    trust_all(&b);
    bench_open(&b);
    admin("HSET t:user:{ann} shard s0 epoch 4");
    ask(&b, &a, "nobody");
    asked = count_of(&b.counters.redis_commands);
    start(&b, &a, "ann");
    while (count_of(&b.counters.redis_commands) == asked)
        uv_run(&b.loop, UV_RUN_NOWAIT);
    if (a.answers == 0) {
        admin("HSET t:user:{ann} shard s1 epoch 6");
        router_learn(b.router, "ann", 6, ROUTE_ACTIVE);
        for (int i = 0; i < 20; i++) {
            snprintf(user, sizeof user, "other%d", i);
            router_learn(b.router, user, 7, ROUTE_MOVING);
        }
        wait_for(&b, &a);
        assert_string_equal(a.route.shard, "s1");
    }
    bench_release(&b);
}

/* --- what a snapshot gives and takes --- */

struct gathered {
    size_t count;
    char users[8][16], backend_users[8][16];
    uint64_t epochs[8];
};

static void gather(void *owner, const struct known_route *route)
{
    struct gathered *g = owner;

    assert_in_range(g->count, 0, 7);
    snprintf(g->users[g->count], sizeof g->users[0], "%s", route->user);
    snprintf(g->backend_users[g->count], sizeof g->backend_users[0], "%s", route->backend_user);
    g->epochs[g->count++] = route->epoch;
}

static void all_that_may_serve_is_shown(void **state)
{
    struct bench b;
    struct asked a = {0};
    struct gathered g = {0};

    (void)state;
    open_trusting(&b, NULL);
    admin("HSET t:user:{ann} shard s0 epoch 4 backend_user store");
    admin("HSET t:user:{bob} shard s1");
    admin("HSET t:user:{eve} shard s1 epoch 2");
    ask_until(&b, &a, "ann", ERR_NONE);
    ask_until(&b, &a, "bob", ERR_NONE);
    ask_until(&b, &a, "eve", ERR_NONE);
    router_learn(b.router, "eve", 3, ROUTE_MOVING);
    router_known_each(b.router, gather, &g);
    assert_int_equal(g.count, 2);
    assert_string_equal(g.users[0], "bob"); /* who came last is first */
    assert_string_equal(g.backend_users[0], "");
    assert_string_equal(g.users[1], "ann");
    assert_string_equal(g.backend_users[1], "store");
    assert_int_equal(g.epochs[1], 4);
    set(&b.freshness.known_since_ms, now_ms() + 1);
    g.count = 0;
    router_known_each(b.router, gather, &g);
    assert_int_equal(g.count, 0);
    bench_release(&b);
}

static void what_was_known_before_serves_only_while_redis_is_away(void **state)
{
    const struct known_route ann = {"ann", "s0", "store", 4, 5000}, bob = {"bob", "s1", "", 0, 0},
                             far = {"far", "elsewhere", "", 0, 0}, eve = {"eve", "s1", "", 3, 0},
                             old = {"old", "s1", "", 3, UINT64_MAX};
    struct bench b;
    struct asked a = {0};
    struct gathered g = {0};

    (void)state;
    server_kill();
    bench_init(&b, 2, "redis", NULL, NULL);
    trust_all(&b);
    set(&b.freshness.complete_since_ms, now_ms() + HOUR_MS);
    bench_open(&b);
    router_know(b.router, &ann);
    router_know(b.router, &bob);
    router_know(b.router, &far);
    router_know(b.router, &old);
    router_learn(b.router, "eve", 4, ROUTE_MOVING);
    router_know(b.router, &eve); /* too late */
    check(&b, &a, "ann", "s0", true);
    assert_string_equal(a.route.source, "snapshot");
    assert_string_equal(a.route.backend_user, "store");
    assert_int_equal(a.route.epoch, 4);
    assert_true(a.route.age_ms >= 5000);
    check(&b, &a, "bob", "s1", true);
    check(&b, &a, "old", "s1", true);
    assert_int_equal(ask(&b, &a, "far"), ERR_UNAVAILABLE);
    assert_int_equal(ask(&b, &a, "eve"), ERR_UNAVAILABLE);
    router_known_each(b.router, gather, &g);
    assert_int_equal(g.count, 3);
    server_run();
    admin("HSET t:user:{ann} shard s1 epoch 5");
    do
        assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    while (a.route.stale);
    assert_string_equal(a.route.shard, "s1");
    assert_string_equal(a.route.source, "redis");
    bench_release(&b);
}

static void cancelled_in_any_turn(void **state)
{
    (void)state;
    for (int turns = 0; turns < 8; turns++) {
        struct bench b;
        struct asked a = {0};

        open_trusting(&b, NULL);
        admin("HSET t:user:{ann} shard s0");
        check(&b, &a, "ann", "s0", false);
        if (turns % 2 == 1)
            server_kill();
        start(&b, &a, "ann");
        for (int i = 0; i < turns / 2; i++)
            uv_run(&b.loop, UV_RUN_NOWAIT);
        router_cancel(&a.request);
        memset(&a.request, 0xff, sizeof a.request);
        for (int i = 0; i < 5; i++)
            uv_run(&b.loop, UV_RUN_NOWAIT);
        if (turns % 2 == 1)
            server_run();
        bench_release(&b);
    }
}

static int start_server(void **state)
{
    (void)state;
    server_start(NULL);
    return 0;
}

static int stop_server(void **state)
{
    (void)state;
    server_stop();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_young_route_is_not_asked_for),
        cmocka_unit_test(otherwise_it_is),
        cmocka_unit_test(it_grows_old),
        cmocka_unit_test(the_entry_s_name_is_not_remembered),
        cmocka_unit_test(the_last_known_serves_until_the_fence),
        cmocka_unit_test(nothing_is_served_beyond_the_fence),
        cmocka_unit_test(only_the_server_that_knows_this_process_counts),
        cmocka_unit_test(a_hanging_redis_is_not_waited_for),
        cmocka_unit_test(what_is_an_answer),
        cmocka_unit_test(what_redis_said_last_counts),
        cmocka_unit_test(looking_is_not_remembered),
        cmocka_unit_test(what_the_ring_wrote_is_remembered),
        cmocka_unit_test(an_event_ends_trust),
        cmocka_unit_test(what_is_read_after_the_event_serves),
        cmocka_unit_test(an_answer_that_was_under_way_is_asked_for_again),
        cmocka_unit_test(a_redis_behind_its_events_does_not_count),
        cmocka_unit_test(who_came_longest_ago_makes_room),
        cmocka_unit_test(lost_events_cost_a_second_question),
        cmocka_unit_test(all_that_may_serve_is_shown),
        cmocka_unit_test(what_was_known_before_serves_only_while_redis_is_away),
        cmocka_unit_test(cancelled_in_any_turn),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
