/*
 * What a directory says about a password beside "right" and "wrong": that it has expired, that the
 * account is locked. Pure functions.
 */
#ifndef IMAPMUX_AUTH_LDAP_POLICY_H
#define IMAPMUX_AUTH_LDAP_POLICY_H

#include "auth/ldap/handle.h"
#include "proxy/base/err.h"

struct ldap_policy {
    struct err err;   /* EXPIRED, ADMIN; ERR_NONE: nothing stands against a right password */
    int grace_count;  /* logins that are left with an expired password; -1: not told */
    int expires_in_s; /* -1: not told */
};

/*
 * From the answer to a user's bind: the control of draft-behera-ldap-password-policy, that of
 * Netscape's directories (2.16.840.1.113730.3.4.4), and the texts of Active Directory and 389 DS.
 */
struct ldap_policy ldap_policy_read(const struct ldap_answer *answer);

#endif
