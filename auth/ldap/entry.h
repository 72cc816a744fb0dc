/*
 * What section `ldap` wants to know of a user's entry: which attributes are asked for, and what
 * their values come to.
 */
#ifndef IMAPMUX_AUTH_LDAP_ENTRY_H
#define IMAPMUX_AUTH_LDAP_ENTRY_H

#include "auth/facts.h"
#include "proxy/base/conf.h"
#include "proxy/base/err.h"

#include <ldap.h>

struct ldap_wishes;

/* The plan for reading entries; NULL without memory. `conf` is borrowed. */
struct ldap_wishes *ldap_wishes_open(const struct conf_ldap *conf);

/* Whether anything but the entry's name is wanted. */
bool ldap_wishes_any(const struct ldap_wishes *wishes);

/* For a search: NULL-terminated, never empty ("1.1" asks for none, RFC 4511 4.5.1.8). */
char **ldap_wishes_attributes(const struct ldap_wishes *wishes);

/*
 * What the entry tells. `*facts_out` is the caller's to release; NULL when nothing is to be told.
 * `*err_out` is why the user may not log in even with the right password: ADMIN, as allow_if and
 * refuse_if say; INTERNAL, and logged, when the entry makes no sense; else ERR_NONE. Networks that
 * make no sense are logged, too, and the user may come from nowhere.
 */
void ldap_wishes_read(const struct ldap_wishes *wishes, LDAP *ldap, LDAPMessage *entry,
                      const char *user, struct auth_facts **facts_out, struct err *err_out);

void ldap_wishes_close(struct ldap_wishes **wishes);

#endif
