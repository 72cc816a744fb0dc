/*
 * One event, one line: `time=... level=info event="login ok" user=ann shard=blue`. Values from
 * outside are escaped and cut. Lines of several threads never mix. Whoever logs never waits: where
 * lines go, and what becomes of those that nobody takes, is log_output.c's.
 */
#ifndef IMAPMUX_BASE_LOG_H
#define IMAPMUX_BASE_LOG_H

#include "proxy/base/conf.h"
#include "proxy/base/span.h"

#include <stdatomic.h>
#include <stdint.h>

/*
 * Takes over these settings, at any time and while other threads log; a line that has begun keeps
 * the form and the way that it began with. Before it is called: logfmt on standard error, level
 * info, nothing held back.
 */
void log_configure(const struct conf_log *conf);

/*
 * Starts the thread that waits for slow outputs in the place of those who log; lines that are lost
 * are counted in *lost, by one thread at a time. Before it, and after the end, whoever logs waits
 * itself. False with *err set without a thread.
 */
bool log_start(_Atomic uint64_t *lost, struct err *err);

/* Writes what is left, as far as it is taken within two seconds. */
void log_stop(void);

/* The level alone, at any time and from any thread. */
void log_set_level(enum conf_log_level level);
enum conf_log_level log_level(void);
bool log_wants(enum conf_log_level level);

/* The level's word, as in proxy.conf. */
const char *log_level_name(enum conf_log_level level);

/*
 * With two line ends PIPE_BUF, which a pipe takes as a whole or not at all. Two long names are in
 * it, however they are escaped, and what matters more.
 */
enum { LOG_LINE_MAX = 4094 };

/* A line being built; a plain value on the stack. */
struct log_line {
    const char *event;
    enum conf_log_level level;
    enum conf_log_output output;
    bool json, wanted;
    size_t len, fields_len;
    char bytes[LOG_LINE_MAX];
    char fields[3072]; /* for journald alone: see log_output.h */
};

/* Starts a line; `event` is a constant phrase. Then add fields, then log_write. */
void log_begin(struct log_line *line, enum conf_log_level level, const char *event);
void log_text(struct log_line *line, const char *key,
              const char *value); /* left out when value is NULL or "" */
void log_span(struct log_line *line, const char *key, struct span value);
void log_number(struct log_line *line, const char *key, uint64_t value);
void log_err(struct log_line *line, const struct err *err); /* reason=... and detail=... */
void log_write(struct log_line *line);
void log_finish(struct log_line *line); /* its end alone: nothing is written */

/* The common short form: an event with one formatted detail. */
void log_event(enum conf_log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * The same for what may come again and again with nothing new, as trouble with a connection: of
 * the same event `about` the same thing (NULL: the event alone; the detail) only `log.repeats` are
 * written within ten seconds. What is held back is counted, and told then. Never for what happens
 * once for each session or at an operator's word, nor for what is wrong in the configuration.
 */
void log_write_limited(struct log_line *line, const char *about);
void log_event_limited(enum conf_log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
