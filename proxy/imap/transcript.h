/*
 * One direction of an IMAP stream as lines for a person to read, with what is private taken out:
 * literals, and the quoted strings of responses that bring mail (FETCH, URLFETCH), are shown as
 * "(123 octets)" unless they are wanted; the secret part of a URL with URLAUTH (RFC 4467) never is.
 * A plain value that borrows nothing; what it holds may be mail: wipe it.
 */
#ifndef IMAPMUX_IMAP_TRANSCRIPT_H
#define IMAPMUX_IMAP_TRANSCRIPT_H

#include "proxy/imap/scan.h"

enum {
    TRANSCRIPT_LINE_MAX = 1000,       /* octets of a line that are shown; then "..." */
    TRANSCRIPT_BODY_MAX = 1024 * 1024 /* octets of a literal that are shown, if any are */
};

struct transcript {
    bool shows_bodies;
    /* Private. */
    bool hides;     /* the quoted strings of this response */
    bool judged;    /* whether it does is known */
    bool in_rest;   /* of a line, behind a literal */
    bool in_quotes; /* and they are hidden */
    bool escaped;
    bool cut;
    uint64_t hidden; /* octets of the literal, or of the quoted string, not shown */
    uint64_t shown;  /* octets of the literal that were */
    size_t len;
    char line[TRANSCRIPT_LINE_MAX + 64];
};

void transcript_init(struct transcript *transcript, bool shows_bodies);

/*
 * Takes in `bytes`, which follow those before. `at` is the state of a scan just before them: the
 * one who judges the stream knows more of it than can be seen in it. Each line that is whole is
 * told, without its end, borrowed for the call.
 */
void transcript_add(struct transcript *transcript, const struct scan *at, struct span bytes,
                    void (*on_line)(void *owner, struct span line), void *owner);

#endif
