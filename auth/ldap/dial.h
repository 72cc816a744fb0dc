/*
 * The way to a directory server. It blocks (names, TLS and binding do inside libldap), so it is for
 * threads of libuv's pool.
 */
#ifndef IMAPMUX_AUTH_LDAP_DIAL_H
#define IMAPMUX_AUTH_LDAP_DIAL_H

#include "proxy/base/conf.h"

#include <ldap.h>

/* Where to, and as whom; a plain value. */
struct ldap_target {
    const char *uri;  /* ldap://, ldaps:// or ldapi://; borrowed */
    bool start_tls;   /* on ldap:// */
    bool as_searcher; /* binds the service account, if there is one */
};

/* Whether it begins with ldap://, and so needs StartTLS to be safe. */
bool ldap_dial_is_plain(const char *uri);

/*
 * Connects within ldap.connect_timeout (for each address that the name has), then starts TLS and
 * binds within the same time again. NULL with *err set; else the caller's, to be ended by
 * ldap_unbind_ext.
 */
LDAP *ldap_dial(const struct conf_ldap *conf, const struct ldap_target *target, struct err *err);

/* The same, and asks something that every server answers; then hangs up. False with *err set. */
bool ldap_dial_probe(const struct conf_ldap *conf, const struct ldap_target *target,
                     struct err *err);

#endif
