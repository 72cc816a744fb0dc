/*
 * Metrics as Prometheus reads them: how long things took, what the file says, and that a reader
 * finds the old file or the new one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64], path[128], new_path[140];
static char page[65536]; /* what was saved last */

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/test_metrics.XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/metrics", folder);
    snprintf(new_path, sizeof new_path, "%s.new", path);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static void read_page(FILE *in)
{
    size_t len = fread(page, 1, sizeof page - 1, in);

    assert_true(len < sizeof page - 1);
    page[len] = '\0';
}

static void print(FILE *out, const void *what)
{
    metrics_print(out, what);
}

static void save(const struct counters *const *list, size_t count)
{
    struct counters sum;
    struct err err = {0};
    FILE *in;

    metrics_sum(&sum, list, count);
    assert_true(metrics_save(path, print, &sum, &err));
    assert_int_equal(err.kind, ERR_NONE);
    in = fopen(path, "r");
    assert_non_null(in);
    read_page(in);
    assert_int_equal(fclose(in), 0);
}

static void save_one(const struct counters *counters)
{
    save(&counters, 1);
}

/* Whether the page has exactly this line, once. */
static bool has_line(const char *line)
{
    size_t len = strlen(line), found = 0;

    for (const char *at = strstr(page, line); at != NULL; at = strstr(at + 1, line))
        if ((at == page || at[-1] == '\n') && at[len] == '\n')
            found++;
    return found == 1;
}

static void times_are_counted_up_to_their_bound(void **state)
{
    static const struct {
        uint64_t ms;
        size_t bucket;
    } cases[] = {
        {0, 0},      {1, 0},      {2, 1},      {3, 2},      {5, 2},         {6, 3},
        {10, 3},     {11, 4},     {20, 4},     {21, 5},     {50, 5},        {51, 6},
        {100, 6},    {101, 7},    {200, 7},    {201, 8},    {500, 8},       {501, 9},
        {1000, 9},   {1001, 10},  {2000, 10},  {2001, 11},  {5000, 11},     {5001, 12},
        {10000, 12}, {10001, 13}, {30000, 13}, {30001, 14}, {86400000, 14},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct histogram histogram = {0};

        histogram_add(&histogram, cases[i].ms);
        histogram_add(&histogram, cases[i].ms);
        assert_int_equal(atomic_load(&histogram.sum_ms), 2 * cases[i].ms);
        for (size_t bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++)
            assert_int_equal(atomic_load(&histogram.buckets[bucket]),
                             bucket == cases[i].bucket ? 2 : 0);
    }
}

static void buckets_are_shown_as_all_below_their_bound(void **state)
{
    static const char *const lines[] = {
        "# TYPE imapmux_login_seconds histogram",
        "imapmux_login_seconds_bucket{le=\"0.001\"} 2",
        "imapmux_login_seconds_bucket{le=\"0.002\"} 2",
        "imapmux_login_seconds_bucket{le=\"0.005\"} 2",
        "imapmux_login_seconds_bucket{le=\"0.01\"} 5",
        "imapmux_login_seconds_bucket{le=\"0.02\"} 5",
        "imapmux_login_seconds_bucket{le=\"0.05\"} 5",
        "imapmux_login_seconds_bucket{le=\"0.1\"} 5",
        "imapmux_login_seconds_bucket{le=\"0.2\"} 5",
        "imapmux_login_seconds_bucket{le=\"0.5\"} 5",
        "imapmux_login_seconds_bucket{le=\"1\"} 5",
        "imapmux_login_seconds_bucket{le=\"2\"} 6",
        "imapmux_login_seconds_bucket{le=\"5\"} 6",
        "imapmux_login_seconds_bucket{le=\"10\"} 6",
        "imapmux_login_seconds_bucket{le=\"30\"} 6",
        "imapmux_login_seconds_bucket{le=\"+Inf\"} 7",
        "imapmux_login_seconds_count 7",
        "imapmux_login_seconds_sum 41.525",
        "imapmux_queue_wait_seconds_bucket{le=\"30\"} 0",
        "imapmux_queue_wait_seconds_sum 0.000",
    };
    static const uint64_t times[] = {0, 1, 7, 7, 10, 1500, 40000};
    struct counters workers[2] = {0};
    const char *at = page;

    (void)state;
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++)
        histogram_add(&workers[i % 2].login_seconds, times[i]);
    save((const struct counters *const[]){&workers[0], &workers[1]}, 2);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (!has_line(lines[i]))
            print_error("%s\n", lines[i]);
        assert_true(has_line(lines[i]));
        assert_true(strstr(page, lines[i]) > at); /* in this order */
        at = strstr(page, lines[i]);
    }
}

/* However large it is, what is added shows. */
static void a_large_sum_keeps_its_milliseconds(void **state)
{
    struct counters counters = {0};

    (void)state;
    histogram_add(&counters.login_seconds, 1234567);
    save_one(&counters);
    assert_true(has_line("imapmux_login_seconds_sum 1234.567"));
    histogram_add(&counters.login_seconds, 1000000000000);
    save_one(&counters);
    assert_true(has_line("imapmux_login_seconds_sum 1000001234.567"));
}

/* "name{labels} 0", or "name_bucket{...} 0", "name_sum 0", "name_count 0". */
static void check_sample(const char *line, const char *name, bool histogram)
{
    static const char *const endings[] = {"_bucket{le=\"", "_sum ", "_count "};
    const char *value = strrchr(line, ' ');
    bool known = !histogram;

    assert_non_null(value);
    assert_true(strcmp(value, " 0") == 0 || strcmp(value, " 0.000") == 0);
    assert_memory_equal(line, name, strlen(name));
    line += strlen(name);
    assert_true(histogram || line == value || (line[0] == '{' && value[-1] == '}'));
    for (size_t i = 0; histogram && i < sizeof endings / sizeof endings[0]; i++)
        known = known || strncmp(line, endings[i], strlen(endings[i])) == 0;
    assert_true(known);
}

/* Reads the whole page: each metric is a block of HELP, TYPE, samples; each name is there once. */
static void all_is_well_formed(void **state)
{
    static char names[100][80];
    struct counters counters = {0};
    char *rest = page, *line, type[20] = "", text[200];
    size_t count = 0;

    (void)state;
    save_one(&counters);
    assert_int_equal(page[strlen(page) - 1], '\n');
    for (line = strsep(&rest, "\n"); rest != NULL; line = strsep(&rest, "\n")) {
        if (line[0] != '#') {
            assert_true(count > 0);
            check_sample(line, names[count - 1], strcmp(type, "histogram") == 0);
            continue;
        }
        assert_int_equal(sscanf(line, "# HELP %79[a-z_] %199[^\n]", names[count], text), 2);
        assert_int_equal(text[strlen(text) - 1], '.');
        for (size_t i = 0; i < count; i++)
            assert_string_not_equal(names[i], names[count]);
        line = strsep(&rest, "\n");
        assert_int_equal(sscanf(line, "# TYPE %79s %19s", text, type), 2);
        assert_string_equal(text, names[count++]);
        assert_non_null(strstr("counter gauge histogram", type));
    }
    assert_true(count > 0);
}

static void every_metric_is_there(void **state)
{
    struct counters counters = {0};

    (void)state;
#define CHECK_COUNTER(field, name)                                                                 \
    counter_add(&counters.field, 7);                                                               \
    save_one(&counters);                                                                           \
    assert_true(has_line(name " 7"));                                                              \
    counter_add(&counters.field, (uint64_t)-7);
#define CHECK_GAUGE(field, name) CHECK_COUNTER(field, name)
#define CHECK_HISTOGRAM(field, name)                                                               \
    histogram_add(&counters.field, 3000);                                                          \
    save_one(&counters);                                                                           \
    assert_true(has_line(name "_count 1"));                                                        \
    assert_true(has_line(name "_sum 3.000"));
#define X(kind, field, name, help) CHECK_##kind(field, name)
    METRICS(X)
#undef X
}

static void labels_share_one_help(void **state)
{
    struct counters counters = {0};
    const char *help, *type;

    (void)state;
    counter_add(&counters.leases_new, 1);
    counter_add(&counters.leases_reset, 4);
    save_one(&counters);
    help = strstr(page, "# HELP imapmux_leases_total Sessions that got a connection to a store.\n"
                        "# TYPE imapmux_leases_total counter\n"
                        "imapmux_leases_total{kind=\"new\"} 1\n"
                        "imapmux_leases_total{kind=\"warm\"} 0\n"
                        "imapmux_leases_total{kind=\"parked\"} 0\n"
                        "imapmux_leases_total{kind=\"reset\"} 4\n"
                        "# HELP ");
    assert_non_null(help);
    type = strstr(page, "# TYPE imapmux_leases_total");
    assert_non_null(type);
    assert_null(strstr(type + 1, "# TYPE imapmux_leases_total"));
}

static void workers_are_summed(void **state)
{
    struct counters workers[3] = {0};
    const struct counters *list[3] = {&workers[0], &workers[1], &workers[2]};

    (void)state;
    counter_add(&workers[0].sessions_opened, 10);
    counter_add(&workers[1].sessions_opened, UINT64_C(10000000000000000000));
    counter_add(&workers[2].sessions_opened, 1);
    save(list, 3);
    assert_true(has_line("imapmux_sessions_opened_total 10000000000000000011"));
    save(list, 1);
    assert_true(has_line("imapmux_sessions_opened_total 10"));
    save(list, 0);
    assert_true(has_line("imapmux_sessions_opened_total 0"));
}

static void a_part_of_what_was_counted_lies_below(void **state)
{
    static const struct {
        uint64_t buckets[HISTOGRAM_BUCKETS];
        double part, ms;
    } cases[] = {
        {{0}, 0.5, 0},
        {{10}, 0.5, 0.5},       /* up to 1 ms */
        {{[5] = 100}, 0.5, 35}, /* from 20 to 50 ms */
        {{[5] = 100}, 1, 50},
        {{[3] = 90, [9] = 10}, 0.5, 5 + 5 * 50. / 90},
        {{[3] = 90, [9] = 10}, 0.95, 750}, /* from 500 to 1000 ms, half way */
        {{[3] = 90, [9] = 10}, 0.9, 10},
        {{[14] = 3}, 0.5, 30000}, /* nothing is known beyond */
        {{[0] = 1, [14] = 1}, 0.95, 30000},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double ms = histogram_quantile(cases[i].buckets, cases[i].part);

        assert_true(ms > cases[i].ms - 1e-6 && ms < cases[i].ms + 1e-6);
    }
}

static void a_label_may_have_any_text(void **state)
{
    FILE *out = tmpfile();

    (void)state;
    assert_non_null(out);
    metrics_print_label(out, "a\"b\\c\nd\xc3\xa4");
    rewind(out);
    read_page(out);
    assert_string_equal(page, "a\\\"b\\\\c\\nd\xc3\xa4");
    assert_int_equal(fclose(out), 0);
}

static void gauges_go_down(void **state)
{
    struct counters workers[2] = {0};
    const struct counters *list[2] = {&workers[0], &workers[1]};

    (void)state;
    gauge_add(&workers[0].backends_open, 5);
    gauge_add(&workers[0].backends_open, -2);
    gauge_add(&workers[1].backends_warm, 3);
    gauge_add(&workers[0].backends_warm, -1); /* one worker alone may be below zero */
    gauge_add(&workers[1].backends_parked, 1);
    gauge_add(&workers[1].backends_parked, -1);
    save(list, 2);
    assert_true(has_line("# TYPE imapmux_backends_open gauge"));
    assert_true(has_line("imapmux_backends_open 3"));
    assert_true(has_line("imapmux_backends_warm 2"));
    assert_true(has_line("imapmux_backends_parked 0"));
}

static void a_reader_has_the_old_file_or_the_new_one(void **state)
{
    struct counters counters = {0};
    FILE *old;

    (void)state;
    save_one(&counters);
    old = fopen(path, "r");
    assert_non_null(old);
    assert_int_equal(fgetc(old), '#');
    ungetc('#', old);
    counter_add(&counters.bytes_to_clients, 9); /* at the end of the file */
    save_one(&counters);
    assert_true(has_line("imapmux_bytes_to_clients_total 9"));
    read_page(old);
    assert_true(has_line("imapmux_bytes_to_clients_total 0"));
    assert_int_equal(fclose(old), 0);
    assert_int_not_equal(access(new_path, F_OK), 0);
}

static void what_another_process_left_is_overwritten(void **state)
{
    struct counters counters = {0};
    FILE *left = fopen(new_path, "w");

    (void)state;
    assert_non_null(left);
    for (int i = 0; i < 20000; i++)
        fputs("left\n", left);
    assert_int_equal(fclose(left), 0);
    save_one(&counters);
    assert_null(strstr(page, "left\n"));
    assert_int_not_equal(access(new_path, F_OK), 0);
}

/* Writes go to a device that is always full. */
static void a_full_disk_leaves_the_old_file(void **state)
{
    struct counters counters = {0};
    struct err err = {0};
    char expected[240];

    (void)state;
    if (access("/dev/full", W_OK) != 0)
        skip();
    save_one(&counters);
    assert_int_equal(symlink("/dev/full", new_path), 0);
    counter_add(&counters.sessions_opened, 1);
    assert_false(metrics_save(path, print, &counters, &err));
    snprintf(expected, sizeof expected, "metrics: %s: No space left on device", path);
    assert_string_equal(err.text, expected);
    assert_int_not_equal(access(new_path, F_OK), 0);
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    read_page(in);
    assert_int_equal(fclose(in), 0);
    assert_true(has_line("imapmux_sessions_opened_total 0"));
}

static void an_error_names_the_path(void **state)
{
    static const char *const bad[][2] = {
        {"/nowhere/at/all", "No such file or directory"},
        {"/dev/null/x", "Not a directory"},
        {"/proc/metrics", ""}, /* the reason depends on who we are */
    };
    struct counters counters = {0};
    char expected[240];
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        err = (struct err){0};
        assert_false(metrics_save(bad[i][0], print, &counters, &err));
        assert_int_not_equal(err.kind, ERR_NONE);
        snprintf(expected, sizeof expected, "metrics: %s: %s", bad[i][0], bad[i][1]);
        assert_memory_equal(err.text, expected, strlen(expected));
        assert_true(strlen(err.text) > strlen("metrics: : ") + strlen(bad[i][0]));
        assert_false(metrics_save(bad[i][0], print, &counters, NULL));
    }
    /* a folder is only met when all has been written */
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_false(metrics_save(path, print, &counters, &err));
    snprintf(expected, sizeof expected, "metrics: %s: Is a directory", path);
    assert_string_equal(err.text, expected);
    assert_int_not_equal(access(new_path, F_OK), 0);
    assert_int_equal(rmdir(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times_are_counted_up_to_their_bound),
        cmocka_unit_test(buckets_are_shown_as_all_below_their_bound),
        cmocka_unit_test(a_large_sum_keeps_its_milliseconds),
        cmocka_unit_test(all_is_well_formed),
        cmocka_unit_test(every_metric_is_there),
        cmocka_unit_test(labels_share_one_help),
        cmocka_unit_test(workers_are_summed),
        cmocka_unit_test(a_part_of_what_was_counted_lies_below),
        cmocka_unit_test(a_label_may_have_any_text),
        cmocka_unit_test(gauges_go_down),
        cmocka_unit_test(a_reader_has_the_old_file_or_the_new_one),
        cmocka_unit_test(what_another_process_left_is_overwritten),
        cmocka_unit_test(a_full_disk_leaves_the_old_file),
        cmocka_unit_test(an_error_names_the_path),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
