/*
 * Cuts one direction of an IMAP stream into text and literals (RFC 9051 2.2, 4.3; "{n+}" is RFC
 * 7888, "~{n}" RFC 3516). A plain value: no pointers, copy it freely, nothing to release. It knows
 * where lines and literals end, not what they mean, except that human text after
 * OK/NO/BAD/BYE/PREAUTH or "+" from a server opens no literal even if it ends in "{3}".
 *
 * A line ends at LF, with or without CR before it; a CR elsewhere is text. A literal header counts
 * only right before the line end and outside a quoted string; a quoted string never outlives its
 * line. What follows a literal still belongs to the same command or response.
 */
#ifndef IMAPMUX_IMAP_SCAN_H
#define IMAPMUX_IMAP_SCAN_H

#include <stdint.h>

#include "proxy/base/span.h"

#define SCAN_BAD         (-1)
#define SCAN_LITERAL_MAX ((uint64_t)INT64_MAX) /* 2^63-1, RFC 9051 "number64" */

enum scan_side { SCAN_CLIENT, SCAN_SERVER }; /* who sends the stream */

enum piece_kind {
    PIECE_TEXT,   /* octets of one line, all of it or a part; a line end only as the last octet */
    PIECE_LITERAL /* octets of a literal, all of it or a part */
};

struct piece {
    enum piece_kind kind;
    struct span bytes;     /* borrowed from the input */
    bool ends_line;        /* TEXT: its line end is that of the whole command or response */
    bool opens_literal;    /* TEXT: its line end follows a literal header; announced: */
    bool literal_sync;     /* "{n}": a client must wait for "+"; false for "{n+}" and for servers */
    bool literal_binary;   /* "~{n}" */
    uint64_t literal_size; /* 0 is valid: no literal piece follows then */
    bool ends_literal;     /* LITERAL: the last octets of it */
};

struct scan {
    uint64_t literal_left; /* octets of the open literal still to come */
    uint64_t literal_max;  /* a larger announcement is refused */
    uint64_t announced;    /* number between the braces, as far as read */
    uint32_t line_bytes;   /* text octets of the open command or response so far, saturating */
    uint32_t line_max;
    uint8_t side;     /* enum scan_side */
    uint8_t text;     /* state of the line; private to scan.c, as are the rest */
    uint8_t head;     /* how far into "tag SP kind" of a server's line we are */
    uint8_t kind_len; /* letters of the kind word read so far */
    char kind[8];
    bool at_start; /* nothing of the next command or response has been seen */
    bool binary, sync, overflow;
};

/*
 * Limits: octets of one literal, text octets of one command or response (literals not counted); 0
 * is no limit.
 */
void scan_init(struct scan *scan, enum scan_side side, uint64_t literal_max, uint32_t line_max);

/*
 * Describes the first piece of `in` in `*piece_out`; the piece borrows from `in`. Returns the
 * octets it spans (1..in.len, partial pieces included), 0 for empty input, SCAN_BAD over a limit;
 * then only scan_init may follow.
 */
ptrdiff_t scan_next(struct scan *scan, struct span in, struct piece *piece_out);

/*
 * The announced literal was refused before any octet of it came: the next octet begins a new
 * command.
 */
void scan_cancel_literal(struct scan *scan);

/*
 * The next line is no command (a continuation such as DONE): it opens no literal, and ends_line at
 * its end.
 */
void scan_free_line(struct scan *scan);

/* Between two commands or responses: everything begun has ended. */
static inline bool scan_at_start(const struct scan *scan)
{
    return scan->at_start;
}

#endif
