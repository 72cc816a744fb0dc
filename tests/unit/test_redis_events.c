/*
 * The subscription against a real redis-server, and against a scripted one for what a real one will
 * not say.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/net/redis_events.h"
#include "tests/unit/redis_peer.h"
#include "tests/unit/redis_server.h"

static const char *const channels[] = {"t:events", "t:events:me"};

enum then { GO_ON, RESTART, CLOSE };

struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    struct conf conf;
    char address[128];
    struct env env;
    struct redis_events *events;
    unsigned ups, downs, messages;
    size_t octets;
    char channel[32], text[64]; /* of the last message */
    enum then on_message, on_up, on_down;
    bool calling; /* the events' interface */
};

static void then(struct bench *b, enum then what)
{
    assert_non_null(b->events);
    assert_false(b->calling);
    b->calling = true;
    if (what == RESTART)
        redis_events_restart(b->events, "the test wants it");
    else if (what == CLOSE)
        redis_events_close(&b->events);
    b->calling = false;
}

static void on_up(void *owner)
{
    struct bench *b = owner;

    assert_int_equal(b->ups, b->downs);
    b->ups++;
    then(b, b->on_up);
}

static void on_message(void *owner, const char *channel, struct span message)
{
    struct bench *b = owner;

    assert_int_equal(b->ups, b->downs + 1);
    b->messages++;
    b->octets += message.len;
    snprintf(b->channel, sizeof b->channel, "%s", channel);
    snprintf(b->text, sizeof b->text, "%.*s", message.len < 60 ? (int)message.len : 60,
             message.ptr);
    then(b, b->on_message);
}

static void on_down(void *owner)
{
    struct bench *b = owner;

    assert_int_equal(b->ups, b->downs + 1);
    b->downs++;
    then(b, b->on_down);
}

static const struct redis_events_handlers handlers = {on_up, on_message, on_down};

static void bench_init(struct bench *b)
{
    memset(b, 0, sizeof *b);
    assert_int_equal(uv_loop_init(&b->loop), 0);
    turn_init(&b->turn, &b->loop);
    snprintf(b->address, sizeof b->address, "127.0.0.1:%d", server.port);
    b->conf.redis.address = b->address;
    b->conf.redis.user = (char *)"";
    b->conf.redis.connect_timeout = 5000;
    b->conf.redis.timeout = 5000;
    b->conf.redis.retry_max = 400;
    b->env = (struct env){
        .loop = &b->loop, .turn = &b->turn, .conf = &b->conf, .counters = &b->counters};
}

static void bench_open(struct bench *b)
{
    struct err err = {0};

    b->events = redis_events_open(&b->env, channels, 2, &handlers, b, &err);
    assert_non_null(b->events);
    assert_int_equal(b->ups, 0);
}

static void bench_release(struct bench *b)
{
    redis_events_close(&b->events);
    turn_release(&b->turn);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
}

static void wait_until(struct bench *b, const unsigned *count, unsigned wanted)
{
    uint64_t end = uv_hrtime() + 20000000000u;

    while (*count < wanted) {
        assert_true(uv_hrtime() < end);
        uv_run(&b->loop, UV_RUN_ONCE);
    }
    assert_int_equal(*count, wanted);
}

static void messages_arrive(void **state)
{
    static char big[50 * 1024];
    struct bench b;

    (void)state;
    bench_init(&b);
    bench_open(&b);
    wait_until(&b, &b.ups, 1);
    admin("PUBLISH t:events %s", "hello");
    wait_until(&b, &b.messages, 1);
    assert_string_equal(b.channel, "t:events");
    assert_string_equal(b.text, "hello");
    admin("PUBLISH t:events:me %b", "", (size_t)0);
    wait_until(&b, &b.messages, 2);
    assert_string_equal(b.channel, "t:events:me");
    assert_int_equal(b.octets, 5);
    memset(big, 'x', sizeof big);
    for (int i = 0; i < 20; i++)
        admin("PUBLISH t:events:me %b", big, sizeof big);
    wait_until(&b, &b.messages, 22);
    assert_int_equal(b.octets, 5 + 20 * sizeof big);
    assert_int_equal(b.downs, 0);
    bench_release(&b);
}

static void a_lost_subscription_is_made_again(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b);
    bench_open(&b);
    wait_until(&b, &b.ups, 1);
    admin("CLIENT KILL TYPE pubsub");
    wait_until(&b, &b.ups, 2);
    assert_int_equal(b.downs, 1);
    server_kill();
    wait_until(&b, &b.downs, 2);
    for (int i = 0; i < 20; i++)
        uv_run(&b.loop, UV_RUN_ONCE);
    server_run();
    wait_until(&b, &b.ups, 3);
    admin("PUBLISH t:events %s", "hello");
    wait_until(&b, &b.messages, 1);
    bench_release(&b);
}

static void a_restart_makes_another_one(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b);
    bench_open(&b);
    redis_events_restart(b.events, "nothing there yet");
    wait_until(&b, &b.ups, 1);
    server_freeze();
    then(&b, RESTART);
    assert_int_equal(b.downs, 0);
    wait_until(&b, &b.downs, 1);
    then(&b, RESTART);
    kill(server.pid, SIGCONT);
    wait_until(&b, &b.ups, 2);
    b.on_message = RESTART;
    for (int i = 0; i < 3; i++)
        admin("PUBLISH t:events %s", "hello");
    wait_until(&b, &b.ups, 3);
    assert_int_equal(b.messages, 1);
    b.on_up = RESTART;
    then(&b, RESTART);
    wait_until(&b, &b.ups, 6);
    assert_true(atomic_load(&b.counters.redis_connects) >= 6);
    bench_release(&b);
}

static void closed_by_a_handler(void **state)
{
    (void)state;
    for (int which = 0; which < 3; which++) {
        struct bench b;

        bench_init(&b);
        b.on_up = which == 0 ? CLOSE : GO_ON;
        b.on_message = which == 1 ? CLOSE : GO_ON;
        b.on_down = which == 2 ? CLOSE : GO_ON;
        bench_open(&b);
        wait_until(&b, &b.ups, 1);
        for (int i = 0; which == 1 && i < 5; i++)
            admin("PUBLISH t:events %s", "hello");
        if (which == 2)
            admin("CLIENT KILL TYPE pubsub");
        while (b.events != NULL)
            uv_run(&b.loop, UV_RUN_ONCE);
        assert_int_equal(b.messages, which == 1);
        bench_release(&b);
    }
}

/* With messages on their way, and a down that is due. */
static void closed_in_any_turn(void **state)
{
    (void)state;
    for (int turns = 0; turns < 60; turns++) {
        struct bench b;

        bench_init(&b);
        bench_open(&b);
        for (int i = 0; i < turns / 3; i++) {
            uv_run(&b.loop, UV_RUN_NOWAIT);
            admin("PUBLISH t:events %s", "hello");
        }
        if (turns % 3 == 1)
            then(&b, RESTART);
        if (turns % 3 == 2)
            admin("CLIENT KILL TYPE pubsub");
        b.calling = true;
        redis_events_close(&b.events);
        bench_release(&b);
    }
}

static void channels_may_be_refused(void **state)
{
    struct bench b;

    (void)state;
    server_stop();
    server_start("x");
    admin("ACL SETUSER proxy on >pw resetchannels &t:events +subscribe +select");
    bench_init(&b);
    b.conf.redis.user = (char *)"proxy";
    assert_true(secret_set(&b.conf.redis.password, span_of("pw")));
    bench_open(&b);
    while (atomic_load(&b.counters.redis_connects) < 3) /* refused, again and again */
        uv_run(&b.loop, UV_RUN_ONCE);
    assert_int_equal(b.ups, 0);
    admin("ACL SETUSER proxy &t:events:*");
    wait_until(&b, &b.ups, 1);
    assert_int_equal(b.downs, 0);
    bench_release(&b);
    secret_release(&b.conf.redis.password);
    server_stop();
    server_start(NULL);
}

/* What a scripted server says. */

#define CONFIRMED(channel, n) "*3\r\n$9\r\nsubscribe\r\n" channel "\r\n:" n "\r\n"
#define FIRST                 CONFIRMED("$8\r\nt:events", "1")
#define BOTH                  FIRST CONFIRMED("$11\r\nt:events:me", "2")
#define MESSAGE               "*3\r\n$7\r\nmessage\r\n$8\r\nt:events\r\n$2\r\nhi\r\n"

static void odd_replies_end_the_subscription(void **state)
{
    static const char *const before[] = {
        "-NOPERM no\r\n",
        "+OK\r\n",
        ":1\r\n",
        "$-1\r\n",
        "*0\r\n",
        "*1\r\n$7\r\nmessage\r\n",
        "*3\r\n$-1\r\n$-1\r\n$-1\r\n",
        "*3\r\n:1\r\n:1\r\n:1\r\n",
        "*3\r\n$9\r\nsubscribe\r\n$-1\r\n:1\r\n",
        CONFIRMED("$5\r\nother", "1"),
        FIRST FIRST,
        FIRST "*3\r\n$7\r\nmessage\r\n$8\r\nt:events\r\n:1\r\n",
        "*9999999\r\n",
        "HTTP/1.1 400\r\n",
        FIRST "*3\r\n*3\r\n*3\r\n*3\r\n*3\r\n*3\r\n*3\r\n*3\r\n*3\r\n*3\r\n",
    };
    static const char *const after[] = {
        FIRST,
        "-ERR\r\n",
        "*3\r\n$11\r\nunsubscribe\r\n$8\r\nt:events\r\n:0\r\n",
        "*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$8\r\nt:events\r\n$2\r\nhi\r\n",
        "+PONG\r\n",
        "$",
    };
    struct peer_answer answers[] = {{"SELECT", "+OK\r\n"}, {"SUBSCRIBE", NULL}, {NULL, NULL}};
    struct peer_server peer;
    struct bench b;

    (void)state;
    for (size_t i = 0; i < sizeof before / sizeof before[0]; i++) {
        bench_init(&b);
        answers[1].reply = before[i];
        peer_server_open(&peer, &b.loop, answers);
        snprintf(b.address, sizeof b.address, "127.0.0.1:%d", peer.port);
        bench_open(&b);
        wait_until(&b, &peer.connections, 3);
        assert_int_equal(b.ups, 0);
        redis_events_close(&b.events);
        peer_server_close(&peer);
        bench_release(&b);
    }
    answers[1].reply = BOTH;
    for (size_t i = 0; i < sizeof after / sizeof after[0]; i++) {
        bench_init(&b);
        peer_server_open(&peer, &b.loop, answers);
        snprintf(b.address, sizeof b.address, "127.0.0.1:%d", peer.port);
        bench_open(&b);
        wait_until(&b, &b.ups, 1);
        peer_say(peer.last, MESSAGE MESSAGE);
        wait_until(&b, &b.messages, 2);
        peer_say(peer.last, after[i]);
        if (after[i][0] == '$')
            uv_close((uv_handle_t *)&peer.last->tcp, peer_closed);
        wait_until(&b, &b.ups, 2);
        assert_int_equal(b.downs, 1);
        redis_events_close(&b.events);
        peer_server_close(&peer);
        bench_release(&b);
    }
}

static void messages_before_all_is_subscribed_to_are_not_told(void **state)
{
    static const struct peer_answer answers[] = {
        {"SELECT", "+OK\r\n"}, {"SUBSCRIBE", FIRST MESSAGE}, {NULL, NULL}};
    struct peer_server peer;
    struct bench b;

    (void)state;
    bench_init(&b);
    peer_server_open(&peer, &b.loop, answers);
    snprintf(b.address, sizeof b.address, "127.0.0.1:%d", peer.port);
    bench_open(&b);
    wait_until(&b, &peer.asked, 2);
    peer_say(peer.last, CONFIRMED("$11\r\nt:events:me", "2") MESSAGE);
    wait_until(&b, &b.messages, 1);
    assert_int_equal(b.ups, 1);
    redis_events_close(&b.events);
    peer_server_close(&peer);
    bench_release(&b);
}

static void a_server_that_does_not_confirm_is_left(void **state)
{
    static const struct peer_answer answers[] = {
        {"SELECT", "+OK\r\n"}, {"SUBSCRIBE", FIRST}, {NULL, NULL}};
    struct peer_server peer;
    struct bench b;

    (void)state;
    bench_init(&b);
    b.conf.redis.timeout = 100;
    peer_server_open(&peer, &b.loop, answers);
    snprintf(b.address, sizeof b.address, "127.0.0.1:%d", peer.port);
    bench_open(&b);
    wait_until(&b, &peer.connections, 3);
    assert_int_equal(b.ups + b.downs + b.messages, 0);
    redis_events_close(&b.events);
    peer_server_close(&peer);
    bench_release(&b);
}

static void note_time(uv_timer_t *timer)
{
    *(bool *)timer->data = true;
}

/* A server that refuses is asked less and less. */
static void the_pause_grows(void **state)
{
    static const struct peer_answer answers[] = {
        {"SELECT", "+OK\r\n"}, {"SUBSCRIBE", "-NOPERM no\r\n"}, {NULL, NULL}};
    struct peer_server peer;
    struct bench b;
    uv_timer_t timer;
    bool over = false;

    (void)state;
    bench_init(&b);
    b.conf.redis.retry_max = 60000;
    peer_server_open(&peer, &b.loop, answers);
    snprintf(b.address, sizeof b.address, "127.0.0.1:%d", peer.port);
    uv_timer_init(&b.loop, &timer);
    timer.data = &over;
    uv_timer_start(&timer, note_time, 600, 0);
    bench_open(&b);
    while (!over)
        uv_run(&b.loop, UV_RUN_ONCE);
    assert_in_range(peer.connections, 1, 6);
    uv_close((uv_handle_t *)&timer, NULL);
    redis_events_close(&b.events);
    peer_server_close(&peer);
    bench_release(&b);
}

static void a_message_too_long_ends_the_subscription(void **state)
{
    static char big[2 * 1024 * 1024];
    struct bench b;

    (void)state;
    memset(big, 'x', sizeof big);
    bench_init(&b);
    bench_open(&b);
    wait_until(&b, &b.ups, 1);
    admin("PUBLISH t:events %b", big, sizeof big);
    wait_until(&b, &b.ups, 2);
    assert_int_equal(b.downs, 1);
    assert_int_equal(b.messages, 0);
    bench_release(&b);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_arrive),
        cmocka_unit_test(a_lost_subscription_is_made_again),
        cmocka_unit_test(a_restart_makes_another_one),
        cmocka_unit_test(closed_by_a_handler),
        cmocka_unit_test(closed_in_any_turn),
        cmocka_unit_test(channels_may_be_refused),
        cmocka_unit_test(odd_replies_end_the_subscription),
        cmocka_unit_test(messages_before_all_is_subscribed_to_are_not_told),
        cmocka_unit_test(a_server_that_does_not_confirm_is_left),
        cmocka_unit_test(the_pause_grows),
        cmocka_unit_test(a_message_too_long_ends_the_subscription),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
