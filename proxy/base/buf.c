/*
 * Owns the memory of byte queues. What is left behind is wiped at once: login data passes through
 * here.
 */
#include "proxy/base/buf.h"

#include "proxy/base/mem.h"
#include "proxy/base/secret.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

enum { SMALLEST = 256 };

void buf_init(struct buf *buf, size_t ceiling)
{
    assert(ceiling <= BUF_CEILING_MAX);
    *buf = (struct buf){.ceiling = (uint32_t)ceiling};
}

void buf_release(struct buf *buf)
{
    if (buf->bytes != NULL)
        secret_wipe(buf->bytes, buf->capacity);
    mem_free(buf->bytes);
    buf_init(buf, buf->ceiling);
}

static bool grow(struct buf *buf, size_t needed)
{
    size_t capacity = buf->capacity < SMALLEST ? SMALLEST : buf->capacity;
    char *bytes;

    while (capacity < needed)
        capacity *= 2;
    bytes = mem_new(capacity);
    if (bytes == NULL)
        return false;
    size_t len = buf_len(buf);
    if (len > 0)
        memcpy(bytes, buf->bytes + buf->start, len);
    if (buf->bytes != NULL)
        secret_wipe(buf->bytes, buf->capacity);
    mem_free(buf->bytes);
    buf->bytes = bytes;
    buf->start = 0;
    buf->end = (uint32_t)len;
    buf->capacity = (uint32_t)capacity;
    return true;
}

char *buf_reserve(struct buf *buf, size_t count)
{
    size_t len = buf_len(buf);

    if (count > buf->ceiling || len > buf->ceiling - count)
        return NULL;
    if (buf->capacity - buf->end < count) {
        if (buf->capacity >= len + count) {
            memmove(buf->bytes, buf->bytes + buf->start, len);
            secret_wipe(buf->bytes + len, buf->start);
            buf->start = 0;
            buf->end = (uint32_t)len;
        } else if (!grow(buf, len + count)) {
            return NULL;
        }
    }
    return buf->bytes + buf->end;
}

void buf_commit(struct buf *buf, size_t count)
{
    assert(count <= buf->capacity - buf->end);
    buf->end += (uint32_t)count;
}

bool buf_append(struct buf *buf, struct span bytes)
{
    if (bytes.len == 0)
        return true;
    char *room = buf_reserve(buf, bytes.len);
    if (room == NULL)
        return false;
    memcpy(room, bytes.ptr, bytes.len);
    buf_commit(buf, bytes.len);
    return true;
}

bool buf_append_text(struct buf *buf, const char *text)
{
    return buf_append(buf, span_of(text));
}

bool buf_printf(struct buf *buf, const char *format, ...)
{
    va_list args, again;

    va_start(args, format);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *room = len < 0 ? NULL : buf_reserve(buf, (size_t)len + 1);
    if (room != NULL) {
        vsnprintf(room, (size_t)len + 1, format, again);
        buf_commit(buf, (size_t)len);
    }
    va_end(again);
    return room != NULL;
}

void buf_consume(struct buf *buf, size_t count)
{
    assert(count <= buf_len(buf));
    if (count == buf_len(buf)) {
        buf_release(buf);
        return;
    }
    secret_wipe(buf->bytes + buf->start, count);
    buf->start += (uint32_t)count;
}
