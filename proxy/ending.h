/*
 * How the process comes to its end, on the control thread: in order, when all clients are told BYE
 * as soon as they can be; or by draining, when no new ones come, and those that are there go one by
 * one. In both the loop is stopped once no session is left, or the time is up.
 */
#ifndef IMAPMUX_PROXY_ENDING_H
#define IMAPMUX_PROXY_ENDING_H

#include "proxy/control.h"

struct ending;

/* Borrows the control thread until the close. NULL with *err set. */
struct ending *ending_open(struct control *control, struct err *err);

/*
 * Orderly; `why` is for the log. At once, if the process stops already, or has no workers yet. Sets
 * control->stopping.
 */
void ending_stop(struct ending *ending, const char *why);

/*
 * Draining, over this time; then what is left is ended in order. Sets control->draining and
 * control->stopping. Again with another time: sessions go by the earlier one, the process by the
 * later call. False without memory: nothing has changed. Not once the process stops in order.
 */
bool ending_drain(struct ending *ending, uint64_t within_ms, const char *why);

/* Any thread: the last session of a process that is to end has gone. */
void ending_tell_idle(struct ending *ending);

/* Nulls the pointer; memory goes in the last close callback. Harmless on NULL. */
void ending_close(struct ending **ending);

#endif
