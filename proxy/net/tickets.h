/*
 * The session tickets of the process (RFC 5077, RFC 8446 4.6.1): what a client needs to resume a
 * TLS session is with the client, encrypted by a key of ours. The keys are the process's, not of a
 * context: tickets outlive a change of certificates. Whoever has the keys resumes: other proxies,
 * too.
 */
#ifndef IMAPMUX_NET_TICKETS_H
#define IMAPMUX_NET_TICKETS_H

#include "proxy/net/ticket_keys.h"

#include <openssl/ssl.h>

/*
 * Puts these keys in force, instead of those before: the first for new tickets, all for old ones,
 * which are renewed if they are not of the first. Takes them over, and leaves *keys empty. There
 * must be one before the first handshake. From any thread, while others shake hands.
 */
void tickets_use(struct ticket_keys *keys);

/* Wipes the keys: when no handshake comes any more. */
void tickets_forget(void);

/* A context for clients gives and takes tickets by these keys. False if OpenSSL cannot. */
bool tickets_serve(SSL_CTX *context);

#endif
