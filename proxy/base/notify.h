/*
 * Tells the service manager how the process is, sd_notify(3). Started by nothing that listens
 * (without NOTIFY_SOCKET), all of it does nothing. Any thread; nothing blocks, and what cannot be
 * told is not: the manager then acts by its own time limits.
 */
#ifndef IMAPMUX_BASE_NOTIFY_H
#define IMAPMUX_BASE_NOTIFY_H

#include <stdint.h>

/*
 * Clients are served, by this process: it becomes the service's main one, as after an upgrade,
 * where NotifyAccess=all lets it. Also the end of reloading.
 */
void notify_ready(void);

void notify_reloading(void);

/* The process is about to end, and needs so long at the most. */
void notify_stopping(uint64_t within_ms);

/* One line for `systemctl status`. */
void notify_status(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * How often the manager wants to hear notify_alive; 0: it does not. Without WATCHDOG_PID, for
 * whichever process asks: whoever starts the successor of a process takes it out of the
 * environment.
 */
uint64_t notify_watchdog_ms(void);

void notify_alive(void);

/* Another process is the service now, and speaks for it: from here on nothing is told. */
void notify_leave(void);

#endif
