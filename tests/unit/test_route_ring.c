/*
 * The sources `ring` and `default`: how users spread over shards, how few move, and who is first,
 * with the real Redis.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/route_bench.h"

enum { USERS = 100000 };

static uint8_t before[USERS], after[USERS];

/* Where each of many users goes, without Redis: the index of the shard. */
static void place_all(struct bench *b, uint8_t places[USERS])
{
    struct asked a = {0};
    char user[32];

    bench_open(b);
    for (int i = 0; i < USERS; i++) {
        snprintf(user, sizeof user, "user%d@example.org", i);
        assert_int_equal(ask(b, &a, user), ERR_NONE);
        places[i] = (uint8_t)(a.route.shard[1] - '0');
    }
    assert_string_equal(a.route.source, "ring");
    bench_release(b);
}

static void place_equal(size_t shard_count, uint8_t places[USERS])
{
    struct bench b;

    bench_init(&b, shard_count, "ring", NULL, NULL);
    place_all(&b, places);
}

static void a_fifth_shard_takes_a_fifth_and_no_more(void **state)
{
    size_t moved = 0, taken_from[4] = {0};

    (void)state;
    place_equal(4, before);
    place_equal(5, after);
    for (size_t i = 0; i < USERS; i++) {
        if (before[i] == after[i])
            continue;
        assert_int_equal(after[i], 4); /* none between the old ones */
        taken_from[before[i]]++;
        moved++;
    }
    print_message("moved: %zu of %d; from the four: %zu %zu %zu %zu\n", moved, USERS, taken_from[0],
                  taken_from[1], taken_from[2], taken_from[3]);
    assert_in_range(moved, USERS * 18 / 100, USERS * 22 / 100);
    for (size_t i = 0; i < 4; i++) /* alike from all */
        assert_in_range(taken_from[i], moved * 22 / 100, moved * 28 / 100);
}

static void a_shard_that_leaves_moves_only_its_own(void **state)
{
    struct bench b;
    char *rest[] = {(char *)"s0", (char *)"s1", (char *)"s3", (char *)"s4"};

    (void)state;
    place_equal(5, before);
    bench_init(&b, 5, "ring", NULL, NULL);
    b.rings[0].shards = (struct conf_words){rest, 4};
    place_all(&b, after);
    for (size_t i = 0; i < USERS; i++)
        assert_true(before[i] == 2 ? after[i] != 2 : after[i] == before[i]);
}

static void check_weights(const int64_t *weights, size_t count)
{
    struct bench b;
    int64_t sum = 0, counts[SHARDS_MAX] = {0};

    bench_init(&b, count, "ring", NULL, NULL);
    for (size_t i = 0; i < count; i++)
        sum += b.shards[i].weight = weights[i];
    place_all(&b, after);
    for (size_t i = 0; i < USERS; i++)
        counts[after[i]]++;
    for (size_t i = 0; i < count; i++) {
        int64_t expected = USERS * weights[i] / sum;

        print_message("weight %d of %d: %d users, %+.2f %%\n", (int)weights[i], (int)sum,
                      (int)counts[i], 100.0 * (double)(counts[i] - expected) / (double)expected);
        assert_in_range(counts[i], expected * 97 / 100, expected * 103 / 100);
    }
}

static void weights_hold(void **state)
{
    static const int64_t four[] = {1, 2, 3, 4}, three[] = {100, 100, 50}, equal[] = {7, 7, 7, 7, 7},
                         wide[] = {1000, 100};

    (void)state;
    check_weights(four, 4);
    check_weights(three, 3);
    check_weights(equal, 5);
    check_weights(wide, 2);
}

/* What another weight changes: only users that come to the shard that it was raised for. */
static void a_greater_weight_only_attracts(void **state)
{
    struct bench b;

    (void)state;
    place_equal(4, before);
    bench_init(&b, 4, "ring", NULL, NULL);
    b.shards[3].weight = 150;
    place_all(&b, after);
    for (size_t i = 0; i < USERS; i++)
        assert_true(after[i] == before[i] || after[i] == 3);
}

/* Another hash would move the users of those who have no Redis. */
static void choices_are_for_ever(void **state)
{
    static const struct {
        const char *user, *shard;
    } cases[] = {{"ann", "s2"}, {"bob@example.org", "s3"}, {"", "s4"}, {"j\xc3\xbcrgen", "s4"}};
    struct bench b;
    struct asked a = {0};

    (void)state;
    bench_init(&b, 5, "ring", NULL, NULL);
    memset(b.weights, 0, sizeof b.weights); /* nobody notes the choice: only the configuration */
    bench_open(&b);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(ask(&b, &a, cases[i].user), ERR_NONE);
        assert_string_equal(a.route.shard, cases[i].shard);
        assert_string_equal(a.route.backend_user, cases[i].user);
        assert_int_equal(a.route.epoch, 0);
    }
    bench_release(&b);
}

static void rings_are_for_domains(void **state)
{
    char *zero[] = {(char *)"s0"}, *one[] = {(char *)"s1"};
    char *domains[] = {(char *)"example.com", (char *)"Example.org"};
    static const struct {
        const char *user, *shard;
    } cases[] = {{"ann@example.org", "s0"},
                 {"ann@EXAMPLE.com", "s0"},
                 {"ann@other.org", "s1"},
                 {"ann", "s1"},
                 {"a@example.org@x", "s1"},
                 {"example.org", "s1"},
                 {"ann@", "s1"},
                 {"ann@xexample.org", "s1"},
                 {"ann@x@example.org", "s0"}};
    struct bench b;
    struct asked a = {0};

    (void)state;
    bench_init(&b, 2, "ring", NULL, NULL);
    b.rings[0].shards = (struct conf_words){zero, 1};
    b.rings[0].domains = (struct conf_words){domains, 2};
    b.rings[1].shards = (struct conf_words){one, 1};
    b.conf.ring_count = 2;
    bench_open(&b);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(ask(&b, &a, cases[i].user), ERR_NONE);
        assert_string_equal(a.route.shard, cases[i].shard);
    }
    bench_release(&b);
}

/* A user that no ring fits is the next source's. */
static void the_default_comes_last(void **state)
{
    char *domains[] = {(char *)"example.com"};
    struct bench b;
    struct asked a = {0};

    (void)state;
    bench_init(&b, 2, "ring", "default", NULL);
    b.rings[0].domains = (struct conf_words){domains, 1};
    b.conf.route.default_shard = (char *)"s1";
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "ann@example.org"), ERR_NONE);
    assert_string_equal(a.route.shard, "s1");
    assert_string_equal(a.route.source, "default");
    bench_release(&b);
}

/* --- with Redis --- */

static void a_choice_is_written(void **state)
{
    struct bench b;
    struct asked a = {0};
    char shard[SHARD_NAME_MAX + 1];

    (void)state;
    admin("FLUSHALL");
    bench_init(&b, 4, "redis", "ring", NULL);
    bench_open(&b);
    assert_int_equal(look(&b, &a, "ann"), ERR_NONE); /* not by looking */
    assert_string_equal(field("ann", "shard"), "");
    snprintf(shard, sizeof shard, "%s", a.route.shard);
    a.request.look_only = false;
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    assert_string_equal(a.route.shard, shard);
    assert_string_equal(a.route.source, "ring");
    assert_int_equal(a.route.epoch, 1);
    assert_string_equal(field("ann", "shard"), shard);
    assert_string_equal(field("ann", "ring"), "new");
    assert_string_equal(field("ann", "epoch"), "1");
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    assert_string_equal(a.route.source, "redis");
    assert_string_equal(a.route.shard, shard);
    assert_int_equal(a.route.epoch, 1);
    bench_release(&b);
}

/* Other weights, and all who are there stay. */
static void who_has_a_shard_keeps_it(void **state)
{
    struct bench b;
    struct asked a = {0};
    char user[16];

    (void)state;
    admin("FLUSHALL");
    bench_init(&b, 2, "redis", "ring", NULL);
    b.weights[1] = 0;
    bench_open(&b);
    for (int i = 0; i < 50; i++) {
        snprintf(user, sizeof user, "user%d", i);
        assert_int_equal(ask(&b, &a, user), ERR_NONE);
        assert_string_equal(a.route.shard, "s0"); /* the other one takes no new users */
    }
    b.weights[0] = 0;
    b.weights[1] = 100;
    for (int i = 0; i < 100; i++) {
        snprintf(user, sizeof user, "user%d", i);
        assert_int_equal(ask(&b, &a, user), ERR_NONE);
        assert_string_equal(a.route.shard, i < 50 ? "s0" : "s1");
    }
    b.weights[1] = 0;
    assert_int_equal(ask(&b, &a, "another"), ERR_UNAVAILABLE);
    assert_non_null(strstr(a.err.text, "no shard takes new users"));
    assert_string_equal(field("another", "shard"), "");
    assert_int_equal(ask(&b, &a, "user1"), ERR_NONE);
    bench_release(&b);
}

/* Two proxies at once, which differ about the weights: one answer for both. */
static void who_is_first_wins(void **state)
{
    struct bench one, other;
    struct asked a = {0}, c = {0};
    char user[16];

    (void)state;
    admin("FLUSHALL");
    bench_init(&one, 2, "redis", "ring", NULL);
    bench_init(&other, 2, "redis", "ring", NULL);
    one.weights[1] = other.weights[0] = 0;
    bench_open(&one);
    bench_open(&other);
    for (int i = 0; i < 100; i++) {
        snprintf(user, sizeof user, "user%d", i);
        start(&one, &a, user);
        start(&other, &c, user);
        while (a.answers == 0 || c.answers == 0) {
            uv_run(&one.loop, UV_RUN_NOWAIT);
            uv_run(&other.loop, UV_RUN_NOWAIT);
        }
        assert_int_equal(a.err.kind, ERR_NONE);
        assert_int_equal(c.err.kind, ERR_NONE);
        assert_string_equal(a.route.shard, c.route.shard);
        assert_string_equal(field(user, "shard"), a.route.shard);
        assert_string_equal(field(user, "epoch"), "1");
    }
    bench_release(&one);
    bench_release(&other);
}

/* What is in the hash already is not touched, but an epoch goes on from there. */
static void the_hash_is_respected(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    admin("FLUSHALL");
    bench_init(&b, 2, "redis", "ring", "default");
    bench_open(&b);
    admin("HSET t:user:{off} state disabled");
    assert_int_equal(ask(&b, &a, "off"), ERR_ADMIN);
    assert_string_equal(field("off", "shard"), "");
    admin("HSET t:user:{between} state moving");
    assert_int_equal(ask(&b, &a, "between"), ERR_UNAVAILABLE);
    assert_string_equal(field("between", "shard"), "");
    admin("HSET t:user:{again} epoch 7 backend_user store");
    assert_int_equal(ask(&b, &a, "again"), ERR_NONE);
    assert_int_equal(a.route.epoch, 8);
    assert_string_equal(a.route.backend_user, "store");
    admin("HSET t:user:{odd} epoch x");
    assert_int_equal(ask(&b, &a, "odd"), ERR_UNAVAILABLE);
    assert_string_equal(field("odd", "shard"), "");
    bench_release(&b);
}

/* It is the script that is refused: the hash can be read, and not be written. */
static void a_choice_that_cannot_be_written_does_not_count(void **state)
{
    struct bench b;
    struct asked a = {0};

    (void)state;
    admin("FLUSHALL");
    bench_init(&b, 2, "redis", "ring", "default");
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    admin("CONFIG SET min-replicas-to-write 1");
    assert_int_equal(ask(&b, &a, "bob"), ERR_UNAVAILABLE);
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    assert_int_equal(look(&b, &a, "bob"), ERR_NONE);
    a.request.look_only = false;
    admin("CONFIG SET min-replicas-to-write 0");
    assert_int_equal(ask(&b, &a, "bob"), ERR_NONE);
    bench_release(&b);
}

static void the_choice_is_told(void **state)
{
    struct bench b;
    struct asked a = {0};
    redisContext *listener = admin_connect();
    redisReply *reply = redisCommand(listener, "SUBSCRIBE t:events");

    (void)state;
    admin("FLUSHALL");
    freeReplyObject(reply);
    redisSetTimeout(listener, (struct timeval){.tv_sec = 5});
    bench_init(&b, 2, "redis", "ring", NULL);
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "a\"b"), ERR_NONE);
    assert_int_equal(redisGetReply(listener, (void **)&reply), REDIS_OK);
    assert_string_equal(reply->element[1]->str, "t:events");
    print_message("%s\n", reply->element[2]->str);
    assert_non_null(strstr(reply->element[2]->str, "\"event\":\"route\""));
    assert_non_null(strstr(reply->element[2]->str, "\"user\":\"a\\\"b\""));
    assert_non_null(strstr(reply->element[2]->str, "\"epoch\":1"));
    assert_non_null(strstr(reply->element[2]->str, "\"state\":\"active\""));
    freeReplyObject(reply);
    redisFree(listener);
    bench_release(&b);
}

static void cancelled_in_any_turn(void **state)
{
    (void)state;
    admin("FLUSHALL");
    for (int turns = 0; turns < 16; turns++) {
        struct bench b;
        struct asked a = {0}, other = {0};

        bench_init(&b, 2, "redis", "ring", NULL);
        bench_open(&b);
        ask(&b, &other, "other");
        start(&b, &a, "ann");
        for (int i = 0; i < turns; i++)
            uv_run(&b.loop, UV_RUN_NOWAIT);
        router_cancel(&a.request);
        if (a.answers == 0)
            memset(&a.request, 0xff, sizeof a.request);
        assert_int_equal(ask(&b, &other, "other"), ERR_NONE);
        bench_release(&b);
        admin("DEL t:user:{ann}");
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
        cmocka_unit_test(a_fifth_shard_takes_a_fifth_and_no_more),
        cmocka_unit_test(a_shard_that_leaves_moves_only_its_own),
        cmocka_unit_test(weights_hold),
        cmocka_unit_test(a_greater_weight_only_attracts),
        cmocka_unit_test(choices_are_for_ever),
        cmocka_unit_test(rings_are_for_domains),
        cmocka_unit_test(the_default_comes_last),
        cmocka_unit_test(a_choice_is_written),
        cmocka_unit_test(who_has_a_shard_keeps_it),
        cmocka_unit_test(who_is_first_wins),
        cmocka_unit_test(the_hash_is_respected),
        cmocka_unit_test(a_choice_that_cannot_be_written_does_not_count),
        cmocka_unit_test(the_choice_is_told),
        cmocka_unit_test(cancelled_in_any_turn),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
