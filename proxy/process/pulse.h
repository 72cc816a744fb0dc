/*
 * Whether all workers turn their loops: each of them is asked once a second, and one that does not
 * answer for a while hangs. A service manager that wants to know (systemd: WatchdogSec=) is told
 * that the process is alive once all have answered, and nothing meanwhile: a worker that hangs
 * leads to a restart. On the control thread.
 */
#ifndef IMAPMUX_PROCESS_PULSE_H
#define IMAPMUX_PROCESS_PULSE_H

#include "proxy/process/ask.h"
#include "proxy/process/control.h"

struct pulse {
    struct ask ask; /* first member; private, as all of it */
    struct control *control;
    uv_timer_t timer;
    uint64_t hangs_ms; /* who does not answer within this time hangs */
    uint64_t asked_ms; /* of the loop's clock; 0: no question is under way */
    bool is_told;      /* in the log, that somebody hangs */
};

/*
 * Begins to ask as soon as there are workers. The struct lives until the control thread's inbox is
 * closed and its loop has run out.
 */
void pulse_start(struct pulse *pulse, struct control *control);

/* Asks no more. Before workers_end. */
void pulse_stop(struct pulse *pulse);

/* Whether nobody hangs. */
bool pulse_is_well(const struct pulse *pulse);

#endif
