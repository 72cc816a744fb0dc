/* Owns the meaning of password policy in answers to binds. */
#include "auth/ldap/policy.h"

#include <string.h>

static const char netscape_expired[] = "2.16.840.1.113730.3.4.4";

static void set_expired(struct ldap_policy *policy)
{
    err_set(&policy->err, ERR_EXPIRED, "ldap: the password has expired, or must be changed");
}

static void set_locked(struct ldap_policy *policy)
{
    err_set(&policy->err, ERR_ADMIN, "ldap: the account is locked or disabled");
}

/*
 * draft-behera-ldap-password-policy 6.2. The control of a bind that succeeded must be readable:
 * else "change it first" might be overlooked.
 */
static void read_control(const struct ldap_answer *answer, LDAPControl *control,
                         struct ldap_policy *policy)
{
    LDAPPasswordPolicyError error = PP_noError;
    int code = ldap_parse_passwordpolicy_control(answer->ldap, control, &policy->expires_in_s,
                                                 &policy->grace_count, &error);

    if (code != LDAP_SUCCESS)
        err_set(&policy->err, ERR_INTERNAL, "ldap: the password policy control: %s",
                ldap_err2string(code));
    else if (error == PP_passwordExpired || error == PP_changeAfterReset)
        set_expired(policy);
    else if (error == PP_accountLocked)
        set_locked(policy);
}

/* Active Directory: "80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data
 * 532, v1db1", a Windows error code in hexadecimal digits. */
static void read_windows_code(const char *diagnostic, struct ldap_policy *policy)
{
    static const char *const expired[] = {"532", "773"};
    static const char *const locked[] = {"530", "531", "533", "701", "775"};
    const char *mark = "AcceptSecurityContext error, data ";
    const char *text = strstr(diagnostic, mark);

    if (text == NULL)
        return;
    text += strlen(mark);

    struct span code = {text, strspn(text, "0123456789abcdef")};

    for (size_t i = 0; i < sizeof expired / sizeof expired[0]; i++)
        if (span_is(code, expired[i]))
            set_expired(policy);
    for (size_t i = 0; i < sizeof locked / sizeof locked[0]; i++)
        if (span_is(code, locked[i]))
            set_locked(policy);
}

struct ldap_policy ldap_policy_read(const struct ldap_answer *answer)
{
    struct ldap_policy policy = {.grace_count = -1, .expires_in_s = -1};
    LDAPControl *control =
        ldap_control_find(LDAP_CONTROL_PASSWORDPOLICYRESPONSE, answer->controls, NULL);

    if (control != NULL)
        read_control(answer, control, &policy);
    /* 389 DS sends this with grace logins, too. */
    if (policy.err.kind == ERR_NONE && policy.grace_count < 0 &&
        ldap_control_find(netscape_expired, answer->controls, NULL) != NULL)
        set_expired(&policy);
    if (policy.err.kind == ERR_NONE && answer->code == LDAP_INVALID_CREDENTIALS)
        read_windows_code(answer->diagnostic, &policy);
    if (policy.err.kind == ERR_NONE && answer->code == LDAP_UNWILLING_TO_PERFORM &&
        strstr(answer->diagnostic, "Account inactivated") != NULL) /* 389 DS */
        set_locked(&policy);
    return policy;
}
