/*
 * A borrowed run of bytes. It owns nothing: it is good until the next call that may touch the
 * memory it points into, and is never stored across callbacks. Not NUL-terminated.
 */
#ifndef IMAPMUX_BASE_SPAN_H
#define IMAPMUX_BASE_SPAN_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <strings.h>

struct span {
    const char *ptr;
    size_t len;
};

/* For printf: printf("%.*s", SPAN_ARG(s)). Only for spans known to be short. */
#define SPAN_ARG(s) (int)(s).len, (s).ptr

static inline struct span span_of(const char *text)
{
    return (struct span){text, strlen(text)};
}

static inline bool span_equal(struct span a, struct span b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

/* ASCII case-insensitive comparison with a string constant (IMAP keywords, RFC 9051 9 (1)). */
static inline bool span_is(struct span a, const char *keyword)
{
    return a.len == strlen(keyword) && strncasecmp(a.ptr, keyword, a.len) == 0;
}

/* The span without its first `count` bytes; count <= a.len. */
static inline struct span span_after(struct span a, size_t count)
{
    return (struct span){a.ptr + count, a.len - count};
}

#endif
