/*
 * A logged-in session: carries every byte between the client and the store, both ways, through the
 * dialog scanner. Capability lists are rewritten, commands that are the proxy's own are refused,
 * all else passes unchanged and at once. Holds no bytes while the session is idle, and never more
 * than a scratch buffer's worth for each direction: a side that reads slowly slows the other down.
 */
#ifndef IMAPMUX_SESSION_RELAY_H
#define IMAPMUX_SESSION_RELAY_H

#include "proxy/base/buf.h"
#include "proxy/imap/caps.h"
#include "proxy/imap/dialog.h"
#include "proxy/net/conn.h"

/* Why it ended: whoever went first. */
enum relay_end {
    RELAY_CLIENT_LEFT,  /* the client sent the end of its stream */
    RELAY_BACKEND_LEFT, /* the store did, as after LOGOUT */
    RELAY_CLIENT_BROKEN,
    RELAY_BACKEND_BROKEN,
    RELAY_PROTOCOL, /* a side went over a limit of the scanner */
    RELAY_ASKED,    /* relay_end_politely */
    RELAY_LOGOUT,   /* the client has logged out, and was told so; its store knows nothing of it */
    RELAY_STRANDED  /* the store has left a client that was at rest, and has not been told */
};

/* What passes: from one side to the other, or a line of ours to the client. */
enum relay_way { RELAY_FROM_CLIENT, RELAY_FROM_STORE, RELAY_OWN };

struct relay {
    /* Set by the owner before relay_start. */
    const struct env *env;
    struct conn *client, *backend; /* borrowed; the relay hears their events */
    const struct caps_filter *filter;
    char *scratch; /* the worker's, shared by all its relays */
    size_t scratch_size;
    /*
     * One side has left, the other gets what there is: a deadline is wanted. May free the relay.
     */
    void (*on_linger)(void *owner);
    void (*on_end)(void *owner); /* all is done, `why` is set; may free the relay */
    void *owner;
    /*
     * NULL, or set whenever nothing runs: hears all that passes. `at` is how the scanner of that
     * side stood before these bytes; NULL for lines of ours.
     */
    void (*on_passed)(void *tap, enum relay_way way, const struct scan *at, struct span bytes);
    void *tap;

    /* For the log. */
    uint64_t bytes_from_client, bytes_to_client;
    uint64_t last_active_ms; /* loop time of the last byte */
    enum relay_end why;

    /* Private. */
    struct dialog dialog;
    struct buf client_held, backend_held; /* bytes about which the dialog has not decided */
    struct buf own;                       /* lines of ours that wait for a response boundary */
    struct buf logout;                    /* our answer to LOGOUT, once all before it is done */
    const char *bye;                      /* relay_end_politely: the line to say */
    bool client_left, backend_left, keeps_backend;
};

enum { RELAY_SCRATCH_MIN = 64 * 1024 };

/*
 * Begins. With `keeps_backend`, the store's connection is to outlive the session if it is clean:
 * the relay answers LOGOUT itself. `from_client` and `from_backend` are bytes that were read
 * already; they are handled first and consumed. May call on_linger and on_end before it returns:
 * the caller touches the relay no more.
 */
void relay_start(struct relay *relay, bool keeps_backend, struct buf *from_client,
                 struct buf *from_backend);

/* Tells a client that idles that the server is still there; false when it does not idle. */
bool relay_say_still_here(struct relay *relay);

/*
 * At the end: whether nothing is left of this session at the store, but perhaps a selected mailbox
 * (dialog_is_selected), and the connection is whole.
 */
bool relay_leaves_clean(const struct relay *relay);

/*
 * RELAY_STRANDED: what the client shall hear in the end, the store's own last words or ours.
 * Borrowed until relay_release.
 */
struct span relay_last_words(const struct relay *relay);

/*
 * Says `bye` (a constant, whole line) to the client at the next command boundary, and ends.
 * Commands that have begun are answered before; no more are read.
 */
void relay_end_politely(struct relay *relay, const char *bye);

/* Says it now if the client is between two responses. The owner ends the relay then. */
void relay_interject(struct relay *relay, const char *bye);

/* The store is done with: what is left is for the client to take. */
bool relay_has_left_store(const struct relay *relay);

/* Lets go of the connections' events and frees what is held. */
void relay_release(struct relay *relay);

#endif
