/*
 * What a bearer token says that is a signed JWT (RFC 7519; RFC 9068; best practices RFC 8725), and
 * whether that is good here: issuer, audience, times, scope. Its signature is for jwks_verify.
 *
 * No I/O, no clock of its own.
 */
#ifndef IMAPMUX_AUTH_JWT_H
#define IMAPMUX_AUTH_JWT_H

#include "auth/token/jwks.h"
#include "proxy/base/buf.h"
#include "proxy/base/conf.h"

enum { JWT_MAX = 48 * 1024, TOKEN_USER_MAX = 255 };

/* Whom a good token is for. */
struct token_identity {
    char user[TOKEN_USER_MAX + 1]; /* not empty, not normalised; no control characters */
    uint64_t expires_at;           /* seconds since 1970 */
};

struct jwt {
    struct token_identity identity;
    struct jws jws; /* borrows from the token and from what follows */

    /* Private. */
    struct json_t *header;
    struct buf signature;
};

/* Before the first token, for then jwt_read can tell lack of memory from a bad token. */
void jwt_prepare(void);

/*
 * Reads the token at `now_s` (seconds since 1970). True: all that it says is good, and counts if
 * jwt->jws does. False: *err is CREDENTIALS, or INTERNAL without memory; it tells why, and of the
 * token no more than its key's name, issuer and algorithm. Release it either way; it borrows
 * `token` until then.
 */
bool jwt_read(struct jwt *jwt, struct span token, const struct conf_oauth *conf, uint64_t now_s,
              struct err *err);

/* Wipes what was decoded. */
void jwt_release(struct jwt *jwt);

/* For logs: at most 64 characters, no others than printable ASCII without quotes. */
enum { JWT_SHOWN_MAX = 68 };
const char *jwt_shown(const char *text, char out[JWT_SHOWN_MAX]);

#endif
