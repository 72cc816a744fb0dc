/*
 * The source `redis` against a real redis-server on a loopback port and on a Unix socket, and
 * against a scripted server for what a real one will not say.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/mem.h"
#include "proxy/net/redis_link.h"
#include "routing/route.h"
#include "tests/unit/redis_server.h"

#include <string.h>

struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    struct conf conf;
    struct conf_shard shard;
    char *sources[1];
    char address[128];
    struct env env;
    struct router *router;
};

struct asked {
    struct route_request request;
    unsigned answers;
    struct route route;
    struct err err;
};

static void bench_init(struct bench *b)
{
    memset(b, 0, sizeof *b);
    assert_int_equal(uv_loop_init(&b->loop), 0);
    turn_init(&b->turn, &b->loop);
    snprintf(b->address, sizeof b->address, "127.0.0.1:%d", server.port);
    b->shard.title = (char *)"blue";
    b->conf.shards = &b->shard;
    b->conf.shard_count = 1;
    b->conf.shard_titles = (struct conf_words){&b->shard.title, 1};
    b->conf.route.timeout = 10000;
    b->sources[0] = (char *)"redis";
    b->conf.route.sources = (struct conf_words){b->sources, 1};
    b->conf.redis.address = b->address;
    b->conf.redis.user = (char *)"";
    b->conf.redis.prefix = (char *)"t:";
    b->conf.redis.connect_timeout = 5000;
    b->conf.redis.timeout = 5000;
    b->conf.redis.retry_max = 400;
    b->env = (struct env){
        .loop = &b->loop, .turn = &b->turn, .conf = &b->conf, .counters = &b->counters};
}

static void bench_open(struct bench *b)
{
    struct err err = {0};

    b->env.redis = redis_link_open(&b->env, &err);
    assert_non_null(b->env.redis);
    b->router = router_open(&b->env, &(struct router_view){0}, &err);
    assert_non_null(b->router);
}

static void bench_release(struct bench *b)
{
    router_close(&b->router);
    redis_link_close(&b->env.redis);
    turn_release(&b->turn);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
}

static void on_answer(struct route_request *request, const struct route *route,
                      const struct err *err)
{
    struct asked *a = request->owner;

    a->answers++;
    a->err = *err;
    if (err->kind == ERR_NONE)
        assert_non_null(route);
    else
        assert_true(route == NULL || route->state != ROUTE_ACTIVE);
    if (route != NULL)
        a->route = *route;
}

static void start(struct bench *b, struct asked *a, const char *user)
{
    memset(a, 0, sizeof *a);
    a->request.user = user;
    a->request.told_shard = a->request.told_backend_user = "";
    a->request.on_answer = on_answer;
    a->request.owner = a;
    router_find(b->router, &a->request);
    assert_int_equal(a->answers, 0);
}

static void wait_for(struct bench *b, struct asked *a)
{
    while (a->answers == 0)
        uv_run(&b->loop, UV_RUN_ONCE);
    assert_int_equal(a->answers, 1);
}

static enum err_kind ask(struct bench *b, struct asked *a, const char *user)
{
    start(b, a, user);
    wait_for(b, a);
    return a->err.kind;
}

/* Asks until Redis is there again. */
static void ask_until_good(struct bench *b, const char *user)
{
    struct asked a;
    uint64_t end = uv_hrtime() + 20000000000u;

    while (ask(b, &a, user) != ERR_NONE) {
        assert_true(uv_hrtime() < end);
        uv_run(&b->loop, UV_RUN_ONCE);
    }
}

static uint64_t count_of(_Atomic uint64_t *counter)
{
    return atomic_load(counter);
}

/* What Redis holds. */

static void routes_are_read(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    admin("HSET t:user:{ann} shard blue");
    admin(
        "HSET t:user:{bob} shard blue backend_user robert epoch 18446744073709551615 state active "
        "target green");
    bench_init(&b);
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE); /* waits for the first connection */
    assert_string_equal(a.route.shard, "blue");
    assert_string_equal(a.route.backend_user, "ann");
    assert_int_equal(a.route.epoch, 0);
    assert_int_equal(ask(&b, &a, "bob"), ERR_NONE);
    assert_string_equal(a.route.backend_user, "robert");
    assert_true(a.route.epoch == UINT64_MAX);
    assert_int_equal(ask(&b, &a, "nobody"), ERR_ADMIN);
    assert_int_equal(count_of(&b.counters.redis_connects), 1);
    assert_int_equal(count_of(&b.counters.redis_commands), 3);
    assert_int_equal(count_of(&b.counters.redis_failures), 0);
    bench_release(&b);
}

static void states_are_obeyed(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    admin("HSET t:user:{moving} shard blue state moving target green");
    admin("HSET t:user:{committed} shard blue state committed target green epoch 7");
    admin("HSET t:user:{disabled} shard blue state disabled");
    admin("HSET t:user:{bare} state disabled");
    admin("HSET t:user:{lost} epoch 3");
    admin("HSET t:user:{far} shard red");
    bench_init(&b);
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "moving"), ERR_UNAVAILABLE);
    assert_int_equal(a.route.state, ROUTE_MOVING);
    assert_string_equal(a.route.target, "green");
    assert_int_equal(ask(&b, &a, "committed"), ERR_UNAVAILABLE);
    assert_int_equal(a.route.state, ROUTE_COMMITTED);
    assert_int_equal(a.route.epoch, 7);
    assert_string_equal(a.route.target, "green");
    assert_string_equal(a.route.source, "redis");
    assert_int_equal(ask(&b, &a, "disabled"), ERR_ADMIN);
    assert_non_null(strstr(a.err.text, "disabled"));
    assert_int_equal(ask(&b, &a, "bare"), ERR_ADMIN);
    assert_non_null(strstr(a.err.text, "disabled"));
    assert_int_equal(ask(&b, &a, "lost"), ERR_ADMIN);
    assert_int_equal(ask(&b, &a, "far"), ERR_UNAVAILABLE);
    bench_release(&b);
}

static void nonsense_is_unavailable(void **state)
{
    static const char *const epochs[] = {"",
                                         "-1",
                                         "+1",
                                         " 1",
                                         "1 ",
                                         "0x1",
                                         "1.0",
                                         "1e3",
                                         "18446744073709551616",
                                         "99999999999999999999999"};
    static const char *const states[] = {"", "ACTIVE", "gone"};
    char name[300];
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b);
    bench_open(&b);
    admin("SET t:user:{string} blue");
    assert_int_equal(ask(&b, &a, "string"), ERR_UNAVAILABLE);
    for (size_t i = 0; i < sizeof epochs / sizeof epochs[0]; i++) {
        admin("HSET t:user:{odd} shard blue epoch %b", epochs[i], strlen(epochs[i]));
        assert_int_equal(ask(&b, &a, "odd"), ERR_UNAVAILABLE);
    }
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++) {
        admin("HSET t:user:{odd} shard blue epoch 1 state %b", states[i], strlen(states[i]));
        assert_int_equal(ask(&b, &a, "odd"), ERR_UNAVAILABLE);
    }
    admin("DEL t:user:{odd}");
    admin("HSET t:user:{odd} shard %b", "", (size_t)0);
    assert_int_equal(ask(&b, &a, "odd"), ERR_UNAVAILABLE);
    admin("HSET t:user:{odd} shard %b", "blue\0x", (size_t)6);
    assert_int_equal(ask(&b, &a, "odd"), ERR_UNAVAILABLE);
    memset(name, 'x', sizeof name);
    admin("HSET t:user:{odd} shard %b", name, (size_t)SHARD_NAME_MAX + 1);
    assert_int_equal(ask(&b, &a, "odd"), ERR_UNAVAILABLE);
    admin("HSET t:user:{odd} shard blue backend_user %b", name, (size_t)BACKEND_USER_MAX + 1);
    assert_int_equal(ask(&b, &a, "odd"), ERR_UNAVAILABLE);
    admin("HSET t:user:{odd} backend_user %b", name, (size_t)BACKEND_USER_MAX);
    assert_int_equal(ask(&b, &a, "odd"), ERR_NONE);
    admin("HSET t:user:{odd} backend_user %b", "a\r\nb", (size_t)4);
    assert_int_equal(ask(&b, &a, "odd"), ERR_UNAVAILABLE);
    bench_release(&b);
}

static void a_name_is_one_argument(void **state)
{
    static const char *const names[] = {
        "a}b",    "{x}",          "a b c",        "*",
        "?",      "[a-z]",        "\"q\" 'q' \\", "x\r\nDEL t:user:{ann}\r\n",
        "%s%n%b", "j\xc3\xbcrgen"};
    struct bench b;
    struct asked a;

    (void)state;
    admin("HSET t:user:{ann} shard blue");
    bench_init(&b);
    bench_open(&b);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char key[100];

        assert_int_equal(ask(&b, &a, names[i]), ERR_ADMIN);
        snprintf(key, sizeof key, "t:user:{%s}", names[i]);
        admin("HSET %b shard blue backend_user store%d", key, strlen(key), (int)i);
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char want[20];

        assert_int_equal(ask(&b, &a, names[i]), ERR_NONE);
        snprintf(want, sizeof want, "store%d", (int)i);
        assert_string_equal(a.route.backend_user, want);
    }
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    bench_release(&b);
}

/* How we get there. */

static void a_unix_socket_and_a_name_work_too(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    admin("HSET t:user:{ann} shard blue");
    bench_init(&b);
    snprintf(b.address, sizeof b.address, "unix:%s", server.socket_path);
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    bench_release(&b);
    bench_init(&b);
    snprintf(b.address, sizeof b.address, "localhost:%d", server.port);
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    bench_release(&b);
}

static void the_database_is_selected(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    admin("HSET t:user:{onlyzero} shard blue");
    bench_init(&b);
    b.conf.redis.database = 3;
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "onlyzero"), ERR_ADMIN);
    bench_release(&b);
    bench_init(&b);
    b.conf.redis.database = 60000;
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "onlyzero"), ERR_UNAVAILABLE);
    assert_non_null(strstr(a.err.text, "SELECT refused"));
    bench_release(&b);
}

static void bad_addresses(void **state)
{
    static const char *const unusable[] = {"", "localhost", "unix:relative", "host:0",
                                           "host:99999"};
    static const char *const dead[] = {"unix:/nonexistent/sock", "does-not-exist.invalid:6379",
                                       "127.0.0.1:1"};
    struct bench b;
    struct asked a;
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof unusable / sizeof unusable[0]; i++) {
        bench_init(&b);
        snprintf(b.address, sizeof b.address, "%s", unusable[i]);
        err = (struct err){0};
        assert_null(redis_link_open(&b.env, &err));
        assert_int_equal(err.kind, ERR_CONFIG);
        bench_release(&b);
    }
    for (size_t i = 0; i < sizeof dead / sizeof dead[0]; i++) {
        bench_init(&b);
        snprintf(b.address, sizeof b.address, "%s", dead[i]);
        bench_open(&b);
        assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
        assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE); /* in the pause: at once */
        bench_release(&b);
    }
}

static void the_password_is_checked(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    server_stop();
    server_start("open sesame");
    admin("HSET t:user:{ann} shard blue");
    admin("ACL SETUSER proxy on >pw\\x ~t:* +hmget +select");
    for (int i = 0; i < 5; i++) {
        static const struct {
            const char *user, *password, *text;
        } cases[] = {{"", "open sesame", NULL},
                     {"default", "open sesame", NULL},
                     {"proxy", "pw\\x", NULL},
                     {"", "wrong", "AUTH refused"},
                     {"", "", "SELECT refused"}};

        bench_init(&b);
        b.conf.redis.user = (char *)cases[i].user;
        assert_true(secret_set(&b.conf.redis.password, span_of(cases[i].password)));
        bench_open(&b);
        assert_int_equal(ask(&b, &a, "ann"), cases[i].text == NULL ? ERR_NONE : ERR_UNAVAILABLE);
        if (cases[i].text != NULL) {
            assert_non_null(strstr(a.err.text, cases[i].text));
            assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
            assert_int_equal(count_of(&b.counters.redis_connects), 0);
        }
        bench_release(&b);
        secret_release(&b.conf.redis.password);
    }
    server_stop();
    server_start(NULL);
}

/* When it goes wrong. */

static void a_stopped_server_is_unavailable_in_time(void **state)
{
    struct bench b;
    struct asked a, other;
    uint64_t began, took_ms;

    (void)state;
    admin("HSET t:user:{ann} shard blue");
    bench_init(&b);
    b.conf.redis.timeout = 200;
    b.conf.redis.connect_timeout = 300;
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    server_freeze();
    began = uv_hrtime();
    start(&b, &a, "ann");
    start(&b, &other, "ann"); /* the first one's time-out sends this one over a new connection */
    wait_for(&b, &a);
    took_ms = (uv_hrtime() - began) / 1000000;
    assert_int_equal(a.err.kind, ERR_UNAVAILABLE);
    assert_in_range(took_ms, 150, 1500);
    assert_int_equal(other.answers, 0);
    wait_for(&b, &other);
    assert_int_equal(other.err.kind, ERR_UNAVAILABLE);
    assert_true(count_of(&b.counters.redis_failures) >= 2);
    kill(server.pid, SIGCONT);
    ask_until_good(&b, "ann");
    bench_release(&b);
}

static void the_others_are_asked_again_after_a_sick_connection(void **state)
{
    struct bench b;
    struct asked a, other;

    (void)state;
    admin("HSET t:user:{ann} shard blue");
    bench_init(&b);
    b.conf.redis.timeout = 200;
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    server_freeze();
    start(&b, &a, "ann");
    start(&b, &other, "ann");
    wait_for(&b, &a);
    assert_int_equal(a.err.kind, ERR_UNAVAILABLE);
    kill(server.pid, SIGCONT);
    wait_for(&b, &other);
    assert_int_equal(other.err.kind, ERR_NONE);
    assert_int_equal(count_of(&b.counters.redis_connects), 2);
    bench_release(&b);
}

static void the_chain_s_deadline_ends_a_look_up(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b);
    b.conf.route.timeout = 150;
    bench_open(&b);
    ask(&b, &a, "ann");
    server_freeze();
    assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    assert_non_null(strstr(a.err.text, "150 ms"));
    kill(server.pid, SIGCONT);
    ask_until_good(&b, "ann");
    bench_release(&b);
}

static void a_killed_server_fails_fast_and_returns(void **state)
{
    struct bench b;
    struct asked a;
    uint64_t began;

    (void)state;
    bench_init(&b);
    bench_open(&b);
    admin("HSET t:user:{ann} shard blue");
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    server_kill();
    began = uv_hrtime();
    for (int i = 0; i < 50; i++)
        assert_int_equal(ask(&b, &a, "ann"), ERR_UNAVAILABLE);
    assert_true((uv_hrtime() - began) / 1000000 < 1000);
    server_run();
    admin("HSET t:user:{ann} shard blue");
    ask_until_good(&b, "ann");
    bench_release(&b);
}

static void the_server_may_come_later(void **state)
{
    struct bench b;

    (void)state;
    server_kill();
    bench_init(&b);
    bench_open(&b);
    for (int i = 0; i < 20; i++)
        uv_run(&b.loop, UV_RUN_ONCE);
    server_run();
    admin("HSET t:user:{ann} shard blue");
    ask_until_good(&b, "ann");
    bench_release(&b);
}

/* Many, and early ends. */

enum { CROWD = 1000 };

static struct asked crowd[REDIS_COMMANDS_MAX + 10];

static void a_thousand_at_once(void **state)
{
    struct bench b;

    (void)state;
    admin("HSET t:user:{ann} shard blue");
    bench_init(&b);
    bench_open(&b);
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < CROWD; i++)
            start(&b, &crowd[i], i % 2 == 0 ? "ann" : "nobody");
        for (size_t i = 0; i < CROWD; i += 3)
            router_cancel(&crowd[i].request);
        for (size_t i = 0; i < CROWD; i++) {
            if (i % 3 == 0)
                continue;
            wait_for(&b, &crowd[i]);
            assert_int_equal(crowd[i].err.kind, i % 2 == 0 ? ERR_NONE : ERR_ADMIN);
        }
        for (size_t i = 0; i < CROWD; i += 3)
            assert_int_equal(crowd[i].answers, 0);
    }
    bench_release(&b);
}

static void too_many_are_refused(void **state)
{
    struct bench b;
    size_t refused = 0;

    (void)state;
    admin("HSET t:user:{ann} shard blue");
    bench_init(&b);
    bench_open(&b);
    for (size_t i = 0; i < REDIS_COMMANDS_MAX + 10; i++)
        start(&b, &crowd[i], "ann");
    for (size_t i = 0; i < REDIS_COMMANDS_MAX + 10; i++) {
        wait_for(&b, &crowd[i]);
        if (crowd[i].err.kind == ERR_UNAVAILABLE)
            refused++;
    }
    assert_int_equal(refused, 10);
    bench_release(&b);
}

static void cancel_and_close_in_any_turn(void **state)
{
    (void)state;
    admin("HSET t:user:{ann} shard blue");
    for (int turns = 0; turns < 12; turns++) {
        struct bench b;
        struct asked a, other;

        bench_init(&b);
        bench_open(&b);
        start(&b, &a, "ann");
        start(&b, &other, "ann");
        for (int i = 0; i < turns; i++)
            uv_run(&b.loop, UV_RUN_NOWAIT);
        router_cancel(&a.request);
        if (a.answers == 0)
            memset(&a.request, 0xff, sizeof a.request);
        if (turns % 2 == 0) { /* the neighbour gets its answer all the same */
            wait_for(&b, &other);
            assert_int_equal(other.err.kind, ERR_NONE);
        }
        router_cancel(&other.request);
        bench_release(&b);
    }
}

static void close_with_commands_on_their_way(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b);
    bench_open(&b);
    ask(&b, &a, "ann");
    server_freeze();
    for (size_t i = 0; i < CROWD; i++)
        start(&b, &crowd[i], "ann");
    for (int i = 0; i < 5; i++)
        uv_run(&b.loop, UV_RUN_NOWAIT);
    for (size_t i = 0; i < CROWD; i++)
        router_cancel(&crowd[i].request);
    bench_release(&b);
    kill(server.pid, SIGCONT);
}

/* A server that says what it is told, on the same loop. */
struct peer;

struct script {
    uv_tcp_t listener;
    const char *replies[4]; /* to the question of each connection in turn; NULL hangs up */
    const char *greeting;   /* instead of +OK */
    unsigned connections, asked;
    struct peer *last; /* the newest connection */
};

struct peer {
    uv_tcp_t tcp;
    struct script *script;
    const char *reply;
    char bytes[2048];
};

static void peer_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

static void peer_alloc(uv_handle_t *handle, size_t size, uv_buf_t *out)
{
    struct peer *peer = handle->data;

    (void)size;
    *out = uv_buf_init(peer->bytes, sizeof peer->bytes - 1);
}

static void peer_say(struct peer *peer, const char *text)
{
    uv_buf_t out = uv_buf_init((char *)text, (unsigned)strlen(text));

    assert_int_equal(uv_try_write((uv_stream_t *)&peer->tcp, &out, 1), strlen(text));
}

static void peer_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *in)
{
    struct peer *peer = stream->data;

    (void)in;
    if (count <= 0) {
        if (count < 0)
            uv_close((uv_handle_t *)stream, peer_closed);
        return;
    }
    peer->bytes[count] = '\0';
    if (strstr(peer->bytes, "SELECT") != NULL)
        peer_say(peer, peer->script->greeting != NULL ? peer->script->greeting : "+OK\r\n");
    if (strstr(peer->bytes, "HMGET") == NULL && strstr(peer->bytes, "EVALSHA") == NULL)
        return;
    peer->script->asked++;
    if (peer->reply != NULL)
        peer_say(peer, peer->reply);
    else
        uv_close((uv_handle_t *)stream, peer_closed);
}

static void script_connection(uv_stream_t *stream, int status)
{
    struct script *script = stream->data;
    struct peer *peer = mem_new(sizeof *peer);

    assert_int_equal(status, 0);
    assert_non_null(peer);
    uv_tcp_init(stream->loop, &peer->tcp);
    peer->tcp.data = peer;
    peer->script = script;
    peer->reply = script->replies[script->connections < 3 ? script->connections : 3];
    script->connections++;
    script->last = peer;
    assert_int_equal(uv_accept(stream, (uv_stream_t *)&peer->tcp), 0);
    uv_read_start((uv_stream_t *)&peer->tcp, peer_alloc, peer_read);
}

static void script_open(struct script *script, struct bench *b)
{
    struct sockaddr_in any;
    int len = sizeof any;

    uv_ip4_addr("127.0.0.1", 0, &any);
    uv_tcp_init(&b->loop, &script->listener);
    script->listener.data = script;
    assert_int_equal(uv_tcp_bind(&script->listener, (struct sockaddr *)&any, 0), 0);
    uv_tcp_getsockname(&script->listener, (struct sockaddr *)&any, &len);
    assert_int_equal(uv_listen((uv_stream_t *)&script->listener, 8, script_connection), 0);
    snprintf(b->address, sizeof b->address, "127.0.0.1:%d", ntohs(any.sin_port));
}

#define GOOD "*5\r\n$4\r\nblue\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n"

static enum err_kind ask_script(struct script *script, struct err *err_out)
{
    struct bench b;
    struct asked a;
    enum err_kind kind;

    bench_init(&b);
    script_open(script, &b);
    bench_open(&b);
    kind = ask(&b, &a, "ann");
    *err_out = a.err;
    uv_close((uv_handle_t *)&script->listener, NULL);
    bench_release(&b);
    return kind;
}

static void a_lost_command_is_sent_once_more(void **state)
{
    struct err err;

    (void)state;
    {
        struct script script = {.replies = {NULL, GOOD}};

        assert_int_equal(ask_script(&script, &err), ERR_NONE);
        assert_int_equal(script.connections, 2);
    }
    {
        struct script script = {.replies = {NULL, NULL, GOOD}};

        assert_int_equal(ask_script(&script, &err), ERR_UNAVAILABLE);
        assert_non_null(strstr(err.text, "twice"));
    }
}

static void odd_replies_are_unavailable(void **state)
{
    static const char *const replies[] = {
        "-LOADING Redis is loading\r\n",
        "+OK\r\n",
        ":5\r\n",
        "$-1\r\n",
        "*-1\r\n",
        "*0\r\n",
        "*4\r\n$4\r\nblue\r\n$-1\r\n$-1\r\n$-1\r\n",
        "*6\r\n$4\r\nblue\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n",
        GOOD GOOD,
        GOOD "$",
        "*5\r\n:4\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n",
        "*5\r\n$4\r\nblue\r\n$-1\r\n*0\r\n$-1\r\n$-1\r\n",
    };
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof replies / sizeof replies[0]; i++) {
        struct script script = {.replies = {replies[i]}};

        assert_int_equal(ask_script(&script, &err), ERR_UNAVAILABLE);
    }
    {
        struct script script = {.replies = {"HTTP/1.1 400\r\n", "HTTP/1.1 400\r\n"}};

        assert_int_equal(ask_script(&script, &err), ERR_UNAVAILABLE);
    }
    {
        struct script script = {.greeting = ":1\r\n"};

        assert_int_equal(ask_script(&script, &err), ERR_UNAVAILABLE);
        assert_non_null(strstr(err.text, "SELECT: unexpected reply"));
    }
    {
        struct script script = {.greeting = "+OK\r\n" GOOD, .replies = {GOOD, GOOD}};

        assert_int_equal(ask_script(&script, &err), ERR_UNAVAILABLE);
    }
}

static void speaking_unasked_ends_the_connection(void **state)
{
    struct script script = {.replies = {GOOD, GOOD}};
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b);
    script_open(&script, &b);
    bench_open(&b);
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    peer_say(script.last, GOOD);
    while (script.connections < 2) /* it comes back by itself */
        uv_run(&b.loop, UV_RUN_ONCE);
    assert_int_equal(ask(&b, &a, "ann"), ERR_NONE);
    uv_close((uv_handle_t *)&script.listener, NULL);
    bench_release(&b);
}

/* Scripts. */

static struct redis_script count_script;

struct called {
    unsigned answers;
    long long number; /* 0: an error */
    char text[200];
};

static void on_called(void *owner, const redisReply *reply, const struct err *err)
{
    struct called *called = owner;

    called->answers++;
    called->number = reply != NULL && reply->type == REDIS_REPLY_INTEGER ? reply->integer : 0;
    snprintf(called->text, sizeof called->text, "%s",
             reply == NULL                      ? err->text
             : reply->type == REDIS_REPLY_ERROR ? reply->str
                                                : "");
}

static struct redis_command *count_by(struct bench *b, const char *key, const char *amount,
                                      redis_reply_fn *on_reply, struct called *called)
{
    const struct span arguments[] = {span_of(key), span_of(amount)};
    struct err err = {0};

    memset(called, 0, sizeof *called);
    return redis_link_call(b->env.redis, &count_script, arguments, 2, 1, on_reply, called, &err);
}

static long long count_wait(struct bench *b, const char *key, const char *amount,
                            struct called *called)
{
    assert_non_null(count_by(b, key, amount, on_called, called));
    while (called->answers == 0)
        uv_run(&b->loop, UV_RUN_ONCE);
    assert_int_equal(called->answers, 1);
    return called->number;
}

static void a_script_is_taught_to_who_does_not_know_it(void **state)
{
    struct bench b;
    struct called called[3];

    (void)state;
    admin("DEL t:count");
    bench_init(&b);
    bench_open(&b);
    assert_int_equal(count_wait(&b, "t:count", "5", &called[0]), 5);
    assert_int_equal(count_of(&b.counters.redis_commands), 3); /* refused, taught, done */
    assert_int_equal(count_wait(&b, "t:count", "1", &called[0]), 6);
    assert_int_equal(count_of(&b.counters.redis_commands), 4);
    admin("SCRIPT FLUSH");
    count_by(&b, "t:count", "1", on_called, &called[0]);
    count_by(&b, "t:count", "1", NULL, &called[1]); /* nobody asks what came of it */
    assert_int_equal(count_wait(&b, "t:count", "1", &called[2]), 9);
    assert_int_equal(called[0].answers, 1);
    assert_int_equal(count_wait(&b, "t:count", "no number", &called[0]), 0);
    assert_non_null(strstr(called[0].text, "not an integer"));
    assert_int_equal(count_wait(&b, "t:count", "1", &called[0]), 10);
    bench_release(&b);
}

static void a_script_that_may_not_be_taught_is_refused(void **state)
{
    struct bench b;
    struct called called;

    (void)state;
    server_stop();
    server_start("x");
    admin("ACL SETUSER proxy on >pw ~t:* +evalsha +select");
    bench_init(&b);
    b.conf.redis.user = (char *)"proxy";
    assert_true(secret_set(&b.conf.redis.password, span_of("pw")));
    bench_open(&b);
    assert_int_equal(count_wait(&b, "t:count", "1", &called), 0);
    assert_non_null(strstr(called.text, "NOSCRIPT"));
    bench_release(&b);
    secret_release(&b.conf.redis.password);
    server_stop();
    server_start(NULL);
}

static void a_lost_script_is_not_called_again(void **state)
{
    struct script script = {.replies = {NULL, ":1\r\n", ":1\r\n"}};
    struct bench b;
    struct called called;

    (void)state;
    bench_init(&b);
    script_open(&script, &b);
    bench_open(&b);
    assert_int_equal(redis_link_connection(b.env.redis), 0);
    assert_int_equal(count_wait(&b, "t:count", "1", &called), 0);
    assert_string_equal(called.text, "redis: the connection was lost");
    while (redis_link_connection(b.env.redis) != 2)
        uv_run(&b.loop, UV_RUN_ONCE);
    assert_int_equal(script.asked, 1);
    assert_int_equal(count_wait(&b, "t:count", "1", &called), 1);
    assert_int_equal(script.asked, 2);
    uv_close((uv_handle_t *)&script.listener, NULL);
    bench_release(&b);
}

/* In the middle of being taught, too: what is left of it is freed with the link. */
static void a_script_call_is_cancelled_in_any_turn(void **state)
{
    (void)state;
    for (int turns = 0; turns < 12; turns++) {
        struct bench b;
        struct called called, other;

        admin("SCRIPT FLUSH");
        bench_init(&b);
        bench_open(&b);
        struct redis_command *command = count_by(&b, "t:count", "1", on_called, &called);
        count_by(&b, "t:count", "1", on_called, &other);
        for (int i = 0; i < turns; i++)
            uv_run(&b.loop, UV_RUN_NOWAIT);
        if (called.answers == 0) {
            redis_command_cancel(command);
            called.answers = 99;
        }
        if (turns % 2 == 0)
            while (other.answers == 0)
                uv_run(&b.loop, UV_RUN_ONCE);
        bench_release(&b);
        assert_true(called.answers == 1 || called.answers == 99);
    }
}

static int group_start(void **state)
{
    (void)state;
    server_start(NULL);
    assert_true(
        redis_script_init(&count_script, "return redis.call('INCRBY', KEYS[1], ARGV[1])", NULL));
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
        cmocka_unit_test(routes_are_read),
        cmocka_unit_test(states_are_obeyed),
        cmocka_unit_test(nonsense_is_unavailable),
        cmocka_unit_test(a_name_is_one_argument),
        cmocka_unit_test(a_unix_socket_and_a_name_work_too),
        cmocka_unit_test(the_database_is_selected),
        cmocka_unit_test(bad_addresses),
        cmocka_unit_test(the_password_is_checked),
        cmocka_unit_test(a_stopped_server_is_unavailable_in_time),
        cmocka_unit_test(the_others_are_asked_again_after_a_sick_connection),
        cmocka_unit_test(the_chain_s_deadline_ends_a_look_up),
        cmocka_unit_test(a_killed_server_fails_fast_and_returns),
        cmocka_unit_test(the_server_may_come_later),
        cmocka_unit_test(a_thousand_at_once),
        cmocka_unit_test(too_many_are_refused),
        cmocka_unit_test(cancel_and_close_in_any_turn),
        cmocka_unit_test(close_with_commands_on_their_way),
        cmocka_unit_test(a_lost_command_is_sent_once_more),
        cmocka_unit_test(odd_replies_are_unavailable),
        cmocka_unit_test(speaking_unasked_ends_the_connection),
        cmocka_unit_test(a_script_is_taught_to_who_does_not_know_it),
        cmocka_unit_test(a_script_that_may_not_be_taught_is_refused),
        cmocka_unit_test(a_lost_script_is_not_called_again),
        cmocka_unit_test(a_script_call_is_cancelled_in_any_turn),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
