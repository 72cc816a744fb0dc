/*
 * The DNs and filters of section `ldap` that hold variables, and whether they are well formed.
 */
#ifndef IMAPMUX_AUTH_LDAP_PATTERN_H
#define IMAPMUX_AUTH_LDAP_PATTERN_H

#include "auth/ldap/escape.h"
#include "proxy/base/conf.h"

/*
 * `pattern` with the parts of the user's name put in; the caller's. NULL with *err set: as
 * ldap_escape_expand says, or INTERNAL without memory. `setting` is for the text of the error.
 */
char *ldap_pattern_expand(const char *setting, const char *pattern, const char *user,
                          enum ldap_escape_kind kind, struct err *err);

/* So that at run time only names can be wrong. False with *err set (CONFIG, INTERNAL). */
bool ldap_patterns_check(const struct conf_ldap *conf, struct err *err);

#endif
