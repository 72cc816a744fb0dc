/*
 * Log lines: their form, their escapes, and that they end well however much goes in; where they go,
 * and what becomes of them if nobody takes them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/clock.h"
#include "proxy/base/log_repeats.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>
#include <unistd.h>

static void configure(enum conf_log_format format, enum conf_log_level level)
{
    log_configure(&(struct conf_log){.format = (int)format, .level = (int)level});
}

/* The line without its time, as a string. */
static const char *after_time(struct log_line *line)
{
    static char text[sizeof line->bytes + 1];
    size_t skip = strlen(line->json ? "{\"time\":\"2026-01-01T00:00:00.000Z\","
                                    : "time=2026-01-01T00:00:00.000Z ");

    assert_true(line->len >= skip);
    memcpy(text, line->bytes + skip, line->len - skip);
    text[line->len - skip] = '\0';
    return text;
}

static const char *one_value(bool json, const char *value, size_t len)
{
    static struct log_line line;

    configure(json ? LOG_FORMAT_JSON : LOG_FORMAT_LOGFMT, LOG_LEVEL_INFO);
    log_begin(&line, LOG_LEVEL_INFO, "e");
    log_span(&line, "v", (struct span){value, len});
    return after_time(&line) +
           strlen(json ? "\"level\":\"info\",\"event\":\"e\"," : "level=info event=e ");
}

#define VALUE(json, text) one_value(json, text, sizeof(text) - 1)

static void time_is_rfc_3339(void **state)
{
    static const char form[] = "time=dddd-dd-ddTdd:dd:dd.dddZ ";
    struct log_line line;

    (void)state;
    configure(LOG_FORMAT_LOGFMT, LOG_LEVEL_INFO);
    log_begin(&line, LOG_LEVEL_INFO, "start");
    for (size_t i = 0; i < sizeof form - 1; i++) {
        char seen = line.bytes[i];

        if (i > 4 && form[i] == 'd')
            assert_in_range(seen, '0', '9');
        else
            assert_int_equal(seen, form[i]);
    }
}

static void logfmt(void **state)
{
    struct log_line line;
    struct err err = {0};

    (void)state;
    configure(LOG_FORMAT_LOGFMT, LOG_LEVEL_INFO);
    log_begin(&line, LOG_LEVEL_WARNING, "login refused");
    log_text(&line, "user", "ann");
    log_text(&line, "empty", "");
    log_text(&line, "none", NULL);
    log_number(&line, "bytes", UINT64_MAX);
    log_err(&line, &err);
    err_set(&err, ERR_UNAVAILABLE, "no answer");
    log_err(&line, &err);
    assert_string_equal(after_time(&line),
                        "level=warning event=\"login refused\" user=ann bytes=18446744073709551615 "
                        "reason=unavailable detail=\"no answer\"");
}

static void json(void **state)
{
    struct log_line line;

    (void)state;
    configure(LOG_FORMAT_JSON, LOG_LEVEL_INFO);
    log_begin(&line, LOG_LEVEL_INFO, "login ok");
    log_text(&line, "user", "ann");
    log_number(&line, "bytes", 0);
    assert_string_equal(after_time(&line),
                        "\"level\":\"info\",\"event\":\"login ok\",\"user\":\"ann\",\"bytes\":0");
}

static void escapes(void **state)
{
    (void)state;
    assert_string_equal(VALUE(false, "plain/a:b"), "v=plain/a:b");
    assert_string_equal(VALUE(false, ""), "v=\"\"");
    assert_string_equal(VALUE(false, "a b"), "v=\"a b\"");
    assert_string_equal(VALUE(false, "a=b"), "v=\"a=b\"");
    assert_string_equal(VALUE(false, "a\"\\b"), "v=\"a\\\"\\\\b\"");
    assert_string_equal(VALUE(false, "a\r\n\t\0\x1b\x7f"), "v=\"a\\r\\n\\t\\x00\\x1b\\x7f\"");
    assert_string_equal(VALUE(false, "\xc3\xa4\xe2\x82\xac\xf0\x9f\x93\xa7"),
                        "v=\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x93\xa7\"");
    assert_string_equal(VALUE(false, "\xff\xc3"), "v=\"\\xff\\xc3\"");
    assert_string_equal(VALUE(false, "\xc0\x8a"), "v=\"\\xc0\\x8a\"");          /* overlong */
    assert_string_equal(VALUE(false, "\xed\xa0\x80"), "v=\"\\xed\\xa0\\x80\""); /* surrogate */
    assert_string_equal(VALUE(false, "\xc2\x9b"
                                     "A"),
                        "v=\"\\xc2\\x9bA\""); /* C1 control */
    assert_string_equal(VALUE(false, "\xf4\x90\x80\x80"), "v=\"\\xf4\\x90\\x80\\x80\"");
    assert_string_equal(VALUE(true, "a\"\\\n\0\x1b\x7f\xff"),
                        "\"v\":\"a\\\"\\\\\\n\\u0000\\u001b\\u007f\\\\xff\"");
}

static void long_values_are_cut(void **state)
{
    char value[300], expected[300];

    (void)state;
    memset(value, 'a', sizeof value);
    snprintf(expected, sizeof expected, "v=%.256s...", value);
    assert_string_equal(one_value(false, value, sizeof value), expected);
    assert_int_equal(strlen(one_value(false, value, 256)), 2 + 256);
    memcpy(value + 255, "\xc3\xa4", 2); /* never within a character */
    snprintf(expected, sizeof expected, "v=\"%.255s...\"", value);
    assert_string_equal(one_value(false, value, 257), expected);
}

/* What log_write writes, through a pipe in the place of standard error. */
static size_t written(struct log_line *line, char *out, size_t size)
{
    int ends[2], saved = dup(STDERR_FILENO);

    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], STDERR_FILENO);
    log_write(line);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(ends[1]);
    ssize_t len = read(ends[0], out, size);
    close(ends[0]);
    assert_true(len >= 0);
    return (size_t)len;
}

static void full_lines_end_well(void **state)
{
    char value[256], out[4096];

    (void)state;
    for (int form = LOG_FORMAT_LOGFMT; form <= LOG_FORMAT_JSON; form++) {
        for (size_t len = 0; len < sizeof value; len++) {
            struct log_line line;

            memset(value, len % 2 == 0 ? '\x01' : '"', sizeof value);
            configure((enum conf_log_format)form, LOG_LEVEL_INFO);
            log_begin(&line, LOG_LEVEL_INFO, "e");
            for (int i = 0; i < 64; i++) {
                log_span(&line, "key", (struct span){value, len});
                log_number(&line, "number", UINT64_MAX);
            }
            size_t count = written(&line, out, sizeof out);
            assert_true(count > 0 && count <= sizeof line.bytes + 1);
            assert_int_equal(out[count - 1], '\n');
            assert_true(form == LOG_FORMAT_LOGFMT || out[count - 2] == '}');
            assert_null(memchr(out, '\n', count - 1));
        }
    }
}

static void levels(void **state)
{
    struct log_line line;
    char out[64];

    (void)state;
    configure(LOG_FORMAT_LOGFMT, LOG_LEVEL_WARNING);
    assert_true(log_wants(LOG_LEVEL_ERROR));
    assert_true(log_wants(LOG_LEVEL_WARNING));
    assert_false(log_wants(LOG_LEVEL_INFO));
    log_begin(&line, LOG_LEVEL_INFO, "e");
    log_text(&line, "a", "b");
    log_number(&line, "a", 1);
    assert_int_equal(line.len, 0);
    assert_int_equal(written(&line, out, sizeof out), 0);
}

/* --- journald, in whose place this test stands --- */

static char journal[8192]; /* the latest line: its fields, a line each */
static int journal_answer;
static unsigned journal_lines;

int sd_journal_sendv(const struct iovec *parts, int count)
{
    char *at = journal;

    for (int i = 0; i < count; i++) {
        assert_true(at + parts[i].iov_len + 1 < journal + sizeof journal);
        at = mempcpy(at, parts[i].iov_base, parts[i].iov_len);
        *at++ = '\n';
    }
    *at = '\0';
    journal_lines++;
    return journal_answer;
}

static void to_journald(enum conf_log_facility facility)
{
    log_configure(&(struct conf_log){
        .output = LOG_OUTPUT_JOURNALD, .facility = (int)facility, .level = LOG_LEVEL_INFO});
}

static void fields_for_journald(void **state)
{
    struct log_line line;

    (void)state;
    to_journald(LOG_FACILITY_LOCAL0 + 3);
    log_begin(&line, LOG_LEVEL_WARNING, "login refused");
    log_text(&line, "user", "a\"b\xff");
    log_text(&line, "none", "");
    log_number(&line, "bytes_in", 17);
    log_write(&line);
    assert_string_equal(journal,
                        "SYSLOG_IDENTIFIER=imapmux\nPRIORITY=4\nSYSLOG_FACILITY=19\n"
                        "MESSAGE=event=\"login refused\" user=\"a\\\"b\\xff\" bytes_in=17\n"
                        "IMAPMUX_EVENT=login refused\n"
                        "IMAPMUX_USER=a\"b\xff\nIMAPMUX_BYTES_IN=17\n");
}

static void fields_for_journald_are_cut(void **state)
{
    char value[300], expected[320];
    struct log_line line;

    (void)state;
    to_journald(LOG_FACILITY_MAIL);
    memset(value, 'a', sizeof value);
    memcpy(value + 255, "\xc3\xa4", 2);
    log_begin(&line, LOG_LEVEL_INFO, "e");
    for (int i = 0; i < 64; i++)
        log_span(&line, "key", (struct span){value, sizeof value});
    log_write(&line);
    snprintf(expected, sizeof expected, "\nIMAPMUX_KEY=%.255s...\n", value);
    assert_non_null(strstr(journal, expected));
    assert_string_equal(journal + strlen(journal) - strlen(expected), expected);
}

/* --- what comes again and again --- */

static unsigned lines_written(void)
{
    static unsigned before;
    unsigned now = journal_lines, count = now - before;

    before = now;
    return count;
}

static void say_often(const char *event, const char *about, uint64_t now_ms, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct log_line line;

        log_begin(&line, LOG_LEVEL_WARNING, event);
        log_text(&line, "detail", about);
        if (log_repeats_pass(&line, about, now_ms))
            log_write(&line);
    }
}

static void limit_to(int64_t repeats)
{
    log_configure(&(struct conf_log){
        .output = LOG_OUTPUT_JOURNALD, .level = LOG_LEVEL_WARNING, .repeats = repeats});
    (void)lines_written();
}

static void repeats_are_held_back_and_told(void **state)
{
    (void)state;
    limit_to(3);
    say_often("lost", "a", 100, 2);
    say_often("lost", "b", 200, 3);
    assert_int_equal(lines_written(), 5);
    assert_int_equal(log_repeats_due_ms(), UINT64_MAX);
    say_often("lost", "a", 300, 8);
    assert_int_equal(lines_written(), 1);
    assert_int_equal(log_repeats_due_ms(), 10100);
    say_often("back", "a", 300, 1); /* another event */
    assert_int_equal(lines_written(), 1);
    log_repeats_tell(10099);
    assert_int_equal(lines_written(), 0);
    log_repeats_tell(10100);
    assert_int_equal(lines_written(), 1);
    assert_non_null(strstr(journal, "PRIORITY=4\n"));
    assert_non_null(
        strstr(journal, "MESSAGE=event=repeated of=lost count=7 seconds=10 detail=a\n"));
    assert_int_equal(log_repeats_due_ms(), UINT64_MAX);
    say_often("lost", "a", 10100, 3); /* anew */
    say_often("lost", "b", 10200, 3);
    assert_int_equal(lines_written(), 6);
}

static void repeats_are_not_held_back_without_a_limit(void **state)
{
    (void)state;
    limit_to(0);
    say_often("lost", "a", 50000, 100);
    assert_int_equal(lines_written(), 100);
}

/* However many things there is trouble with, the table does not grow; a full one lets pass. */
static void more_things_than_places(void **state)
{
    char about[16];

    (void)state;
    limit_to(1);
    for (int i = 0; i < LOG_REPEATS_MAX; i++) {
        snprintf(about, sizeof about, "%d", i);
        say_often("lost", about, 100000, 2);
    }
    assert_int_equal(lines_written(), LOG_REPEATS_MAX);
    say_often("lost", "one more", 100000, 2);
    assert_int_equal(lines_written(), 2);
    log_repeats_tell(110000);
    assert_int_equal(lines_written(), LOG_REPEATS_MAX);
    say_often("lost", "one more", 110000, 2);
    assert_int_equal(lines_written(), 1);
    log_repeats_tell(UINT64_MAX);
}

/* --- nobody takes the lines --- */

static int log_pipe[2], saved_stderr;
static FILE *log_reader;
static _Atomic uint64_t lost;

static int start_log_into_a_pipe(void **state)
{
    struct err err = {0};

    (void)state;
    configure(LOG_FORMAT_LOGFMT, LOG_LEVEL_INFO);
    lost = 0;
    saved_stderr = dup(STDERR_FILENO);
    if (pipe2(log_pipe, O_CLOEXEC) != 0 || dup2(log_pipe[1], STDERR_FILENO) < 0)
        return -1;
    close(log_pipe[1]);
    log_reader = fdopen(log_pipe[0], "r");
    return log_start(&lost, &err) ? 0 : -1;
}

static int stop_log(void **state)
{
    (void)state;
    log_stop();
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    fclose(log_reader);
    return 0;
}

static void log_a_number(unsigned long number)
{
    char filler[201] = "";
    struct log_line line;

    memset(filler, 'x', sizeof filler - 1);
    log_begin(&line, LOG_LEVEL_INFO, "e");
    log_number(&line, "n", number);
    log_text(&line, "filler", filler);
    log_write(&line);
}

/* The next line's field of this name; false, for another line, when it has none. */
static bool next_line_has(const char *field, unsigned long *value_out)
{
    char text[LOG_LINE_MAX + 2];

    assert_non_null(fgets(text, sizeof text, log_reader));
    assert_int_equal(text[strlen(text) - 1], '\n');

    const char *found = strstr(text, field);

    if (found != NULL)
        *value_out = strtoul(found + strlen(field), NULL, 10);
    return found != NULL;
}

/* All that is kept comes, in order, and the gap is told where it is. */
static void what_nobody_takes_is_counted_and_told(void **state)
{
    unsigned long sent = 0, expected = 0, number = 0, told = 0;
    struct pollfd readable = {log_pipe[0], POLLIN, 0};

    (void)state;
    while (lost < 10)
        log_a_number(sent++);
    assert_true(sent > 10000); /* the backlog is worth something */
    while (expected < sent - 10) {
        assert_true(next_line_has(" n=", &number));
        assert_int_equal(number, expected++);
    }
    do { /* until the thread has seen, too, that nothing is left */
        log_a_number(sent++);
    } while (poll(&readable, 1, 0) == 0);
    assert_true(next_line_has("event=\"log lost\" count=", &told));
    assert_int_equal(told, lost);
    assert_true(next_line_has(" n=", &number));
    assert_int_equal(number, expected + told);
    assert_int_equal(number, sent - 1);
}

static void what_cannot_be_written_is_counted_and_told(void **state)
{
    int null = open("/dev/full", O_WRONLY | O_CLOEXEC), pipe_end = dup(STDERR_FILENO);
    unsigned long number = 0, told = 0;

    (void)state;
    dup2(null, STDERR_FILENO);
    for (unsigned long i = 0; i < 3; i++)
        log_a_number(i);
    dup2(pipe_end, STDERR_FILENO);
    close(pipe_end);
    close(null);
    assert_int_equal(lost, 3);
    log_a_number(3);
    assert_true(next_line_has("event=\"log lost\" count=", &told));
    assert_int_equal(told, 3);
    assert_true(next_line_has(" n=", &number));
    assert_int_equal(number, 3);
}

static void the_end_writes_what_is_left(void **state)
{
    (void)state;
    to_journald(LOG_FACILITY_MAIL);
    journal_answer = 0;
    for (unsigned long i = 0; i <= 1000; i++)
        log_a_number(i);
    log_stop();
    assert_non_null(strstr(journal, "IMAPMUX_N=1000\n"));
    assert_int_equal(lost, 0);
}

static void what_journald_refuses_is_counted(void **state)
{
    (void)state;
    to_journald(LOG_FACILITY_MAIL);
    journal_answer = -ENOBUFS;
    log_a_number(0);
    log_stop();
    assert_int_equal(lost, 1);
    journal_answer = 0;
    log_a_number(1);
    assert_non_null(strstr(journal, "IMAPMUX_N=1\n"));
}

static void repeat_into_the_pipe(uint64_t now_ms)
{
    log_configure(&(struct conf_log){.level = LOG_LEVEL_WARNING, .repeats = 1});
    say_often("lost", "a", now_ms, 3);
}

static void expect_repeats_in_the_pipe(void)
{
    unsigned long count = 0;

    assert_false(next_line_has("count=", &count));
    assert_true(next_line_has("event=repeated of=lost count=", &count));
    assert_int_equal(count, 2);
}

/* By the thread, at the end of a window that is nearly over. */
static void repeats_are_told_in_time(void **state)
{
    (void)state;
    repeat_into_the_pipe(clock_ms() - LOG_REPEATS_WINDOW_MS + 500);
    expect_repeats_in_the_pipe();
}

static void repeats_are_told_at_the_end(void **state)
{
    (void)state;
    repeat_into_the_pipe(clock_ms());
    log_stop();
    expect_repeats_in_the_pipe();
}

/* --- settings change while threads log --- */

enum { WRITERS = 4, LINES = 5000 };

static void *log_lines(void *unused)
{
    for (unsigned long i = 0; i < LINES; i++)
        log_a_number(i);
    return unused;
}

static void *count_whole_lines(void *counts_of)
{
    unsigned long *counts = counts_of;
    char text[LOG_LINE_MAX + 2];

    while (fgets(text, sizeof text, log_reader) != NULL && strcmp(text, "end\n") != 0) {
        size_t len = strlen(text);
        bool json = text[0] == '{';

        assert_true(len > 2 && text[len - 1] == '\n' && (text[len - 2] == '}') == json);
        assert_true(json || strncmp(text, "time=", 5) == 0);
        assert_true(text[len - (json ? 4 : 2)] == 'x');
        counts[json]++;
    }
    return NULL;
}

static void forms_change_between_lines(void **state)
{
    pthread_t writers[WRITERS], reader;
    unsigned long counts[2] = {0, 0};

    (void)state;
    pthread_create(&reader, NULL, count_whole_lines, counts);
    for (int i = 0; i < WRITERS; i++)
        pthread_create(&writers[i], NULL, log_lines, NULL);
    for (int i = 0; i < 1000; i++)
        configure(i % 2 == 0 ? LOG_FORMAT_JSON : LOG_FORMAT_LOGFMT, LOG_LEVEL_INFO);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    log_stop();
    dprintf(STDERR_FILENO, "end\n");
    pthread_join(reader, NULL);
    assert_int_equal(lost, 0);
    assert_int_equal(counts[false] + counts[true], WRITERS * LINES);
}

#define THREADED(test) cmocka_unit_test_setup_teardown(test, start_log_into_a_pipe, stop_log)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(time_is_rfc_3339),
        cmocka_unit_test(logfmt),
        cmocka_unit_test(json),
        cmocka_unit_test(escapes),
        cmocka_unit_test(long_values_are_cut),
        cmocka_unit_test(full_lines_end_well),
        cmocka_unit_test(levels),
        cmocka_unit_test(fields_for_journald),
        cmocka_unit_test(fields_for_journald_are_cut),
        cmocka_unit_test(repeats_are_held_back_and_told),
        cmocka_unit_test(repeats_are_not_held_back_without_a_limit),
        cmocka_unit_test(more_things_than_places),
        THREADED(what_nobody_takes_is_counted_and_told),
        THREADED(what_cannot_be_written_is_counted_and_told),
        THREADED(the_end_writes_what_is_left),
        THREADED(what_journald_refuses_is_counted),
        THREADED(repeats_are_told_in_time),
        THREADED(repeats_are_told_at_the_end),
        THREADED(forms_change_between_lines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
