/*
 * Runs one command of the shell, with all that it starts as a process group of its own: what it
 * prints comes line by line, and when it ends, or is ended, nothing of it goes on. It reads from
 * /dev/null. It blocks; several threads may run one each.
 */
#ifndef IMAPMUX_CTL_CHILD_H
#define IMAPMUX_CTL_CHILD_H

#include "proxy/base/err.h"
#include "proxy/base/span.h"

/* Whoever waits is asked at least so often whether to go on; a longer line is cut in pieces. */
enum { CHILD_WAIT_MS = 100, CHILD_LINE_MAX = 1024 };

struct child {
    const char *command; /* what /bin/sh -c gets */
    /* "NAME=value" and so on, in the place of what we have of these names; NULL ends */
    const char *const *environment;
    void (*on_line)(void *owner, struct span line); /* of both outputs; without its end */
    bool (*on_wait)(void *owner);                   /* false: end it */
    void *owner;
};

/* True: its exit status was 0. Else *err says how it ended (ERR_PEER), or why it did not begin. */
bool child_run(const struct child *child, struct err *err);

#endif
