/*
 * TLS with directories: one context for all connections that have the same settings, whichever
 * worker's they are. It costs some MiB and the reading of all authorities; and libldap 2.5 with
 * GnuTLS does not free keys. Any thread.
 */
#ifndef IMAPMUX_AUTH_LDAP_TLS_H
#define IMAPMUX_AUTH_LDAP_TLS_H

#include "proxy/base/conf.h"

#include <ldap.h>

/*
 * Certificates and keys are read here by the first, before others join, and not again before all
 * have left. False with *err set (CONFIG). The settings are borrowed until then.
 */
bool ldap_tls_join(const struct conf_ldap *conf, struct err *err);
void ldap_tls_leave(const struct conf_ldap *conf);

/* Has a connection that is to be made use TLS as these settings, which somebody has joined, say. */
bool ldap_tls_apply(const struct conf_ldap *conf, LDAP *ldap);

#endif
