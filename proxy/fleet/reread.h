/*
 * Reads again what events are about, after some may have been missed: the users who are being
 * moved, and those whom a worker holds. Redis does not answer, but publishes on our own channel
 * what an event would tell, so that it comes in order with the events that are published meanwhile.
 * On the control thread.
 */
#ifndef IMAPMUX_FLEET_REREAD_H
#define IMAPMUX_FLEET_REREAD_H

#include "proxy/process/control.h"

struct reread;

/*
 * `on_read` follows each time that all has been asked for. All is borrowed until the close. NULL
 * with *err set.
 */
struct reread *reread_open(struct control *control, const char *id, void (*on_read)(void *owner),
                           void *owner, struct err *err);

/*
 * All is to be read; begins now, or when what is under way is done. `thorough`: moves may have been
 * completed without our consent, so those who have sessions are looked at, too, and where the route
 * leads to another shard than theirs the event has the member "stray".
 */
void reread_start(struct reread *reread, bool thorough);

/* Takes up what has failed, if Redis is back. */
void reread_retry(struct reread *reread);

/*
 * Once workers have ended and the control thread's inbox is empty. Nulls the pointer; harmless on
 * NULL.
 */
void reread_close(struct reread **reread);

#endif
