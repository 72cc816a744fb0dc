/*
 * The stream scanner. Most lines are decided by two bytes, the ones before the line end; only a
 * line that ends in "}", or whose end has not come yet, is read octet by octet.
 */
#include "proxy/imap/scan.h"

#include <assert.h>

/* What the octets read so far on a line amount to. */
enum text_state {
    TEXT_PLAIN,
    TEXT_QUOTED,
    TEXT_ESCAPED,   /* behind a backslash in a quoted string */
    TEXT_TILDE,     /* "~" */
    TEXT_BRACE,     /* "{" */
    TEXT_DIGITS,    /* "{12" */
    TEXT_PLUS,      /* "{12+" */
    TEXT_CLOSED,    /* "{12}" */
    TEXT_CLOSED_CR, /* "{12}\r" */
    TEXT_FREE       /* for people: opens nothing */
};

/* How far into the head of a server's line, "tag SP kind SP". */
enum head_state { HEAD_START, HEAD_TAG, HEAD_KIND, HEAD_DONE };

static void begin_command(struct scan *scan);
static ptrdiff_t take_literal(struct scan *scan, struct span in, struct piece *piece_out);
static bool count_line(struct scan *scan, size_t len);
static bool is_no_header(struct span line);
static void read_text(struct scan *scan, struct span bytes);
static enum text_state read_octet(struct scan *scan, char ch);
static enum text_state plain_octet(struct scan *scan, char ch);
static bool count_digit(uint64_t *count, uint8_t ch, uint64_t max);
static void read_head(struct scan *scan, char ch);
static bool is_free_kind(const struct scan *scan);
static bool end_line(struct scan *scan, bool opens_literal, struct piece *piece_out);

void scan_init(struct scan *scan, enum scan_side side, uint64_t literal_max, uint32_t line_max)
{
    *scan = (struct scan){.side = (uint8_t)side, .literal_max = literal_max, .line_max = line_max};
    if (literal_max == 0 || literal_max > SCAN_LITERAL_MAX)
        scan->literal_max = SCAN_LITERAL_MAX;
    begin_command(scan);
}

static void begin_command(struct scan *scan)
{
    scan->at_start = true;
    scan->line_bytes = 0;
    scan->literal_left = 0;
    scan->text = TEXT_PLAIN;
    scan->head = scan->side == SCAN_SERVER ? HEAD_START : HEAD_DONE;
    scan->kind_len = 0;
}

ptrdiff_t scan_next(struct scan *scan, struct span in, struct piece *piece_out)
{
    if (in.len == 0)
        return 0;
    if (scan->literal_left > 0)
        return take_literal(scan, in, piece_out);

    const char *line_end = memchr(in.ptr, '\n', in.len);
    size_t len = line_end == NULL ? in.len : (size_t)(line_end - in.ptr) + 1;
    struct span bytes = {in.ptr, len};

    if (!count_line(scan, len))
        return SCAN_BAD;
    scan->at_start = false;
    *piece_out = (struct piece){.kind = PIECE_TEXT, .bytes = bytes};
    if (line_end == NULL) {
        read_text(scan, bytes);
        return (ptrdiff_t)len;
    }

    bool opens_literal = false;

    if (!is_no_header(bytes)) {
        read_text(scan, (struct span){in.ptr, len - 1});
        opens_literal = scan->text == TEXT_CLOSED || scan->text == TEXT_CLOSED_CR;
    }
    return end_line(scan, opens_literal, piece_out) ? (ptrdiff_t)len : SCAN_BAD;
}

static ptrdiff_t take_literal(struct scan *scan, struct span in, struct piece *piece_out)
{
    size_t len = in.len < scan->literal_left ? in.len : (size_t)scan->literal_left;

    scan->literal_left -= len;
    *piece_out = (struct piece){
        .kind = PIECE_LITERAL, .bytes = {in.ptr, len}, .ends_literal = scan->literal_left == 0};
    return (ptrdiff_t)len;
}

/* Adds to the text octets of the command; false over the limit. */
static bool count_line(struct scan *scan, size_t len)
{
    uint32_t room = UINT32_MAX - scan->line_bytes;

    scan->line_bytes += len < room ? (uint32_t)len : room;
    return scan->line_max == 0 || scan->line_bytes <= scan->line_max;
}

/* Whether the end of the line, seen alone, rules a literal header out. */
static bool is_no_header(struct span line)
{
    size_t len = line.len - 1;

    if (len > 0 && line.ptr[len - 1] == '\r')
        len--;
    return len > 0 && line.ptr[len - 1] != '}';
}

static void read_text(struct scan *scan, struct span bytes)
{
    for (size_t i = 0; i < bytes.len && scan->text != TEXT_FREE; i++) {
        scan->text = (uint8_t)read_octet(scan, bytes.ptr[i]);
        if (scan->head != HEAD_DONE)
            read_head(scan, bytes.ptr[i]);
    }
}

/* The state behind one more octet. What is no part of a header falls back to plain text. */
static enum text_state read_octet(struct scan *scan, char ch)
{
    switch ((enum text_state)scan->text) {
    case TEXT_QUOTED:
        return ch == '"' ? TEXT_PLAIN : ch == '\\' ? TEXT_ESCAPED : TEXT_QUOTED;
    case TEXT_ESCAPED:
        return TEXT_QUOTED;
    case TEXT_BRACE:
    case TEXT_DIGITS:
        if (ch >= '0' && ch <= '9') {
            if (!count_digit(&scan->announced, (uint8_t)ch, scan->literal_max))
                scan->overflow = true;
            return TEXT_DIGITS;
        }
        if (scan->text == TEXT_BRACE)
            break;
        if (ch == '+') {
            scan->sync = false;
            return TEXT_PLUS;
        }
        if (ch == '}')
            return TEXT_CLOSED;
        break;
    case TEXT_PLUS:
        if (ch == '}')
            return TEXT_CLOSED;
        break;
    case TEXT_CLOSED:
        if (ch == '\r')
            return TEXT_CLOSED_CR;
        break;
    case TEXT_PLAIN:
    case TEXT_TILDE:
    case TEXT_CLOSED_CR:
    case TEXT_FREE:
        break;
    }
    return plain_octet(scan, ch);
}

static enum text_state plain_octet(struct scan *scan, char ch)
{
    if (ch == '"')
        return TEXT_QUOTED;
    if (ch == '~')
        return TEXT_TILDE;
    if (ch != '{')
        return TEXT_PLAIN;
    scan->binary = scan->text == TEXT_TILDE;
    scan->sync = scan->side == SCAN_CLIENT;
    scan->overflow = false;
    scan->announced = 0;
    return TEXT_BRACE;
}

/* Adds a digit to a literal's octet count; false if it is no digit or the count would pass max. */
static bool count_digit(uint64_t *count, uint8_t ch, uint64_t max)
{
    unsigned digit = (unsigned)ch - '0';

    if (digit > 9 || digit > max || *count > (max - digit) / 10)
        return false;
    *count = *count * 10 + digit;
    return true;
}

/* Looks for "+" or "tag SP kind SP" with one of the kinds that people's text follows. */
static void read_head(struct scan *scan, char ch)
{
    switch ((enum head_state)scan->head) {
    case HEAD_START:
        scan->head = HEAD_TAG;
        if (ch == '+') {
            scan->head = HEAD_DONE;
            scan->text = TEXT_FREE;
        }
        break;
    case HEAD_TAG:
        if (ch == ' ')
            scan->head = HEAD_KIND;
        break;
    case HEAD_KIND:
        if (ch == ' ') {
            scan->head = HEAD_DONE;
            if (is_free_kind(scan))
                scan->text = TEXT_FREE;
        } else if (scan->kind_len < sizeof scan->kind) {
            scan->kind[scan->kind_len++] = ch;
        } else {
            scan->head = HEAD_DONE;
        }
        break;
    case HEAD_DONE:
        break;
    }
}

static bool is_free_kind(const struct scan *scan)
{
    struct span kind = {scan->kind, scan->kind_len};

    return span_is(kind, "OK") || span_is(kind, "NO") || span_is(kind, "BAD") ||
           span_is(kind, "BYE") || span_is(kind, "PREAUTH");
}

/* Makes ready for the literal or for the next command. */
static bool end_line(struct scan *scan, bool opens_literal, struct piece *piece_out)
{
    if (!opens_literal) {
        piece_out->ends_line = true;
        begin_command(scan);
        return true;
    }
    if (scan->overflow)
        return false;
    piece_out->opens_literal = true;
    piece_out->literal_sync = scan->sync;
    piece_out->literal_binary = scan->binary;
    piece_out->literal_size = scan->announced;
    scan->literal_left = scan->announced;
    scan->text = TEXT_PLAIN;
    scan->head = HEAD_DONE;
    return true;
}

void scan_cancel_literal(struct scan *scan)
{
    begin_command(scan);
}

void scan_free_line(struct scan *scan)
{
    assert(scan->at_start);
    scan->text = TEXT_FREE;
}
