/*
 * Counts of sessions in one process: who is one too many, and, with threads that come and go, that
 * nobody is forgotten and there are never too many.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/session/limits.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 4, ROUNDS = 20000, HELD = 8 };

static char trusted_network[] = "198.51.100.0/24";
static char *trusted[] = {trusted_network};

static struct limits *open_limits(int64_t per_user, int64_t per_address, int64_t per_user_address)
{
    static struct conf_limits conf;
    struct err err;

    conf = (struct conf_limits){.per_user = per_user,
                                .per_address = per_address,
                                .per_user_address = per_user_address,
                                .trusted = {trusted, 1}};
    struct limits *limits = limits_open(&conf, &err);
    assert_non_null(limits);
    return limits;
}

static enum err_kind enter(struct limits *limits, struct limits_place *place, const char *user,
                           const char *from)
{
    struct err err = {0};
    union address address;

    assert_true(address_of(from, 1, &address));
    bool entered = limits_enter(limits, place, user, &address, &err);
    assert_true(entered == (err.kind == ERR_NONE));
    assert_true(entered || (place->user == NULL && place->address == NULL));
    return err.kind;
}

static void leave_all(struct limits *limits, struct limits_place *places, size_t count)
{
    for (size_t i = 0; i < count; i++)
        limits_leave(limits, &places[i]);
    limits_close(&limits); /* asserts that nothing is left */
    assert_null(limits);
}

static void nothing_is_counted_without_limits(void **state)
{
    struct limits *limits = open_limits(0, 0, 0);
    struct limits_place places[10] = {0};

    (void)state;
    for (size_t i = 0; i < 10; i++) {
        assert_int_equal(enter(limits, &places[i], "ann", "192.0.2.1"), ERR_NONE);
        assert_null(places[i].user);
        assert_null(places[i].address);
    }
    leave_all(limits, places, 10);
}

static void a_user(void **state)
{
    struct limits *limits = open_limits(2, 0, 0);
    struct limits_place places[5] = {0};

    (void)state;
    assert_int_equal(enter(limits, &places[0], "ann", "192.0.2.1"), ERR_NONE);
    assert_int_equal(enter(limits, &places[1], "ann", "198.51.100.7"), ERR_NONE); /* trusted */
    assert_int_equal(enter(limits, &places[2], "ann", "192.0.2.3"), ERR_USER_LIMIT);
    assert_int_equal(enter(limits, &places[2], "ann", "198.51.100.8"), ERR_USER_LIMIT);
    assert_int_equal(enter(limits, &places[3], "bob", "192.0.2.1"), ERR_NONE);
    limits_leave(limits, &places[2]); /* it has no place */
    assert_int_equal(enter(limits, &places[2], "ann", "192.0.2.1"), ERR_USER_LIMIT);
    limits_leave(limits, &places[0]);
    limits_leave(limits, &places[0]);
    assert_int_equal(enter(limits, &places[2], "ann", "192.0.2.1"), ERR_NONE);
    assert_int_equal(enter(limits, &places[0], "ann", "192.0.2.1"), ERR_USER_LIMIT);
    leave_all(limits, places, 5);
}

static void an_address(void **state)
{
    struct limits *limits = open_limits(0, 2, 0);
    struct limits_place places[8] = {0};

    (void)state;
    assert_int_equal(enter(limits, &places[0], "ann", "2001:db8::1"), ERR_NONE);
    assert_int_equal(enter(limits, &places[1], "bob", "2001:db8::2"), ERR_NONE);
    assert_int_equal(enter(limits, &places[2], "cat", "2001:db8::3"), ERR_ADDRESS_LIMIT);
    assert_int_equal(enter(limits, &places[2], "cat", "2001:db8:0:1::3"), ERR_NONE);
    for (size_t i = 3; i < 7; i++)
        assert_int_equal(enter(limits, &places[i], "ann", "198.51.100.7"), ERR_NONE);
    limits_leave(limits, &places[1]);
    assert_int_equal(enter(limits, &places[7], "cat", "2001:db8::3"), ERR_NONE);
    leave_all(limits, places, 8);
}

static void a_user_from_an_address(void **state)
{
    struct limits *limits = open_limits(3, 4, 1);
    struct limits_place places[9] = {0};

    (void)state;
    assert_int_equal(enter(limits, &places[0], "ann", "192.0.2.1"), ERR_NONE);
    assert_int_equal(enter(limits, &places[1], "ann", "192.0.2.1"), ERR_USER_ADDRESS_LIMIT);
    assert_int_equal(enter(limits, &places[1], "ann", "192.0.2.2"), ERR_NONE);
    assert_int_equal(enter(limits, &places[2], "bob", "192.0.2.1"), ERR_NONE);
    assert_int_equal(enter(limits, &places[3], "ann", "192.0.2.3"), ERR_NONE);
    assert_int_equal(enter(limits, &places[4], "ann", "192.0.2.4"), ERR_USER_LIMIT);
    limits_leave(limits, &places[0]);
    assert_int_equal(enter(limits, &places[0], "ann", "192.0.2.1"), ERR_NONE);
    assert_int_equal(enter(limits, &places[4], "cat", "192.0.2.1"), ERR_NONE);
    assert_int_equal(enter(limits, &places[5], "dan", "192.0.2.1"), ERR_NONE);
    assert_int_equal(enter(limits, &places[6], "eve", "192.0.2.1"), ERR_ADDRESS_LIMIT);
    assert_int_equal(enter(limits, &places[6], "eve", "198.51.100.7"), ERR_NONE);
    assert_int_equal(enter(limits, &places[7], "eve", "198.51.100.7"), ERR_NONE);
    leave_all(limits, places, 9);
}

/* Names that look like other keys of the table. */
/* Apart from sessions; who is trusted does not wait. */
static void who_has_not_logged_in(void **state)
{
    static const char *const from[] = {"192.0.2.1", "192.0.2.1", "192.0.2.2", "198.51.100.7"};
    struct conf_limits conf = {.per_address = 1, .before_login = 2, .trusted = {trusted, 1}};
    struct limits *limits = limits_open(&conf, NULL);
    struct limits_place session = {0}, waiting[4] = {0}, more = {0};
    union address address;

    (void)state;
    assert_int_equal(enter(limits, &session, "ann", "192.0.2.1"), ERR_NONE);
    for (size_t i = 0; i < 4; i++) {
        assert_true(address_of(from[i], 1, &address));
        assert_true(limits_await(limits, &waiting[i], &address));
    }
    assert_true(address_of("192.0.2.1", 1, &address));
    assert_false(limits_await(limits, &more, &address));
    limits_leave(limits, &more);
    limits_leave(limits, &waiting[1]);
    assert_true(limits_await(limits, &more, &address));
    limits_leave(limits, &more);
    limits_leave(limits, &session);
    leave_all(limits, waiting, 4);
}

static void names_may_hold_anything(void **state)
{
    static const char *const names[] = {"a", "192.0.2.1", "192.0.2.1 a", "a b", "p", "u", ""};
    struct limits *limits = open_limits(1, 100, 1);
    struct limits_place places[7] = {0}, other = {0};

    (void)state;
    for (size_t i = 0; i < 7; i++)
        assert_int_equal(enter(limits, &places[i], names[i], "192.0.2.1"), ERR_NONE);
    for (size_t i = 0; i < 7; i++)
        assert_int_equal(enter(limits, &other, names[i], "192.0.2.2"), ERR_USER_LIMIT);
    leave_all(limits, places, 7);
}

static void the_settings_as_they_hold(void **state)
{
    struct limits *limits = open_limits(3, 4, 1);
    union address address;

    (void)state;
    assert_true(address_of("192.0.2.1", 1, &address));
    struct limits_numbers numbers = limits_for(limits, &address);
    assert_true(numbers.user == 3 && numbers.address == 4 && numbers.user_address == 1);
    assert_true(address_of("::ffff:198.51.100.1", 1, &address));
    numbers = limits_for(limits, &address);
    assert_true(numbers.user == 3 && numbers.address == 0 && numbers.user_address == 0);
    limits_close(&limits);
    limits_close(&limits);
}

static void a_network_that_is_none(void **state)
{
    static char *bad[] = {(char *)"here"};
    struct conf_limits conf = {.trusted = {bad, 1}};
    struct err err;

    (void)state;
    assert_null(limits_open(&conf, &err));
    assert_int_equal(err.kind, ERR_CONFIG);
}

/* --- threads --- */

struct crowd {
    struct limits *limits;
    _Atomic int in[3]; /* sessions of each user */
    _Atomic bool too_many;
    int max;
};

struct walker {
    struct crowd *crowd;
    unsigned random;
    unsigned entered, refused;
};

static void go(struct crowd *crowd, struct limits_place *place, int user)
{
    atomic_fetch_sub(&crowd->in[user], 1);
    limits_leave(crowd->limits, place);
}

static void walk(struct walker *walker, struct limits_place *places, int *users)
{
    static const char *const names[] = {"ann", "bob", "cat"};
    struct crowd *crowd = walker->crowd;

    walker->random = walker->random * 1103515245 + 12345;
    size_t at = (walker->random >> 8) % HELD;
    int user = (int)(walker->random >> 16) % 3;
    if (places[at].user != NULL) {
        go(crowd, &places[at], users[at]);
    } else if (enter(crowd->limits, &places[at], names[user], "192.0.2.1") == ERR_NONE) {
        users[at] = user;
        walker->entered++;
        if (atomic_fetch_add(&crowd->in[user], 1) >= crowd->max)
            atomic_store(&crowd->too_many, true);
    } else {
        walker->refused++;
    }
}

static void *run(void *argument)
{
    struct walker *walker = argument;
    struct limits_place places[HELD] = {0};
    int users[HELD];

    for (int i = 0; i < ROUNDS; i++)
        walk(walker, places, users);
    for (size_t i = 0; i < HELD; i++)
        if (places[i].user != NULL)
            go(walker->crowd, &places[i], users[i]);
    return NULL;
}

static void from_all_threads(void **state)
{
    struct crowd crowd = {.limits = open_limits(2, 5, 2), .max = 2};
    struct walker walkers[THREADS];
    pthread_t threads[THREADS];
    unsigned entered = 0, refused = 0;

    (void)state;
    for (unsigned i = 0; i < THREADS; i++) {
        walkers[i] = (struct walker){.crowd = &crowd, .random = i};
        assert_int_equal(pthread_create(&threads[i], NULL, run, &walkers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        entered += walkers[i].entered;
        refused += walkers[i].refused;
    }
    assert_false(atomic_load(&crowd.too_many));
    assert_true(entered > 1000 && refused > 1000);
    limits_close(&crowd.limits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_counted_without_limits),
        cmocka_unit_test(a_user),
        cmocka_unit_test(an_address),
        cmocka_unit_test(a_user_from_an_address),
        cmocka_unit_test(who_has_not_logged_in),
        cmocka_unit_test(names_may_hold_anything),
        cmocka_unit_test(the_settings_as_they_hold),
        cmocka_unit_test(a_network_that_is_none),
        cmocka_unit_test(from_all_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
