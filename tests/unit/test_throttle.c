/* Who waits how long for what has failed before. */
#include "auth/throttle.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
/* after its friends */
#include <cmocka.h>

static struct conf_throttle conf;
static struct throttle *throttle;

static int setup(void **state)
{
    struct err err;

    (void)state;
    conf = (struct conf_throttle){.free_failures = 1,
                                  .delay = 100,
                                  .max_delay = 500,
                                  .max_user_delay = 150,
                                  .forget = 1000,
                                  .max_parallel = 2,
                                  .max_entries = 6};
    throttle = throttle_open(&conf, &err);
    assert_non_null(throttle);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    throttle_close(&throttle);
    assert_null(throttle);
    throttle_close(&throttle);
    return 0;
}

static bool begin(struct throttle_attempt *attempt, const char *from, const char *user,
                  const char *password, uint64_t now_ms, uint64_t *delay_ms_out)
{
    struct secret secret = {0};
    union address address;

    assert_true(address_of(from, 1, &address));
    assert_true(secret_set(&secret, span_of(password)));
    bool may = throttle_begin(throttle, attempt, &address, user, &secret, now_ms, delay_ms_out);
    secret_release(&secret);
    return may;
}

/* One login from begin to end; what it had to wait. */
static uint64_t log_in(const char *from, const char *user, const char *password, uint64_t now_ms,
                       enum throttle_outcome outcome)
{
    struct throttle_attempt attempt;
    uint64_t delay_ms;

    assert_true(begin(&attempt, from, user, password, now_ms, &delay_ms));
    throttle_end(throttle, &attempt, outcome, now_ms);
    return delay_ms;
}

/* A guess that is like no other. */
static uint64_t guess(const char *from, const char *user, uint64_t now_ms)
{
    static unsigned count;
    char password[16];

    snprintf(password, sizeof password, "guess%u", count++);
    return log_in(from, user, password, now_ms, THROTTLE_REFUSED);
}

/* Another user each time: only the address counts. */
static uint64_t guess_anyone(const char *from, uint64_t now_ms)
{
    static unsigned count;
    char user[16];

    snprintf(user, sizeof user, "user%u", count++);
    return guess(from, user, now_ms);
}

static void an_address_waits_longer_each_time(void **state)
{
    static const uint64_t delays[] = {0, 0, 100, 200, 400, 500, 500};

    (void)state;
    for (size_t i = 0; i < sizeof delays / sizeof delays[0]; i++)
        assert_int_equal(guess_anyone("192.0.2.1", 0), delays[i]);
    assert_int_equal(guess_anyone("192.0.2.2", 0), 0);
}

static void a_user_waits_for_guesses_from_everywhere(void **state)
{
    (void)state;
    assert_int_equal(guess("192.0.2.1", "ann", 0), 0);
    assert_int_equal(guess("192.0.2.2", "ann", 0), 0);
    assert_int_equal(guess("192.0.2.3", "ann", 0), 100);
    assert_int_equal(guess("192.0.2.4", "ann", 0), 150);
    assert_int_equal(log_in("192.0.2.5", "ann", "right", 0, THROTTLE_VERIFIED), 150);
    assert_int_equal(log_in("192.0.2.5", "ann", "right", 0, THROTTLE_VERIFIED), 0);
    assert_int_equal(guess_anyone("192.0.2.1", 0), 0);
}

static unsigned look(const char *user, uint64_t now_ms, uint64_t *delay_ms_out)
{
    return throttle_look(throttle, user, now_ms, delay_ms_out);
}

static void a_look_changes_nothing(void **state)
{
    uint64_t delay_ms = 1;

    (void)state;
    assert_int_equal(look("ann", 0, &delay_ms), 0);
    assert_int_equal(delay_ms, 0);
    for (unsigned i = 1; i <= 3; i++) {
        guess("192.0.2.1", "ann", 0);
        assert_int_equal(look("ann", 0, &delay_ms), i);
    }
    assert_int_equal(delay_ms, 150);
    assert_int_equal(look("bob", 0, &delay_ms), 0);
    assert_int_equal(look("ann", UINT64_C(1000000000), &delay_ms), 0); /* all forgiven by then */
    assert_int_equal(delay_ms, 0);
    assert_int_equal(look("ann", 0, &delay_ms), 3);
    assert_int_equal(guess("192.0.2.4", "ann", 0), 150);
}

static void a_success_does_not_clear_the_address(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++)
        guess_anyone("192.0.2.1", 0);
    assert_int_equal(log_in("192.0.2.1", "ann", "right", 0, THROTTLE_VERIFIED), 200);
    assert_int_equal(log_in("192.0.2.1", "ann", "right", 0, THROTTLE_VERIFIED), 200);
}

static void the_same_password_again_is_no_guess(void **state)
{
    (void)state;
    for (int i = 0; i < 10; i++)
        assert_int_equal(log_in("192.0.2.1", "ann", "old", 0, THROTTLE_REFUSED), 0);
    guess("192.0.2.1", "ann", 0);
    for (int i = 0; i < 10; i++)
        assert_int_equal(log_in("192.0.2.1", "ann", "old", 0, THROTTLE_REFUSED), 100);
    assert_int_equal(log_in("192.0.2.1", "bob", "old", 0, THROTTLE_REFUSED), 100);
    assert_int_equal(guess("192.0.2.1", "bob", 0), 200); /* for bob it was one */
}

static void nobody_knows_is_no_failure(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++)
        assert_int_equal(log_in("192.0.2.1", "ann", "x", 0, THROTTLE_UNKNOWN), 0);
}

static void time_forgives(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        guess_anyone("192.0.2.1", 5000);
    assert_int_equal(log_in("192.0.2.1", "ann", "x", 5999, THROTTLE_UNKNOWN), 400);
    assert_int_equal(log_in("192.0.2.1", "ann", "x", 6000, THROTTLE_UNKNOWN), 200);
    assert_int_equal(log_in("192.0.2.1", "ann", "x", 7500, THROTTLE_UNKNOWN), 100);
    assert_int_equal(log_in("192.0.2.1", "ann", "x", 8000, THROTTLE_UNKNOWN), 0);
    for (int i = 0; i < 100; i++) /* however many */
        guess_anyone("192.0.2.1", 10000);
    assert_int_equal(log_in("192.0.2.1", "ann", "x", 42000, THROTTLE_UNKNOWN), 0);
}

/* Workers look at the clock before they take their turn. */
static void a_moment_before_the_failure_nothing_is_forgiven(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++)
        guess_anyone("192.0.2.1", 5001);
    assert_int_equal(guess_anyone("192.0.2.1", 5000), 200);
    assert_int_equal(guess_anyone("192.0.2.1", 5001), 400);
}

static void who_has_a_64_has_its_addresses(void **state)
{
    (void)state;
    guess_anyone("2001:db8::1", 0);
    guess_anyone("2001:db8::ffff:1", 0);
    assert_int_equal(guess_anyone("2001:db8:0:0:1::1", 0), 100);
    assert_int_equal(guess_anyone("2001:db8:0:1::1", 0), 0);
    guess_anyone("::ffff:192.0.2.1", 0);
    assert_int_equal(guess_anyone("::ffff:192.0.2.2", 0), 0);
}

static void so_many_at_once(void **state)
{
    struct throttle_attempt attempts[3];
    uint64_t delay_ms;

    (void)state;
    assert_true(begin(&attempts[0], "192.0.2.1", "ann", "x", 0, &delay_ms));
    assert_true(begin(&attempts[1], "192.0.2.1", "bob", "x", 0, &delay_ms));
    assert_false(begin(&attempts[2], "192.0.2.1", "cat", "x", 0, &delay_ms));
    throttle_end(throttle, &attempts[0], THROTTLE_UNKNOWN, 0);
    assert_true(begin(&attempts[2], "192.0.2.1", "cat", "x", 0, &delay_ms));
    throttle_end(throttle, &attempts[1], THROTTLE_UNKNOWN, 0);
    throttle_end(throttle, &attempts[2], THROTTLE_UNKNOWN, 0);
}

static void the_trusted_are_exempt(void **state)
{
    static char network[] = "192.0.2.0/24";
    char *items[] = {network};
    struct throttle_attempt attempts[5];
    uint64_t delay_ms;
    struct err err;

    teardown(state);
    conf.trusted = (struct conf_words){.items = items, .count = 1};
    throttle = throttle_open(&conf, &err);
    for (size_t i = 0; i < 5; i++) {
        assert_true(begin(&attempts[i], "192.0.2.7", "ann", "x", 0, &delay_ms));
        assert_int_equal(delay_ms, 0);
    }
    for (size_t i = 0; i < 5; i++)
        throttle_end(throttle, &attempts[i], THROTTLE_REFUSED, 0);
    assert_int_equal(guess("192.0.3.1", "ann", 0), 0);
    network[0] = 'x';
    throttle_close(&throttle);
    assert_null(throttle_open(&conf, &err));
    assert_int_equal(err.kind, ERR_CONFIG);
    setup(state);
}

static void memory_is_bounded(void **state)
{
    struct throttle_attempt attempt;
    uint64_t delay_ms;
    char from[32];

    (void)state;
    for (int i = 0; i < 3; i++)
        guess("192.0.2.1", "ann", 0);
    assert_true(begin(&attempt, "192.0.2.1", "ann", "x", 0, &delay_ms));
    for (int i = 0; i < 50; i++) { /* what is under way is not forgotten for them */
        snprintf(from, sizeof from, "198.51.100.%d", i);
        guess_anyone(from, 0);
    }
    throttle_end(throttle, &attempt, THROTTLE_UNKNOWN, 0);
    assert_int_equal(log_in("192.0.2.1", "ann", "x", 0, THROTTLE_UNKNOWN), 200);
    for (int i = 0; i < 50; i++)
        guess_anyone("198.51.100.1", 0);
    assert_int_equal(log_in("192.0.2.1", "ann", "x", 0, THROTTLE_UNKNOWN), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_address_waits_longer_each_time),
        TEST(a_user_waits_for_guesses_from_everywhere),
        TEST(a_look_changes_nothing),
        TEST(a_success_does_not_clear_the_address),
        TEST(the_same_password_again_is_no_guess),
        TEST(nobody_knows_is_no_failure),
        TEST(time_forgives),
        TEST(a_moment_before_the_failure_nothing_is_forgiven),
        TEST(who_has_a_64_has_its_addresses),
        TEST(so_many_at_once),
        TEST(the_trusted_are_exempt),
        TEST(memory_is_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
