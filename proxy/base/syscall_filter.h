/* Which system calls the kernel takes from this process from here on; seccomp(2). */
#ifndef IMAPMUX_BASE_SYSCALL_FILTER_H
#define IMAPMUX_BASE_SYSCALL_FILTER_H

#include "proxy/base/err.h"

/*
 * For all threads, those to come as well, for good. False with *err set: the kernel does not have
 * it, and nothing is filtered. Needs PR_SET_NO_NEW_PRIVS.
 */
bool syscall_filter_install(struct err *err);

#endif
