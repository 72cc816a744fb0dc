/*
 * A process's record in a real Redis, with a real replica: who has lapsed, which moves are over,
 * when the fence passes; its consents to moves; what it hears, and how it notices that it does not;
 * and the list of all proxies.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/fleet/acks.h"
#include "proxy/fleet/hearing.h"
#include "proxy/fleet/membership.h"
#include "proxy/fleet/roster.h"
#include "proxy/net/redis_link.h"
#include "tests/unit/redis_server.h"

#include <string.h>

#define ID    "0123456789abcdef"
#define OTHER "fedcba9876543210"
#define ANN   "t:user:{ann}"
#define FAR   99999999999999LL

enum { KEEP_MS = 2000, LET_GO_MS = 200, EXPIRY_MS = 3000 };

static struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct conf conf;
    struct counters counters;
    struct env env;
    struct freshness freshness;
    char address[64], *source;
    struct membership *membership;
    struct acks *acks;
    struct hearing *hearing;
    redisContext *redis, *events;
    uv_timer_t alarm; /* so that waiting goes on without an event */
    pid_t other;
    int other_port;
    struct predecessor predecessor;
    bool forbidden; /* to consent */
    unsigned beats, forgotten, left, gaps;
    uint64_t let_go_ms, cut_off_ms; /* when that was said */
    char heard[4][64];
    unsigned heard_count;
} bench;

static uint64_t clock_ms(void)
{
    return uv_hrtime() / 1000000;
}

/* --- Redis --- */

static const char *redis(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    redisReply *reply = redisvCommand(bench.redis, format, args);
    va_end(args);
    return reply_text(reply);
}

static long long redis_ms(void)
{
    long long seconds, micros;

    assert_int_equal(sscanf(redis("TIME"), "%lld,%lld", &seconds, &micros), 2);
    return seconds * 1000 + micros / 1000;
}

/* The event that was published next on the channel of all. */
static void expect_event(const char *expected)
{
    redisReply *reply = NULL;

    assert_int_equal(redisGetReply(bench.events, (void **)&reply), REDIS_OK);
    json_t *event = json_loads(reply->element[2]->str, 0, NULL),
           *wanted = json_loads(expected, 0, NULL);
    assert_true(wanted != NULL && json_equal(event, wanted));
    json_decref(event);
    json_decref(wanted);
    freeReplyObject(reply);
}

static void expect_no_event(void)
{
    redis("PUBLISH t:events {\"event\":\"none\"}");
    expect_event("{\"event\":\"none\"}");
}

/* Another server; as a replica of this one, if it is to be. */
static void start_other(bool is_replica)
{
    char port[16], master[16];

    bench.other_port = free_port();
    snprintf(port, sizeof port, "%d", bench.other_port);
    snprintf(master, sizeof master, "%d", server.port);
    bench.other = fork();
    assert_true(bench.other >= 0);
    if (bench.other == 0) {
        int null = open("/dev/null", O_WRONLY);

        dup2(null, 1);
        dup2(null, 2);
        execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "",
               "--dir", server.folder, is_replica ? "--replicaof" : NULL, "127.0.0.1", master,
               NULL);
        _exit(127);
    }
}

static void stop_other(void)
{
    if (bench.other > 0) {
        kill(bench.other, SIGKILL);
        waitpid(bench.other, NULL, 0);
    }
    bench.other = 0;
}

/* --- the stage --- */

#define WAIT_FOR(condition)                                                                        \
    for (uint64_t give_up = clock_ms() + 20000; !(condition);) {                                   \
        assert_true(clock_ms() < give_up);                                                         \
        uv_run(&bench.loop, UV_RUN_ONCE);                                                          \
    }

static void on_alarm(uv_timer_t *timer)
{
    (void)timer;
}

static size_t count_sessions(void *owner)
{
    (void)owner;
    return 7;
}

static void on_beat(void *owner)
{
    (void)owner;
    bench.beats++;
}

static void on_forgotten(void *owner)
{
    (void)owner;
    bench.forgotten++;
}

static void let_go(void *owner, uint64_t within_ms)
{
    (void)owner;
    assert_true(within_ms <= LET_GO_MS);
    bench.let_go_ms = clock_ms();
}

static void cut_off(void *owner)
{
    (void)owner;
    bench.cut_off_ms = clock_ms();
}

static void on_left(void *owner)
{
    (void)owner;
    bench.left++;
}

static const struct membership_events membership_events = {count_sessions, on_beat, on_forgotten,
                                                           let_go, cut_off};

static void on_event(void *owner, const char *name, const json_t *event)
{
    (void)owner;
    assert_true(bench.heard_count < 4);
    snprintf(bench.heard[bench.heard_count++], sizeof bench.heard[0], "%s %lld", name,
             (long long)json_integer_value(json_object_get(event, "epoch")));
}

static void on_gap(void *owner)
{
    (void)owner;
    bench.gaps++;
}

static const struct hearing_events hearing_events = {on_event, on_gap};

static int setup(void **state)
{
    (void)state;
    memset(&bench, 0, sizeof bench);
    assert_int_equal(uv_loop_init(&bench.loop), 0);
    turn_init(&bench.turn, &bench.loop);
    uv_timer_init(&bench.loop, &bench.alarm);
    uv_timer_start(&bench.alarm, on_alarm, 10, 10);
    snprintf(bench.address, sizeof bench.address, "127.0.0.1:%d", server.port);
    bench.conf.redis = (struct conf_redis){.address = bench.address,
                                           .user = (char *)"",
                                           .prefix = (char *)"t:",
                                           .connect_timeout = 2000,
                                           .timeout = 1000,
                                           .retry_max = 100,
                                           .node_expiry = EXPIRY_MS};
    bench.source = (char *)"redis";
    bench.conf.route.sources = (struct conf_words){&bench.source, 1};
    bench.conf.route.keep_while_down = KEEP_MS;
    bench.conf.admin.socket = (char *)"/run/admin.sock";
    bench.env = (struct env){
        .loop = &bench.loop, .turn = &bench.turn, .conf = &bench.conf, .counters = &bench.counters};
    bench.env.redis = redis_link_open(&bench.env, NULL);
    assert_non_null(bench.env.redis);
    bench.redis = admin_connect();
    bench.events = admin_connect();
    redis("FLUSHALL");
    freeReplyObject(redisCommand(bench.events, "SUBSCRIBE t:events"));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    hearing_close(&bench.hearing);
    acks_close(&bench.acks);
    membership_close(&bench.membership);
    redis_link_close(&bench.env.redis);
    redisFree(bench.redis);
    redisFree(bench.events);
    stop_other();
    uv_close((uv_handle_t *)&bench.alarm, NULL);
    turn_release(&bench.turn);
    uv_run(&bench.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&bench.loop), 0);
    return 0;
}

static void join(void)
{
    if (bench.predecessor.id == NULL)
        bench.predecessor.id = "";
    bench.membership = membership_open(&bench.env, ID, &bench.predecessor, &bench.freshness,
                                       &membership_events, NULL, NULL);
    assert_non_null(bench.membership);
    WAIT_FOR(bench.beats > 0);
}

static void next_beat(void)
{
    unsigned before = bench.beats;

    WAIT_FOR(bench.beats > before);
}

/* --- the record --- */

static void test_record(void **state)
{
    uint64_t begun = clock_ms();
    json_int_t seen, fence, sessions, pid;
    char *socket;

    (void)state;
    join();
    assert_true(membership_is_confirmed(bench.membership));
    json_t *record = json_loads(redis("HGET t:proxies " ID), 0, NULL);
    assert_int_equal(json_unpack(record, "{s:I, s:I, s:I, s:I, s:s}", "seen_ms", &seen, "fence_ms",
                                 &fence, "sessions", &sessions, "pid", &pid, "socket", &socket),
                     0);
    assert_true(seen <= redis_ms() && seen > redis_ms() - 20000);
    assert_int_equal(fence, KEEP_MS + EXPIRY_MS);
    assert_int_equal(sessions, 7);
    assert_int_equal(pid, getpid());
    assert_string_equal(socket, "/run/admin.sock");
    json_decref(record);

    uint64_t fence_ms = atomic_load(&bench.freshness.fence_ms);
    assert_true(fence_ms >= begun + KEEP_MS - LET_GO_MS &&
                fence_ms <= clock_ms() + KEEP_MS - LET_GO_MS);
    assert_true(atomic_load(&bench.freshness.known_since_ms) >= begun);
}

/* The token that Redis has, and that workers look for there. */
static uint64_t token_now(void)
{
    json_t *record = json_loads(redis("HGET t:proxies " ID), 0, NULL);
    uint64_t token = strtoull(json_string_value(json_object_get(record, "token")), NULL, 16);

    json_decref(record);
    assert_int_equal(token, atomic_load(&bench.freshness.token));
    assert_int_equal(token, atomic_load(&bench.freshness.token_before));
    return token;
}

static void test_each_connection_has_a_token(void **state)
{
    (void)state;
    join();
    uint64_t token = token_now();
    assert_int_not_equal(token, 0);
    next_beat();
    assert_int_equal(token_now(), token);
    redis("CLIENT KILL TYPE normal SKIPME yes");
    WAIT_FOR(atomic_load(&bench.freshness.token_before) != token);
    assert_int_not_equal(token_now(), token);
}

static void test_leaving(void **state)
{
    (void)state;
    join();
    redis("HSET t:proxies " OTHER " {\"seen_ms\":%lld,\"fence_ms\":1}", FAR);
    assert_true(membership_leave(bench.membership, on_left));
    WAIT_FOR(bench.left > 0);
    assert_string_equal(redis("HKEYS t:proxies"), OTHER);
}

static void test_leaving_without_an_answer(void **state)
{
    (void)state;
    join();
    server_freeze();
    assert_true(membership_leave(bench.membership, on_left));
    WAIT_FOR(bench.left > 0);
    kill(server.pid, SIGCONT);
}

static void test_the_lapsed_are_taken_away(void **state)
{
    long long now = redis_ms();

    (void)state;
    redis("HSET t:proxies a {\"seen_ms\":%lld,\"fence_ms\":1000}", now - 1001);
    redis("HSET t:proxies b {\"seen_ms\":%lld,\"fence_ms\":60000}", now - 1001);
    redis("HSET t:proxies c nonsense d {} e 7");
    join();
    assert_string_equal(redis("HEXISTS t:proxies b"), "1");
    assert_string_equal(redis("HLEN t:proxies"), "2");
    assert_int_equal(atomic_load(&bench.counters.fleet_lapsed), 4);
    assert_int_equal(atomic_load(&bench.counters.fleet_proxies), 2);
}

static void test_a_record_that_was_taken_away(void **state)
{
    (void)state;
    join();
    uint64_t before = atomic_load(&bench.freshness.known_since_ms);
    next_beat();
    assert_int_equal(bench.forgotten, 0);
    assert_int_equal(atomic_load(&bench.freshness.known_since_ms), before);
    redis("HDEL t:proxies " ID);
    next_beat();
    assert_int_equal(bench.forgotten, 1);
    assert_true(atomic_load(&bench.freshness.known_since_ms) > before);
    assert_string_equal(redis("HKEYS t:proxies"), ID);
}

/* It is written anew by a beat that no replica has, so that beat does not count. */
static void test_a_record_that_was_taken_away_and_came_back_unconfirmed(void **state)
{
    (void)state;
    bench.conf.redis.replicas = 1;
    start_other(true);
    join();
    WAIT_FOR(membership_is_confirmed(bench.membership));
    uint64_t before = atomic_load(&bench.freshness.known_since_ms);
    stop_other();
    redis("HDEL t:proxies " ID);
    WAIT_FOR(!membership_is_confirmed(bench.membership));
    assert_string_equal(redis("HKEYS t:proxies"), ID);
    start_other(true);
    WAIT_FOR(membership_is_confirmed(bench.membership));
    assert_int_equal(bench.forgotten, 1);
    assert_true(atomic_load(&bench.freshness.known_since_ms) > before);
}

/* Moves have waited for the dead one, so what it has left is good. */
static void test_in_the_place_of_another(void **state)
{
    (void)state;
    redis("HSET t:proxies " OTHER " {\"seen_ms\":%lld,\"fence_ms\":60000}", redis_ms());
    bench.predecessor.id = OTHER;
    join();
    assert_string_equal(redis("HKEYS t:proxies"), ID);
    assert_int_equal(atomic_load(&bench.freshness.known_since_ms), 0);
    membership_inherit(bench.membership, 1); /* it is late */
    assert_true(membership_fence_ms(bench.membership) > clock_ms());
}

static void test_beside_one_that_lives(void **state)
{
    (void)state;
    redis("HSET t:proxies " OTHER " {\"seen_ms\":%lld,\"fence_ms\":60000}", redis_ms());
    bench.predecessor = (struct predecessor){OTHER, .lives = true};
    join();
    assert_string_equal(redis("HEXISTS t:proxies " OTHER), "1");
    assert_int_equal(atomic_load(&bench.freshness.known_since_ms), 0);
    redis("HDEL t:proxies " ID); /* a gap in one's own record is one, though the other lives */
    WAIT_FOR(bench.forgotten == 1);
    assert_true(atomic_load(&bench.freshness.known_since_ms) > 0);
    assert_string_equal(redis("HEXISTS t:proxies " OTHER), "1");
}

static void test_beside_one_that_redis_does_not_know(void **state)
{
    (void)state;
    bench.predecessor = (struct predecessor){OTHER, .lives = true};
    join();
    assert_true(atomic_load(&bench.freshness.known_since_ms) > 0);
}

static void test_in_the_place_of_one_that_redis_does_not_know(void **state)
{
    (void)state;
    bench.predecessor.id = OTHER;
    server_freeze();
    bench.membership = membership_open(&bench.env, ID, &bench.predecessor, &bench.freshness,
                                       &membership_events, NULL, NULL);
    assert_non_null(bench.membership);
    uint64_t fence_ms = clock_ms() + 1000;
    membership_inherit(bench.membership, fence_ms);
    assert_int_equal(atomic_load(&bench.freshness.fence_ms), fence_ms - LET_GO_MS);
    WAIT_FOR(bench.cut_off_ms > 0);
    assert_true(bench.cut_off_ms >= fence_ms && bench.let_go_ms < fence_ms);
    kill(server.pid, SIGCONT);
    WAIT_FOR(membership_is_confirmed(bench.membership));
    assert_true(atomic_load(&bench.freshness.known_since_ms) >= fence_ms);
    WAIT_FOR(bench.forgotten == 1);
}

/* --- healing --- */

static void set_move(const char *user, const char *move_state, long long until)
{
    redis("HSET t:user:{%s} shard blue target green move 0011 epoch 5 state %s until %lld", user,
          move_state, until);
    redis("HSET t:moving %s 5", user);
}

static void test_a_move_that_nobody_looks_after_goes_back(void **state)
{
    (void)state;
    set_move("ann", "moving", redis_ms() - 1);
    join();
    assert_string_equal(redis("HMGET " ANN " shard state epoch target move until"),
                        "blue,active,6,nil,nil,nil");
    assert_string_equal(redis("EXISTS t:moving"), "0");
    expect_event("{\"event\":\"route\",\"user\":\"ann\",\"epoch\":6,\"state\":\"active\"}");
    expect_no_event();
    assert_int_equal(atomic_load(&bench.counters.fleet_healed), 1);
}

static void test_what_is_committed_goes_forward(void **state)
{
    (void)state;
    set_move("ann", "committed", redis_ms() - 1);
    join();
    assert_string_equal(redis("HMGET " ANN " shard state epoch target move until"),
                        "green,active,6,nil,nil,nil");
    assert_string_equal(redis("EXISTS t:moving"), "0");
    expect_event("{\"event\":\"route\",\"user\":\"ann\",\"epoch\":6,\"state\":\"active\"}");
}

static void test_moves_that_are_under_way_stay(void **state)
{
    (void)state;
    set_move("ann", "moving", redis_ms() + 60000);
    set_move("bob", "committed", redis_ms() + 60000);
    join();
    assert_string_equal(redis("HMGET " ANN " shard state epoch"), "blue,moving,5");
    assert_string_equal(redis("HMGET t:user:{bob} shard state epoch"), "blue,committed,5");
    assert_string_equal(redis("HLEN t:moving"), "2");
    expect_no_event();
}

static void test_what_makes_no_sense_stops_nobody(void **state)
{
    (void)state;
    redis("SET t:user:{text} text");
    redis("HSET t:moving text 1 nobody 1 idle 1 odd 1 bare 1");
    redis("HSET t:user:{idle} shard blue state active epoch 9");
    redis("HSET t:user:{odd} shard blue state moving epoch many until never");
    redis("HSET t:user:{bare} shard blue state committed until 1 epoch 1");
    set_move("ann", "moving", 1);
    join();
    assert_true(membership_is_confirmed(bench.membership));
    assert_string_equal(redis("HMGET " ANN " state epoch"), "active,6");
    assert_string_equal(redis("HMGET t:user:{idle} state epoch"), "active,9");
    assert_string_equal(redis("HEXISTS t:moving idle"), "0");
    assert_string_equal(redis("HEXISTS t:moving nobody"), "0");
}

/* --- replicas --- */

static void test_without_its_replica_nothing_is_confirmed(void **state)
{
    (void)state;
    bench.conf.redis.replicas = 1;
    join();
    next_beat();
    assert_false(membership_is_confirmed(bench.membership));
    assert_int_equal(atomic_load(&bench.freshness.fence_ms), 0);
    start_other(true);
    WAIT_FOR(membership_is_confirmed(bench.membership));
    uint64_t fence_ms = atomic_load(&bench.freshness.fence_ms);
    assert_true(fence_ms > 0);
    stop_other();
    WAIT_FOR(!membership_is_confirmed(bench.membership));
    WAIT_FOR(bench.cut_off_ms > 0);
}

/* At its successor the move may go on, with our consent. */
static void test_without_its_replica_no_move_ends(void **state)
{
    (void)state;
    bench.conf.redis.replicas = 1;
    start_other(true);
    join();
    WAIT_FOR(membership_is_confirmed(bench.membership));
    stop_other();
    WAIT_FOR(!membership_is_confirmed(bench.membership));
    set_move("ann", "moving", redis_ms() - 1);
    set_move("bob", "committed", redis_ms() - 1);
    next_beat();
    next_beat();
    assert_string_equal(redis("HMGET " ANN " shard state epoch"), "blue,moving,5");
    assert_string_equal(redis("HMGET t:user:{bob} shard state epoch"), "blue,committed,5");
    expect_no_event();
    start_other(true);
    WAIT_FOR(atomic_load(&bench.counters.fleet_healed) == 2);
    assert_string_equal(redis("HMGET " ANN " shard state epoch over"), "blue,active,6,nil");
    assert_string_equal(redis("HMGET t:user:{bob} shard state epoch over"), "green,active,6,nil");
}

/* --- the fence --- */

static void test_the_fence(void **state)
{
    (void)state;
    join();
    server_freeze();
    uint64_t confirmed_ms = atomic_load(&bench.freshness.fence_ms) + LET_GO_MS - KEEP_MS;
    WAIT_FOR(bench.let_go_ms > 0);
    assert_int_equal(bench.cut_off_ms, 0);
    assert_true(bench.let_go_ms >= confirmed_ms + KEEP_MS - LET_GO_MS);
    WAIT_FOR(bench.cut_off_ms > 0);
    assert_true(bench.cut_off_ms >= confirmed_ms + KEEP_MS);
    assert_true(atomic_load(&bench.freshness.fence_ms) < clock_ms());
    assert_true(freshness_fences_off(&bench.freshness, clock_ms()));
    kill(server.pid, SIGCONT);
    WAIT_FOR(membership_is_confirmed(bench.membership));
    next_beat();
    assert_true(
        freshness_fences_off(&bench.freshness, clock_ms())); /* somebody may still be there */
    membership_is_cut_off(bench.membership);
    WAIT_FOR(atomic_load(&bench.freshness.fence_ms) > clock_ms());
    assert_false(freshness_fences_off(&bench.freshness, clock_ms()));
    assert_true(membership_is_confirmed(bench.membership));
    assert_int_equal(atomic_load(&bench.counters.fleet_fences), 1);
}

static void test_no_fence_where_redis_has_no_routes(void **state)
{
    (void)state;
    bench.source = (char *)"file";
    join();
    assert_non_null(strstr(redis("HGET t:proxies " ID), "\"fence_ms\":3000"));
    server_freeze();
    uint64_t end = clock_ms() + KEEP_MS + 500;
    WAIT_FOR(clock_ms() > end);
    assert_true(bench.let_go_ms == 0 && bench.cut_off_ms == 0);
    kill(server.pid, SIGCONT);
}

/* --- consents --- */

static bool may_tell(void *owner, const char *user, uint64_t epoch)
{
    (void)owner;
    (void)user;
    (void)epoch;
    return !bench.forbidden;
}

static void open_acks(void)
{
    bench.acks = acks_open(&bench.env, ID, may_tell, NULL, NULL);
    assert_non_null(bench.acks);
    WAIT_FOR(redis_link_connection(bench.env.redis) != 0);
}

static void on_pong(void *owner, const redisReply *reply, const struct err *err)
{
    (void)reply;
    (void)err;
    ++*(unsigned *)owner;
}

/* Until all that was sent so far has been answered, even if a script had to be taught first. */
static void settle(void)
{
    static unsigned answers;

    answers = 0;
    for (unsigned i = 1; i <= 2; i++) {
        redis_link_send(bench.env.redis, 1, (const char *[]){"PING"}, (size_t[]){4}, on_pong,
                        &answers, NULL);
        WAIT_FOR(answers == i);
    }
}

static void test_only_the_move_that_is_under_way_is_consented_to(void **state)
{
    (void)state;
    open_acks();
    set_move("ann", "moving", FAR);
    assert_true(acks_add(bench.acks, "ann", 4)); /* of a move before this one */
    settle();
    assert_string_equal(redis("EXISTS t:acks:{ann}"), "0");
    assert_true(acks_add(bench.acks, "ann", 5));
    settle();
    assert_string_equal(redis("HGETALL t:acks:{ann}"), ID ",5");
    assert_true(atoi(redis("TTL t:acks:{ann}")) > 80000);
    expect_event("{\"event\":\"ack\",\"user\":\"ann\",\"epoch\":5,\"proxy\":\"" ID "\"}");
    assert_true(acks_add(bench.acks, "ann", 4)); /* it is late */
    acks_retry(bench.acks);
    settle();
    expect_no_event();
    set_move("bob", "committed", FAR);
    redis("HSET t:user:{eve} shard blue epoch 5");
    assert_true(acks_add(bench.acks, "bob", 5) && acks_add(bench.acks, "eve", 5) &&
                acks_add(bench.acks, "nobody", 5));
    settle();
    assert_string_equal(redis("KEYS t:acks:*"), "t:acks:{ann}");
    assert_int_equal(atomic_load(&bench.counters.fleet_acks), 1);
}

static void test_no_consent_before_the_journal_has_it(void **state)
{
    (void)state;
    open_acks();
    set_move("ann", "moving", FAR);
    bench.forbidden = true;
    assert_true(acks_add(bench.acks, "ann", 5));
    settle();
    assert_string_equal(redis("EXISTS t:acks:{ann}"), "0");
    bench.forbidden = false;
    acks_retry(bench.acks);
    settle();
    assert_string_equal(redis("HGETALL t:acks:{ann}"), ID ",5");
}

static void test_a_consent_is_told_when_redis_is_back(void **state)
{
    (void)state;
    open_acks();
    server_kill();
    WAIT_FOR(redis_link_connection(bench.env.redis) == 0);
    assert_true(acks_add(bench.acks, "ann", 5));
    assert_true(acks_add(bench.acks, "bob", 5));
    redisFree(bench.redis);
    server_run();
    bench.redis = admin_connect();
    set_move("ann", "moving", FAR);
    set_move("bob", "moving", FAR);
    WAIT_FOR(redis_link_connection(bench.env.redis) != 0);
    acks_drop(bench.acks, "bob", 4);
    acks_drop(bench.acks, "bob", 5);
    acks_retry(bench.acks);
    settle();
    assert_string_equal(redis("HGETALL t:acks:{ann}"), ID ",5");
    assert_string_equal(redis("EXISTS t:acks:{bob}"), "0");
    redis("DEL t:acks:{ann}"); /* as a fail-over may */
    acks_retry(bench.acks);
    settle();
    assert_string_equal(redis("EXISTS t:acks:{ann}"), "0");
    acks_repeat(bench.acks);
    settle();
    assert_string_equal(redis("HGETALL t:acks:{ann}"), ID ",5");
}

/* --- what is heard --- */

static bool is_certain(void)
{
    return atomic_load(&bench.freshness.events_until_ms) > clock_ms();
}

static void begin_to_hear(void)
{
    bench.hearing = hearing_open(&bench.env, ID, &bench.freshness, &hearing_events, NULL, NULL);
    assert_non_null(bench.hearing);
    WAIT_FOR(is_certain());
}

static void test_events_are_heard(void **state)
{
    (void)state;
    begin_to_hear();
    assert_int_equal(bench.gaps, 1);
    redis("PUBLISH t:events {\"event\":\"route\",\"epoch\":1}");
    redis("PUBLISH t:events:" ID " {\"event\":\"answer\",\"epoch\":2}");
    redis("PUBLISH t:events:" OTHER " {\"event\":\"answer\",\"epoch\":3}");
    redis("PUBLISH t:events:" ID " {\"event\":\"tick\",\"number\":99}");
    redis("PUBLISH t:events:" ID " {\"event\":\"tick\",\"number\":-16}");
    redis("PUBLISH t:events {\"event\":7}");
    redis("PUBLISH t:events {\"event\":\"shard\",\"epoch\":4}");
    WAIT_FOR(bench.heard_count == 3);
    assert_string_equal(bench.heard[0], "route 1");
    assert_string_equal(bench.heard[1], "answer 2");
    assert_string_equal(bench.heard[2], "shard 4");
    uint64_t until = atomic_load(&bench.freshness.events_until_ms);
    WAIT_FOR(atomic_load(&bench.freshness.events_until_ms) > until + 500);
    assert_int_equal(bench.gaps, 1);
}

/* There may have been no memory for it. */
static void test_an_event_that_cannot_be_read_is_a_gap(void **state)
{
    (void)state;
    begin_to_hear();
    uint64_t before = clock_ms();
    redis("PUBLISH t:events nonsense");
    WAIT_FOR(bench.gaps == 2);
    assert_true(atomic_load(&bench.freshness.complete_since_ms) >= before);
}

static void test_a_lost_subscription_is_a_gap(void **state)
{
    (void)state;
    begin_to_hear();
    uint64_t before = clock_ms();
    redis("CLIENT KILL TYPE pubsub");
    WAIT_FOR(!is_certain());
    WAIT_FOR(bench.gaps == 2 && is_certain());
    assert_true(atomic_load(&bench.freshness.complete_since_ms) >= before);
    bench.events->err = 0; /* ours was killed, too */
}

static void test_a_silent_redis_is_a_gap(void **state)
{
    (void)state;
    bench.conf.redis.timeout = 10000; /* nothing is lost but time */
    begin_to_hear();
    uint64_t before = clock_ms();
    server_freeze();
    WAIT_FOR(!is_certain());
    kill(server.pid, SIGCONT);
    WAIT_FOR(is_certain());
    assert_int_equal(bench.gaps, 2);
    assert_true(atomic_load(&bench.freshness.complete_since_ms) > before);
}

/* What is published here does not come there: as with a master that is none any more. */
static void test_a_deaf_subscription_is_made_anew(void **state)
{
    struct conf conf = bench.conf;
    struct env env = bench.env;
    char address[64];

    (void)state;
    start_other(false);
    snprintf(address, sizeof address, "127.0.0.1:%d", bench.other_port);
    conf.redis.address = address;
    env.conf = &conf;
    bench.hearing = hearing_open(&env, ID, &bench.freshness, &hearing_events, NULL, NULL);
    assert_non_null(bench.hearing);
    WAIT_FOR(bench.gaps == 1);
    uint64_t up_ms = clock_ms();
    WAIT_FOR(atomic_load(&bench.counters.fleet_restarts) == 1);
    assert_true(clock_ms() >= up_ms + 2000);
    redisContext *other = redisConnect("127.0.0.1", bench.other_port);
    freeReplyObject(redisCommand(other, "REPLICAOF 127.0.0.1 %d", server.port));
    redisFree(other);
    WAIT_FOR(is_certain()); /* a replica hears what is published at its master */
    assert_true(bench.gaps >= 2);
    hearing_close(&bench.hearing);
    uv_run(&bench.loop, UV_RUN_NOWAIT);
}

/* --- the list --- */

static struct roster {
    struct roster_request request;
    bool answered;
    json_t *list;
    struct err err;
} roster;

static void on_roster(struct roster_request *request, json_t *list, const struct err *err)
{
    (void)request;
    roster.answered = true;
    roster.list = json_incref(list);
    roster.err = *err;
}

static void ask_roster(const char *forget)
{
    json_decref(roster.list);
    memset(&roster, 0, sizeof roster);
    roster.request.env = &bench.env;
    roster.request.id = ID;
    roster.request.forget = forget;
    roster.request.on_answer = on_roster;
    roster_ask(&roster.request);
    assert_false(roster.answered);
}

static const char *roster_state(const char *id)
{
    size_t i;
    json_t *row;

    json_array_foreach(roster.list, i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "id")), id) == 0)
            return json_string_value(json_object_get(row, "state"));
    }
    return "none";
}

static void test_the_list(void **state)
{
    (void)state;
    join();
    redis("HSET t:proxies live {\"seen_ms\":%lld,\"fence_ms\":60000} silent "
          "{\"seen_ms\":%lld,\"fence_ms\":60000}",
          redis_ms(), redis_ms() - EXPIRY_MS - 1000);
    ask_roster(NULL);
    WAIT_FOR(roster.answered);
    assert_int_equal(roster.err.kind, ERR_NONE);
    assert_int_equal(json_array_size(roster.list), 3);
    assert_string_equal(roster_state(ID), "self");
    assert_string_equal(roster_state("live"), "live");
    assert_string_equal(roster_state("silent"), "silent");
    ask_roster("live");
    WAIT_FOR(roster.answered);
    assert_int_equal(roster.err.kind, ERR_PEER);
    assert_string_equal(redis("HEXISTS t:proxies live"), "1");
    ask_roster("silent");
    WAIT_FOR(roster.answered);
    assert_int_equal(roster.err.kind, ERR_NONE);
    assert_string_equal(redis("HEXISTS t:proxies silent"), "0");
    ask_roster("silent");
    WAIT_FOR(roster.answered);
    assert_int_equal(roster.err.kind, ERR_PEER);
    ask_roster(NULL);
    roster_cancel(&roster.request);
    settle();
    assert_false(roster.answered);
    redis("DEL t:proxies");
    redis("SET t:proxies text");
    ask_roster(NULL);
    WAIT_FOR(roster.answered);
    assert_int_equal(roster.err.kind, ERR_UNAVAILABLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define STORY(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        STORY(test_record),
        STORY(test_each_connection_has_a_token),
        STORY(test_leaving),
        STORY(test_leaving_without_an_answer),
        STORY(test_the_lapsed_are_taken_away),
        STORY(test_a_record_that_was_taken_away),
        STORY(test_a_record_that_was_taken_away_and_came_back_unconfirmed),
        STORY(test_in_the_place_of_another),
        STORY(test_beside_one_that_lives),
        STORY(test_beside_one_that_redis_does_not_know),
        STORY(test_in_the_place_of_one_that_redis_does_not_know),
        STORY(test_a_move_that_nobody_looks_after_goes_back),
        STORY(test_what_is_committed_goes_forward),
        STORY(test_moves_that_are_under_way_stay),
        STORY(test_what_makes_no_sense_stops_nobody),
        STORY(test_without_its_replica_nothing_is_confirmed),
        STORY(test_without_its_replica_no_move_ends),
        STORY(test_the_fence),
        STORY(test_no_fence_where_redis_has_no_routes),
        STORY(test_only_the_move_that_is_under_way_is_consented_to),
        STORY(test_no_consent_before_the_journal_has_it),
        STORY(test_a_consent_is_told_when_redis_is_back),
        STORY(test_events_are_heard),
        STORY(test_an_event_that_cannot_be_read_is_a_gap),
        STORY(test_a_lost_subscription_is_a_gap),
        STORY(test_a_silent_redis_is_a_gap),
        STORY(test_a_deaf_subscription_is_made_anew),
        STORY(test_the_list),
    };

    signal(SIGPIPE, SIG_IGN);
    server_start(NULL);
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(roster.list);
    server_stop();
    return failures;
}
