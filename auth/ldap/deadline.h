/*
 * A bound for what libldap does on a socket while it blocks, in a thread: its own time-outs end
 * neither a TLS handshake nor the wait for the second half of a message.
 */
#ifndef IMAPMUX_AUTH_LDAP_DEADLINE_H
#define IMAPMUX_AUTH_LDAP_DEADLINE_H

#include <ldap.h>
#include <stdbool.h>
#include <stdint.h>

/* Before the LDAP* connects. */
bool ldap_deadline_install(LDAP *ldap);

/*
 * From now on, reads of this thread on connections of such LDAP*s fail when the time is over; it
 * begins anew when a connection has come about, for a name may have addresses where none does. 0
 * is no bound, as for all other threads.
 */
void ldap_deadline_begin(uint64_t limit_ms);
void ldap_deadline_end(void);

/* What is left of it; 0 when it has passed. */
uint64_t ldap_deadline_left(void);

#endif
