/*
 * The scripts of cutovers, on a real Redis with a real replica: each step, each refusal, what comes
 * twice, what comes too late, and what a Redis that has lost its replica or its connection says.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/fleet/cutover.h"
#include "tests/unit/redis_server.h"

#include <string.h>

#define USER   "ann@example.org"
#define HASH   "t:user:{" USER "}"
#define ACKS   "t:acks:{" USER "}"
#define MOVE   "0123456789abcdef"
#define OTHER  "fedcba9876543210"
#define RECORD "{\"host\":\"mx\",\"pid\":7,\"seen_ms\":%lld,\"fence_ms\":60000}"

static struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct conf conf;
    struct counters counters;
    struct env env;
    char address[64];
    struct cutovers *cutovers;
    redisContext *redis, *events;
    uv_timer_t alarm; /* so that waiting goes on without an event */
} bench;

static struct asked {
    struct cutover_request request;
    bool answered;
    json_t *state;
    enum cutover_place place;
    struct err err;
} asked;

static struct {
    pid_t pid;
    int port;
} replica;

/* --- Redis --- */

static const char *redis(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    redisReply *reply = redisvCommand(bench.redis, format, args);
    va_end(args);
    return reply_text(reply);
}

static const char *field(const char *name)
{
    return redis("HGET " HASH " %s", name);
}

static long long clock_ms(void)
{
    long long seconds, micros;

    assert_int_equal(sscanf(redis("TIME"), "%lld,%lld", &seconds, &micros), 2);
    return seconds * 1000 + micros / 1000;
}

static void pass_time(void)
{
    redis("HSET " HASH " until %lld", clock_ms());
}

/* The route's event that was published, and no other one before it. */
static void expect_event(const char *expected)
{
    redisReply *reply = NULL;

    assert_int_equal(redisGetReply(bench.events, (void **)&reply), REDIS_OK);
    assert_string_equal(reply->element[1]->str, "t:events");
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

static void start_replica(void)
{
    char port[16], master[16];

    replica.port = free_port();
    snprintf(port, sizeof port, "%d", replica.port);
    snprintf(master, sizeof master, "%d", server.port);
    replica.pid = fork();
    assert_true(replica.pid >= 0);
    if (replica.pid == 0) {
        int null = open("/dev/null", O_WRONLY);

        dup2(null, 1);
        dup2(null, 2);
        execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "",
               "--dir", server.folder, "--replicaof", "127.0.0.1", master, "--repl-diskless-sync",
               "yes", NULL);
        _exit(127);
    }
}

static void stop_replica(void)
{
    if (replica.pid > 0) {
        kill(replica.pid, SIGKILL);
        waitpid(replica.pid, NULL, 0);
    }
    replica.pid = 0;
}

/* A port that is free now may be taken when it starts: then it ends. */
static void restart_dead_replica(void)
{
    if (waitpid(replica.pid, NULL, WNOHANG) == replica.pid)
        start_replica();
}

static void wait_for_replica(void)
{
    for (int tries = 0; strstr(redis("INFO replication"), "state=online") == NULL; tries++) {
        assert_true(tries < 3000);
        restart_dead_replica();
        poll(NULL, 0, 10);
    }
}

/* --- the bench --- */

static void on_alarm(uv_timer_t *timer)
{
    (void)timer;
}

static void connect_all(void)
{
    struct timeval patience = {.tv_sec = 20};

    bench.redis = admin_connect();
    bench.events = admin_connect();
    redisSetTimeout(bench.events, patience);
    freeReplyObject(redisCommand(bench.events, "SUBSCRIBE t:events"));
}

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
                                           .connect_timeout = 5000,
                                           .timeout = 5000,
                                           .retry_max = 100};
    bench.env = (struct env){
        .loop = &bench.loop, .turn = &bench.turn, .conf = &bench.conf, .counters = &bench.counters};
    connect_all();
    redis("FLUSHALL");
    redis("CONFIG SET repl-diskless-sync-delay 0");
    bench.cutovers = cutovers_open(&bench.env, NULL);
    assert_non_null(bench.cutovers);
    asked = (struct asked){0};
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    json_decref(asked.state);
    cutovers_close(&bench.cutovers);
    redisFree(bench.redis);
    redisFree(bench.events);
    uv_close((uv_handle_t *)&bench.alarm, NULL);
    turn_release(&bench.turn);
    uv_run(&bench.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&bench.loop), 0);
    return 0;
}

/* --- asking --- */

typedef void step_fn(struct cutovers *cutovers, struct cutover_request *request);

static void on_answer(struct cutover_request *request, json_t *state, enum cutover_place place,
                      const struct err *err)
{
    struct asked *a = request->owner;

    assert_false(a->answered);
    a->answered = true;
    a->state = json_incref(state);
    a->place = place;
    a->err = *err;
}

static void ask(step_fn *step, const char *move, const char *to)
{
    json_decref(asked.state);
    asked = (struct asked){.request = {.user = USER,
                                       .move = move,
                                       .to = to,
                                       .from = "",
                                       .backend_user = "",
                                       .on_answer = on_answer,
                                       .owner = &asked}};
    step(bench.cutovers, &asked.request);
    assert_false(asked.answered);
}

static void wait_answer(void)
{
    while (!asked.answered)
        uv_run(&bench.loop, UV_RUN_ONCE);
}

static void good(step_fn *step, enum cutover_place place)
{
    ask(step, MOVE, "green");
    wait_answer();
    assert_string_equal(asked.err.text, "");
    assert_int_equal(asked.place, place);
    assert_true(json_is_array(json_object_get(asked.state, "missing")));
}

static void refused(step_fn *step, const char *move, const char *to, enum cutover_place place,
                    const char *why)
{
    ask(step, move, to);
    wait_answer();
    assert_int_equal(asked.err.kind, ERR_PEER);
    assert_string_equal(asked.err.text, why);
    assert_int_equal(asked.place, place);
}

static const char *text(const char *name)
{
    const char *value = json_string_value(json_object_get(asked.state, name));

    return value == NULL ? "-" : value;
}

static long long number(const json_t *object, const char *name)
{
    return (long long)json_integer_value(json_object_get(object, name));
}

static void begun(void)
{
    redis("HSET " HASH " shard blue epoch 4");
    good(cutover_begin, CUTOVER_OLD);
    expect_event("{\"event\":\"route\",\"user\":\"" USER "\",\"epoch\":5,\"state\":\"moving\"}");
}

static void expect_route(const char *shard, const char *state, const char *epoch)
{
    assert_string_equal(field("shard"), shard);
    assert_string_equal(field("state"), state);
    assert_string_equal(field("epoch"), epoch);
}

static void expect_over(void)
{
    assert_string_equal(redis("HMGET " HASH " target move until"), "nil,nil,nil");
    assert_string_equal(redis("EXISTS t:moving " ACKS), "0");
}

/* --- begin --- */

static void test_begin(void **unused)
{
    long long before = clock_ms();

    (void)unused;
    redis("HSET " ACKS " p1 4");
    begun();
    expect_route("blue", "moving", "5");
    assert_string_equal(redis("HMGET " HASH " target move"), "green," MOVE);
    assert_string_equal(redis("HGETALL t:moving"), USER ",5");
    assert_string_equal(redis("EXISTS " ACKS), "0");
    assert_in_range(strtoll(field("until"), NULL, 10), before + CUTOVER_LEASE_MS,
                    clock_ms() + CUTOVER_LEASE_MS);
    assert_string_equal(text("state"), "moving");
    assert_string_equal(text("from"), "blue");
    assert_string_equal(text("target"), "green");
    assert_int_equal(number(asked.state, "epoch"), 5);
}

/* Who has lost the answer hears the same, and its time begins anew. */
static void test_begin_again(void **unused)
{
    (void)unused;
    begun();
    redis("HSET " HASH " until %lld", clock_ms() + 5000);
    redis("HSET " ACKS " p1 5");
    good(cutover_begin, CUTOVER_OLD);
    assert_int_equal(number(asked.state, "epoch"), 5);
    assert_string_equal(text("from"), "blue");
    assert_true(strtoll(field("until"), NULL, 10) > clock_ms() + 5000);
    assert_string_equal(redis("HGET " ACKS " p1"), "5"); /* who has let go need not say so again */
    expect_no_event();
}

static void test_begin_of_a_user_without_a_hash(void **unused)
{
    (void)unused;
    refused(cutover_begin, MOVE, "green", CUTOVER_OLD, "no source of routes knows this user");
    ask(cutover_begin, MOVE, "green");
    cutover_cancel(&asked.request);
    asked.request.from = "blue";
    asked.request.backend_user = "ann";
    cutover_begin(bench.cutovers, &asked.request);
    wait_answer();
    assert_string_equal(asked.err.text, "");
    expect_route("blue", "moving", "1");
    assert_string_equal(field("backend_user"), "ann");
}

/* What Redis says of the user counts more than what was asked elsewhere before. */
static void test_begin_knows_better(void **unused)
{
    (void)unused;
    redis("HSET " HASH " shard blue");
    ask(cutover_begin, MOVE, "green");
    cutover_cancel(&asked.request);
    asked.request.from = "red";
    asked.request.backend_user = "ann";
    cutover_begin(bench.cutovers, &asked.request);
    wait_answer();
    assert_string_equal(text("from"), "blue");
    expect_route("blue", "moving", "1");
    assert_string_equal(field("backend_user"), "nil");
}

static void test_begin_refused(void **unused)
{
    (void)unused;
    redis("HSET " HASH " shard green");
    refused(cutover_begin, MOVE, "green", CUTOVER_OLD, "at shard green already");
    redis("HSET " HASH " shard blue state disabled");
    refused(cutover_begin, MOVE, "green", CUTOVER_OLD, "the route is disabled");
    redis("HSET " HASH " state active");
    redis("HSET t:shard:{green} state down");
    refused(cutover_begin, MOVE, "green", CUTOVER_OLD, "shard green was taken down");
    redis("HSET t:shard:{green} state drain");
    good(cutover_begin, CUTOVER_OLD);
    refused(cutover_begin, OTHER, "green", CUTOVER_OLD, "being moved to green, by move " MOVE);
    refused(cutover_begin, MOVE, "red", CUTOVER_OLD, "being moved to green, by move " MOVE);
    redis("HSET " HASH " state committed");
    refused(cutover_begin, OTHER, "red", CUTOVER_BETWEEN, "being moved to green, by move " MOVE);
}

/* --- look --- */

static void test_look(void **unused)
{
    (void)unused;
    refused(cutover_look, MOVE, NULL, CUTOVER_OLD,
            "no such move is under way: there is no route in Redis");
    begun();
    redis("HSET " HASH " until %lld", clock_ms() + 5000);
    redis("HSET t:proxies p1 " RECORD, clock_ms() - 3000);
    redis("HSET t:proxies p2 rubbish");
    redis("HSET t:proxies p3 [1]");
    redis("HSET t:proxies p4 {}");
    redis("HSET " ACKS " p3 5 p4 4 p9 5"); /* p4's is of another move, p9 has gone since */
    good(cutover_look, CUTOVER_OLD);
    assert_int_equal(number(asked.state, "acked"), 1);
    assert_int_equal(number(asked.state, "lacking"), 3);
    assert_true(strtoll(field("until"), NULL, 10) > clock_ms() + 5000);

    const json_t *missing = json_object_get(asked.state, "missing");
    unsigned seen = 0;

    for (size_t i = 0; i < json_array_size(missing); i++) {
        const json_t *one = json_array_get(missing, i);
        const char *id = json_string_value(json_object_get(one, "id"));

        seen |= 1u << (id[1] - '0');
        if (strcmp(id, "p1") != 0)
            continue;
        assert_string_equal(json_string_value(json_object_get(one, "host")), "mx");
        assert_int_equal(number(one, "pid"), 7);
        assert_in_range(number(one, "seen_seconds"), 3, 30);
        assert_in_range(number(one, "until_seconds"), 30, 57);
    }
    assert_int_equal(seen, 1u << 1 | 1u << 2 | 1u << 4);
    refused(cutover_look, OTHER, NULL, CUTOVER_OLD, "being moved to green, by move " MOVE);
}

static void test_many_proxies(void **unused)
{
    (void)unused;
    begun();
    for (int i = 0; i < 500; i++)
        redis("HSET t:proxies %016d " RECORD, i, clock_ms());
    good(cutover_look, CUTOVER_OLD);
    assert_int_equal(number(asked.state, "lacking"), 500);
    assert_int_equal(json_array_size(json_object_get(asked.state, "missing")), 20);
}

/* --- commit --- */

static void test_commit(void **unused)
{
    (void)unused;
    begun();
    redis("HSET t:proxies p1 {} p2 {}");
    redis("HSET " ACKS " p1 5 p2 5");
    good(cutover_commit, CUTOVER_NEW);
    expect_event("{\"event\":\"route\",\"user\":\"" USER "\",\"epoch\":6,\"state\":\"active\"}");
    expect_route("green", "active", "6");
    expect_over();
    assert_string_equal(redis("HMGET " HASH " moved_by moved_from"), MOVE ",blue");
    assert_string_equal(text("state"), "active");
    assert_string_equal(text("shard"), "green");
    /* Whoever has lost an answer, of whatever step, hears that all is done. */
    good(cutover_commit, CUTOVER_NEW);
    good(cutover_begin, CUTOVER_NEW);
    assert_string_equal(text("from"), "blue");
    good(cutover_look, CUTOVER_NEW);
    refused(cutover_abort, MOVE, NULL, CUTOVER_NEW, "the move is done");
    refused(cutover_begin, OTHER, "green", CUTOVER_OLD, "at shard green already");
    refused(cutover_commit, OTHER, NULL, CUTOVER_OLD,
            "no such move is under way: active at shard green");
    expect_route("green", "active", "6");
    expect_no_event();
}

static void test_commit_wants_every_proxy(void **unused)
{
    (void)unused;
    begun();
    redis("HSET t:proxies p1 {}");
    refused(cutover_commit, MOVE, NULL, CUTOVER_OLD, "1 proxy has not let go of the user yet: p1");
    redis("HSET " ACKS " p1 4");
    refused(cutover_commit, MOVE, NULL, CUTOVER_OLD, "1 proxy has not let go of the user yet: p1");
    redis("HSET " ACKS " p1 5");
    for (int i = 2; i < 7; i++)
        redis("HSET t:proxies p%d {}", i);
    ask(cutover_commit, MOVE, NULL);
    wait_answer();
    assert_int_equal(asked.err.kind, ERR_PEER);
    assert_ptr_equal(strstr(asked.err.text, "5 proxies have not let go of the user yet: p"),
                     asked.err.text);
    assert_non_null(strstr(asked.err.text, ", ..."));
    expect_route("blue", "moving", "5");
    redis("DEL t:proxies");
    good(cutover_commit, CUTOVER_NEW);
}

static void test_commit_comes_too_late(void **unused)
{
    (void)unused;
    begun();
    pass_time();
    refused(cutover_commit, MOVE, NULL, CUTOVER_OLD,
            "no such move is under way: active at shard blue");
    expect_event("{\"event\":\"route\",\"user\":\"" USER "\",\"epoch\":6,\"state\":\"active\"}");
    expect_route("blue", "active", "6");
    expect_over();
}

static void test_commit_of_another_move(void **unused)
{
    (void)unused;
    begun();
    refused(cutover_commit, OTHER, NULL, CUTOVER_OLD, "being moved to green, by move " MOVE);
    expect_route("blue", "moving", "5");
}

/*
 * The process that has committed is no more: whoever comes next goes on, whatever acks there are.
 */
static void test_commit_goes_on(void **unused)
{
    (void)unused;
    begun();
    redis("HSET t:proxies p1 {}");
    redis("HSET " HASH " state committed");
    refused(cutover_abort, MOVE, NULL, CUTOVER_BETWEEN, "committed already");
    good(cutover_look, CUTOVER_BETWEEN);
    good(cutover_begin, CUTOVER_BETWEEN);
    assert_string_equal(text("state"), "committed");
    good(cutover_commit, CUTOVER_NEW);
    expect_route("green", "active", "6");
}

static void test_what_is_committed_only_goes_forward(void **unused)
{
    (void)unused;
    begun();
    redis("HSET " HASH " state committed");
    pass_time();
    refused(cutover_abort, MOVE, NULL, CUTOVER_NEW, "the move is done");
    expect_event("{\"event\":\"route\",\"user\":\"" USER "\",\"epoch\":6,\"state\":\"active\"}");
    expect_route("green", "active", "6");
    expect_over();
    good(cutover_commit, CUTOVER_NEW);
}

/* --- abort --- */

static void test_abort(void **unused)
{
    (void)unused;
    begun();
    refused(cutover_abort, OTHER, NULL, CUTOVER_OLD, "being moved to green, by move " MOVE);
    for (int i = 0; i < 2; i++) {
        good(cutover_abort, CUTOVER_OLD);
        assert_string_equal(text("shard"), "blue");
        expect_route("blue", "active", "6");
        expect_over();
    }
    expect_event("{\"event\":\"route\",\"user\":\"" USER "\",\"epoch\":6,\"state\":\"active\"}");
    expect_no_event();
    refused(cutover_commit, MOVE, NULL, CUTOVER_OLD,
            "no such move is under way: active at shard blue");
    refused(cutover_begin, MOVE, "green", CUTOVER_OLD, "the move was aborted");
    ask(cutover_begin, OTHER, "green");
    wait_answer();
    assert_string_equal(asked.err.text, "");
    assert_int_equal(number(asked.state, "epoch"), 7);
}

/* Time is up: another move need not wait until somebody says so. */
static void test_begin_after_a_move_that_was_forgotten(void **unused)
{
    (void)unused;
    begun();
    pass_time();
    ask(cutover_begin, OTHER, "red");
    wait_answer();
    assert_int_equal(asked.err.kind, ERR_NONE);
    expect_event("{\"event\":\"route\",\"user\":\"" USER "\",\"epoch\":6,\"state\":\"active\"}");
    expect_event("{\"event\":\"route\",\"user\":\"" USER "\",\"epoch\":7,\"state\":\"moving\"}");
    refused(cutover_look, MOVE, NULL, CUTOVER_OLD, "being moved to red, by move " OTHER);
}

static void test_a_hash_that_makes_no_sense(void **unused)
{
    (void)unused;
    redis("HSET " HASH " shard blue epoch many");
    ask(cutover_begin, MOVE, "green");
    wait_answer();
    assert_int_equal(asked.err.kind, ERR_UNAVAILABLE);
    assert_int_equal(asked.place, CUTOVER_UNKNOWN);
    redis("SET " HASH " blue");
    ask(cutover_look, MOVE, NULL);
    wait_answer();
    assert_int_equal(asked.err.kind, ERR_UNAVAILABLE);
    redis("DEL " HASH);
    redis("HSET " HASH " shard %b", "\xff", (size_t)1);
    ask(cutover_abort, MOVE, NULL);
    wait_answer();
    assert_int_equal(asked.err.kind, ERR_UNAVAILABLE);
}

/* --- Redis and its replicas --- */

static void test_the_replica_must_have_it(void **unused)
{
    (void)unused;
    start_replica();
    wait_for_replica();
    bench.conf.redis.replicas = 1;
    begun();
    good(cutover_commit, CUTOVER_NEW);

    redisContext *other = redisConnect("127.0.0.1", replica.port);
    redisReply *reply = redisCommand(other, "HGET " HASH " shard");

    assert_string_equal(reply->str, "green");
    freeReplyObject(reply);
    redisFree(other);
    stop_replica();
}

static void lacks_replica(step_fn *step, enum cutover_place place)
{
    ask(step, MOVE, "green");
    wait_answer();
    assert_int_equal(asked.err.kind, ERR_UNAVAILABLE);
    assert_string_equal(asked.err.text, "redis: 0 replicas have it, and 1 must");
    assert_int_equal(asked.place, place);
}

/* Each step is repeated when the replica is there, and counts only then. */
static void test_without_the_replica(void **unused)
{
    (void)unused;
    bench.conf.redis.replicas = 1;
    bench.conf.redis.timeout = 400;
    redis("HSET " HASH " shard blue epoch 4");
    lacks_replica(cutover_begin, CUTOVER_OLD);
    lacks_replica(cutover_begin, CUTOVER_OLD);
    good(cutover_look, CUTOVER_OLD); /* nothing relies on it */
    lacks_replica(cutover_commit, CUTOVER_BETWEEN);
    expect_route("blue", "committed", "5");
    lacks_replica(cutover_commit, CUTOVER_BETWEEN);
    redis("HSET " HASH " state active shard green moved_by " MOVE);
    redis("HDEL " HASH " move target until");
    lacks_replica(cutover_commit, CUTOVER_NEW);
    start_replica();
    wait_for_replica();
    bench.conf.redis.timeout = 5000;
    good(cutover_commit, CUTOVER_NEW);
    stop_replica();
}

/* She goes back only once replicas know it: a successor of this Redis might still commit. */
static void test_abort_without_the_replica(void **unused)
{
    (void)unused;
    redis("HSET " HASH " shard blue epoch 4");
    good(cutover_begin, CUTOVER_OLD);
    bench.conf.redis.replicas = 1;
    bench.conf.redis.timeout = 400;
    lacks_replica(cutover_abort, CUTOVER_OLD);
    expect_route("blue", "moving", "5");
    refused(cutover_commit, MOVE, NULL, CUTOVER_OLD, "the move is over: it is going back");
    pass_time();
    refused(cutover_look, MOVE, NULL, CUTOVER_OLD, "the move is over: it is going back");
    expect_route("blue", "moving", "5");
    start_replica();
    wait_for_replica();
    bench.conf.redis.timeout = 5000;
    good(cutover_abort, CUTOVER_OLD);
    expect_route("blue", "active", "6");
    assert_string_equal(field("over"), "nil");
    stop_replica();
}

/* A replica that is connected, but frozen, has what was written before only. */
static void test_what_is_done_already_is_waited_for_too(void **unused)
{
    int status;

    (void)unused;
    start_replica();
    wait_for_replica();
    bench.conf.redis.replicas = 1;
    begun();
    good(cutover_commit, CUTOVER_NEW);
    assert_int_equal(kill(replica.pid, SIGSTOP), 0);
    assert_int_equal(waitpid(replica.pid, &status, WUNTRACED), replica.pid);
    bench.conf.redis.timeout = 400;
    lacks_replica(cutover_commit, CUTOVER_NEW);
    stop_replica();
}

/* WAIT over another connection would tell of nothing that was written. */
static void test_the_connection_is_lost_while_waiting(void **unused)
{
    (void)unused;
    bench.conf.redis.replicas = 1;
    redis("HSET " HASH " shard blue epoch 4");
    ask(cutover_begin, MOVE, "green");
    while (strstr(redis("CLIENT LIST"), "cmd=wait") == NULL)
        uv_run(&bench.loop, UV_RUN_NOWAIT);
    start_replica();
    redis("CLIENT KILL TYPE normal SKIPME yes");
    wait_answer();
    assert_int_equal(asked.err.kind, ERR_UNAVAILABLE);
    assert_int_equal(asked.place, CUTOVER_OLD);
    wait_for_replica();
    good(cutover_begin, CUTOVER_OLD);
    assert_int_equal(number(asked.state, "epoch"), 5);
    stop_replica();
}

static void test_redis_is_down(void **unused)
{
    step_fn *const steps[] = {cutover_begin, cutover_look, cutover_commit, cutover_abort};

    (void)unused;
    begun();
    server_kill();
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        ask(steps[i], MOVE, "green");
        wait_answer();
        assert_int_equal(asked.err.kind, ERR_UNAVAILABLE);
        assert_int_equal(asked.place, CUTOVER_UNKNOWN);
    }
    redisFree(bench.redis);
    redisFree(bench.events);
    server_run();
    connect_all();
}

/* At whatever moment: no answer comes, and Redis may have it or not. */
static void test_cancel(void **unused)
{
    (void)unused;
    begun();
    for (int turns = 0; turns < 12; turns++) {
        redis("HSET " HASH " state committed move " MOVE " target green until %lld",
              clock_ms() + 10000);
        ask(cutover_commit, MOVE, NULL);
        for (int i = 0; i < turns; i++)
            uv_run(&bench.loop, UV_RUN_NOWAIT);

        bool answered = asked.answered;

        cutover_cancel(&asked.request);
        cutover_cancel(&asked.request);
        for (int i = 0; i < 12; i++)
            uv_run(&bench.loop, UV_RUN_NOWAIT);
        assert_int_equal(asked.answered, answered);
    }
    good(cutover_look, strcmp(field("state"), "active") == 0 ? CUTOVER_NEW : CUTOVER_BETWEEN);
}

static void test_ids(void **unused)
{
    char one[CUTOVER_MOVE_TEXT + 1], other[CUTOVER_MOVE_TEXT + 1];

    (void)unused;
    assert_true(cutover_new_move(one) && cutover_new_move(other));
    assert_true(cutover_is_move(one) && cutover_is_move(other));
    assert_string_not_equal(one, other);
    assert_false(cutover_is_move(""));
    assert_false(cutover_is_move("0123456789abcde"));
    assert_false(cutover_is_move("0123456789abcdef0"));
    assert_false(cutover_is_move("0123456789ABCDEF"));
}

static int start(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    server_start(NULL);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    stop_replica();
    server_stop();
    return 0;
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_begin),
        CASE(test_begin_again),
        CASE(test_begin_of_a_user_without_a_hash),
        CASE(test_begin_knows_better),
        CASE(test_begin_refused),
        CASE(test_look),
        CASE(test_many_proxies),
        CASE(test_commit),
        CASE(test_commit_wants_every_proxy),
        CASE(test_commit_comes_too_late),
        CASE(test_commit_of_another_move),
        CASE(test_commit_goes_on),
        CASE(test_what_is_committed_only_goes_forward),
        CASE(test_abort),
        CASE(test_begin_after_a_move_that_was_forgotten),
        CASE(test_a_hash_that_makes_no_sense),
        CASE(test_the_replica_must_have_it),
        CASE(test_without_the_replica),
        CASE(test_abort_without_the_replica),
        CASE(test_what_is_done_already_is_waited_for_too),
        CASE(test_the_connection_is_lost_while_waiting),
        CASE(test_redis_is_down),
        CASE(test_cancel),
        CASE(test_ids),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
