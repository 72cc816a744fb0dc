/*
 * Who on this worker is listened to, for administration: what her sessions and her stores say to
 * one another, as lines (proxy/imap/transcript.h), from now on, also of sessions that are still to
 * come. On the worker's thread only.
 *
 * Whoever wants the lines asks for them again and again. A trace that is not asked for is over
 * after TRACES_LEASE_MS, and all that was not fetched is forgotten.
 */
#ifndef IMAPMUX_SESSION_TRACES_H
#define IMAPMUX_SESSION_TRACES_H

#include "proxy/session/home.h"

enum {
    TRACES_MAX = 16, /* users at a time, on one worker */
    TRACES_LEASE_MS = 10000,
    TRACES_BYTES_MAX = 1024 * 1024, /* of one user's lines that wait */
    TRACES_ID_MAX = 32
};

struct traces;

/* NULL without memory. */
struct traces *traces_open(struct home *home);

/* Forgets all; the loop must run once more before the memory goes. Nulls the pointer. */
void traces_close(struct traces **traces);

struct traces_line {
    struct traces_line *next;
    uint64_t at_ms;   /* since 1970 */
    const char *from; /* "client", "store", "proxy" */
    char session[24];
    char text[]; /* one line */
};

/* Lines that were left out. */
struct traces_loss {
    uint64_t lines;
    uint64_t at_ms; /* the last of them, since 1970 */
};

enum traces_answer {
    TRACES_TOLD,
    TRACES_OTHER, /* she is listened to under another id */
    TRACES_FULL   /* TRACES_MAX, or no memory */
};

/*
 * Listens to this user from now on, if that is not so yet; `take` hears the lines since the last
 * call, in order, and returns false when it can take no more: that line is told again. With
 * `shows_bodies` they have mail in them. `loss_out` is what was left out since then.
 */
enum traces_answer traces_fetch(struct traces *traces, const char *user, const char *id,
                                bool shows_bodies,
                                bool (*take)(void *owner, const struct traces_line *line),
                                void *owner, struct traces_loss *loss_out);

/* Who has listened under this id does so no more. Harmless if nobody does. */
void traces_end(struct traces *traces, const char *user, const char *id);

/* --- for the phases --- */

/* A line of ours about a session, if its user is listened to; cheap when nobody is. */
void traces_note(struct session *s, const char *user, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* It is about to be relayed, is relayed no more. Harmless when nobody listens. */
void traces_attach(struct session *s);
void traces_detach(struct session *s);

#endif
