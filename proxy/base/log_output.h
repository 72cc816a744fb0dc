/*
 * Where the lines of the log go: standard error, systemd-journald, or syslog. No thread that logs
 * ever waits for them. What standard error takes at once is written at once, so that it is there
 * before whatever follows it. All else waits in a backlog for the one thread whose work is to wait;
 * when that is full, or a write has failed, lines are lost until it is empty again: they are
 * counted, and the next line is preceded by the event "log lost", with the count.
 */
#ifndef IMAPMUX_BASE_LOG_OUTPUT_H
#define IMAPMUX_BASE_LOG_OUTPUT_H

#include "proxy/base/log.h"

/*
 * Sends a finished line where it was to go when it began. Any thread; never waits while the log is
 * started. `fields` of the line are those of journald, one behind the other: the length as a
 * uint16_t, and "IMAPMUX_KEY=value", as it is.
 */
void log_output_send(const struct log_line *line);

/* Something was held back: the thread is to tell it in time. */
void log_output_wake(void);

/* For lines to come, of journald and syslog. */
void log_output_set_facility(enum conf_log_facility facility);

#endif
