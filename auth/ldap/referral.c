/*
 * Owns the reading of LDAP URLs in referrals (libldap knows their grammar), and the pools for them.
 */
#include "auth/ldap/referral.h"

#include "proxy/base/mem.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static bool copy(const char *text, char **out)
{
    if (text == NULL || text[0] == '\0')
        return true;
    *out = mem_copy_text(text, strlen(text));
    return *out != NULL;
}

static bool read_url(const LDAPURLDesc *url, struct ldap_referral *referral)
{
    const char *host = url->lud_host;
    bool is_v6 = host != NULL && strchr(host, ':') != NULL;

    if (host == NULL || host[0] == '\0' || strpbrk(host, "/ ") != NULL ||
        (strcasecmp(url->lud_scheme, "ldap") != 0 && strcasecmp(url->lud_scheme, "ldaps") != 0))
        return false;

    int len = snprintf(referral->uri, sizeof referral->uri, "%s://%s%s%s:%d", url->lud_scheme,
                       is_v6 ? "[" : "", host, is_v6 ? "]" : "", url->lud_port);

    referral->scope = url->lud_scope;
    return len < (int)sizeof referral->uri && copy(url->lud_dn, &referral->base) &&
           copy(url->lud_filter, &referral->filter);
}

bool ldap_referral_parse(const char *url, struct ldap_referral *referral_out)
{
    LDAPURLDesc *parts = NULL;
    bool ok;

    *referral_out = (struct ldap_referral){0};
    if (ldap_url_parse(url, &parts) != LDAP_URL_SUCCESS)
        return false;
    ok = read_url(parts, referral_out);
    ldap_free_urldesc(parts);
    if (!ok)
        ldap_referral_release(referral_out);
    return ok;
}

void ldap_referral_release(struct ldap_referral *referral)
{
    mem_free(referral->base);
    mem_free(referral->filter);
    *referral = (struct ldap_referral){0};
}

struct ldap_pool *ldap_referred_pool(struct ldap_referred *referred, const char *uri,
                                     const struct env *env, const struct ldap_pool_events *events,
                                     void *owner)
{
    size_t i = 0;

    while (i < referred->count && strcmp(referred->list[i].uri, uri) != 0)
        i++;
    if (i < referred->count)
        return referred->list[i].pool;
    if (i == LDAP_REFERRED_MAX)
        return NULL;
    snprintf(referred->list[i].uri, sizeof referred->list[i].uri, "%s", uri);
    referred->list[i].words[0] = referred->list[i].uri;
    referred->list[i].uris = (struct conf_words){referred->list[i].words, 1};
    referred->list[i].pool =
        ldap_pool_open(env, &referred->list[i].uris, referred->start_tls, events, owner);
    if (referred->list[i].pool != NULL)
        referred->count++;
    return referred->list[i].pool;
}

void ldap_referred_close(struct ldap_referred *referred)
{
    for (size_t i = 0; i < referred->count; i++)
        ldap_pool_close(&referred->list[i].pool);
}
