/* What is remembered of users' last sessions and refused logins. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "proxy/session/history.h"

static struct history *history;
static union address peer;
static struct history_end ends[HISTORY_ENDS];
static struct history_refusal refusal;

static int open_history(void **state)
{
    (void)state;
    history = history_open();
    address_of("192.0.2.1", 1143, &peer);
    return history == NULL;
}

static int close_history(void **state)
{
    (void)state;
    history_close(&history);
    return 0;
}

static void end(const char *user, uint64_t seconds, const char *why)
{
    history_ended(history, user, &peer, "blue", seconds, why);
}

static void refuse(const char *user, const char *text)
{
    struct err err = {0};

    err_set(&err, ERR_CREDENTIALS, "%s", text);
    history_refused(history, user, &peer, NULL, &err);
}

static size_t look(const char *user)
{
    return history_of(history, user, ends, &refusal);
}

static void nobody_is_known_at_first(void **state)
{
    (void)state;
    assert_int_equal(look("ann"), 0);
    assert_int_equal(refusal.at, 0);
}

static void the_latest_three_are_kept(void **state)
{
    time_t before = time(NULL);

    (void)state;
    for (uint64_t i = 1; i <= 5; i++) {
        end("ann", i, i == 5 ? "logout" : "idle");
        assert_int_equal(look("ann"), i < 3 ? i : 3);
        for (uint64_t j = 0; j < i && j < 3; j++)
            assert_int_equal(ends[j].seconds, i - j);
    }
    assert_string_equal(ends[0].why, "logout");
    assert_string_equal(ends[1].why, "idle");
    assert_string_equal(ends[0].shard, "blue");
    assert_memory_equal(&ends[0].peer, &peer, sizeof peer);
    assert_true(ends[0].at >= before && ends[0].at <= time(NULL));
    assert_int_equal(refusal.at, 0);
    assert_int_equal(look("bob"), 0);
}

static void the_last_refusal_is_kept(void **state)
{
    (void)state;
    refuse("ann", "first");
    refuse("ann", "second");
    assert_int_equal(look("ann"), 0);
    assert_string_equal(refusal.text, "second");
    assert_int_equal(refusal.kind, ERR_CREDENTIALS);
    assert_null(refusal.shard);
    assert_true(refusal.at > 0);
}

static void long_texts_are_cut(void **state)
{
    char text[500];

    (void)state;
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    end("ann", 1, text);
    refuse("ann", text);
    assert_int_equal(look("ann"), 1);
    assert_int_equal(strlen(ends[0].why), HISTORY_WHY_MAX - 1);
    assert_int_equal(strlen(refusal.text), HISTORY_TEXT_MAX - 1);
}

static void who_was_not_heard_of_for_longest_is_forgotten(void **state)
{
    char name[32];

    (void)state;
    for (int i = 0; i < HISTORY_USERS; i++) {
        snprintf(name, sizeof name, "user%d", i);
        end(name, 1, "logout");
    }
    end("user0", 2, "logout"); /* heard of again */
    end("new", 1, "logout");
    assert_int_equal(look("user0"), 2);
    assert_int_equal(look("user1"), 0);
    assert_int_equal(look("user2"), 1);
    assert_int_equal(look("new"), 1);
}

static void refused_names_displace_no_session(void **state)
{
    char name[32];

    (void)state;
    end("ann", 1, "logout");
    refuse("ann", "wrong");
    for (int i = 0; i < HISTORY_USERS; i++) {
        snprintf(name, sizeof name, "made-up%d", i);
        refuse(name, "no such user");
    }
    assert_int_equal(look("ann"), 1);
    assert_int_equal(refusal.at, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_history, close_history)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nobody_is_known_at_first),
        TEST(the_latest_three_are_kept),
        TEST(the_last_refusal_is_kept),
        TEST(long_texts_are_cut),
        TEST(who_was_not_heard_of_for_longest_is_forgotten),
        TEST(refused_names_displace_no_session),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
