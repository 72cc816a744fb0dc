/*
 * OCSP stapling (RFC 6066 8): the authority's word that a certificate is not revoked, out of a file
 * that somebody else keeps fresh. Clients verify its signature, we do not.
 */
#ifndef IMAPMUX_NET_OCSP_H
#define IMAPMUX_NET_OCSP_H

#include "proxy/base/err.h"

#include <openssl/ssl.h>
#include <stdint.h>

/*
 * Reads a response (DER), which from then on is served by this context, which has its certificate,
 * to clients that ask, until it expires. False with *err set, and none is served: it cannot be
 * read, is not of this certificate or does not call it good, or has expired.
 */
bool ocsp_staple(SSL_CTX *context, const char *file, struct err *err);

/* From when until when it counts, in unix seconds; 0 and 0 where there is none. */
struct ocsp_dates {
    int64_t this_update, next_update; /* INT64_MAX: it does not say until when */
};
struct ocsp_dates ocsp_dates(const SSL_CTX *context);

#endif
