/*
 * How OpenSSL reads and writes a connection's socket: as its own socket BIO does, but session
 * tickets wait in the kernel for what is said next, the greeting, and travel in one segment with
 * it, and a peer that has gone raises no SIGPIPE.
 */
#ifndef IMAPMUX_NET_TLS_SOCKET_H
#define IMAPMUX_NET_TLS_SOCKET_H

#include <openssl/ssl.h>
#include <stdbool.h>

/* Stays where it is until its TLS is freed. */
struct tls_socket {
    SSL *tls; /* NULL: plain; the owner frees it */
    int fd;
};

/* Puts TLS onto the socket; false without memory. */
bool tls_socket_start(struct tls_socket *socket, SSL_CTX *context);

#endif
