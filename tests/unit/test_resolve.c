/* Names to addresses: later, once, and never after a cancel. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/net/resolve.h"

#include <arpa/inet.h>
#include <string.h>

struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct env env;
    struct resolve_request request;
    unsigned answers;
    size_t count;
    union address first;
    bool all_ports_right;
    struct err err;
};

static void on_answer(struct resolve_request *request, const union address *list, size_t count,
                      const struct err *err)
{
    struct bench *b = request->owner;

    b->answers++;
    b->count = count;
    b->err = *err;
    b->all_ports_right = true;
    for (size_t i = 0; i < count; i++)
        if (address_port(&list[i]) != 143)
            b->all_ports_right = false;
    if (count > 0)
        b->first = list[0];
}

static void bench_init(struct bench *b)
{
    memset(b, 0, sizeof *b);
    assert_int_equal(uv_loop_init(&b->loop), 0);
    turn_init(&b->turn, &b->loop);
    b->env = (struct env){.loop = &b->loop, .turn = &b->turn};
    b->request.on_answer = on_answer;
    b->request.owner = b;
}

static void bench_release(struct bench *b)
{
    turn_release(&b->turn);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
}

static void ask(struct bench *b, const char *host)
{
    resolve(&b->env, &b->request, host, 143);
    assert_int_equal(b->answers, 0);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(b->answers, 1);
}

static void numbers_need_no_name_server(void **state)
{
    static const char *const hosts[] = {"192.0.2.7", "2001:db8::7"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct bench b;
        char text[ADDRESS_TEXT_MAX];

        bench_init(&b);
        ask(&b, hosts[i]);
        assert_int_equal(b.err.kind, ERR_NONE);
        assert_int_equal(b.count, 1);
        assert_true(b.all_ports_right);
        address_host_text(&b.first, text);
        assert_string_equal(text, hosts[i]);
        bench_release(&b);
    }
}

static void localhost_is_known(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b);
    ask(&b, "localhost");
    assert_int_equal(b.err.kind, ERR_NONE);
    assert_in_range(b.count, 1, RESOLVE_ADDRESSES_MAX);
    assert_true(b.all_ports_right);
    bench_release(&b);
}

static void bad_names_are_unavailable(void **state)
{
    static char too_long[HOST_MAX + 10];
    const char *const hosts[] = {"does-not-exist.invalid", "", too_long, "a b..c"};

    (void)state;
    memset(too_long, 'a', sizeof too_long - 1);
    for (size_t i = 0; i < sizeof hosts / sizeof hosts[0]; i++) {
        struct bench b;

        bench_init(&b);
        ask(&b, hosts[i]);
        assert_int_equal(b.err.kind, ERR_UNAVAILABLE);
        assert_int_equal(b.count, 0);
        bench_release(&b);
    }
}

static void a_cancelled_request_is_silent(void **state)
{
    static const char *const hosts[] = {"192.0.2.7", "localhost", "does-not-exist.invalid"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct bench b;

        bench_init(&b);
        resolve_cancel(&b.request); /* not under way: harmless */
        resolve(&b.env, &b.request, hosts[i], 143);
        resolve_cancel(&b.request);
        resolve_cancel(&b.request);
        uv_run(&b.loop, UV_RUN_DEFAULT);
        assert_int_equal(b.answers, 0);
        ask(&b, "192.0.2.8"); /* and can be used again */
        bench_release(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_need_no_name_server),
        cmocka_unit_test(localhost_is_known),
        cmocka_unit_test(bad_names_are_unavailable),
        cmocka_unit_test(a_cancelled_request_is_silent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
