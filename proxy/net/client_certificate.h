/*
 * Whose certificate is it? The name of a user in a verified certificate of a TLS client, for SASL
 * EXTERNAL (RFC 4422 A).
 */
#ifndef IMAPMUX_NET_CLIENT_CERTIFICATE_H
#define IMAPMUX_NET_CLIENT_CERTIFICATE_H

#include "proxy/base/conf.h"

#include <openssl/ssl.h>

/*
 * Makes a server's context ask for certificates, with the authorities and revocation lists of
 * `conf`; a client may have none. Nothing without conf->client_ca_file. False with *err set.
 */
bool client_certificate_ask(SSL_CTX *context, const struct conf_tls *conf, struct err *err);

/*
 * Who resumes a session is not verified again. So a context takes only sessions of contexts that
 * judge clients' certificates alike, by the same authorities and revocation lists: the session id
 * context is a digest of these files. False when they cannot be read.
 */
bool client_certificate_bind_sessions(SSL_CTX *context, const struct conf_tls *conf);

/*
 * Writes the name in the field conf->client_user. False without TLS or certificate, for one that
 * has expired since it was verified, and for one that has not exactly one such field, or one that
 * does not fit or holds a NUL.
 */
bool client_certificate_user(const SSL *client, const struct conf_tls *conf, char *user_out,
                             size_t size);

#endif
