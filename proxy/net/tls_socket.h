/*
 * How OpenSSL reads and writes a connection's socket: as its own socket BIO does, but what is
 * followed by more waits for that in the kernel, so that they travel in one segment, and a peer
 * that has gone raises no SIGPIPE.
 */
#ifndef IMAPMUX_NET_TLS_SOCKET_H
#define IMAPMUX_NET_TLS_SOCKET_H

#include <openssl/ssl.h>
#include <stdbool.h>

/* Stays where it is until its TLS is freed. */
struct tls_socket {
    SSL *tls; /* NULL: plain; the owner frees it */
    int fd;
    bool more; /* set by the owner: another record follows the next one at once */
};

/* Puts TLS onto the socket; false without memory. */
bool tls_socket_start(struct tls_socket *socket, SSL_CTX *context);

#endif
