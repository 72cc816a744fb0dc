/*
 * Takes one line of a server apart, as far as logging in and health checks need it (RFC 9051 7). A
 * pure function; the spans borrow from the line. Literals are the scanner's business: a line that
 * ends in one is given as far as it goes. Accepted beyond the grammar, because servers do it: lower
 * case, "+" without a space, no text, bare LF.
 */
#ifndef IMAPMUX_IMAP_REPLY_H
#define IMAPMUX_IMAP_REPLY_H

#include "proxy/base/span.h"

enum reply_kind {
    REPLY_OK,
    REPLY_NO,
    REPLY_BAD,
    REPLY_BYE,
    REPLY_PREAUTH,
    REPLY_CAPABILITY,
    REPLY_ID,
    REPLY_OTHER,
    REPLY_CONTINUE /* "+" */
};

struct reply {
    enum reply_kind kind;
    struct span tag;  /* "*", "+" or a tag */
    struct span code; /* name of the response code, "CAPABILITY" of [CAPABILITY ID]; or empty */
    struct span code_args; /* what stands behind the name in the brackets */
    struct span text; /* behind the code; CAPABILITY, ID: arguments; OTHER: all behind the tag */
};

/*
 * `line` with or without its line end. False if it begins with neither "*", "+" nor a legal tag, or
 * holds a NUL.
 */
bool reply_parse(struct span line, struct reply *reply_out);

/* Untagged, i.e. "*". */
static inline bool reply_is_untagged(const struct reply *reply)
{
    return span_is(reply->tag, "*");
}

#endif
