/*
 * A password file and the threads that compute its hashes: one of each for all sources that name
 * the file, whichever worker's they are. Any thread.
 */
#ifndef IMAPMUX_AUTH_PASSWD_SHARED_H
#define IMAPMUX_AUTH_PASSWD_SHARED_H

#include "auth/passwd/file.h"
#include "auth/passwd/hasher.h"

struct passwd_shared {
    struct passwd_file *file;
    struct hasher *hasher;

    /* Private. */
    size_t users;
    struct passwd_shared *next;
    char path[];
};

/* The first one reads the file, here and now, before others join. NULL with *err set. */
struct passwd_shared *passwd_shared_join(const char *path, struct err *err);

/* No job of the caller's may be under way. Nulls the pointer; harmless on NULL. */
void passwd_shared_leave(struct passwd_shared **shared);

#endif
