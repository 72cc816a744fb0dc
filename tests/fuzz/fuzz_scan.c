/*
 * The scanner against a slow, obvious reference that has the whole stream before it and looks at
 * each line as a whole. The first octet chooses the side, the limits, and whether literals that ask
 * are refused; the second how the stream is cut.
 */
#include <assert.h>
#include <stdint.h>

#include "proxy/imap/scan.h"

#define STREAM_MAX 4096

/* What becomes of one octet. */
struct mark {
    char what; /* 't' text, 'l' literal, '.' end of a command, '{' a line with a header, '!' bad */
    bool sync, binary;
    uint64_t size;
};

static struct mark expected[STREAM_MAX], found[STREAM_MAX];

/* How a stream is read. */
struct rules {
    enum scan_side side;
    uint64_t literal_max;
    uint32_t line_max;
    bool refuses; /* literals that wait for a "+" */
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool is_free_text(enum scan_side side, struct span line)
{
    static const char *const kinds[] = {"OK", "NO", "BAD", "BYE", "PREAUTH"};

    if (side == SCAN_CLIENT || line.len == 0)
        return false;
    if (line.ptr[0] == '+')
        return true;

    const char *first = line.len < 2 ? NULL : memchr(line.ptr + 1, ' ', line.len - 1);
    const char *end = line.ptr + line.len;
    const char *second = first == NULL ? NULL : memchr(first + 1, ' ', (size_t)(end - first - 1));

    if (second == NULL)
        return false;
    for (size_t i = 0; i < 5; i++) {
        if (span_is((struct span){first + 1, (size_t)(second - first - 1)}, kinds[i]))
            return true;
    }
    return false;
}

static bool in_quotes(struct span text)
{
    bool quoted = false;

    for (size_t i = 0; i < text.len; i++) {
        if (quoted && text.ptr[i] == '\\')
            i++;
        else if (text.ptr[i] == '"')
            quoted = !quoted;
    }
    return quoted;
}

/* The header at the end of a line given without its line end. */
static bool read_header(struct span line, uint64_t max, struct mark *mark)
{
    size_t at = line.len;

    mark->sync = true;
    if (at == 0 || line.ptr[--at] != '}')
        return false;
    if (at > 0 && line.ptr[at - 1] == '+') {
        mark->sync = false;
        at--;
    }

    size_t digits_end = at;

    while (at > 0 && line.ptr[at - 1] >= '0' && line.ptr[at - 1] <= '9')
        at--;
    if (at == digits_end || at == 0 || line.ptr[at - 1] != '{')
        return false;
    if (in_quotes((struct span){line.ptr, at - 1}))
        return false;
    mark->binary = at > 1 && line.ptr[at - 2] == '~';
    mark->what = '{';
    for (; at < digits_end; at++) {
        unsigned digit = (unsigned)(line.ptr[at] - '0');

        if (digit > max || mark->size > (max - digit) / 10) {
            mark->what = '!';
            return true;
        }
        mark->size = mark->size * 10 + digit;
    }
    return true;
}

/* Marks the stream; returns how far, which is short of the end only if a line is bad. */
static size_t mark_all(const struct rules *rules, struct span in)
{
    bool begins = true; /* a command or response, not the rest of one behind a literal */
    size_t at = 0, text_len = 0;

    while (at < in.len) {
        size_t end = at;

        while (end < in.len && in.ptr[end] != '\n')
            expected[end++] = (struct mark){.what = 't'};

        size_t len = end - at + (end < in.len);

        if (rules->line_max > 0 && text_len + len > rules->line_max)
            return at + rules->line_max - text_len;
        text_len += len;
        if (end == in.len)
            return end;

        struct span line = {in.ptr + at, end - at};
        struct mark mark = {.what = '.'};

        if (line.len > 0 && line.ptr[line.len - 1] == '\r')
            line.len--;
        if ((begins && is_free_text(rules->side, line)) ||
            !read_header(line, rules->literal_max, &mark))
            mark = (struct mark){.what = '.'};
        if (mark.what != '{')
            mark.sync = mark.binary = false;
        if (rules->side == SCAN_SERVER)
            mark.sync = false;
        expected[end] = mark;
        if (mark.what == '!')
            return end;
        if (mark.sync && rules->refuses)
            mark = (struct mark){.what = '.'};
        begins = mark.what == '.';
        if (begins)
            text_len = 0;
        for (at = end + 1; mark.size > 0 && at < in.len; at++, mark.size--)
            expected[at] = (struct mark){.what = 'l'};
    }
    return at;
}

/* The same by the scanner, the stream cut into chunks whose sizes `seed` makes up. */
static size_t scan_all(const struct rules *rules, struct span in, unsigned seed)
{
    struct scan scan;
    size_t at = 0;

    scan_init(&scan, rules->side, rules->literal_max, rules->line_max);
    while (at < in.len) {
        seed = seed * 1103515245u + 12345u;

        size_t len = 1 + seed / 65536u % (seed % 2 ? 3 : 100);

        len = len < in.len - at ? len : in.len - at;
        for (struct span chunk = {in.ptr + at, len}; chunk.len > 0;) {
            struct piece piece;
            ptrdiff_t step = scan_next(&scan, chunk, &piece);

            if (step == SCAN_BAD)
                return at;
            assert(step > 0 && (size_t)step <= chunk.len && piece.bytes.ptr == chunk.ptr);
            assert(piece.bytes.len == (size_t)step);
            for (size_t end = at + (size_t)step; at < end; at++)
                found[at] = (struct mark){.what = piece.kind == PIECE_TEXT ? 't' : 'l'};
            if (piece.ends_line)
                found[at - 1] = (struct mark){.what = '.'};
            if (piece.opens_literal)
                found[at - 1] = (struct mark){'{', piece.literal_sync, piece.literal_binary,
                                              piece.literal_size};
            assert(scan_at_start(&scan) == piece.ends_line);
            if (piece.literal_sync && rules->refuses)
                scan_cancel_literal(&scan);
            chunk = span_after(chunk, (size_t)step);
        }
    }
    return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > STREAM_MAX)
        return 0;

    struct rules rules = {.side = data[0] & 1 ? SCAN_SERVER : SCAN_CLIENT,
                          .refuses = data[0] & 2,
                          .line_max = data[0] & 4 ? 40 : 0,
                          .literal_max = data[0] & 8 ? 12 : SCAN_LITERAL_MAX};
    struct span in = {(const char *)data + 2, size - 2};
    size_t good = mark_all(&rules, in);
    size_t scanned = scan_all(&rules, in, data[1]);

    assert(good == in.len ? scanned == in.len : scanned <= good);
    for (size_t i = 0; i < scanned; i++) {
        assert(found[i].what == expected[i].what && found[i].size == expected[i].size);
        assert(found[i].sync == expected[i].sync && found[i].binary == expected[i].binary);
    }
    return 0;
}
