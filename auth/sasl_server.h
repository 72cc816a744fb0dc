/*
 * The server's side of SASL (RFC 4422): PLAIN (RFC 4616), LOGIN, EXTERNAL (RFC 4422 A), OAUTHBEARER
 * (RFC 7628) and XOAUTH2. Messages come and go as octets, without base64; what they say of the user
 * is taken as it is, and proven by nobody here.
 */
#ifndef IMAPMUX_AUTH_SASL_SERVER_H
#define IMAPMUX_AUTH_SASL_SERVER_H

#include "auth/auth.h"
#include "proxy/base/buf.h"

enum { SASL_NAME_MAX = 512, SASL_TOKEN_MAX = 48 * 1024 };

/* What a login has said. Names are as given; "" also for what cannot be a name. */
struct sasl_credentials {
    enum auth_proof proof;
    char user[SASL_NAME_MAX];     /* who logs in; "" with a token, which says it itself */
    char login_as[SASL_NAME_MAX]; /* for whom: the authorization identity; "" without */
    struct secret secret;         /* the password or the token; empty where there is none */
};

struct sasl_server {
    const struct sasl_mechanism *mechanism; /* NULL: no exchange is under way */
    struct sasl_credentials *who;           /* borrowed; filled on the way */
    uint8_t step;
};

enum sasl_outcome {
    SASL_CHALLENGE,  /* send `challenge_out`, and hear the client's answer to it */
    SASL_IDENTIFIED, /* the exchange is over, and *who is set */
    SASL_REFUSED,    /* over: what came cannot be right, and is answered as if it were wrong */
    SASL_NO_MEMORY
};

/* "PLAIN", ...; NULL for a name that no mechanism has. Any case. */
const char *sasl_mechanism_name(struct span name);

/* All of them, in the order in which they are offered; NULL after the last. */
const char *sasl_mechanism_at(size_t index);

/*
 * Begins an exchange; `name` is one of sasl_mechanism_name. With EXTERNAL, who->user is already the
 * name of the client's certificate. The first challenge, for a client that has sent no initial
 * response (RFC 4959), goes to `challenge_out`; it may be empty. False without memory: then nothing
 * is begun.
 */
bool sasl_server_start(struct sasl_server *server, const char *name, struct sasl_credentials *who,
                       struct buf *challenge_out);

/* Takes the client's next message. `challenge_out` is empty before. */
enum sasl_outcome sasl_server_step(struct sasl_server *server, struct span message,
                                   struct buf *challenge_out);

/*
 * After a token was refused, some mechanisms say why before the exchange ends (RFC 7628 3.2.2):
 * true when there is such a challenge, a JSON object, in `challenge_out`. The client's next message
 * then ends with SASL_REFUSED. `scope` and `discovery_url` may be empty.
 */
bool sasl_server_explain(struct sasl_server *server, const char *name, const char *scope,
                         const char *discovery_url, struct buf *challenge_out);

#endif
