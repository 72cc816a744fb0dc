/*
 * The PROXY protocol header, versions 1 and 2, that a load balancer sends before a client's first
 * byte. Pure functions. Bytes that follow the header are not ours to read (they may be TLS), so the
 * reader asks how many more it may take.
 */
#ifndef IMAPMUX_NET_PROXYPROTO_H
#define IMAPMUX_NET_PROXYPROTO_H

#include "proxy/base/address.h"
#include "proxy/base/span.h"

enum { PROXYPROTO_MAX = 16 + 2048 }; /* v2 with room for TLVs */

/*
 * How many more bytes surely belong to the header that begins with `so_far`: 0 when it is complete,
 * -1 when it is none or is longer than PROXYPROTO_MAX.
 */
ptrdiff_t proxyproto_missing(struct span so_far);

/*
 * Reads a complete header. True with the addresses it tells, or with `told` false for LOCAL and
 * UNKNOWN (the connection's own addresses count). False when it is malformed.
 */
struct proxyproto {
    bool told;
    union address source, destination;
};
bool proxyproto_parse(struct span header, struct proxyproto *out);

/*
 * Writes a version 2 header for a connection from `source` to `destination`, with `unique_id` and,
 * unless tls_version is NULL, what TLS the client speaks ("TLSv1.3", "TLS_AES_128_GCM_SHA256").
 * Returns its length, 0 if it does not fit. Addresses of two families become IPv6 ones. With a
 * zeroed `source` it is LOCAL: a connection of our own, for nobody.
 */
size_t proxyproto_write(const union address *source, const union address *destination,
                        const char *unique_id, const char *tls_version, const char *tls_cipher,
                        char *out, size_t size);

#endif
