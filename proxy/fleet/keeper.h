/*
 * The file of last known routes (routing/snapshot.h): read before the first client comes, written
 * now and then, so that a process that is started while Redis is away can serve the users whom the
 * one before it has known. On the control thread.
 */
#ifndef IMAPMUX_FLEET_KEEPER_H
#define IMAPMUX_FLEET_KEEPER_H

#include "proxy/process/control.h"

struct keeper;

/*
 * Reads the file, as section `route` says; a file that cannot be had is logged, and is no failure:
 * then there is no keeper, NULL. All is borrowed until the close.
 */
struct keeper *keeper_open(struct control *control, const char *id);

/* The process that has written the file, which is dead or has given it up; "" if none has. */
const char *keeper_predecessor(const struct keeper *keeper);

/* What was read is of no use. */
void keeper_drop(struct keeper *keeper);

/* Until then its routes may serve, of clock_ms; 0: there are none. */
uint64_t keeper_fence_ms(const struct keeper *keeper);

/* Gives the routes to the routers of workers, whose threads do not run yet; once. */
void keeper_teach(struct keeper *keeper, struct workers *workers);

/*
 * Redis has confirmed this process: its users may be served until `fence_ms` of clock_ms. The file
 * is written if that is news, and the last time was long enough ago.
 */
void keeper_confirm(struct keeper *keeper, uint64_t fence_ms);

/*
 * Writes the file with what workers know now. `on_kept` follows when that is done or has failed.
 * False if there is nothing to wait for.
 */
bool keeper_write(struct keeper *keeper, void (*on_kept)(void *owner), void *owner);

/*
 * This process is about to have Redis forget it, and its workers have ended: nobody is to be served
 * from the file without asking. False if it still says otherwise.
 */
bool keeper_void(struct keeper *keeper);

/* The same now, for Redis has forgotten this process: what the file says may have been moved. */
void keeper_forget(struct keeper *keeper);

/*
 * She is not to be served from the file any more, for she is moved. False: the file does not say so
 * yet.
 */
bool keeper_add_moved(struct keeper *keeper, const char *user, uint64_t epoch);

/*
 * Workers have ended, and the inbox is empty. Nulls the pointer; memory goes when what is being
 * written has been. Harmless on NULL.
 */
void keeper_close(struct keeper **keeper);

#endif
