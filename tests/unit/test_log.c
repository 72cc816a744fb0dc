/* Log lines: their form, their escapes, and that they end well however much goes in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/log.h"

#include <stdio.h>
#include <unistd.h>

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

    log_configure(json ? LOG_FORMAT_JSON : LOG_FORMAT_LOGFMT, LOG_LEVEL_INFO);
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
    log_configure(LOG_FORMAT_LOGFMT, LOG_LEVEL_INFO);
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
    log_configure(LOG_FORMAT_LOGFMT, LOG_LEVEL_INFO);
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
    log_configure(LOG_FORMAT_JSON, LOG_LEVEL_INFO);
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
            log_configure((enum conf_log_format)form, LOG_LEVEL_INFO);
            log_begin(&line, LOG_LEVEL_INFO, "e");
            for (int i = 0; i < 64; i++) {
                log_span(&line, "key", (struct span){value, len});
                log_number(&line, "number", UINT64_MAX);
            }
            size_t count = written(&line, out, sizeof out);
            assert_true(count > 0 && count <= sizeof line.bytes);
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
    log_configure(LOG_FORMAT_LOGFMT, LOG_LEVEL_WARNING);
    assert_true(log_wants(LOG_LEVEL_ERROR));
    assert_true(log_wants(LOG_LEVEL_WARNING));
    assert_false(log_wants(LOG_LEVEL_INFO));
    log_begin(&line, LOG_LEVEL_INFO, "e");
    log_text(&line, "a", "b");
    log_number(&line, "a", 1);
    assert_int_equal(line.len, 0);
    assert_int_equal(written(&line, out, sizeof out), 0);
}

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
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
