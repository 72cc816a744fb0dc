/*
 * When a store counts as up or down, told as stories: '+' and '-' are checks that went well and
 * that failed; the answer has for each 'u' or 'd', as the state is after it, in capitals where it
 * has changed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/store/health_state.h"

#include <string.h>

enum { INTERVAL_MS = 10000, MAX_INTERVAL_MS = 30000, CONFIRM_MS = 1000, SOON_MS = 300000 };

static const struct health_rules usual = {3, 2, INTERVAL_MS, MAX_INTERVAL_MS};

struct bench {
    struct health_rules rules;
    struct health_state state;
    uint64_t now_ms;
};

static struct bench bench_of(struct health_rules rules)
{
    return (struct bench){.rules = rules, .now_ms = 1000000};
}

/* Takes each check when it is due. */
static void expect(struct bench *b, const char *checks, const char *expected)
{
    char told[256] = "";

    for (size_t i = 0; checks[i] != '\0'; i++) {
        bool changed = health_state_take(&b->state, &b->rules, checks[i] == '+', b->now_ms);

        told[i] = b->state.is_down ? (changed ? 'D' : 'd') : (changed ? 'U' : 'u');
        b->now_ms += health_state_pause(&b->state, &b->rules);
    }
    assert_string_equal(told, expected);
}

static void expect_pause(const struct bench *b, uint64_t ms)
{
    assert_int_equal(health_state_pause(&b->state, &b->rules), ms);
}

static void it_takes_some_in_a_row(void **state)
{
    struct bench b = bench_of(usual);

    (void)state;
    expect(&b, "++--+--+---", "uuuuuuuuuuD");
    expect(&b, "-+--+-++++",
           "ddddddd"
           "Uuu");
}

static void one_may_be_enough(void **state)
{
    struct bench b = bench_of((struct health_rules){1, 1, INTERVAL_MS, MAX_INTERVAL_MS});

    (void)state;
    expect(&b, "+-", "uD");
    expect(&b, "+", "U");
}

/* Answering every other check, or two of three, changes nothing, neither way. */
static void flapping_changes_nothing(void **state)
{
    struct bench b = bench_of(usual);

    (void)state;
    expect(&b, "-+-+-+-+-+-+--+--+--+", "uuuuuuuuuuuuuuuuuuuuu");
    expect(&b, "---", "uuD");
    expect(&b, "+-+-+-+-+-+-", "dddddddddddd");
}

static void the_first_failure_is_looked_into_quickly(void **state)
{
    struct bench b = bench_of(usual);

    (void)state;
    expect_pause(&b, INTERVAL_MS);
    expect(&b, "-", "u");
    expect_pause(&b, CONFIRM_MS);
    expect(&b, "-", "u");
    expect_pause(&b, CONFIRM_MS);
    expect(&b, "+", "u");
    expect_pause(&b, INTERVAL_MS);
}

static void pauses_grow_while_it_is_down(void **state)
{
    static const uint64_t pauses_ms[] = {1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000};
    struct bench b = bench_of(usual);

    (void)state;
    expect(&b, "--", "uu");
    for (size_t i = 0; i < sizeof pauses_ms / sizeof *pauses_ms; i++) {
        expect(&b, "-", i == 0 ? "D" : "d");
        expect_pause(&b, pauses_ms[i]);
    }
    expect(&b, "+", "d");
    expect_pause(&b, CONFIRM_MS);
    expect(&b, "-", "d");
    expect_pause(&b, 1000);
    expect(&b, "++", "dU");
    expect_pause(&b, INTERVAL_MS);
}

static void a_quick_one_does_not_wait_longer_to_confirm(void **state)
{
    struct bench b = bench_of((struct health_rules){3, 2, 200, 300});

    (void)state;
    expect(&b, "-", "u");
    expect_pause(&b, 200);
    expect(&b, "--", "uD");
    expect_pause(&b, 200);
    expect(&b, "-", "d");
    expect_pause(&b, 300);
}

/* Each relapse doubles what it takes, up to eight times, and in between looks are not quick. */
static void who_relapses_must_be_well_for_longer(void **state)
{
    struct bench b = bench_of(usual);

    (void)state;
    expect(&b, "---", "uuD");
    expect(&b, "++", "dU");
    expect(&b, "---", "uuD");
    expect(&b, "+", "d");
    expect_pause(&b, INTERVAL_MS);
    expect(&b, "+++", "ddU");
    expect(&b, "---", "uuD");
    expect(&b, "++++++++", "dddddddU");
    for (int again = 0; again < 3; again++) {
        expect(&b, "---", "uuD");
        expect(&b, "++++++++++++++++", "dddddddddddddddU");
    }
}

static void one_failure_in_between_begins_it_anew(void **state)
{
    struct bench b = bench_of(usual);

    (void)state;
    expect(&b, "---++---", "uuDdUuuD");
    expect(&b, "+++-++++", "dddddddU");
}

static void who_was_well_for_long_has_no_relapse(void **state)
{
    struct bench b = bench_of(usual);

    (void)state;
    expect(&b, "---++---++++", "uuDdUuuDdddU");
    b.now_ms = b.state.came_up_ms + SOON_MS - 1;
    b.state.came_up_ms++; /* as if it had been a moment later */
    expect(&b, "--", "uu");
    b.now_ms = b.state.came_up_ms + SOON_MS;
    expect(&b, "-", "D");
    expect(&b, "++", "dU");
}

/* A process that finds a store down when it starts has seen no relapse. */
static void the_first_time_is_no_relapse(void **state)
{
    struct bench b = bench_of(usual);

    (void)state;
    b.now_ms = 1;
    expect(&b, "---++", "uuDdU");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_takes_some_in_a_row),
        cmocka_unit_test(one_may_be_enough),
        cmocka_unit_test(flapping_changes_nothing),
        cmocka_unit_test(the_first_failure_is_looked_into_quickly),
        cmocka_unit_test(pauses_grow_while_it_is_down),
        cmocka_unit_test(a_quick_one_does_not_wait_longer_to_confirm),
        cmocka_unit_test(who_relapses_must_be_well_for_longer),
        cmocka_unit_test(one_failure_in_between_begins_it_anew),
        cmocka_unit_test(who_was_well_for_long_has_no_relapse),
        cmocka_unit_test(the_first_time_is_no_relapse),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
