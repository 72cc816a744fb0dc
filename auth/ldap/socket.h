/*
 * A layer above the socket of a libldap connection, above TLS too: it wipes what has been written,
 * which is libldap's own copy of a request, password and all. libldap keeps it until the answer has
 * come, and frees it as it is.
 */
#ifndef IMAPMUX_AUTH_LDAP_SOCKET_H
#define IMAPMUX_AUTH_LDAP_SOCKET_H

#include <ldap.h>
#include <stdbool.h>

/* Once for each connection, when it is connected. False without memory. */
bool ldap_socket_wipe_requests(LDAP *ldap);

#endif
