/*
 * Tells the service manager that the process is alive, for as long as the control thread and every
 * worker answer: each third of the manager's interval all workers are asked, and it is told once
 * all have answered. A worker that hangs so leads to a restart (systemd: WatchdogSec=).
 * Lives on the control thread.
 */
#ifndef IMAPMUX_PROXY_WATCHDOG_H
#define IMAPMUX_PROXY_WATCHDOG_H

#include "proxy/ask.h"

struct control;

struct watchdog {
    struct ask ask; /* first member */
    struct control *control;
    uv_timer_t timer;
    bool is_asking, is_late;
};

/*
 * Does nothing if no manager wants to hear. `control` and `watchdog` itself are borrowed until the
 * control's inbox is closed and its loop has run out.
 */
void watchdog_start(struct watchdog *watchdog, struct control *control);

/* Before workers_end; harmless if it was never started. */
void watchdog_stop(struct watchdog *watchdog);

#endif
