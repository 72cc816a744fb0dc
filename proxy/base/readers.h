/*
 * For memory that ends when a count says so which is not ours, as OpenSSL's of an SSL_CTX: whoever
 * has read it leaves a mark, and whoever frees it looks for the marks. Correct it is without; but
 * ThreadSanitizer does not see the counts of libraries, and would take each such end for a race.
 */
#ifndef IMAPMUX_BASE_READERS_H
#define IMAPMUX_BASE_READERS_H

#include <stdatomic.h>

struct readers {
    atomic_uint marks;
};

static inline void readers_mark(struct readers *readers)
{
    atomic_fetch_add_explicit(&readers->marks, 1, memory_order_release);
}

static inline void readers_look(struct readers *readers)
{
    (void)atomic_load_explicit(&readers->marks, memory_order_acquire);
}

#endif
