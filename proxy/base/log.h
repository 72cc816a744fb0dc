/*
 * One event, one line on standard error: `time=... level=info event="login ok" user=ann
 * shard=blue`. Values from outside are escaped and cut. Lines of several threads never mix: each is
 * one write.
 */
#ifndef IMAPMUX_BASE_LOG_H
#define IMAPMUX_BASE_LOG_H

#include "proxy/base/conf.h"
#include "proxy/base/span.h"

#include <stdint.h>

/* Sets format and level for the process; before it is called, logfmt at level info. */
void log_configure(enum conf_log_format format, enum conf_log_level level);

/* The level alone, at any time and from any thread. */
void log_set_level(enum conf_log_level level);
enum conf_log_level log_level(void);
bool log_wants(enum conf_log_level level);

/* The level's word, as in proxy.conf. */
const char *log_level_name(enum conf_log_level level);

/* A line being built; a plain value on the stack. */
struct log_line {
    char bytes[2048];
    size_t len;
    bool json, wanted;
};

/* Starts a line; `event` is a constant phrase. Then add fields, then log_write. */
void log_begin(struct log_line *line, enum conf_log_level level, const char *event);
void log_text(struct log_line *line, const char *key,
              const char *value); /* left out when value is NULL or "" */
void log_span(struct log_line *line, const char *key, struct span value);
void log_number(struct log_line *line, const char *key, uint64_t value);
void log_err(struct log_line *line, const struct err *err); /* reason=... and detail=... */
void log_write(struct log_line *line);

/* The common short form: an event with one formatted detail. */
void log_event(enum conf_log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
