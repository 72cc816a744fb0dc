/*
 * Where a directory says that more is to be found (RFC 4511 4.1.10, RFC 4516), and the connections
 * to the servers that this leads to.
 */
#ifndef IMAPMUX_AUTH_LDAP_REFERRAL_H
#define IMAPMUX_AUTH_LDAP_REFERRAL_H

#include "auth/ldap/pool.h"

enum { LDAP_SERVER_URI_MAX = 320, LDAP_REFERRED_MAX = 8 };

/* The texts are the caller's; NULL: as in the search that was referred. */
struct ldap_referral {
    char uri[LDAP_SERVER_URI_MAX]; /* the server alone: "ldap://host:389" */
    char *base, *filter;
    int scope; /* LDAP_SCOPE_...; LDAP_SCOPE_DEFAULT: as before */
};

/* False for what cannot be followed: another protocol, no host, no memory; nothing is held then. */
bool ldap_referral_parse(const char *url, struct ldap_referral *referral_out);

void ldap_referral_release(struct ldap_referral *referral);

/* Servers that others have led to, each with a pool of its own, which is made when it is needed. */
struct ldap_referred {
    struct {
        char uri[LDAP_SERVER_URI_MAX];
        char *words[1]; /* the URI, as a list */
        struct conf_words uris;
        struct ldap_pool *pool;
    } list[LDAP_REFERRED_MAX];
    size_t count;
    bool start_tls; /* what the first way had, no referral may undo */
};

/* NULL when there are too many, or without memory. `events` and `owner` are those of a new pool. */
struct ldap_pool *ldap_referred_pool(struct ldap_referred *referred, const char *uri,
                                     const struct env *env, const struct ldap_pool_events *events,
                                     void *owner);

/* Closes all pools; each tells its owner. */
void ldap_referred_close(struct ldap_referred *referred);

#endif
