/*
 * User names inside LDAP strings: filters (RFC 4515 3) and distinguished names (RFC 4514 2.4). Pure
 * functions. What is put into a template can never end the value it stands in.
 */
#ifndef IMAPMUX_AUTH_LDAP_ESCAPE_H
#define IMAPMUX_AUTH_LDAP_ESCAPE_H

#include "proxy/base/buf.h"
#include "proxy/base/err.h"
#include "proxy/base/span.h"

/* Append `value`, escaped; false, and part of it perhaps appended, over out's ceiling. */
bool ldap_escape_filter(struct span value, struct buf *out);
bool ldap_escape_dn(struct span value, struct buf *out);

enum ldap_escape_kind { LDAP_ESCAPE_FILTER, LDAP_ESCAPE_DN };

/*
 * Appends `pattern` with its variables replaced by parts of `user`: %{user} all of it, %{username}
 * what stands before the last "@" (all of it without one), %{domain} what stands after (nothing
 * without one); %% is a percent sign. False with *err set: CONFIG for any other percent sign; LIMIT
 * over out's ceiling; CREDENTIALS in a DN, whose values are not empty, for a name without that
 * part.
 */
bool ldap_escape_expand(const char *pattern, struct span user, enum ldap_escape_kind kind,
                        struct buf *out, struct err *err);

#endif
