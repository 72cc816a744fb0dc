/*
 * What two looks at imapmux come to: rates, latencies, shards, and their layout on a sheet.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/ctl/overview.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS(a, b, c)                                                                           \
    "imapmux_login_seconds_bucket{le=\"0.01\"} " #a "\n"                                           \
    "imapmux_login_seconds_bucket{le=\"0.1\"} " #b "\n"                                            \
    "imapmux_login_seconds_bucket{le=\"+Inf\"} " #c "\n"                                           \
    "imapmux_login_seconds_count " #c "\n"
#define SHARD(name, up, ok, waiting)                                                               \
    "imapmux_shard_up{shard=\"" name "\"} " #up "\n"                                               \
    "imapmux_shard_order{shard=\"" name "\",order=\"drain\"} 1\n"                                  \
    "imapmux_shard_logins_total{shard=\"" name "\",result=\"ok\"} " #ok "\n"                       \
    "imapmux_shard_waiting{shard=\"" name "\"} " #waiting "\n"

static const char before_text[] =
    "# HELP x y.\nimapmux_logins_ok_total 100\n"
    "imapmux_leases_total{kind=\"new\"} 5\n"
    "imapmux_logins_refused_total 50\n" BUCKETS(10, 10, 10) SHARD("blue", 1, 7, 0);
static const char now_text[] = "imapmux_logins_ok_total 120\n"
                               "imapmux_leases_total{kind=\"new\"} 6\n"
                               "imapmux_leases_total{kind=\"parked\"} 3\n"
                               "imapmux_logins_refused_total 20\n"
                               "imapmux_sessions{phase=\"relay\"} 3\n" BUCKETS(20, 29, 30)
                                   SHARD("blue", 1, 17, 0) SHARD("azure", 0, 0, 4);

static void make(struct figures *figures, struct sample *before, struct sample *now)
{
    assert_true(sample_read(before, 1000, before_text,
                            json_pack("{s:[{s:i, s:s, s:i}]}", "worker_threads", "worker", 0,
                                      "state", "well", "logins_ok", 5)));
    assert_true(
        sample_read(now, 3000, now_text,
                    json_pack("{s:s, s:i, s:[{s:i, s:s, s:i}]}", "version", "9.9", "sessions", 4,
                              "worker_threads", "worker", 0, "state", "silent", "logins_ok", 9)));
    assert_true(figures_make(figures, before, now));
}

static void release(struct figures *figures, struct sample *before, struct sample *now)
{
    figures_release(figures);
    sample_release(before);
    sample_release(now);
}

static bool is_near(double one, double other)
{
    return fabs(one - other) < 1e-9;
}

static void rates_and_latencies(void **state)
{
    struct figures figures;
    struct sample before, now;

    (void)state;
    make(&figures, &before, &now);
    assert_true(is_near(figures.logins_ok_per_second, 10));
    assert_true(is_near(figures.logins_refused_per_second, 0)); /* never negative */
    assert_true(is_near(figures.hits_percent, 75));
    assert_true(is_near(figures.relayed, 3) && is_near(figures.sessions, 4));

    const struct figures_latency *login = &figures.latencies[FIGURES_LOGIN];
    assert_true(login->is_used && is_near(login->per_second, 10));
    assert_true(is_near(login->p50, 0.01)); /* 10 of 20 are in the first bucket */
    assert_true(is_near(login->p95, 0.1));  /* 19 of 20 are below the second bound */
    assert_true(is_near(login->p99, 0.1));  /* beyond the last bound nobody knows more */
    assert_true(figures.latencies[FIGURES_REDIS].p50 < 0 &&
                !figures.latencies[FIGURES_REDIS].is_used);
    release(&figures, &before, &now);
}

static void shards_and_workers(void **state)
{
    struct figures figures;
    struct sample before, now;

    (void)state;
    make(&figures, &before, &now);
    assert_int_equal(figures.shard_count, 2);
    figures_sort(&figures, FIGURES_BY_NAME);
    assert_string_equal(figures.shards[0].name, "azure");
    assert_true(!figures.shards[0].is_up && figures.shards[1].is_up);
    assert_string_equal(figures.shards[0].order, "drain");
    figures_sort(&figures, FIGURES_BY_LOGINS);
    assert_string_equal(figures.shards[0].name, "blue");
    assert_true(is_near(figures.shards[0].logins_per_second, 5));
    figures_sort(&figures, FIGURES_BY_WAITING);
    assert_string_equal(figures.shards[0].name, "azure");
    assert_int_equal(figures.worker_count, 1);
    assert_true(!figures.workers[0].is_well && is_near(figures.workers[0].logins_per_second, 2));
    release(&figures, &before, &now);
}

/* Whatever the size, nothing is written outside. */
static void any_size(void **state)
{
    static const int sizes[][2] = {{24, 80}, {1, 1}, {3, 200}, {1000, 1000}, {0, 0}};
    struct figures figures;
    struct sample before, now;
    struct sheet *sheet = calloc(1, sizeof *sheet);
    char *text = NULL;
    size_t len;

    (void)state;
    assert_non_null(sheet);
    make(&figures, &before, &now);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct overview overview = {.figures = &figures,
                                    .now = &now,
                                    .interval_ms = 1000,
                                    .trouble = "\x1b[2J \xc3\xa4",
                                    .first_shard = 77,
                                    .has_keys = true};
        FILE *out = open_memstream(&text, &len);

        assert_non_null(out);
        sheet_clear(sheet, sizes[i][0], sizes[i][1]);
        overview_draw(&overview, sheet);
        sheet_print(sheet, out);
        assert_int_equal(fclose(out), 0);
        assert_null(strchr(text, '\x1b'));
        if (i == 0) {
            assert_non_null(strstr(text, "imapmux 9.9"));
            assert_non_null(strstr(text, "trying again: ?[2J ??\n"));
            assert_non_null(strstr(text, "\nazure              drain DOWN"));
        }
        free(text);
    }
    release(&figures, &before, &now);
    free(sheet);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rates_and_latencies),
        cmocka_unit_test(shards_and_workers),
        cmocka_unit_test(any_size),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
