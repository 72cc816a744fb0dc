/* The order in which a store's addresses are tried, told as a story: what each dial_next gave. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/net/dial.h"

#include <stdio.h>
#include <string.h>

static char numbers[] = "192.0.2.1:143", six[] = "[2001:db8::7]:993", more[] = "192.0.2.2:65535";
static char local[] = "localhost:143", unknown[] = "does-not-exist.invalid:1", bad[] = "a..b:1";

struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct env env;
    struct conf_words names;
    struct dial dial;
    unsigned answers;
    char story[2000];
};

static void tell(struct bench *b, const char *what)
{
    size_t len = strlen(b->story), room = sizeof b->story - len;

    assert_in_range(snprintf(b->story + len, room, "%s%s", len > 0 ? " " : "", what), 0, room - 1);
}

/* The failure of a name is told with the name, which must be in its text. */
static void on_ready(struct dial *dial, const struct err *err)
{
    struct bench *b = dial->owner;

    b->answers++;
    if (err->kind == ERR_NONE)
        return;
    assert_int_equal(err->kind, ERR_UNAVAILABLE);
    assert_non_null(strstr(err->text, dial->host));
    tell(b, "not:");
    tell(b, dial->host);
}

static void bench_init(struct bench *b, char **names, size_t count)
{
    memset(b, 0, sizeof *b);
    assert_int_equal(uv_loop_init(&b->loop), 0);
    turn_init(&b->turn, &b->loop);
    b->env = (struct env){.loop = &b->loop, .turn = &b->turn};
    b->names = (struct conf_words){names, count};
    b->dial.env = &b->env;
    b->dial.names = &b->names;
    b->dial.on_ready = on_ready;
    b->dial.owner = b;
}

#define NAMES(...) (char *[]){__VA_ARGS__}, sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)

/* Lets the loop run out: what was cancelled ends, and is freed. */
static void bench_release(struct bench *b)
{
    unsigned answers = b->answers;

    dial_release(&b->dial);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(b->answers, answers);
    turn_release(&b->turn);
    uv_run(&b->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b->loop), 0);
}

/* Starts a look-up, and no more. */
static void look_up(struct bench *b, size_t name_index, const char *host)
{
    unsigned answers = b->answers;

    assert_int_equal(dial_next(&b->dial), DIAL_LATER);
    assert_int_equal(b->answers, answers); /* never inside the call */
    assert_int_equal(b->dial.name_index, name_index);
    assert_string_equal(b->dial.host, host);
}

/* One step, and what a look-up comes to. False at the end. */
static bool step(struct bench *b)
{
    unsigned answers = b->answers;
    char text[ADDRESS_TEXT_MAX];

    switch (dial_next(&b->dial)) {
    case DIAL_ADDRESS:
        address_text(b->dial.to, text);
        tell(b, text);
        return true;
    case DIAL_LATER:
        assert_int_equal(b->answers, answers);
        uv_run(&b->loop, UV_RUN_DEFAULT);
        assert_int_equal(b->answers, answers + 1);
        return true;
    case DIAL_END:
        tell(b, "end");
        break;
    }
    assert_int_equal(b->answers, answers);
    return false;
}

/* A look-up that ends as if the resolver had told these addresses. */
static void look_up_three(struct bench *b)
{
    static const char *const found[] = {"[2001:db8::2]:143", "192.0.2.9:143", "[2001:db8::1]:143"};
    union address list[3];

    for (size_t i = 0; i < 3; i++)
        assert_true(address_parse(found[i], &list[i]));
    assert_int_equal(dial_next(&b->dial), DIAL_LATER);
    resolve_cancel(&b->dial.resolving);
    b->dial.resolving.on_answer(&b->dial.resolving, list, 3, &(struct err){0});
}

static void walk(struct bench *b)
{
    while (step(b))
        ;
}

static void names_are_tried_in_order(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, NAMES(numbers, six, more));
    walk(&b);
    assert_string_equal(b.story, "192.0.2.1:143 [2001:db8::7]:993 192.0.2.2:65535 end");
    assert_false(step(&b)); /* and stays there */
    bench_release(&b);

    bench_init(&b, NAMES(more, numbers, more));
    walk(&b);
    assert_string_equal(b.story, "192.0.2.2:65535 192.0.2.1:143 192.0.2.2:65535 end");
    bench_release(&b);
}

static void each_address_comes_with_its_name(void **state)
{
    static const char *const hosts[] = {"192.0.2.1", "2001:db8::7", "localhost"};
    struct bench b;

    (void)state;
    bench_init(&b, NAMES(numbers, six, local));
    for (size_t i = 0; i < 3; i++) {
        look_up(&b, i, hosts[i]);
        uv_run(&b.loop, UV_RUN_DEFAULT);
        assert_int_equal(dial_next(&b.dial), DIAL_ADDRESS);
        assert_int_equal(b.dial.name_index, i);
        assert_string_equal(b.dial.host, hosts[i]);
        assert_int_equal(address_port(b.dial.to), i == 1 ? 993 : 143);
    }
    bench_release(&b);
}

static void without_names_it_ends_at_once(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, NULL, 0);
    walk(&b);
    assert_string_equal(b.story, "end");
    bench_release(&b);
}

static void all_addresses_of_a_name_are_tried_in_the_resolvers_order(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, NAMES(local, numbers));
    look_up_three(&b);
    walk(&b);
    assert_string_equal(b.story,
                        "[2001:db8::2]:143 192.0.2.9:143 [2001:db8::1]:143 192.0.2.1:143 end");
    bench_release(&b);

    bench_init(&b, NAMES(numbers, local));
    assert_true(step(&b) && step(&b));
    look_up_three(&b);
    walk(&b);
    assert_string_equal(b.story,
                        "192.0.2.1:143 [2001:db8::2]:143 192.0.2.9:143 [2001:db8::1]:143 end");
    bench_release(&b);
}

static void a_name_that_the_system_knows(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, NAMES(local));
    assert_true(step(&b) && step(&b));
    assert_non_null(strstr(b.story, ":143"));
    walk(&b);
    bench_release(&b);
}

static void a_name_without_address_is_told_and_left_behind(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, NAMES(unknown, numbers, bad));
    walk(&b);
    assert_string_equal(b.story, "not: does-not-exist.invalid 192.0.2.1:143 not: a..b end");
    assert_int_equal(b.answers, 3);
    bench_release(&b);
}

/* Port 143 is what does not answer. */
static bool is_port_143(void *owner, const union address *address)
{
    (void)owner;
    return address_port(address) == 143;
}

static void what_does_not_answer_comes_last(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, NAMES(numbers, unknown, six, local, more));
    b.dial.comes_last = is_port_143;
    while (b.dial.name_next < 3)
        step(&b);
    assert_true(step(&b)); /* six */
    look_up_three(&b);
    walk(&b);
    assert_string_equal(b.story, "not: does-not-exist.invalid [2001:db8::7]:993 192.0.2.2:65535 "
                                 "192.0.2.1:143 [2001:db8::2]:143 192.0.2.9:143 "
                                 "[2001:db8::1]:143 end");
    assert_int_equal(b.dial.name_index, 3); /* they have their own names */
    assert_string_equal(b.dial.host, "localhost");
    assert_false(step(&b));
    bench_release(&b);

    bench_init(&b, NAMES(numbers));
    b.dial.comes_last = is_port_143;
    walk(&b);
    assert_string_equal(b.story, "192.0.2.1:143 end"); /* if there is nothing better */
    bench_release(&b);
}

static void skip_goes_on_with_the_next_name(void **state)
{
    static char *const skipped[] = {numbers, local, unknown};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct bench b;

        bench_init(&b, NAMES(skipped[i], more, six));
        assert_int_equal(dial_next(&b.dial), DIAL_LATER);
        dial_skip(&b.dial);
        dial_skip(&b.dial);
        walk(&b);
        assert_string_equal(b.story, "192.0.2.2:65535 [2001:db8::7]:993 end");
        assert_int_equal(b.answers, 2); /* none for the one that was skipped */
        bench_release(&b);
    }
}

static void the_last_name_can_be_skipped(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, NAMES(numbers, local));
    assert_true(step(&b) && step(&b));
    look_up(&b, 1, "localhost");
    dial_skip(&b.dial);
    walk(&b);
    assert_string_equal(b.story, "192.0.2.1:143 end");
    bench_release(&b);
}

static void skip_without_a_look_up_loses_nothing(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, NAMES(local, six));
    dial_skip(&b.dial);
    look_up_three(&b);
    dial_skip(&b.dial);
    while (step(&b))
        dial_skip(&b.dial);
    assert_string_equal(b.story,
                        "[2001:db8::2]:143 192.0.2.9:143 [2001:db8::1]:143 [2001:db8::7]:993 end");
    bench_release(&b);
}

static void release_ends_a_look_up_under_way(void **state)
{
    static char *const names[] = {numbers, local, unknown};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct bench b;

        bench_init(&b, NAMES(names[i], more));
        assert_int_equal(dial_next(&b.dial), DIAL_LATER);
        bench_release(&b); /* no answer comes */
        assert_int_equal(b.answers, 0);
    }
}

static void release_frees_addresses_that_are_left(void **state)
{
    (void)state;
    for (size_t tried = 0; tried <= 3; tried++) {
        struct bench b;

        bench_init(&b, NAMES(local, more));
        look_up_three(&b);
        for (size_t i = 0; i < tried; i++)
            assert_true(step(&b));
        dial_release(&b.dial);
        dial_release(&b.dial); /* harmless */
        bench_release(&b);
    }
}

static void release_when_ready(struct dial *dial, const struct err *err)
{
    on_ready(dial, err);
    dial_release(dial);
}

static void go_on_when_ready(struct dial *dial, const struct err *err)
{
    struct bench *b = dial->owner;
    char text[ADDRESS_TEXT_MAX];

    on_ready(dial, err);
    while (dial_next(dial) == DIAL_ADDRESS) {
        address_text(dial->to, text);
        tell(b, text);
    }
}

static void the_owner_may_go_on_or_release_when_it_is_told(void **state)
{
    static const struct {
        void (*on_ready)(struct dial *dial, const struct err *err);
        unsigned answers;
        const char *story;
    } cases[] = {
        {release_when_ready, 1, ""},
        {go_on_when_ready, 3, "192.0.2.1:143 not: does-not-exist.invalid [2001:db8::7]:993"},
    };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct bench b;

        bench_init(&b, NAMES(numbers, unknown, six));
        b.dial.on_ready = cases[i].on_ready;
        look_up(&b, 0, "192.0.2.1");
        uv_run(&b.loop, UV_RUN_DEFAULT);
        assert_int_equal(b.answers, cases[i].answers);
        assert_string_equal(b.story, cases[i].story);
        bench_release(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_tried_in_order),
        cmocka_unit_test(each_address_comes_with_its_name),
        cmocka_unit_test(without_names_it_ends_at_once),
        cmocka_unit_test(all_addresses_of_a_name_are_tried_in_the_resolvers_order),
        cmocka_unit_test(a_name_that_the_system_knows),
        cmocka_unit_test(a_name_without_address_is_told_and_left_behind),
        cmocka_unit_test(what_does_not_answer_comes_last),
        cmocka_unit_test(skip_goes_on_with_the_next_name),
        cmocka_unit_test(the_last_name_can_be_skipped),
        cmocka_unit_test(skip_without_a_look_up_loses_nothing),
        cmocka_unit_test(release_ends_a_look_up_under_way),
        cmocka_unit_test(release_frees_addresses_that_are_left),
        cmocka_unit_test(the_owner_may_go_on_or_release_when_it_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
