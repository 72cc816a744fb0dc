/*
 * A growing byte queue with a ceiling: bytes are appended at the end and consumed from the front.
 * An empty buffer holds no memory, so an idle session owns none.
 */
#ifndef IMAPMUX_BASE_BUF_H
#define IMAPMUX_BASE_BUF_H

#include "proxy/base/span.h"

#include <stdint.h>

struct buf {
    char *bytes;
    uint32_t start, end; /* the content is bytes[start..end) */
    uint32_t capacity;
    uint32_t ceiling; /* most bytes of content it will ever hold */
};

enum { BUF_CEILING_MAX = 1 << 30 };

/*
 * An empty buffer that will hold at most `ceiling` (up to BUF_CEILING_MAX) bytes; allocates
 * nothing.
 */
void buf_init(struct buf *buf, size_t ceiling);

/*
 * Frees the memory; the buffer is empty and usable again. Contents that may be secret are always
 * wiped.
 */
void buf_release(struct buf *buf);

/* Appends; false, and nothing appended, over the ceiling or without memory. */
bool buf_append(struct buf *buf, struct span bytes);
bool buf_append_text(struct buf *buf, const char *text);
bool buf_printf(struct buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * Room for `count` more bytes at the returned address, NULL over the ceiling; buf_commit says how
 * many were used.
 */
char *buf_reserve(struct buf *buf, size_t count);
void buf_commit(struct buf *buf, size_t count);

/*
 * Wipes and drops `count` bytes (at most buf_len) from the front; the memory goes when the last
 * byte does.
 */
void buf_consume(struct buf *buf, size_t count);

static inline size_t buf_len(const struct buf *buf)
{
    return buf->end - buf->start;
}

/* The content, borrowed until the next call that changes the buffer. */
static inline struct span buf_span(const struct buf *buf)
{
    return (struct span){buf->bytes == NULL ? "" : buf->bytes + buf->start, buf_len(buf)};
}

#endif
