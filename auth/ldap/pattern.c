/* Owns patterns, and the check of their grammar: that of libldap. */
#include "auth/ldap/pattern.h"

#include "proxy/base/mem.h"

#include <ldap.h>

enum { TEXT_MAX = 4096 }; /* longest filter or DN */

char *ldap_pattern_expand(const char *setting, const char *pattern, const char *user,
                          enum ldap_escape_kind kind, struct err *err)
{
    struct err why = {0};
    struct buf text;
    char *copy = NULL;

    buf_init(&text, TEXT_MAX);
    if (!ldap_escape_expand(pattern, span_of(user), kind, &text, &why))
        err_set(err, why.kind, "ldap.%s: %s", setting, why.text);
    else if (buf_len(&text) == 0)
        err_set(err, ERR_CONFIG, "ldap.%s: it is empty", setting);
    else if ((copy = mem_copy_text(buf_span(&text).ptr, buf_len(&text))) == NULL)
        err_set(err, ERR_INTERNAL, "ldap: no memory");
    buf_release(&text);
    return copy;
}

static bool is_dn(const char *text)
{
    LDAPDN dn = NULL;
    int code = ldap_str2dn(text, &dn, LDAP_DN_FORMAT_LDAPV3);

    ldap_dnfree(dn);
    return code == LDAP_SUCCESS;
}

/* libldap reads a filter only when it is sent: here to a socket that is none. */
static bool is_filter(const char *text)
{
    LDAP *ldap = NULL;
    int code = ldap_initialize(&ldap, "ldapi://%2Fdev%2Fnull"), message_id;

    if (code == LDAP_SUCCESS)
        code = ldap_search_ext(ldap, "", LDAP_SCOPE_BASE, text, NULL, 0, NULL, NULL, NULL, 0,
                               &message_id);
    if (ldap != NULL)
        (void)ldap_unbind_ext(ldap, NULL, NULL);
    return code != LDAP_FILTER_ERROR;
}

static bool fail(const char *setting, const char *text, enum ldap_escape_kind kind, struct err *err)
{
    return err_set(err, ERR_CONFIG, "ldap.%s: found \"%.80s\", expected %s", setting, text,
                   kind == LDAP_ESCAPE_DN ? "a DN, as ou=people,dc=example,dc=org"
                                          : "a search filter, as (uid=%{user})");
}

static bool check_pattern(const char *setting, const char *pattern, enum ldap_escape_kind kind,
                          struct err *err)
{
    char *sample = ldap_pattern_expand(setting, pattern, "user@domain", kind, err);

    if (sample == NULL)
        return false;

    bool ok = kind == LDAP_ESCAPE_DN ? is_dn(sample) : is_filter(sample);

    mem_free(sample);
    return ok || fail(setting, pattern, kind, err);
}

static bool check_dn(const char *setting, const char *dn, struct err *err)
{
    return is_dn(dn) || fail(setting, dn, LDAP_ESCAPE_DN, err);
}

bool ldap_patterns_check(const struct conf_ldap *conf, struct err *err)
{
    bool ok = check_dn("bind_dn", conf->bind_dn, err) && check_dn("decoy_dn", conf->decoy_dn, err);

    if (conf->dn_template[0] != '\0')
        return ok && check_pattern("dn_template", conf->dn_template, LDAP_ESCAPE_DN, err);
    return ok && check_pattern("base", conf->base, LDAP_ESCAPE_DN, err) &&
           check_pattern("filter", conf->filter, LDAP_ESCAPE_FILTER, err);
}
