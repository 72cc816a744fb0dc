/*
 * SASL messages, decoded: base64 lines (RFC 4648 4, as AUTHENTICATE sends them, RFC 9051 6.2.2) and
 * PLAIN (RFC 4616). Pure functions; what they write is secret and belongs to the caller, who wipes
 * it.
 */
#ifndef IMAPMUX_AUTH_SASL_H
#define IMAPMUX_AUTH_SASL_H

#include "proxy/base/buf.h"
#include "proxy/base/span.h"

/*
 * Strict base64: no white space, right padding, no stray bits. Appends the bytes to `out`; false on
 * anything else or over out's ceiling. An empty text decodes to nothing.
 */
bool sasl_decode_base64(struct span text, struct buf *out);

/* Appends the base64 form of `bytes` to `out`. */
bool sasl_encode_base64(struct span bytes, struct buf *out);

/*
 * [authzid] NUL authcid NUL password, each a borrowed part of `message`. False when a NUL is
 * missing or extra, or authcid or password is empty.
 */
struct sasl_plain {
    struct span authzid, authcid, password;
};
bool sasl_parse_plain(struct span message, struct sasl_plain *plain_out);

#endif
