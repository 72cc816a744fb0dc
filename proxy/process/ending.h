/*
 * How the process comes to its end, on the control thread: in order, when all clients are told BYE
 * as soon as they can be; or by draining, when no new ones come, and those that are there go one by
 * one. In both the loop is stopped once no session is left, or the time is up.
 */
#ifndef IMAPMUX_PROCESS_ENDING_H
#define IMAPMUX_PROCESS_ENDING_H

#include "proxy/process/control.h"

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

/*
 * From here on nothing but the end is left. Whatever then hangs, as a disk that a thread still
 * reads from, the process ends after a while, with a word to standard error and a status of
 * failure; if it has come to its end before, `ending_is_complete` says so.
 */
void ending_has_begun(const struct conf *conf);
void ending_is_complete(void);

/* Nulls the pointer; memory goes in the last close callback. Harmless on NULL. */
void ending_close(struct ending **ending);

#endif
