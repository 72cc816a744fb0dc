/*
 * A password or token: bytes that are wiped when released, never logged, and have no print
 * function.
 */
#ifndef IMAPMUX_BASE_SECRET_H
#define IMAPMUX_BASE_SECRET_H

#include "proxy/base/span.h"

#include <string.h>

struct secret {
    char *bytes; /* NUL-terminated for libraries that want that; may contain NUL before `len` */
    size_t len;
};

/*
 * From here on secrets, and private keys of OpenSSL, are kept in memory that core dumps leave out
 * (and that is not swapped out, if the limit of locked memory allows). Once, before any other
 * thread; what is there already stays where it is. False: the system does not do it.
 */
bool secret_hide_all(size_t max_sessions);

/* Takes a copy, releasing what was held; false when memory is short (then the secret is empty). */
bool secret_set(struct secret *secret, struct span value);

/* Wipes and frees; the secret is empty afterwards. Safe on a zeroed secret. */
void secret_release(struct secret *secret);

/* Overwrites `len` bytes in a way the compiler keeps. */
static inline void secret_wipe(void *bytes, size_t len)
{
    explicit_bzero(bytes, len);
}

/* Borrows the bytes. */
static inline struct span secret_span(const struct secret *secret)
{
    return (struct span){secret->bytes, secret->len};
}

#endif
