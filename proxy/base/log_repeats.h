/*
 * Lines of trouble that comes again and again: of the same event about the same thing so many are
 * written as they come, `log.repeats`; the others of the same ten seconds are held back, and then
 * told in one line, "repeated". For 64 such things at a time; lines about further ones are not held
 * back. For log.c and log_output.c.
 */
#ifndef IMAPMUX_BASE_LOG_REPEATS_H
#define IMAPMUX_BASE_LOG_REPEATS_H

#include "proxy/base/log.h"

enum { LOG_REPEATS_WINDOW_MS = 10000, LOG_REPEATS_MAX = 64 };

/* 0: nothing is held back. */
void log_repeats_set_limit(unsigned limit);

/* Whether the line is to be written now, of clock_ms; `about` may be NULL. Any thread. */
bool log_repeats_pass(const struct log_line *line, const char *about, uint64_t now_ms);

/* When it is time to tell what was held back; UINT64_MAX: nothing was. */
uint64_t log_repeats_due_ms(void);

/* Tells what was held back in windows that have ended. */
void log_repeats_tell(uint64_t now_ms);

#endif
