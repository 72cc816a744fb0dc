/*
 * What a client may do to log in, on this connection, before anybody knows its store: mechanisms,
 * and the capabilities that can be promised.
 */
#ifndef IMAPMUX_SESSION_OFFER_H
#define IMAPMUX_SESSION_OFFER_H

#include "proxy/base/conf.h"

#include <openssl/ssl.h>

enum { OFFER_CAPABILITIES_MAX = 256 };

/* What it depends on; all borrowed. */
struct offer {
    const struct conf *conf;
    const struct conf_listener *listener;
    const SSL *tls; /* of the client's connection; NULL in clear */
};

/* Whether passwords and tokens may be sent. */
bool offer_is_private(const struct offer *offer);

/* Whether this mechanism, as sasl_mechanism_name has it, can be used. */
bool offer_has(const struct offer *offer, const char *mechanism);

/* Whether a password can be used: then the LOGIN command can, too. */
bool offer_takes_passwords(const struct offer *offer);

/* The list for CAPABILITY, and for the greeting (RFC 9051 7.2.2). */
void offer_capabilities(const struct offer *offer, char text_out[OFFER_CAPABILITIES_MAX]);

#endif
