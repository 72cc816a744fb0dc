/*
 * A key set (JWKS, RFC 7517): the public keys of an issuer of tokens, and what they have signed
 * (RFC 7515, 7518, 8037). Signatures with a private key are all there is: no "none", and no HMAC,
 * for which a public key could be passed off as the secret (RFC 8725 3.1, 3.2).
 *
 * No I/O, no clock. A set never changes; it may be read in one thread and used in another.
 */
#ifndef IMAPMUX_AUTH_JWKS_H
#define IMAPMUX_AUTH_JWKS_H

#include "proxy/base/err.h"
#include "proxy/base/span.h"

struct jwks;

/*
 * Reads a set. Keys that cannot serve are left out: for other uses, of unknown types, too weak
 * (RFC 7517 5). NULL with *err set (UNAVAILABLE, INTERNAL) when it is no set, or no key is left.
 */
struct jwks *jwks_parse(struct span json, struct err *err);

size_t jwks_count(const struct jwks *jwks);

/* Nulls the pointer; NULL is fine. */
void jwks_close(struct jwks **jwks);

/* A signature as a token has it (RFC 7515 3.1), borrowed. */
struct jws {
    const char *algorithm, *kid; /* "RS256"; kid is NULL where the token names no key */
    struct span text;            /* what is signed */
    struct span signature;       /* decoded */
};

enum jws_verdict {
    JWS_GOOD,
    JWS_BAD,         /* the key that it names has not made it */
    JWS_UNKNOWN_KEY, /* no key has that name; or it names none, and none has made it */
    JWS_FAILED       /* it could not be tried: no memory */
};

/*
 * Is it by a key of the set? A key serves only algorithms of its own type, size and "alg". A token
 * that names no key is tried with those that fit, a few at the most.
 */
enum jws_verdict jwks_verify(const struct jwks *jwks, const struct jws *jws);

/* Is it the name of a signature algorithm that is known here? */
bool jws_algorithm_is_known(const char *name);

#endif
