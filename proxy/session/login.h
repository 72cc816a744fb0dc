/*
 * IMAP before login, on the client's side: takes commands from the client's bytes, answers those
 * that the proxy speaks itself, and stops at the one that says who the user is (RFC 9051 6.1, 6.2;
 * RFC 2971 ID; RFC 4959 SASL-IR; RFC 7888 literals). It reads no socket: the session feeds it, and
 * does what the outcome asks.
 */
#ifndef IMAPMUX_SESSION_LOGIN_H
#define IMAPMUX_SESSION_LOGIN_H

#include "auth/sasl_server.h"
#include "proxy/imap/scan.h"
#include "proxy/net/conn.h"
#include "proxy/session/client_id.h"

enum login_outcome {
    LOGIN_MORE,       /* more bytes are needed */
    LOGIN_START_TLS,  /* answered OK to STARTTLS: start TLS, then login_restart */
    LOGIN_IDENTIFIED, /* `who` is set; answer by login_accept or login_refuse */
    LOGIN_OVER /* the client said LOGOUT, or broke a limit and was told BYE; `over` says why */
};

enum { LOGIN_TAG_MAX = 128, LOGIN_INPUT_MAX = 192 * 1024 };

struct login {
    /* Set by login_init. */
    const struct conf *conf;
    const struct conf_listener *listener;
    struct conn *client; /* borrowed; answers are written here */

    /* What the client has said. */
    struct sasl_credentials who; /* user is "" for what cannot be right */
    const char *method;          /* the mechanism, "LOGIN" for the command, too */
    char tag[LOGIN_TAG_MAX + 1]; /* of the current command */
    struct client_id id;
    bool asked_capability;
    const char *over;

    /* Private. */
    struct buf input; /* bytes not consumed: the command in hand, and what was sent behind it */
    struct scan scan;
    size_t scanned;          /* octets of `input` that the scanner has seen */
    struct sasl_server sasl; /* with a mechanism: the next line is for it, and no command */
    enum err_kind explained; /* why that login is refused, once the client has heard more */
    const char *refusal;     /* set: the rest of the command is dropped, this is the answer to it */
    unsigned bad_count;
};

void login_init(struct login *login, const struct conf *conf, const struct conf_listener *listener,
                struct conn *client);

/* Wipes and frees. */
void login_release(struct login *login);

/* Writes the greeting, with capabilities. */
bool login_greet(struct login *login);

/* Keeps bytes of the client; false when LOGIN_INPUT_MAX would be passed. */
bool login_feed(struct login *login, struct span bytes);

/*
 * Handles the commands in hand until one asks for something. Also to go on after login_refuse and
 * login_restart.
 */
enum login_outcome login_run(struct login *login);

/* TLS is up: all that came in clear is forgotten (RFC 9051 11.1). */
void login_restart(struct login *login);

/*
 * Answers the login command: OK with the store's capabilities as the client may see them, untagged
 * first if it had asked before; or NO with the code and text of err->kind. False when the client is
 * gone or has had too many tries.
 */
bool login_accept(struct login *login, struct span capabilities, struct span text);
bool login_refuse(struct login *login, const struct err *err);

/* "* BYE [code] text". */
void login_bye(struct login *login, const char *code, const char *text);

/* What the client has sent behind its login: taken, not copied; for the relay. */
struct buf *login_rest(struct login *login);

#endif
