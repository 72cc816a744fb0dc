/*
 * Another configuration for the running process: the file is read and checked, and what it says is
 * put in force, whole or not at all. Sessions notice nothing, but those at shards that were
 * removed. On the control thread; reading and checking, which may wait for a disk, are work of a
 * pool thread.
 */
#ifndef IMAPMUX_PROCESS_RELOAD_H
#define IMAPMUX_PROCESS_RELOAD_H

#include "proxy/base/conf_change.h"
#include "proxy/process/control.h"

struct reload;

/* Embedded in its owner, which lives until the answer: a reload cannot be called back. */
struct reload_request {
    /*
     * Once, never inside the call. ERR_NONE: it is in force, and *changes says what is another.
     * Else nothing has changed, and *err says why, with "file:line: " where it is the file.
     */
    void (*on_done)(struct reload_request *request, const struct conf_changes *changes,
                    const struct err *err);
};

/*
 * Borrows the control thread until the close. `on_change` comes with each new configuration, when
 * it is in force; `before` is the one that was. NULL without memory.
 */
struct reload *reload_open(struct control *control,
                           void (*on_change)(void *owner, const struct conf *before), void *owner);

/*
 * False with *err set, and no answer follows: one is under way; or the process is about to end, or
 * to give its place to another one, or not ready yet.
 */
bool reload_start(struct reload *reload, struct reload_request *request, struct err *err);

/* The same for whoever waits for no answer; one that is under way is followed by another. */
void reload_wanted(struct reload *reload);

/*
 * While it is, this process gives its place to no other one: they would not have the same sockets.
 */
bool reload_is_under_way(const struct reload *reload);

/*
 * Workers have ended, and the inbox was emptied: one that is under way is answered. Nulls the
 * pointer, harmless on NULL; memory goes when the loop has run out.
 */
void reload_close(struct reload **reload);

#endif
