/*
 * Owns no memory but two buffers for all connections: the octets of which bodies are made, and the
 * place where the octets of literals end.
 */
#include "bench/wire.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BODY_PART = 256 * 1024 };

static char drain[BODY_PART];

/* Lines of 64 octets, as mail has them; it cannot be taken for IMAP. */
static char *body_octets(void)
{
    static char octets[BODY_PART];

    if (octets[0] == '\0') {
        memset(octets, 'x', sizeof octets);
        for (size_t i = 62; i + 1 < sizeof octets; i += 64)
            memcpy(octets + i, "\r\n", 2);
    }
    return octets;
}

/* --- in --- */

static size_t waiting(const struct wire_in *in)
{
    return in->end - in->begin;
}

char *wire_in_space(struct wire_in *in, size_t *size_out)
{
    if (in->literal > 0 && waiting(in) == 0) {
        *size_out = in->literal < sizeof drain ? (size_t)in->literal : sizeof drain;
        return drain;
    }
    memmove(in->bytes, in->bytes + in->begin, waiting(in));
    in->end -= in->begin;
    in->begin = 0;
    *size_out = sizeof in->bytes - in->end;
    return in->bytes + in->end;
}

void wire_in_filled(struct wire_in *in, size_t count)
{
    if (in->literal > 0 && waiting(in) == 0)
        in->literal -= count;
    else
        in->end += count;
}

/* {123} or {123+} at the end of the line */
static void find_literal(struct wire_in *in, const char *line)
{
    const char *brace = strrchr(line, '{');
    char *end;

    if (brace == NULL || brace[1] < '0' || brace[1] > '9')
        return;
    uint64_t octets = strtoull(brace + 1, &end, 10);
    in->literal_is_sync = *end != '+';
    if (*end == '+')
        end++;
    if (strcmp(end, "}") == 0)
        in->literal = octets;
}

char *wire_in_line(struct wire_in *in)
{
    size_t eaten = in->literal < waiting(in) ? (size_t)in->literal : waiting(in);

    in->begin += eaten;
    in->literal -= eaten;
    if (in->literal > 0)
        return NULL;
    char *line = in->bytes + in->begin;
    char *end = memchr(line, '\n', waiting(in));
    if (end == NULL)
        return NULL;
    in->begin = (size_t)(end - in->bytes) + 1;
    if (end > line && end[-1] == '\r')
        end--;
    *end = '\0';
    find_literal(in, line);
    return line;
}

/* --- out --- */

bool wire_out_text(struct wire_out *out, const char *format, ...)
{
    size_t space = sizeof out->head - out->head_end;
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(out->head + out->head_end, space, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= space)
        return false;
    out->head_end += (size_t)length;
    return true;
}

void wire_out_body(struct wire_out *out, uint64_t octets, const char *tail)
{
    out->body = octets;
    out->tail_begin = 0;
    out->tail_end = strnlen(tail, sizeof out->tail);
    memcpy(out->tail, tail, out->tail_end);
}

bool wire_out_is_empty(const struct wire_out *out)
{
    return out->head_end == 0 && out->body == 0 && out->tail_begin == out->tail_end;
}

int wire_out_parts(struct wire_out *out, struct iovec parts[WIRE_PARTS])
{
    int count = 0;

    if (out->head_begin < out->head_end)
        parts[count++] =
            (struct iovec){out->head + out->head_begin, out->head_end - out->head_begin};
    if (out->body > 0)
        parts[count++] =
            (struct iovec){body_octets(), out->body < BODY_PART ? (size_t)out->body : BODY_PART};
    if (out->body <= BODY_PART && out->tail_begin < out->tail_end)
        parts[count++] =
            (struct iovec){out->tail + out->tail_begin, out->tail_end - out->tail_begin};
    return count;
}

static size_t take(size_t *count, uint64_t most)
{
    size_t taken = *count < most ? *count : (size_t)most;

    *count -= taken;
    return taken;
}

void wire_out_sent(struct wire_out *out, size_t count)
{
    out->head_begin += take(&count, out->head_end - out->head_begin);
    out->body -= take(&count, out->body);
    out->tail_begin += take(&count, out->tail_end - out->tail_begin);
    if (out->head_begin == out->head_end)
        out->head_begin = out->head_end = 0;
}
