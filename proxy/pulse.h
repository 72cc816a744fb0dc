/*
 * Whether all workers turn their loops: each of them is asked once a second, and one that does not
 * answer hangs. On the control thread.
 */
#ifndef IMAPMUX_PROXY_PULSE_H
#define IMAPMUX_PROXY_PULSE_H

#include "proxy/ask.h"
#include "proxy/control.h"

struct pulse {
    struct ask ask; /* first member; private, as all of it */
    struct control *control;
    uv_timer_t timer;
    uint64_t asked_ms; /* of the loop's clock; 0: no question is under way */
};

/*
 * Begins to ask. The struct lives until the control thread's inbox is closed and its loop has run
 * out.
 */
void pulse_start(struct pulse *pulse, struct control *control);

/* Asks no more. Before workers_end; harmless if it was never started. */
void pulse_stop(struct pulse *pulse);

/* Whether they have answered within the last few seconds. */
bool pulse_is_well(const struct pulse *pulse);

#endif
