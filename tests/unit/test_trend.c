/*
 * The history of the process: what is told of a stretch of time, and that an hour and a day are
 * kept and no more.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/http/trend.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { START = 1700000000 };

static struct trend *trend;
static struct counters counters;
static struct trend_shard shards[2];
static uint64_t clock_ms;
static const char *const titles[] = {"blue", "green"};

static int begin(void **state)
{
    (void)state;
    memset(&counters, 0, sizeof counters);
    memset(shards, 0, sizeof shards);
    clock_ms = 1000000;
    trend = trend_open();
    return trend == NULL ? -1 : 0;
}

static int end(void **state)
{
    (void)state;
    trend_close(&trend);
    return trend == NULL ? 0 : -1;
}

static void look(uint32_t sessions)
{
    clock_ms += TREND_EACH_MS;
    trend_add(trend, &(struct trend_look){.at = START + (int64_t)(clock_ms / 1000),
                                          .clock_ms = clock_ms,
                                          .sessions = sessions,
                                          .sum = &counters,
                                          .shards = shards,
                                          .shard_count = 2});
}

static json_t *read_all(void)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    assert_non_null(out);
    trend_print(trend, titles, out);
    assert_int_equal(fclose(out), 0);
    json_t *all = json_loadb(text, len, 0, NULL);
    assert_non_null(all);
    free(text);
    return all;
}

static json_t *column(const json_t *all, const char *range, const char *name)
{
    json_t *list = json_object_get(json_object_get(all, range), name);

    assert_true(json_is_array(list));
    return list;
}

static void nothing_is_known_at_first(void **state)
{
    json_t *all = read_all();

    (void)state;
    assert_null(trend_latest(trend));
    assert_int_equal(json_array_size(column(all, "hour", "at")), 0);
    json_decref(all);
    look(1);
    assert_null(trend_latest(trend));
    look(2);
    assert_non_null(trend_latest(trend));
    assert_int_equal(trend_latest(trend)->sessions, 2);
}

static void what_was_counted_becomes_rates(void **state)
{
    (void)state;
    counter_add(&counters.logins_ok, 1000); /* before the first look */
    look(0);
    counter_add(&counters.logins_ok, 10);
    counter_add(&counters.logins_refused, 5);
    counter_add(&counters.backend_failures, 1);
    counter_add(&counters.auth_ldap_failures, 2);
    counter_add(&counters.redis_failures, 2);
    counter_add(&counters.bytes_from_clients, 500);
    counter_add(&counters.bytes_to_clients, 5000);
    counter_add(&counters.leases_new, 1);
    counter_add(&counters.leases_parked, 2);
    counter_add(&counters.leases_warm, 1);
    for (int i = 0; i < 10; i++)
        histogram_add(&counters.login_seconds, i == 9 ? 1000 : 7);
    look(3);

    const struct trend_point *point = trend_latest(trend);

    assert_true(point->logins_ok == 2 && point->logins_refused == 1 && point->errors == 1);
    assert_true(point->bytes_in == 100 && point->bytes_out == 1000);
    assert_true(point->reused > 0.74F && point->reused < 0.76F);
    assert_true(point->median_ms > 5 && point->median_ms < 10);
    assert_true(point->slow_ms > 500 && point->slow_ms <= 1000);
}

static void what_did_not_happen_is_null(void **state)
{
    json_t *all;

    (void)state;
    look(0);
    look(0);
    assert_true(trend_latest(trend)->median_ms < 0 && trend_latest(trend)->reused < 0);
    all = read_all();
    assert_true(json_is_null(json_array_get(column(all, "hour", "median_ms"), 0)));
    assert_true(json_is_null(json_array_get(column(all, "hour", "reused"), 0)));
    assert_int_equal(json_integer_value(json_array_get(column(all, "hour", "logins_ok"), 0)), 0);
    json_decref(all);
}

/* A queue that was there for a moment shows in the day's point, too; and so does an outage. */
static void the_worst_of_a_stretch_is_kept(void **state)
{
    json_t *all, *blue;

    (void)state;
    for (int i = 0; i <= 24; i++) {
        gauge_add(&counters.leases_waiting, i == 7 ? 9 : 0);
        shards[0] = (struct trend_shard){.sessions = 4, .is_down = i == 11};
        look(5);
        gauge_add(&counters.leases_waiting, i == 7 ? -9 : 0);
    }
    all = read_all();
    assert_int_equal(json_array_size(column(all, "day", "at")), 1);
    assert_int_equal(json_integer_value(json_array_get(column(all, "day", "waiting"), 0)), 9);
    blue = json_object_get(json_object_get(json_object_get(all, "day"), "shards"), "blue");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(blue, "down"), 0)), 1);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(blue, "sessions"), 0)), 4);
    blue = json_object_get(json_object_get(json_object_get(all, "hour"), "shards"), "blue");
    for (size_t i = 0; i < 24; i++)
        assert_int_equal(json_integer_value(json_array_get(json_object_get(blue, "down"), i)),
                         i == 10); /* the first look only begins */
    json_decref(all);
}

static void an_hour_and_a_day_are_kept(void **state)
{
    json_t *all, *at;

    (void)state;
    for (uint32_t i = 0; i <= 30 * 720; i++)
        look(i);
    all = read_all();
    at = column(all, "hour", "at");
    assert_int_equal(json_array_size(at), 720);
    for (size_t i = 1; i < 720; i++)
        assert_int_equal(json_integer_value(json_array_get(at, i)),
                         json_integer_value(json_array_get(at, i - 1)) + 5);
    assert_int_equal(json_integer_value(json_array_get(at, 719)), START + clock_ms / 1000);
    assert_int_equal(json_integer_value(json_array_get(column(all, "hour", "sessions"), 719)),
                     30 * 720);
    at = column(all, "day", "at");
    assert_int_equal(json_array_size(at), 720);
    assert_int_equal(json_integer_value(json_array_get(at, 719)) -
                         json_integer_value(json_array_get(at, 0)),
                     719 * 120);
    json_decref(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_is_known_at_first, begin, end),
        cmocka_unit_test_setup_teardown(what_was_counted_becomes_rates, begin, end),
        cmocka_unit_test_setup_teardown(what_did_not_happen_is_null, begin, end),
        cmocka_unit_test_setup_teardown(the_worst_of_a_stretch_is_kept, begin, end),
        cmocka_unit_test_setup_teardown(an_hour_and_a_day_are_kept, begin, end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
