/*
 * Which server the link and the events go to when Sentinels tell: real ones, with a master that is
 * killed or frozen, and scripted ones that are dead, hang, or lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/net/redis_events.h"
#include "proxy/net/redis_link.h"
#include "tests/unit/redis_peer.h"
#include "tests/unit/redis_sentinels.h"

enum { ADDRESSES_MAX = 8 };

struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    struct conf conf;
    char addresses[ADDRESSES_MAX][32];
    char *sentinels[ADDRESSES_MAX];
    struct env env;
};

static void bench_init(struct bench *b)
{
    memset(b, 0, sizeof *b);
    assert_int_equal(uv_loop_init(&b->loop), 0);
    turn_init(&b->turn, &b->loop);
    b->conf.redis.address = (char *)"127.0.0.1:1"; /* not used */
    b->conf.redis.user = b->conf.redis.sentinel_user = (char *)"";
    b->conf.redis.sentinels.items = b->sentinels;
    b->conf.redis.sentinel_master = (char *)MASTER_NAME;
    b->conf.redis.connect_timeout = 1000;
    b->conf.redis.timeout = 1000;
    b->conf.redis.retry_max = 60000; /* not waited for while a Sentinel answers */
    b->env = (struct env){
        .loop = &b->loop, .turn = &b->turn, .conf = &b->conf, .counters = &b->counters};
}

static void add_sentinel(struct bench *b, int port)
{
    size_t index = b->conf.redis.sentinels.count++;

    assert_true(index < ADDRESSES_MAX);
    snprintf(b->addresses[index], sizeof b->addresses[index], "127.0.0.1:%d", port);
    b->sentinels[index] = b->addresses[index];
}

static void bench_open(struct bench *b)
{
    struct err err = {0};

    b->env.redis = redis_link_open(&b->env, &err);
    assert_non_null(b->env.redis);
}

static void bench_release(struct bench *b)
{
    redis_link_close(&b->env.redis);
    turn_release(&b->turn);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
}

/* One command or call. */
struct asked {
    unsigned answers;
    bool ok;
    long long number;
    char text[200];
};

static void on_answer(void *owner, const redisReply *reply, const struct err *err)
{
    struct asked *asked = owner;

    asked->answers++;
    asked->ok = reply != NULL && reply->type != REDIS_REPLY_ERROR;
    asked->number = reply != NULL ? reply->integer : 0;
    snprintf(asked->text, sizeof asked->text, "%s",
             reply == NULL        ? err->text
             : reply->str != NULL ? reply->str
                                  : "");
}

static struct redis_script count_script;

static bool call(struct bench *b, struct asked *asked)
{
    const struct span arguments[] = {span_of("t:count")};
    struct err err = {0};

    uv_update_time(&b->loop); /* the test itself may have waited */
    memset(asked, 0, sizeof *asked);
    if (redis_link_call(b->env.redis, &count_script, arguments, 1, 1, on_answer, asked, &err))
        return true;
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    snprintf(asked->text, sizeof asked->text, "%s", err.text);
    return false;
}

static bool send_words(struct bench *b, struct asked *asked, const char *verb, const char *key)
{
    const char *argv[] = {verb, key};
    const size_t argv_len[] = {strlen(verb), strlen(key)};
    struct err err = {0};

    uv_update_time(&b->loop);
    memset(asked, 0, sizeof *asked);
    if (redis_link_send(b->env.redis, 2, argv, argv_len, on_answer, asked, &err) != NULL)
        return true;
    snprintf(asked->text, sizeof asked->text, "%s", err.text);
    return false;
}

static void wait_answer(struct bench *b, struct asked *asked)
{
    while (asked->answers == 0)
        uv_run(&b->loop, UV_RUN_ONCE);
    assert_int_equal(asked->answers, 1);
}

static bool call_and_wait(struct bench *b, struct asked *asked)
{
    if (!call(b, asked))
        return false;
    wait_answer(b, asked);
    return asked->ok;
}

static bool get_and_wait(struct bench *b, struct asked *asked)
{
    if (!send_words(b, asked, "GET", "t:who"))
        return false;
    wait_answer(b, asked);
    return asked->ok;
}

/* Calls until one succeeds; returns how many were tried in vain. */
static unsigned call_until_good(struct bench *b, struct asked *asked)
{
    uint64_t end = uv_hrtime() + 30000000000u;
    unsigned in_vain = 0;

    while (!call_and_wait(b, asked)) {
        in_vain++;
        assert_true(uv_hrtime() < end);
        uv_run(&b->loop, UV_RUN_ONCE);
    }
    return in_vain;
}

static uint64_t count_of(_Atomic uint64_t *counter)
{
    return atomic_load(counter);
}

static void group_bench_init(struct bench *b, const struct group *group)
{
    bench_init(b);
    for (size_t i = 0; i < SENTINELS; i++)
        add_sentinel(b, group->sentinels[i].port);
}

/* With real ones. */

static void the_master_is_found(void **state)
{
    struct group *group = *state;
    struct bench b;
    struct asked asked;

    group_start(group);
    group_bench_init(&b, group);
    bench_open(&b);
    assert_true(call_and_wait(&b, &asked));
    assert_int_equal(asked.number, 1);
    assert_true(node_says(&group->servers[0], "GET t:count", "1"));
    assert_int_equal(redis_link_connection(b.env.redis), 1);
    assert_int_equal(count_of(&b.counters.redis_switches), 0);
    bench_release(&b);
    group_stop(group);
}

static void another_name_is_not_known(void **state)
{
    struct group *group = *state;
    struct bench b;
    struct asked asked;

    group_start(group);
    group_bench_init(&b, group);
    b.conf.redis.sentinel_master = (char *)"another";
    bench_open(&b);
    assert_false(call_and_wait(&b, &asked));
    assert_non_null(strstr(asked.text, "SENTINEL: it does not know the master"));
    bench_release(&b);
    group_stop(group);
}

static void note_up(void *owner)
{
    ++*(unsigned *)owner;
}

static void note_message(void *owner, const char *channel, struct span message)
{
    (void)channel;
    (void)message;
    *(unsigned *)owner += 100;
}

static void note_down(void *owner)
{
    *(unsigned *)owner += 10;
}

/* Commands and calls all the time, while the master is killed: each is answered once. */
static void a_killed_master_is_followed(void **state)
{
    static const struct redis_events_handlers handlers = {note_up, note_message, note_down};
    static const char *const channels[] = {"t:events"};
    struct group *group = *state;
    struct redis_events *events;
    struct asked asked, got[50], called[50];
    unsigned noted = 0, sent = 0;
    struct err err;
    struct bench b;
    redisReply *reply;

    group_start(group);
    group_bench_init(&b, group);
    bench_open(&b);
    events = redis_events_open(&b.env, channels, 1, &handlers, &noted, &err);
    while (noted != 1)
        uv_run(&b.loop, UV_RUN_ONCE);
    reply = node_ask(&group->servers[0], "SET t:who me");
    freeReplyObject(reply);
    assert_true(call_and_wait(&b, &asked));
    node_wait(&group->servers[1], "GET t:count", "1");
    for (size_t i = 0; i < 50; i++) {
        if (i == 25)
            node_kill(&group->servers[0]);
        assert_true(send_words(&b, &got[i], "GET", "t:who") && call(&b, &called[i]));
        sent++;
    }
    for (size_t i = 0; i < 50; i++) {
        wait_answer(&b, &got[i]);
        wait_answer(&b, &called[i]);
    }
    print_message("in vain: %u\n", call_until_good(&b, &asked));
    assert_true(node_says(&group->servers[1], "ROLE", "master"));
    assert_int_equal(asked.number, 2); /* what came while the master died is not done again */
    assert_true(get_and_wait(&b, &asked));
    assert_string_equal(asked.text, "me");
    assert_int_equal(count_of(&b.counters.redis_switches) >= 1, 1);
    while (noted != 12)
        uv_run(&b.loop, UV_RUN_ONCE);
    freeReplyObject(node_ask(&group->servers[1], "PUBLISH t:events hello"));
    while (noted != 112)
        uv_run(&b.loop, UV_RUN_ONCE);
    redis_events_close(&events);
    bench_release(&b);
    group_stop(group);
}

static void a_frozen_master_is_left(void **state)
{
    struct group *group = *state;
    struct asked asked;
    struct bench b;

    group_start(group);
    group_bench_init(&b, group);
    b.conf.redis.timeout = 200;
    bench_open(&b);
    assert_true(call_and_wait(&b, &asked));
    node_wait(&group->servers[1], "GET t:count", "1");
    node_freeze(&group->servers[0]);
    assert_false(call_and_wait(&b, &asked));
    assert_non_null(strstr(asked.text, "no reply within 200 ms"));
    print_message("in vain: %u\n", call_until_good(&b, &asked));
    assert_true(node_says(&group->servers[1], "ROLE", "master"));
    node_thaw(&group->servers[0]);
    node_wait(&group->servers[0], "ROLE", "slave");
    assert_int_equal(call_until_good(&b, &asked), 0);
    assert_int_equal(count_of(&b.counters.redis_switches), 1);
    bench_release(&b);
    group_stop(group);
}

/* By the operator: nobody has died, and the old master goes on answering. */
static void a_planned_change_is_followed(void **state)
{
    struct group *group = *state;
    struct asked asked;
    struct bench b;

    group_start(group);
    group_bench_init(&b, group);
    bench_open(&b);
    assert_true(call_and_wait(&b, &asked));
    node_wait(&group->sentinels[1], "SENTINEL FAILOVER " MASTER_NAME, "OK");
    while (count_of(&b.counters.redis_switches) == 0) {
        call_and_wait(&b, &asked);
        uv_run(&b.loop, UV_RUN_ONCE);
    }
    call_until_good(&b, &asked);
    assert_true(node_says(&group->servers[1], "ROLE", "master"));
    bench_release(&b);
    group_stop(group);
}

static void dead_and_frozen_sentinels_are_passed_over(void **state)
{
    struct group *group = *state;
    struct asked asked;
    struct bench b;

    group_start(group);
    group_bench_init(&b, group);
    b.conf.redis.connect_timeout = 300;
    node_kill(&group->sentinels[0]);
    node_freeze(&group->sentinels[1]);
    bench_open(&b);
    assert_true(call_and_wait(&b, &asked));
    assert_int_equal(asked.number, 1);
    bench_release(&b);
    node_freeze(&group->sentinels[2]);
    group_bench_init(&b, group);
    b.conf.redis.connect_timeout = 300;
    bench_open(&b);
    assert_false(call_and_wait(&b, &asked));
    node_thaw(&group->sentinels[2]);
    call_until_good(&b, &asked);
    bench_release(&b);
    group_stop(group);
}

static void closed_in_any_turn(void **state)
{
    struct group *group = *state;
    struct asked asked[3];

    group_start(group);
    for (int turns = 0; turns < 30; turns++) {
        struct bench b;

        group_bench_init(&b, group);
        bench_open(&b);
        for (size_t i = 0; i < 3; i++)
            call(&b, &asked[i]);
        for (int i = 0; i < turns; i++)
            uv_run(&b.loop, UV_RUN_NOWAIT);
        for (size_t i = 0; i < 3; i++)
            asked[i].answers = 0;
        bench_release(&b);
        for (size_t i = 0; i < 3; i++)
            assert_int_equal(asked[i].answers, 0);
    }
    group_stop(group);
}

/* With scripted ones. */

static void name_server(char out[80], int port)
{
    char digits[12];

    snprintf(digits, sizeof digits, "%d", port);
    snprintf(out, 80, "*2\r\n$9\r\n127.0.0.1\r\n$%zu\r\n%s\r\n", strlen(digits), digits);
}

/* The server is no master any more, but goes on answering: its refusals tell. */
static void a_refused_call_is_done_once_by_the_new_master(void **state)
{
    char named[80];
    struct peer_answer answers[] = {{"get-master-addr-by-name", named}, {NULL, NULL}};
    struct node servers[2];
    struct peer_server sentinel;
    struct asked asked[10];
    struct bench b;

    (void)state;
    node_start(&servers[0], 0, false);
    node_start(&servers[1], 0, false);
    bench_init(&b);
    peer_server_open(&sentinel, &b.loop, answers);
    add_sentinel(&b, sentinel.port);
    name_server(named, servers[0].port);
    bench_open(&b);
    assert_true(call_and_wait(&b, &asked[0]));
    freeReplyObject(node_ask(&servers[0], "REPLICAOF 127.0.0.1 1"));
    freeReplyObject(node_ask(&servers[0], "SCRIPT FLUSH")); /* so both have to be taught it */
    name_server(named, servers[1].port);
    assert_true(get_and_wait(&b, &asked[0])); /* a replica may be read */
    assert_true(call_and_wait(&b, &asked[0]));
    assert_int_equal(asked[0].number, 1);
    assert_true(call_and_wait(&b, &asked[0]));
    assert_int_equal(asked[0].number, 2);
    freeReplyObject(node_ask(&servers[1], "REPLICAOF 127.0.0.1 1"));
    freeReplyObject(node_ask(&servers[0], "REPLICAOF NO ONE"));
    name_server(named, servers[0].port);
    /* Many at once: those behind the first may have been done, for all we know. */
    for (size_t i = 0; i < 10; i++)
        assert_true(call(&b, &asked[i]));
    for (size_t i = 0; i < 10; i++)
        wait_answer(&b, &asked[i]);
    assert_true(asked[0].ok);
    assert_int_equal(asked[0].number, 2);
    assert_true(call_and_wait(&b, &asked[0]));
    assert_int_equal(asked[0].number, 3);
    redis_link_close(&b.env.redis);
    peer_server_close(&sentinel);
    bench_release(&b);
    node_stop(&servers[0]);
    node_stop(&servers[1]);
}

static void a_server_that_is_not_ready_is_tried_once_more(void **state)
{
    static const char *const refusals[] = {"-LOADING Redis is loading the dataset in memory\r\n",
                                           "-MASTERDOWN Link with MASTER is down\r\n",
                                           "-READONLY You can't write against a replica\r\n",
                                           "-ERR Error running script (call to f_12): "
                                           "@user_script:1: @user_script: 1: -READONLY You can't "
                                           "write against a read only replica.\r\n"};
    struct peer_answer answers[] = {
        {"SELECT", "+OK\r\n"}, {"GET", NULL}, {"EVALSHA", NULL}, {NULL, NULL}};

    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        struct peer_server server_of_two_minds;
        struct asked asked;
        struct bench b;

        bench_init(&b);
        answers[1].reply = answers[2].reply = refusals[i];
        peer_server_open(&server_of_two_minds, &b.loop, answers);
        snprintf(b.addresses[0], sizeof b.addresses[0], "127.0.0.1:%d", server_of_two_minds.port);
        b.conf.redis.address = b.addresses[0];
        b.conf.redis.retry_max = 200;
        bench_open(&b);
        assert_false(i == 0 ? get_and_wait(&b, &asked) : call_and_wait(&b, &asked));
        assert_non_null(strstr(asked.text, "redis: "));
        assert_int_equal(server_of_two_minds.connections, 2);
        while (redis_link_connection(b.env.redis) != 3)
            uv_run(&b.loop, UV_RUN_ONCE);
        answers[1].reply = answers[2].reply = "+fine\r\n";
        assert_true(get_and_wait(&b, &asked) && call_and_wait(&b, &asked));
        assert_int_equal(server_of_two_minds.connections, 3);
        redis_link_close(&b.env.redis);
        peer_server_close(&server_of_two_minds);
        bench_release(&b);
    }
}

static void liars_are_passed_over(void **state)
{
    char replica[80], dead[80], honest[80];
    const char *lies[] = {"*-1\r\n",
                          "$-1\r\n",
                          "+OK\r\n",
                          ":1\r\n",
                          "-ERR no\r\n",
                          "-NOAUTH Authentication required.\r\n",
                          "*0\r\n",
                          "*2\r\n$-1\r\n$-1\r\n",
                          "*2\r\n:1\r\n:2\r\n",
                          "*2\r\n$0\r\n\r\n$4\r\n6379\r\n",
                          "*2\r\n$9\r\n127.0.0.1\r\n$1\r\n0\r\n",
                          "*2\r\n$9\r\n127.0.0.1\r\n$5\r\n99999\r\n",
                          "*2\r\n$3\r\n1\0002\r\n$4\r\n6379\r\n",
                          "*2\r\n$9\r\nx.invalid\r\n$4\r\n6379\r\n",
                          "*3\r\n$9\r\n127.0.0.1\r\n$1\r\n1\r\n$1\r\n1\r\n",
                          "HTTP/1.1 400\r\n",
                          NULL,
                          replica,
                          dead};
    struct node master, other;

    (void)state;
    node_start(&master, 0, false);
    node_start(&other, master.port, false);
    name_server(honest, master.port);
    name_server(replica, other.port);
    name_server(dead, 1);
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct peer_answer lying[] = {{"get-master-addr-by-name", lies[i]}, {NULL, NULL}};
        struct peer_answer good[] = {{"get-master-addr-by-name", honest}, {NULL, NULL}};
        struct peer_server liar, sentinel;
        struct asked asked;
        struct bench b;

        bench_init(&b);
        peer_server_open(&liar, &b.loop, lying);
        peer_server_open(&sentinel, &b.loop, good);
        add_sentinel(&b, liar.port);
        add_sentinel(&b, sentinel.port);
        bench_open(&b);
        assert_true(get_and_wait(&b, &asked));
        assert_int_equal(liar.asked, 1);
        /* The one that answered last is asked first. */
        freeReplyObject(node_ask(&master, "CLIENT KILL TYPE normal"));
        while (redis_link_connection(b.env.redis) != 2)
            uv_run(&b.loop, UV_RUN_ONCE);
        assert_int_equal(sentinel.asked, 2);
        assert_int_equal(liar.asked, 1);
        redis_link_close(&b.env.redis);
        peer_server_close(&liar);
        peer_server_close(&sentinel);
        bench_release(&b);
    }
    node_stop(&other);
    node_stop(&master);
}

/* All of them name one that is dead: it is tried once in an attempt, and soon again. */
static void a_dead_master_is_tried_once_in_an_attempt(void **state)
{
    struct peer_answer refusing[] = {{"SELECT", NULL}, {NULL, NULL}};
    char named[80];
    struct peer_answer answers[] = {{"get-master-addr-by-name", named}, {NULL, NULL}};
    struct peer_server sentinels[3], dead;
    struct asked asked;
    struct bench b;
    uint64_t end;

    (void)state;
    bench_init(&b);
    peer_server_open(&dead, &b.loop, refusing);
    name_server(named, dead.port);
    for (size_t i = 0; i < 3; i++) {
        peer_server_open(&sentinels[i], &b.loop, answers);
        add_sentinel(&b, sentinels[i].port);
    }
    bench_open(&b);
    assert_false(get_and_wait(&b, &asked));
    assert_int_equal(dead.connections, 1);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(sentinels[i].asked, 1);
    end = uv_hrtime() + 30000000000u;
    while (dead.connections < 14) { /* would take minutes if the pause grew */
        assert_true(uv_hrtime() < end);
        uv_run(&b.loop, UV_RUN_ONCE);
    }
    redis_link_close(&b.env.redis);
    for (size_t i = 0; i < 3; i++)
        peer_server_close(&sentinels[i]);
    peer_server_close(&dead);
    bench_release(&b);
}

static void sentinels_have_a_password_of_their_own(void **state)
{
    static const char auth[] = "*3\r\n$4\r\nAUTH\r\n$3\r\nann\r\n$6\r\nsesame\r\n";
    char named[80];
    struct peer_answer answers[] = {{auth, "+OK\r\n"},
                                    {"get-master-addr-by-name\r\n$6\r\n" MASTER_NAME "\r\n", named},
                                    {NULL, NULL}};
    struct peer_server sentinel;
    struct node master;
    struct asked asked;
    struct bench b;

    (void)state;
    node_start(&master, 0, false);
    name_server(named, master.port);
    bench_init(&b);
    peer_server_open(&sentinel, &b.loop, answers);
    add_sentinel(&b, sentinel.port);
    b.conf.redis.sentinel_user = (char *)"ann";
    assert_true(secret_set(&b.conf.redis.sentinel_password, span_of("sesame")));
    bench_open(&b);
    assert_true(get_and_wait(&b, &asked));
    assert_int_equal(sentinel.asked, 2);
    redis_link_close(&b.env.redis);
    peer_server_close(&sentinel);
    bench_release(&b);
    secret_release(&b.conf.redis.sentinel_password);
    node_stop(&master);
}

static void bad_addresses_are_refused(void **state)
{
    struct bench b;
    struct err err = {0};

    (void)state;
    bench_init(&b);
    add_sentinel(&b, 26379);
    b.sentinels[1] = (char *)"unix:/run/sentinel";
    b.conf.redis.sentinels.count = 2;
    assert_null(redis_link_open(&b.env, &err));
    assert_int_equal(err.kind, ERR_CONFIG);
    assert_non_null(strstr(err.text, "unix:/run/sentinel"));
    bench_release(&b);
}

static int group_setup(void **state)
{
    static struct group group;

    *state = &group;
    return redis_script_init(&count_script, "return redis.call('INCR', KEYS[1])", NULL) ? 0 : 1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_master_is_found),
        cmocka_unit_test(another_name_is_not_known),
        cmocka_unit_test(a_killed_master_is_followed),
        cmocka_unit_test(a_frozen_master_is_left),
        cmocka_unit_test(a_planned_change_is_followed),
        cmocka_unit_test(dead_and_frozen_sentinels_are_passed_over),
        cmocka_unit_test(closed_in_any_turn),
        cmocka_unit_test(a_refused_call_is_done_once_by_the_new_master),
        cmocka_unit_test(a_server_that_is_not_ready_is_tried_once_more),
        cmocka_unit_test(liars_are_passed_over),
        cmocka_unit_test(a_dead_master_is_tried_once_in_an_attempt),
        cmocka_unit_test(sentinels_have_a_password_of_their_own),
        cmocka_unit_test(bad_addresses_are_refused),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_setup, NULL);
}
