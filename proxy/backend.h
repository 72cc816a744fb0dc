/*
 * One connection to one store, from the look-up of its name to a logged-in IMAP session that the
 * relay can have. TLS comes before anything that tells who the user is; the client's address goes
 * along by ID (RFC 2971); capabilities are those that the store shows after login.
 */
#ifndef IMAPMUX_PROXY_BACKEND_H
#define IMAPMUX_PROXY_BACKEND_H

#include "proxy/base/buf.h"
#include "proxy/net/conn.h"
#include "proxy/net/tls.h"

/* Who logs in; borrowed until the answer. */
struct backend_login {
    const char *user;              /* name at the store */
    const struct secret *password; /* the client's own; used when the shard says login = password */
    const char *session_id;
    struct span client_id;       /* the client's ID fields, `"name" "value" ...`; may be empty */
    union address client, local; /* the client's connection, as the client sees it */
};

struct backend;

/* err->kind ERR_NONE: logged in. Else the backend is of no use, and the owner closes it. */
typedef void backend_answer_fn(void *owner, const struct err *err);

/*
 * Starts; the answer comes once, later, never after backend_close. NULL without memory. Answers:
 * UNAVAILABLE (store down, slow, hangs up, speaks nonsense, or refuses the master user),
 * CREDENTIALS / EXPIRED / ADMIN / LIMIT as the store refuses the user.
 */
struct backend *backend_open(const struct env *env, const struct tls *tls,
                             const struct conf_shard *shard, const struct backend_login *login,
                             backend_answer_fn *on_answer, void *owner);

/* Closes at any time; memory goes in the last close callback. Nulls the pointer. */
void backend_close(struct backend **backend);

/*
 * After the answer. All are borrowed until backend_close; the relay makes itself the connection's
 * owner.
 */
struct conn *backend_conn(struct backend *backend);
struct span backend_capabilities(const struct backend *backend); /* the store's own list */
struct span backend_login_text(const struct backend *backend);   /* human text of its OK */
struct buf *
backend_notices(struct backend *backend); /* untagged status lines that came with the login */
struct buf *
backend_rest(struct backend *backend); /* bytes read behind the OK: the session's first */
const char *backend_address(const struct backend *backend); /* "192.0.2.1:143", for the log */

#endif
