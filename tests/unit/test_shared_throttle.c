/*
 * The throttle of two proxies in one real Redis: as the local one where both can be asked, agreed
 * on what is a new guess, and out of the way when Redis is.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "auth/shared_throttle.h"
#include "proxy/net/redis_link.h"
#include "tests/unit/redis_server.h"

#include <string.h>

enum { PROXIES = 2, HOUR_MS = 3600 * 1000 };

struct proxy {
    struct env env;
    struct counters counters;
    struct shared_throttle *throttle;
};

struct asked {
    struct shared_throttle_request request;
    union address address;
    unsigned answers;
    uint64_t delay_ms;
};

static char trusted_network[] = "198.51.100.0/24";
static char *trusted[] = {trusted_network};

static struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct conf conf;
    char address[64];
    struct proxy proxies[PROXIES];
} bench;

/* In place of libuv's: the test moves the clock. */
static uint64_t later_ms;

uint64_t uv_now(const uv_loop_t *loop)
{
    return loop->time + later_ms;
}

static void on_answer(struct shared_throttle_request *request, uint64_t delay_ms)
{
    struct asked *asked = request->owner;

    asked->answers++;
    asked->delay_ms = delay_ms;
}

static void start(int proxy, struct asked *asked, const char *from, const char *user)
{
    memset(asked, 0, sizeof *asked);
    assert_true(address_of(from, 1, &asked->address));
    asked->request.address = &asked->address;
    asked->request.user = user;
    asked->request.on_answer = on_answer;
    asked->request.owner = asked;
    shared_throttle_ask(bench.proxies[proxy].throttle, &asked->request);
    assert_int_equal(asked->answers, 0);
}

static uint64_t wait_for(struct asked *asked)
{
    while (asked->answers == 0)
        uv_run(&bench.loop, UV_RUN_ONCE);
    assert_int_equal(asked->answers, 1);
    return asked->delay_ms;
}

static uint64_t ask(int proxy, const char *from, const char *user)
{
    struct asked asked;

    start(proxy, &asked, from, user);
    return wait_for(&asked);
}

/* Returns when Redis has heard it: commands of one connection are done in order. */
static void report(int proxy, const char *from, const char *user, const char *password,
                   enum throttle_outcome outcome)
{
    struct secret secret = {0};
    union address address;

    assert_true(address_of(from, 1, &address));
    assert_true(secret_set(&secret, span_of(password)));
    shared_throttle_report(bench.proxies[proxy].throttle, &address, user, &secret, outcome);
    secret_release(&secret);
    ask(proxy, "203.0.113.99", "nobody");
}

/* A login that fails with a guess like no other; what it had to wait. */
static uint64_t guess(int proxy, const char *from, const char *user)
{
    static unsigned count;
    char password[16];
    uint64_t delay = ask(proxy, from, user);

    snprintf(password, sizeof password, "guess%u", count++);
    report(proxy, from, user, password, THROTTLE_REFUSED);
    return delay;
}

static uint64_t unknown_count(int proxy)
{
    return atomic_load(&bench.proxies[proxy].counters.throttle_unknown);
}

static void proxy_open(struct proxy *proxy)
{
    struct err err = {0};

    memset(proxy, 0, sizeof *proxy);
    proxy->env = (struct env){.loop = &bench.loop,
                              .turn = &bench.turn,
                              .conf = &bench.conf,
                              .counters = &proxy->counters};
    proxy->env.redis = redis_link_open(&proxy->env, &err);
    assert_non_null(proxy->env.redis);
    proxy->throttle = shared_throttle_open(&proxy->env, &err);
    assert_non_null(proxy->throttle);
}

static void proxy_close(struct proxy *proxy)
{
    shared_throttle_close(&proxy->throttle);
    assert_null(proxy->throttle);
    redis_link_close(&proxy->env.redis);
}

static int setup(void **state)
{
    (void)state;
    memset(&bench, 0, sizeof bench);
    assert_int_equal(uv_loop_init(&bench.loop), 0);
    turn_init(&bench.turn, &bench.loop);
    snprintf(bench.address, sizeof bench.address, "127.0.0.1:%d", server.port);
    bench.conf.redis = (struct conf_redis){.address = bench.address,
                                           .user = (char *)"",
                                           .prefix = (char *)"t:",
                                           .connect_timeout = 5000,
                                           .timeout = 5000,
                                           .retry_max = 100};
    bench.conf.throttle = (struct conf_throttle){.free_failures = 1,
                                                 .delay = 100,
                                                 .max_delay = 500,
                                                 .max_user_delay = 150,
                                                 .forget = HOUR_MS,
                                                 .max_parallel = 1000,
                                                 .max_entries = 1000,
                                                 .trusted = {trusted, 1}};
    admin("FLUSHALL");
    for (int i = 0; i < PROXIES; i++)
        proxy_open(&bench.proxies[i]);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < PROXIES; i++)
        proxy_close(&bench.proxies[i]);
    turn_release(&bench.turn);
    uv_run(&bench.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&bench.loop), 0);
    return 0;
}

/* One word of Redis' answer, in static memory. */
static const char *read_text(const char *format, ...)
{
    static char text[512];
    redisContext *context = admin_connect();
    va_list args;

    va_start(args, format);
    redisReply *reply = redisvCommand(context, format, args);
    va_end(args);
    if (reply->type == REDIS_REPLY_INTEGER)
        snprintf(text, sizeof text, "%lld", reply->integer);
    else
        snprintf(text, sizeof text, "%s", reply->type == REDIS_REPLY_STRING ? reply->str : "");
    freeReplyObject(reply);
    redisFree(context);
    return text;
}

static void proxies_add_up(void **state)
{
    static const uint64_t delays[] = {0, 0, 100, 200, 400, 500, 500};

    (void)state;
    for (size_t i = 0; i < sizeof delays / sizeof delays[0]; i++) {
        char user[16];

        snprintf(user, sizeof user, "user%zu", i);
        assert_int_equal(guess((int)i % PROXIES, "192.0.2.1", user), delays[i]);
    }
    assert_int_equal(ask(0, "192.0.2.2", "ann"), 0);
    assert_int_equal(ask(1, "::ffff:192.0.2.1", "ann"), 500);
    assert_int_equal(unknown_count(0) + unknown_count(1), 0);
}

static void it_is_the_local_one_s_rule(void **state)
{
    static const char *const addresses[] = {"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2",
                                            "198.51.100.1"};
    static const char *const users[] = {"ann", "bob", "cat"};
    struct err err;
    struct throttle *local = throttle_open(&bench.conf.throttle, &err);
    unsigned random = 3;

    (void)state;
    assert_non_null(local);
    for (int step = 0; step < 1500; step++) {
        random = random * 1103515245 + 12345;
        const char *from = addresses[(random >> 8) % 5], *user = users[(random >> 12) % 3];
        enum throttle_outcome outcome = (random >> 16) % 16 == 0  ? THROTTLE_VERIFIED
                                        : (random >> 16) % 16 < 4 ? THROTTLE_UNKNOWN
                                                                  : THROTTLE_REFUSED;
        struct throttle_attempt attempt;
        struct secret secret = {0};
        union address address;
        char password[16];
        uint64_t delay;

        snprintf(password, sizeof password, "p%u", (random >> 20) % 20);
        if (step % 300 == 0) { /* or all would be at the longest wait soon */
            admin("FLUSHALL");
            throttle_close(&local);
            local = throttle_open(&bench.conf.throttle, &err);
        }
        assert_true(address_of(from, 1, &address));
        assert_true(secret_set(&secret, span_of(password)));
        assert_true(throttle_begin(local, &attempt, &address, user, &secret, 1000, &delay));
        assert_int_equal(ask(step % PROXIES, from, user), delay);
        throttle_end(local, &attempt, outcome, 1000);
        report(step % PROXIES, from, user, password, outcome);
        secret_release(&secret);
    }
    throttle_close(&local);
}

static void time_forgives(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        guess(0, "192.0.2.1", i % 2 == 0 ? "ann" : "bob");
    assert_int_equal(ask(1, "192.0.2.1", "cat"), 400);
    admin("EVAL %s 1 %s", "return redis.call('HINCRBY', KEYS[1], 'failed_ms', -2 * 3600000)",
          "t:throttle:{address 192.0.2.1}");
    assert_int_equal(ask(1, "192.0.2.1", "cat"), 100);
    guess(0, "192.0.2.1", "dan");
    assert_int_equal(ask(1, "192.0.2.1", "cat"), 200);
    admin("EVAL %s 1 %s",
          "return redis.call('HINCRBY', KEYS[1], 'failed_ms', -900 * 3600000 - 1800000)",
          "t:throttle:{address 192.0.2.1}");
    assert_int_equal(ask(1, "192.0.2.1", "cat"), 0);
    guess(0, "192.0.2.1", "eve"); /* from the bottom again */
    assert_string_equal(read_text("HGET %s level", "t:throttle:{address 192.0.2.1}"), "1");
    assert_in_range(strtol(read_text("EVAL %s 1 %s",
                                     "return redis.call('TIME')[1] - "
                                     "redis.call('HGET', KEYS[1], 'failed_ms') / 1000",
                                     "t:throttle:{address 192.0.2.1}"),
                           NULL, 10),
                    0, 60); /* not forgiven before its time is up */
    admin("EVAL %s 1 %s", "return redis.call('HINCRBY', KEYS[1], 'failed_ms', 7200000)",
          "t:throttle:{user ann}"); /* a clock that was set back forgives nothing */
    assert_int_equal(ask(1, "203.0.113.1", "ann"), 100);
}

static void what_is_kept_goes_by_itself(void **state)
{
    (void)state;
    guess(0, "192.0.2.1", "ann");
    guess(0, "192.0.2.1", "ann");
    assert_in_range(strtol(read_text("PTTL %s", "t:throttle:{user ann}"), NULL, 10),
                    3 * HOUR_MS - 60000, 3 * HOUR_MS);
    assert_in_range(strtol(read_text("PTTL %s", "t:throttle:{address 192.0.2.1}"), NULL, 10),
                    3 * HOUR_MS - 60000, 3 * HOUR_MS);
    assert_string_equal(read_text("DBSIZE"), "3");
    report(0, "192.0.2.1", "bob", "right", THROTTLE_VERIFIED);
    report(0, "192.0.2.1", "bob", "?", THROTTLE_UNKNOWN);
    assert_string_equal(read_text("DBSIZE"), "3"); /* a success leaves nothing */
}

static void the_same_password_again_is_no_guess(void **state)
{
    (void)state;
    assert_int_equal(ask(0, "192.0.2.1", "ann"), 0);
    assert_int_equal(ask(1, "192.0.2.1", "ann"), 0);
    for (int i = 0; i < 10; i++) {
        report(i % PROXIES, "192.0.2.1", "ann", "old", THROTTLE_REFUSED);
        assert_int_equal(ask(0, "192.0.2.1", "ann"), 0);
    }
    admin("FLUSHALL"); /* and then under another key, of a new proxy: the old one learns it */
    proxy_close(&bench.proxies[1]);
    proxy_open(&bench.proxies[1]);
    assert_int_equal(ask(1, "192.0.2.1", "ann"), 0);
    assert_int_equal(ask(0, "192.0.2.1", "ann"), 0);
    for (int i = 0; i < 10; i++) {
        report(i % PROXIES, "192.0.2.1", "ann", "old", THROTTLE_REFUSED);
        assert_int_equal(ask(0, "192.0.2.1", "ann"), 0);
    }
    report(1, "192.0.2.1", "ann", "older", THROTTLE_REFUSED);
    assert_int_equal(ask(0, "192.0.2.1", "ann"), 100);
}

/* Eight tags of 16 bits, and nothing else that depends on a password. */
static void redis_holds_little(void **state)
{
    unsigned tags = 0, differ = 0;
    long before = -1;

    (void)state;
    for (int i = 0; i < 12; i++)
        guess(0, "192.0.2.1", "ann");
    assert_string_equal(read_text("HLEN %s", "t:throttle:{user ann}"), "3");
    assert_string_equal(read_text("STRLEN %s", "t:throttle-key"), "32");
    const char *text = read_text("HGET %s guesses", "t:throttle:{user ann}");
    for (char *end; *text != '\0'; text = *end == ' ' ? end + 1 : end) {
        long tag = strtol(text, &end, 10);

        assert_in_range(tag, 0, 65535);
        differ += tag != before;
        before = tag;
        tags++;
    }
    assert_int_equal(tags, 8);
    assert_true(differ > 4);
}

static void the_trusted_are_exempt(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++)
        assert_int_equal(guess(0, "198.51.100.7", "ann"), 0);
    assert_int_equal(ask(0, "192.0.2.1", "ann"), 0);
    assert_int_equal(unknown_count(0), 0);
}

static void names_may_hold_anything(void **state)
{
    static const char *const names[] = {"a b", "a}b", "{", "%s", "*", "", "address 192.0.2.9"};

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char from[32];

        for (int times = 0; times < 3; times++) {
            snprintf(from, sizeof from, "192.0.2.%zu", 10 * i + (size_t)times + 100);
            guess(0, from, names[i]);
        }
        assert_int_equal(ask(1, "203.0.113.1", names[i]), 150);
    }
}

/* What docs/operations.md says of a restricted user is enough. */
static void a_restricted_user_will_do(void **state)
{
    (void)state;
    admin("ACL SETUSER proxy on >pw ~t:* +select +evalsha +script|load +set +get +time +exists "
          "+pexpire +hmget +hset");
    admin("SCRIPT FLUSH");
    bench.conf.redis.user = (char *)"proxy";
    assert_true(secret_set(&bench.conf.redis.password, span_of("pw")));
    proxy_close(&bench.proxies[1]);
    proxy_open(&bench.proxies[1]);
    for (int i = 0; i < 2; i++)
        assert_int_equal(guess(1, "192.0.2.1", "ann"), 0);
    assert_int_equal(ask(1, "192.0.2.1", "ann"), 100);
    report(1, "192.0.2.9", "ann", "right", THROTTLE_VERIFIED);
    assert_int_equal(ask(1, "192.0.2.9", "ann"), 0);
    assert_int_equal(unknown_count(1), 0);
    secret_release(&bench.conf.redis.password);
}

static void nonsense_is_not_waited_for(void **state)
{
    (void)state;
    admin("SET %s text", "t:throttle:{user ann}");
    assert_int_equal(ask(0, "192.0.2.1", "ann"), 0);
    assert_int_equal(unknown_count(0), 1);
    report(0, "192.0.2.1", "ann", "x", THROTTLE_REFUSED);
    admin("DEL %s", "t:throttle:{user ann}");
    admin("HSET %s level 1e300 failed_ms x guesses %s", "t:throttle:{user ann}", "1,,2 what");
    assert_int_equal(ask(0, "192.0.2.1", "ann"), 150);
    guess(0, "192.0.2.1", "ann");
    admin("SET t:throttle-key short");
    assert_int_equal(ask(1, "192.0.2.1", "ann"), 150);
    guess(1, "192.0.2.1", "ann"); /* has no tag, and is not told */
    assert_int_equal(unknown_count(1), 0);
}

/* --- when Redis is away --- */

static void a_frozen_server_is_not_waited_for(void **state)
{
    struct asked first, second, third;

    (void)state;
    guess(0, "192.0.2.1", "ann");
    server_freeze();
    start(0, &first, "192.0.2.1", "ann");
    start(0, &second, "192.0.2.1", "ann");
    assert_int_equal(wait_for(&first), 0);
    assert_int_equal(unknown_count(0), 2); /* whoever waits with it is let go, too */
    assert_int_equal(wait_for(&second), 0);
    uint64_t sent = atomic_load(&bench.proxies[0].counters.redis_commands);
    start(0, &third, "192.0.2.1", "ann"); /* need not even try */
    assert_int_equal(wait_for(&third), 0);
    assert_int_equal(unknown_count(0), 3);
    assert_int_equal(atomic_load(&bench.proxies[0].counters.redis_commands), sent);
    kill(server.pid, SIGCONT);
    later_ms += 2000;
    assert_int_equal(guess(0, "192.0.2.1", "ann"), 0);
    assert_int_equal(ask(0, "192.0.2.1", "ann"), 100);
    assert_int_equal(unknown_count(0), 3);
}

static void a_killed_server_is_not_waited_for(void **state)
{
    uint64_t end = uv_hrtime() + 20000000000u;

    (void)state;
    guess(0, "192.0.2.1", "ann");
    server_kill();
    for (int i = 0; i < 20; i++)
        assert_int_equal(guess(0, "192.0.2.1", "ann"), 0);
    assert_true(unknown_count(0) >= 20);
    server_run();
    while (ask(0, "192.0.2.1", "ann") == 0) { /* has forgotten all */
        assert_true(uv_hrtime() < end);
        guess(0, "192.0.2.1", "ann");
    }
    assert_true(ask(0, "192.0.2.1", "ann") > 0);
}

static void cancelled_in_any_turn(void **state)
{
    (void)state;
    for (int turns = 0; turns < 10; turns++) {
        struct asked asked, other;

        start(0, &asked, "192.0.2.1", "ann");
        start(0, &other, "192.0.2.1", "ann");
        for (int i = 0; i < turns && asked.answers == 0; i++)
            uv_run(&bench.loop, UV_RUN_ONCE);
        shared_throttle_cancel(&asked.request);
        unsigned answers = asked.answers;
        memset(&asked.request, 0xff, sizeof asked.request);
        wait_for(&other);
        assert_int_equal(asked.answers, answers);
    }
}

static int group_start(void **state)
{
    (void)state;
    server_start(NULL);
    return 0;
}

static int group_stop(void **state)
{
    (void)state;
    server_stop();
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(proxies_add_up),
        TEST(it_is_the_local_one_s_rule),
        TEST(time_forgives),
        TEST(what_is_kept_goes_by_itself),
        TEST(the_same_password_again_is_no_guess),
        TEST(redis_holds_little),
        TEST(the_trusted_are_exempt),
        TEST(names_may_hold_anything),
        TEST(a_restricted_user_will_do),
        TEST(nonsense_is_not_waited_for),
        TEST(a_frozen_server_is_not_waited_for),
        TEST(a_killed_server_is_not_waited_for),
        TEST(cancelled_in_any_turn),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
