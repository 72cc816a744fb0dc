/*
 * What the process may ask of the kernel from here on: the system calls that it needs
 * (syscall_filter.h), files below the folders that the configuration and the system's libraries
 * read, and new files only where the configuration has some written (landlock(7)). For good.
 */
#ifndef IMAPMUX_BASE_SANDBOX_H
#define IMAPMUX_BASE_SANDBOX_H

#include "proxy/base/conf.h"

/*
 * On the control thread, before any other one, after PR_SET_NO_NEW_PRIVS; nothing if
 * process.sandbox says no. Logs what it could do: a kernel without Landlock is no failure, one
 * without seccomp is: false with *err set.
 */
bool sandbox_enter(const struct conf *conf, struct err *err);

/* Control thread. */
bool sandbox_is_entered(void);

/*
 * Whether a file that another configuration names can be had from within: true without a sandbox,
 * and for what is not there. Control thread.
 */
bool sandbox_may_read(const char *path);
bool sandbox_may_write(const char *path); /* a file in the same folder */

#endif
