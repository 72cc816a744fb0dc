/*
 * The process's TLS contexts, built once from a configuration and then shared, read-only, by all
 * workers: that is what makes session tickets work across workers. Replaced as a whole, never
 * edited: it is counted, and a handshake or connection keeps those of its contexts that it needs.
 */
#ifndef IMAPMUX_NET_TLS_H
#define IMAPMUX_NET_TLS_H

#include "proxy/base/conf.h"
#include "proxy/net/ocsp.h"
#include "proxy/net/tls_files.h"

#include <openssl/ssl.h>

struct tls;

/*
 * Loads every certificate and, for each shard that speaks TLS, its authorities. The caller holds
 * it. NULL with *err set (ERR_CONFIG, naming the file). An OCSP response that cannot be served is
 * only told in the log.
 */
const struct tls *tls_open(const struct conf *conf, struct err *err);

/* From any thread. The last one to release it frees it; nulls the pointer, harmless on NULL. */
const struct tls *tls_hold(const struct tls *tls);
void tls_release(const struct tls **tls);

/* What it was opened with, and the versions of the files that were read, or older ones. */
const struct conf *tls_configuration(const struct tls *tls);
const struct tls_files *tls_made_of(const struct tls *tls);

/*
 * Puts the ticket keys in force that it has read from a file, once: for tls.ticket_keys = file. By
 * whoever has opened it.
 */
void tls_use_ticket_keys(const struct tls *tls);

/*
 * The context for clients, NULL without a certificate section. SNI picks among the certificates by
 * the names in them (RFC 6125), the first serves the rest. A client that offers ALPN must offer
 * "imap" (RFC 7301 3.2).
 */
SSL_CTX *tls_server_context(const struct tls *tls);

/* A certificate that is served. */
struct tls_certificate {
    char name[256]; /* its first DNS name, or the common name */
    /* Unix seconds: of it, or of that of its intermediates which expires first. */
    int64_t not_before, not_after;
    struct ocsp_dates ocsp; /* of what is stapled to it */
    /* Of the configuration; until tls_release. */
    const char *title, *file, *ocsp_file;
};

/* In the order of the configuration. */
size_t tls_certificate_count(const struct tls *tls);
void tls_certificate(const struct tls *tls, size_t index, struct tls_certificate *out);

/* When the first of them all expires; 0 without any. */
int64_t tls_not_after(const struct tls *tls);

/*
 * The context for connections to this shard, of whichever configuration; NULL where the tls of the
 * shard is none, or there is no such shard.
 */
SSL_CTX *tls_shard_context(const struct tls *tls, const struct conf_shard *shard);

/*
 * The latest session that one server, by its configured name, gave to one of our TLS clients: for
 * the next one to resume, but only in the context in which the server was verified. A zeroed struct
 * remembers nothing. One thread's; it outlives the connections that use it.
 */
struct tls_memory {
    SSL_SESSION *session;
    SSL_CTX *context;
};

/* Lets a client's connection, before its handshake, resume and remember. */
void tls_memory_use(struct tls_memory *memory, SSL *client);
void tls_memory_release(struct tls_memory *memory);

#endif
