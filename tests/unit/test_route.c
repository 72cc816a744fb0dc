/*
 * The chain's promises and the source `file`. The source `redis` only plays a server that is down.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/net/redis_link.h"
#include "routing/route.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    struct conf conf;
    struct conf_shard shards[2];
    char *sources[4];
    char path[64];
    struct env env;
    struct router *router;
    struct err open_err;
};

struct asked {
    struct route_request request;
    unsigned answers;
    bool has_route;
    struct route route;
    struct err err;
    struct bench *again; /* asks once more from inside the answer */
};

static void write_file(const char *path, const char *text, size_t len)
{
    FILE *out = fopen(path, "w");

    assert_non_null(out);
    assert_int_equal(fwrite(text, 1, len, out), len);
    assert_int_equal(fclose(out), 0);
}

/* `sources` are words with one blank between. */
static void bench_init(struct bench *b, const char *sources, const char *text, size_t len)
{
    int fd;

    memset(b, 0, sizeof *b);
    assert_int_equal(uv_loop_init(&b->loop), 0);
    turn_init(&b->turn, &b->loop);
    snprintf(b->path, sizeof b->path, "/tmp/imapmux-route-XXXXXX");
    fd = mkstemp(b->path);
    assert_true(fd >= 0);
    close(fd);
    write_file(b->path, text, len);
    b->shards[0].title = (char *)"blue";
    b->shards[1].title = (char *)"green";
    b->conf.shards = b->shards;
    b->conf.shard_count = 2;
    b->conf.route.file = b->path;
    b->conf.route.timeout = 5000;
    b->conf.route.sources.items = b->sources;
    if (strstr(sources, "redis") != NULL)
        b->sources[b->conf.route.sources.count++] = (char *)"redis";
    if (strstr(sources, "ldap") != NULL)
        b->sources[b->conf.route.sources.count++] = (char *)"ldap";
    if (strstr(sources, "file") != NULL)
        b->sources[b->conf.route.sources.count++] = (char *)"file";
    if (strstr(sources, "oracle") != NULL)
        b->sources[b->conf.route.sources.count++] = (char *)"oracle";
    b->conf.redis.address = (char *)"unix:/nonexistent/redis.sock";
    b->conf.redis.user = (char *)"";
    b->conf.redis.prefix = (char *)"imapmux:";
    b->conf.redis.connect_timeout = b->conf.redis.timeout = b->conf.redis.retry_max = 1000;
    b->env = (struct env){
        .loop = &b->loop, .turn = &b->turn, .conf = &b->conf, .counters = &b->counters};
    b->env.redis = redis_link_open(&b->env, &b->open_err);
    b->router = router_open(&b->env, &(struct router_view){0}, &b->open_err);
}

static void bench_release(struct bench *b)
{
    router_close(&b->router);
    assert_null(b->router);
    redis_link_close(&b->env.redis);
    turn_release(&b->turn);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
    unlink(b->path);
}

static void on_answer(struct route_request *request, const struct route *route,
                      const struct err *err)
{
    struct asked *a = request->owner;
    struct bench *again = a->again;

    a->answers++;
    a->has_route = route != NULL;
    if (again != NULL) {
        a->again = NULL;
        router_find(again->router, request);
    }
    if (route != NULL)
        a->route = *route;
    a->err = *err;
}

/* With what the user's directory entry tells. */
static void start_told(struct bench *b, struct asked *a, const char *user, const char *told_shard,
                       const char *told_backend_user)
{
    memset(a, 0, sizeof *a);
    a->request.user = user;
    a->request.told_shard = told_shard;
    a->request.told_backend_user = told_backend_user;
    a->request.on_answer = on_answer;
    a->request.owner = a;
    router_find(b->router, &a->request);
    assert_int_equal(a->answers, 0);
}

static void start(struct bench *b, struct asked *a, const char *user)
{
    start_told(b, a, user, "", "");
}

static void wait_for_answer(struct bench *b, struct asked *a)
{
    while (a->answers == 0)
        uv_run(&b->loop, UV_RUN_ONCE);
    assert_int_equal(a->answers, 1);
    assert_true((a->err.kind == ERR_NONE) == a->has_route);
}

static void ask(struct bench *b, struct asked *a, const char *user)
{
    start(b, a, user);
    wait_for_answer(b, a);
}

#define TEXT(text) text, sizeof(text) - 1

static void the_file_tells(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b, "file", TEXT("# users\n\n  ann\tblue\nbob green robert # moved\r\n* green"));
    assert_non_null(b.router);
    ask(&b, &a, "ann");
    assert_string_equal(a.route.shard, "blue");
    assert_string_equal(a.route.backend_user, "ann");
    assert_int_equal(a.route.state, ROUTE_ACTIVE);
    ask(&b, &a, "bob");
    assert_string_equal(a.route.shard, "green");
    assert_string_equal(a.route.backend_user, "robert");
    ask(&b, &a, "Ann"); /* names arrive normalised: another one */
    assert_string_equal(a.route.shard, "green");
    assert_string_equal(a.route.backend_user, "Ann");
    bench_release(&b);
}

static void unknown_to_all_is_for_the_admin(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b, "file", TEXT("ann blue\n"));
    ask(&b, &a, "bob");
    assert_int_equal(a.err.kind, ERR_ADMIN);
    ask(&b, &a, "");
    assert_int_equal(a.err.kind, ERR_ADMIN);
    bench_release(&b);
}

static void bad_files_are_refused_with_their_line(void **state)
{
    static char long_line[1500], long_user[400];
    const struct {
        const char *text;
        size_t len;
        const char *want;
    } cases[] = {
        {TEXT("ann blue\nbob\n"), ":2: no shard for bob"},
        {TEXT("ann blue a b\n"), ":1: more than"},
        {TEXT("ann red\n"), ":1: there is no shard \"red\""},
        {TEXT("ann blue\n#\nann green\n"), ":3: ann already stands in line 1"},
        {TEXT("* blue\n* blue\n"), ":2: * already"},
        {TEXT("ann\0blue\n"), ":1: line too long"},
        {TEXT("x blue\n\0\n"), ":2: line too long"},
        {long_line, sizeof long_line, ":1: line too long"},
        {long_user, sizeof long_user, ":1: the backend user is longer"},
    };

    (void)state;
    memset(long_line, 'a', sizeof long_line);
    memset(long_user, 'a', sizeof long_user);
    memcpy(long_user, "ann blue ", 9);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b;

        bench_init(&b, "file", cases[i].text, cases[i].len);
        assert_null(b.router);
        assert_int_equal(b.open_err.kind, ERR_CONFIG);
        assert_memory_equal(b.open_err.text, b.path, strlen(b.path));
        if (strstr(b.open_err.text, cases[i].want) == NULL)
            fail_msg("%s is not in: %s", cases[i].want, b.open_err.text);
        bench_release(&b);
    }
}

static void bad_source_lists_are_refused(void **state)
{
    static const char *const lists[] = {"", "oracle", "redis file oracle"};

    (void)state;
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        struct bench b;

        bench_init(&b, lists[i], TEXT("ann blue\n"));
        assert_null(b.router);
        assert_int_equal(b.open_err.kind, ERR_CONFIG);
        bench_release(&b);
    }
}

static void a_missing_file_is_refused(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, "file", TEXT(""));
    router_close(&b.router);
    b.conf.route.file = (char *)"/nonexistent/routes";
    assert_null(router_open(&b.env, &(struct router_view){0}, &b.open_err));
    assert_int_equal(b.open_err.kind, ERR_CONFIG);
    b.conf.route.file = (char *)"";
    assert_null(router_open(&b.env, &(struct router_view){0}, &b.open_err));
    bench_release(&b);
}

static void a_failure_never_falls_through(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b, "redis file", TEXT("* blue\n"));
    for (int i = 0; i < 3; i++) {
        ask(&b, &a, "ann");
        assert_int_equal(a.err.kind, ERR_UNAVAILABLE);
    }
    bench_release(&b);
}

static void a_shard_that_went_away_is_unavailable(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b, "file", TEXT("ann green\n"));
    b.conf.shard_count = 1;
    ask(&b, &a, "ann");
    assert_int_equal(a.err.kind, ERR_UNAVAILABLE);
    bench_release(&b);
}

static char *blue_addresses[] = {(char *)"mail1.example.org:143", (char *)"192.0.2.1:993"};
static char *green_addresses[] = {(char *)"Green.example.org:993", (char *)"[2001:db8::1]:143",
                                  (char *)"mail1.example.org:993"};

static void the_entry_tells(void **state)
{
    static const struct {
        const char *sources, *told_shard, *told_backend_user;
        enum err_kind answer;
        const char *shard, *backend_user;
    } cases[] = {
        {"ldap", "blue", "", ERR_NONE, "blue", "ann"},
        {"ldap", "green", "ann@store", ERR_NONE, "green", "ann@store"},
        /* by the host of an address, in any case; but not if two shards have it */
        {"ldap", "green.example.org", "", ERR_NONE, "green", "ann"},
        {"ldap", "Green.Example.ORG", "", ERR_NONE, "green", "ann"},
        {"ldap", "mail1.example.org", "", ERR_UNAVAILABLE, "", ""},
        {"ldap", "192.0.2.1", "", ERR_NONE, "blue", "ann"},
        {"ldap", "2001:db8::1", "", ERR_NONE, "green", "ann"},
        /* nothing told: the next source, which may leave the name to the entry */
        {"ldap", "", "", ERR_ADMIN, "", ""},
        {"ldap file", "", "", ERR_NONE, "green", "ann"},
        {"ldap file", "", "ann@store", ERR_NONE, "green", "ann@store"},
        {"ldap file", "blue", "", ERR_NONE, "blue", "ann"},
        {"file", "blue", "ann@store", ERR_NONE, "green", "ann@store"}, /* the entry is not asked */
        /* what makes no sense is no reason to go on */
        {"ldap file", "red", "", ERR_UNAVAILABLE, "", ""},
        {"ldap file", "Blue", "", ERR_UNAVAILABLE, "", ""}, /* a title has a case */
        {"ldap file", "blue ", "", ERR_UNAVAILABLE, "", ""},
        {"ldap file", "mail1", "", ERR_UNAVAILABLE, "", ""},
        {"ldap file", "example.org", "", ERR_UNAVAILABLE, "", ""},
        {"ldap file", "mail1.example.org.", "", ERR_UNAVAILABLE, "", ""},
        {"ldap file", "mail1.example.org:143", "", ERR_UNAVAILABLE, "", ""},
        {"ldap file", "[2001:db8::1]", "", ERR_UNAVAILABLE, "", ""},
        {"ldap file", "*", "", ERR_UNAVAILABLE, "", ""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b;
        struct asked a;

        bench_init(&b, cases[i].sources, TEXT("* green\n"));
        b.shards[0].address = (struct conf_words){blue_addresses, 2};
        b.shards[1].address = (struct conf_words){green_addresses, 3};
        start_told(&b, &a, "ann", cases[i].told_shard, cases[i].told_backend_user);
        wait_for_answer(&b, &a);
        if (a.err.kind != cases[i].answer || strcmp(a.route.shard, cases[i].shard) != 0 ||
            strcmp(a.route.backend_user, cases[i].backend_user) != 0)
            fail_msg("case %zu: %s as %s: %s", i, a.route.shard, a.route.backend_user, a.err.text);
        bench_release(&b);
    }
}

/* A route that names the user at the store counts more than the entry. */
static void the_route_names_the_user(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b, "file", TEXT("ann blue robert\n"));
    start_told(&b, &a, "ann", "green", "ann@store");
    wait_for_answer(&b, &a);
    assert_string_equal(a.route.backend_user, "robert");
    bench_release(&b);
}

/* A name that does not fit is not cut off: that would be another user. */
static void long_names_at_the_store(void **state)
{
    char name[BACKEND_USER_MAX + 2];

    (void)state;
    for (size_t len = BACKEND_USER_MAX; len <= BACKEND_USER_MAX + 1; len++) {
        struct bench b;
        struct asked a;

        memset(name, 'a', len);
        name[len] = '\0';
        bench_init(&b, "ldap", TEXT(""));
        start_told(&b, &a, "ann", "blue", name);
        wait_for_answer(&b, &a);
        assert_int_equal(a.err.kind, len > BACKEND_USER_MAX ? ERR_UNAVAILABLE : ERR_NONE);
        if (len <= BACKEND_USER_MAX)
            assert_string_equal(a.route.backend_user, name);
        bench_release(&b);
    }
}

static void cancelled_is_silent(void **state)
{
    static const char *const lists[] = {"file", "redis file", "ldap file"};

    (void)state;
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        for (int turns = 0; turns < 4; turns++) {
            struct bench b;
            struct asked a;
            unsigned before;

            bench_init(&b, lists[i], TEXT("* blue\n"));
            start(&b, &a, "ann");
            for (int t = 0; t < turns; t++)
                uv_run(&b.loop, UV_RUN_NOWAIT);
            before = a.answers;
            router_cancel(&a.request);
            router_cancel(&a.request);
            memset(&a.request, 0xff, sizeof a.request); /* nobody may look at it now */
            for (int t = 0; t < 5; t++)
                uv_run(&b.loop, UV_RUN_NOWAIT);
            assert_int_equal(a.answers, before);
            bench_release(&b);
        }
    }
}

static void a_request_may_ask_again_from_its_answer(void **state)
{
    struct bench b;
    struct asked a;

    (void)state;
    bench_init(&b, "file", TEXT("ann blue\n"));
    start(&b, &a, "ann");
    a.again = &b;
    while (a.answers < 2)
        uv_run(&b.loop, UV_RUN_ONCE);
    assert_string_equal(a.route.shard, "blue");
    bench_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_file_tells),
        cmocka_unit_test(unknown_to_all_is_for_the_admin),
        cmocka_unit_test(bad_files_are_refused_with_their_line),
        cmocka_unit_test(bad_source_lists_are_refused),
        cmocka_unit_test(a_missing_file_is_refused),
        cmocka_unit_test(a_failure_never_falls_through),
        cmocka_unit_test(a_shard_that_went_away_is_unavailable),
        cmocka_unit_test(the_entry_tells),
        cmocka_unit_test(the_route_names_the_user),
        cmocka_unit_test(long_names_at_the_store),
        cmocka_unit_test(cancelled_is_silent),
        cmocka_unit_test(a_request_may_ask_again_from_its_answer),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
