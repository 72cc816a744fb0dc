/*
 * Owns the settings of the log and the form of its lines, and escapes what goes into them. A line
 * that would grow too long loses the end of a value or its last fields, never its end.
 */
#include "proxy/base/log.h"

#include "proxy/base/clock.h"
#include "proxy/base/log_output.h"
#include "proxy/base/log_repeats.h"

#include <assert.h>
#include <ctype.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    VALUE_MAX = 256, /* bytes of a value that are shown */
    DETAIL_SIZE = VALUE_MAX + 8,
    TAIL_MAX = 8,   /* room for the end of a value and of the line: ..."} */
    ESCAPED_MAX = 8 /* one character in its escaped form */
};

static const char *const level_names[] = {
    [LOG_LEVEL_ERROR] = "error",
    [LOG_LEVEL_WARNING] = "warning",
    [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug",
};

static _Atomic int current_format = LOG_FORMAT_LOGFMT;
static _Atomic int current_level = LOG_LEVEL_INFO;
static _Atomic int current_output = LOG_OUTPUT_STDERR;

static void add_time(struct log_line *line);
static bool add_key(struct log_line *line, const char *key, size_t value_len);
static void add_value(struct log_line *line, struct span value);
static bool is_bare(struct span value);
static size_t escape(bool json, struct span rest, char out[ESCAPED_MAX], size_t *out_len);
static size_t character_len(struct span rest);
static void add_field(struct log_line *line, const char *key, struct span value);
static void add_raw(struct log_line *line, const char *bytes, size_t len);

void log_configure(const struct conf_log *conf)
{
    atomic_store(&current_format, conf->format);
    atomic_store(&current_output, conf->output);
    log_output_set_facility((enum conf_log_facility)conf->facility);
    log_repeats_set_limit((unsigned)conf->repeats);
    log_set_level((enum conf_log_level)conf->level);
}

void log_set_level(enum conf_log_level level)
{
    atomic_store(&current_level, (int)level);
}

enum conf_log_level log_level(void)
{
    return (enum conf_log_level)atomic_load_explicit(&current_level, memory_order_relaxed);
}

bool log_wants(enum conf_log_level level)
{
    return level <= log_level();
}

const char *log_level_name(enum conf_log_level level)
{
    return level_names[level];
}

void log_begin(struct log_line *line, enum conf_log_level level, const char *event)
{
    line->len = line->fields_len = 0;
    line->event = event;
    line->level = level;
    line->json = atomic_load_explicit(&current_format, memory_order_relaxed) == LOG_FORMAT_JSON;
    line->output =
        (enum conf_log_output)atomic_load_explicit(&current_output, memory_order_relaxed);
    line->wanted = log_wants(level);
    if (!line->wanted)
        return;
    if (line->output == LOG_OUTPUT_STDERR)
        add_time(line);
    if (line->output != LOG_OUTPUT_JOURNALD)
        log_text(line, "level", level_names[level]);
    log_text(line, "event", event);
}

void log_text(struct log_line *line, const char *key, const char *value)
{
    if (value != NULL && *value != '\0')
        log_span(line, key, span_of(value));
}

void log_span(struct log_line *line, const char *key, struct span value)
{
    if (!line->wanted)
        return;
    if (add_key(line, key, value.len == 0 ? 0 : 1))
        add_value(line, value);
    add_field(line, key, value);
}

void log_number(struct log_line *line, const char *key, uint64_t value)
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);

    if (!line->wanted)
        return;
    if (add_key(line, key, (size_t)len))
        add_raw(line, digits, (size_t)len);
    add_field(line, key, (struct span){digits, (size_t)len});
}

void log_err(struct log_line *line, const struct err *err)
{
    if (err->kind == ERR_NONE)
        return;
    log_text(line, "reason", err_name(err->kind));
    log_text(line, "detail", err->text);
}

void log_finish(struct log_line *line)
{
    if (line->wanted && line->json)
        add_raw(line, "}", 1);
}

void log_write(struct log_line *line)
{
    log_finish(line);
    if (line->wanted)
        log_output_send(line);
}

void log_write_limited(struct log_line *line, const char *about)
{
    if (line->wanted && log_repeats_pass(line, about, clock_ms()))
        log_write(line);
}

/* Begins the line with its detail, which is left in `out`, too; a long one is still seen as cut. */
__attribute__((format(printf, 5, 0))) static void
begin_with_detail(struct log_line *line, enum conf_log_level level, const char *event,
                  char out[DETAIL_SIZE], const char *format, va_list args)
{
    log_begin(line, level, event);
    if (!line->wanted)
        return;
    vsnprintf(out, DETAIL_SIZE, format, args);
    log_text(line, "detail", out);
}

void log_event(enum conf_log_level level, const char *event, const char *format, ...)
{
    struct log_line line;
    char detail[DETAIL_SIZE];
    va_list args;

    va_start(args, format);
    begin_with_detail(&line, level, event, detail, format, args);
    va_end(args);
    log_write(&line);
}

void log_event_limited(enum conf_log_level level, const char *event, const char *format, ...)
{
    struct log_line line;
    char detail[DETAIL_SIZE];
    va_list args;

    va_start(args, format);
    begin_with_detail(&line, level, event, detail, format, args);
    va_end(args);
    log_write_limited(&line, detail);
}

/* RFC 3339, UTC, with milliseconds. */
static void add_time(struct log_line *line)
{
    struct timespec now;
    struct tm utc;
    char text[40], with_ms[56];

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(with_ms, sizeof with_ms, "%s.%03uZ", text, (unsigned)(now.tv_nsec / 1000000) % 1000);
    log_text(line, "time", with_ms);
}

/*
 * Adds the separator and the key; false, and nothing added, when there is no room for the start of
 * a value.
 */
static bool add_key(struct log_line *line, const char *key, size_t value_len)
{
    size_t key_len = strlen(key);

    /*
     * Seven: two quotes and a colon of JSON around the key, a comma, quotes around the value, and
     * one to spare.
     */
    if (line->len + key_len + value_len + 7 + ESCAPED_MAX + TAIL_MAX > sizeof line->bytes)
        return false;
    if (line->json)
        add_raw(line, line->len == 0 ? "{\"" : ",\"", 2);
    else if (line->len > 0)
        add_raw(line, " ", 1);
    add_raw(line, key, key_len);
    if (line->json)
        add_raw(line, "\":", 2);
    else
        add_raw(line, "=", 1);
    return true;
}

static void add_value(struct log_line *line, struct span value)
{
    bool quoted = line->json || !is_bare(value);
    size_t shown = 0;

    if (quoted)
        add_raw(line, "\"", 1);
    while (shown < value.len) {
        char escaped[ESCAPED_MAX];
        size_t escaped_len;
        size_t taken = escape(line->json, span_after(value, shown), escaped, &escaped_len);

        if (shown + taken > VALUE_MAX || line->len + escaped_len + TAIL_MAX > sizeof line->bytes) {
            add_raw(line, "...", 3);
            break;
        }
        add_raw(line, escaped, escaped_len);
        shown += taken;
    }
    if (quoted)
        add_raw(line, "\"", 1);
}

/* May the value stand in logfmt as it is? */
static bool is_bare(struct span value)
{
    for (size_t i = 0; i < value.len; i++) {
        unsigned char ch = (unsigned char)value.ptr[i];

        if (ch <= ' ' || ch >= 0x7f || ch == '"' || ch == '=' || ch == '\\')
            return false;
    }
    return value.len > 0;
}

/*
 * Writes the first character of `rest` as it stands within quotes; returns how many bytes of `rest`
 * that were.
 */
static size_t escape(bool json, struct span rest, char out[ESCAPED_MAX], size_t *out_len)
{
    static const char plain_escapes[] = "\"\\\n\r\t", letters[] = "\"\\nrt";
    unsigned char ch = (unsigned char)rest.ptr[0];
    const char *found = ch == '\0' ? NULL : strchr(plain_escapes, ch);
    size_t len = character_len(rest);

    if (found != NULL)
        *out_len = (size_t)snprintf(out, ESCAPED_MAX, "\\%c", letters[found - plain_escapes]);
    else if (len == 0 && !json)
        *out_len = (size_t)snprintf(out, ESCAPED_MAX, "\\x%02x", ch);
    else if (len ==
             0) /* JSON has no bytes: a control character is one, anything else is shown as \xNN */
        *out_len = (size_t)snprintf(out, ESCAPED_MAX, ch < 0x80 ? "\\u%04x" : "\\\\x%02x", ch);
    else
        memcpy(out, rest.ptr, *out_len = len);
    return len == 0 ? 1 : len;
}

/*
 * Length of the printable UTF-8 character (RFC 3629) that `rest` starts with; 0 for controls and
 * stray bytes.
 */
static size_t character_len(struct span rest)
{
    const unsigned char *ch = (const unsigned char *)rest.ptr;
    size_t len = ch[0] < 0xc2 ? 0 : ch[0] < 0xe0 ? 2 : ch[0] < 0xf0 ? 3 : ch[0] < 0xf5 ? 4 : 0;

    if (ch[0] < 0x80)
        return ch[0] >= ' ' && ch[0] != 0x7f;
    if (len == 0 || rest.len < len)
        return 0;
    for (size_t i = 1; i < len; i++) {
        if ((ch[i] & 0xc0) != 0x80)
            return 0;
    }
    bool c1_control = ch[0] == 0xc2 && ch[1] < 0xa0;
    bool overlong = (ch[0] == 0xe0 && ch[1] < 0xa0) || (ch[0] == 0xf0 && ch[1] < 0x90);
    bool surrogate = ch[0] == 0xed && ch[1] >= 0xa0;
    bool too_large = ch[0] == 0xf4 && ch[1] >= 0x90;
    return c1_control || overlong || surrogate || too_large ? 0 : len;
}

/* As it is, for journald escapes nothing; cut between two characters. */
static void add_field(struct log_line *line, const char *key, struct span value)
{
    static const char prefix[] = "IMAPMUX_";
    size_t key_len = strlen(key), shown = value.len;

    if (shown > VALUE_MAX)
        for (shown = VALUE_MAX; shown > 0 && ((unsigned char)value.ptr[shown] & 0xc0) == 0x80;)
            shown--;

    const char *dots = shown < value.len ? "..." : "";
    uint16_t len = (uint16_t)(sizeof prefix - 1 + key_len + 1 + shown + strlen(dots));
    char *at = line->fields + line->fields_len;

    if (line->output != LOG_OUTPUT_JOURNALD ||
        sizeof len + len > sizeof line->fields - line->fields_len)
        return;
    at = mempcpy(at, &len, sizeof len);
    at = mempcpy(at, prefix, sizeof prefix - 1);
    for (size_t i = 0; i < key_len; i++)
        *at++ = (char)toupper((unsigned char)key[i]);
    *at++ = '=';
    at = mempcpy(at, value.ptr, shown);
    memcpy(at, dots, strlen(dots));
    line->fields_len += sizeof len + len;
}

static void add_raw(struct log_line *line, const char *bytes, size_t len)
{
    assert(len <= sizeof line->bytes - line->len);
    memcpy(line->bytes + line->len, bytes, len);
    line->len += len;
}
