/*
 * What the proxy must know of a relayed session after login: both directions, on top of scan. A
 * plain value that borrows nothing. It is shown every byte in order and says what to do with it; it
 * changes and keeps none.
 *
 * Either direction works the same way: offer all the bytes at hand; do what the step says; take
 * step.len bytes off the front; while bytes are left and the step was none of MORE, WAIT, BROKEN,
 * offer the rest again.
 *
 * All bytes pass unchanged, whatever they are, but for two things: commands that are the proxy's
 * own affair are taken out (STARTTLS, LOGIN, AUTHENTICATE, COMPRESS, UNAUTHENTICATE; LOGOUT if so
 * wanted), and lines with a capability list are shown for rewriting.
 *
 * After a command with a synchronising literal, and after IDLE, only the server can tell what the
 * client's next bytes are: literal octets or DONE if it says "+", a new command if it answers the
 * command. The client's bytes wait until then. A client that sent them early is only slowed down.
 */
#ifndef IMAPMUX_IMAP_DIALOG_H
#define IMAPMUX_IMAP_DIALOG_H

#include "proxy/imap/scan.h"
#include "proxy/imap/taint.h"

#define DIALOG_TAG_MAX  128 /* no client comes near; a longer one is refused untagged */
#define DIALOG_HEAD_MAX (DIALOG_TAG_MAX + 32) /* most bytes dialog_client answers MORE to */
#define DIALOG_LINE_MAX 16384                 /* most bytes dialog_server answers MORE to */

enum dialog_action {
    DIALOG_PASS,     /* forward `len` bytes */
    DIALOG_MORE,     /* undecided, or empty input: keep all, offer again with more behind */
    DIALOG_EAT,      /* client: drop `len` bytes */
    DIALOG_REFUSE,   /* client: drop `len` bytes and answer "<tag> BAD <text>" */
    DIALOG_LOGOUT,   /* client: drop `len` bytes and all that follows; see dialog_take_logout */
    DIALOG_WAIT,     /* client: keep all, stop reading until dialog_client_waits() is false */
    DIALOG_REWRITE,  /* server: the first `len` bytes are a whole line with a capability list */
    DIALOG_FAREWELL, /* server: `len` is 0; next is its own BYE, which passes if offered again */
    DIALOG_BROKEN    /* over a limit, and for good: end the session */
};

struct dialog_step {
    enum dialog_action action;
    size_t len;
    struct span
        tag; /* REFUSE, LOGOUT: lives in struct dialog until the next dialog_client; or "*" */
    const char *text;   /* REFUSE, BROKEN: why, a constant without line end */
    size_t list_offset; /* REWRITE: the list in the input, the space before it excluded */
    size_t list_len;    /* never 0 */
};

struct dialog {
    struct scan client, server;
    uint64_t command_count; /* forwarded commands */
    uint64_t open_count;    /* forwarded commands without their tagged answer */
    uint64_t open_sum;      /* sum of their tags' hashes: were the right ones answered? */
    uint8_t mode;           /* client: enum client_mode, private to dialog.c */
    uint8_t awaits;         /* client: enum awaited, which verdict of the server */
    uint8_t tag_len;
    char tag[DIALOG_TAG_MAX];      /* of the client's latest command */
    const struct command *refused; /* client: the command that is being eaten */
    struct taint taint;            /* client: what it leaves at the store */
    bool idling;                   /* "+" to IDLE seen, its DONE not yet */
    bool early_plus;               /* "+" came while the client's line had not ended */
    bool answered;                 /* the client's latest command has its tagged answer */
    bool server_holds;             /* the last dialog_server answer was MORE with bytes */
    bool client_broken, server_broken;
    bool bye_seen, logout_seen;
    bool farewell_shown;
    bool takes_logout;
};

void dialog_init(struct dialog *dialog);

/*
 * From now on LOGOUT is the proxy's to answer, as long as the connection to the store is worth
 * keeping: DIALOG_LOGOUT tells of it, and it never reaches the store.
 */
void dialog_take_logout(struct dialog *dialog);

/* What to do with the front of the client's bytes. Never REWRITE. */
void dialog_client(struct dialog *dialog, struct span in, struct dialog_step *step_out);

/* What to do with the front of the server's bytes: PASS, MORE, REWRITE, FAREWELL or BROKEN. */
void dialog_server(struct dialog *dialog, struct span in, struct dialog_step *step_out);

/* Nothing of the client can be taken before the server has spoken; dialog_server ends it. */
bool dialog_client_waits(const struct dialog *dialog);

/* The client is between two commands, of what it was shown (bytes answered MORE do not count). */
bool dialog_client_at_start(const struct dialog *dialog);

/* IDLE is running: the server has said "+", the client has not ended it. */
bool dialog_client_idles(const struct dialog *dialog);

/*
 * All bytes passed so far end with a whole response and none is held: a line of our own may go
 * here.
 */
bool dialog_server_at_line_start(const struct dialog *dialog);

/* Commands forwarded so far. */
uint64_t dialog_command_count(const struct dialog *dialog);

/* Commands forwarded and not answered. */
uint64_t dialog_open_count(const struct dialog *dialog);

/* Both sides at rest, each forwarded command answered with its own tag, no BYE, no LOGOUT. */
bool dialog_is_quiet(const struct dialog *dialog);

/*
 * Quiet, and the store has nothing left of this session but, if dialog_is_selected, a mailbox to be
 * unselected. In doubt it is not clean: only commands that are known to leave nothing behind keep
 * it so.
 */
bool dialog_is_clean(const struct dialog *dialog);
bool dialog_is_selected(const struct dialog *dialog);

bool dialog_bye_seen(const struct dialog *dialog);    /* "* BYE" from the server */
bool dialog_logout_seen(const struct dialog *dialog); /* LOGOUT forwarded from the client */

#endif
