/*
 * Starts the binary anew, to take the place of this process. A small process of its own does so,
 * forked before anything is opened and before any right is given up: so the new one has the rights
 * and the environment that this one began with, whatever this one may do by now. It can do nothing
 * else, and ends with this process.
 */
#ifndef IMAPMUX_PROCESS_LAUNCHER_H
#define IMAPMUX_PROCESS_LAUNCHER_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"

struct launcher;

typedef void launcher_end_fn(void *owner, long pid, const char *why);

/*
 * Forks, before there are threads. The new process gets these arguments, and --take-over in the
 * place of one that is among them. NULL: this cannot be had, and nothing else is amiss.
 */
struct launcher *launcher_fork(char **argv);

/* The socket at which the place of this process is to be taken: once. Harmless on NULL. */
void launcher_settle(struct launcher *launcher, const char *socket);

/* From now on it answers on this loop. Harmless on NULL. */
void launcher_listen(struct launcher *launcher, const struct env *env);

/*
 * Starts the new process, and logs what comes of it. `on_end` follows, once, with its number when
 * it has taken the place of this one, or with 0 and why it has not. False with *err set, also while
 * one is on its way, or when there is no launcher (NULL).
 */
bool launcher_launch(struct launcher *launcher, launcher_end_fn *on_end, void *owner,
                     struct err *err);

/* Nobody is to hear of it any more; it is on its way all the same. */
void launcher_forget(struct launcher *launcher);

/*
 * While on_end is to follow: true, and `on_settled` follows after it. False, also on NULL: nothing
 * is under way.
 */
bool launcher_wait(struct launcher *launcher, void (*on_settled)(void *owner), void *owner);

/* Nulls the pointer; memory goes in the last close callback. Harmless on NULL. */
void launcher_close(struct launcher **launcher);

/* --- in a process that was started so; all are harmless in others --- */

/* First of all: nobody else is to have the descriptor. */
void launcher_take_report(void);

/* It serves, or why it does not. Only the first one counts. */
void launcher_report_ready(void);
void launcher_report_failure(const char *why);

#endif
