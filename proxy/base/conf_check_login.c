/*
 * Owns what the sections must be that say who may log in: names, limits, and the proofs of users.
 */
#include "proxy/base/conf_private.h"

#include "proxy/base/address.h"

#include <stdio.h>
#include <string.h>

static bool check_username(struct conf_reader *reader, const struct conf *conf);
static bool check_networks(struct conf_reader *reader, const char *section,
                           const struct conf_words *networks);
static bool check_trusted(struct conf_reader *reader, const struct conf *conf);
static bool check_auth(struct conf_reader *reader, const struct conf *conf);
static bool check_passwd(struct conf_reader *reader, const struct conf *conf);
static bool check_ldap(struct conf_reader *reader, const struct conf *conf);
static bool check_ldap_uri(struct conf_reader *reader, const struct conf_ldap *ldap,
                           const char *uri);
static bool check_ldap_account(struct conf_reader *reader, const struct conf_ldap *ldap);
static bool check_ldap_search(struct conf_reader *reader, const struct conf_ldap *ldap);
static bool check_ldap_rules(struct conf_reader *reader, const char *setting,
                             const struct conf_words *rules);
static bool check_oauth(struct conf_reader *reader, const struct conf *conf);
static bool check_token_keys(struct conf_reader *reader, const char *keys);
static bool is_key_url(const char *url);
static bool is_loopback(const char *host);
static bool is_signature_algorithm(const char *name);

bool conf_check_login(struct conf_reader *reader, const struct conf *conf)
{
    return check_username(reader, conf) && check_trusted(reader, conf) &&
           check_auth(reader, conf) && check_oauth(reader, conf);
}

static bool check_username(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_words *map = &conf->username.domain_map;

    for (size_t i = 0; i < map->count; i++) {
        if (strchr(map->items[i], '=') == NULL || map->items[i][0] == '=')
            return conf_fail_in(
                reader, "username", 0,
                "setting \"domain_map\" of username: found \"%.60s\", expected \"from=to\"",
                map->items[i]);
    }
    return true;
}

/* The setting `trusted` of a section. */
static bool check_networks(struct conf_reader *reader, const char *section,
                           const struct conf_words *networks)
{
    struct network network;

    for (size_t i = 0; i < networks->count; i++)
        if (!network_parse(networks->items[i], &network))
            return conf_fail_in(reader, section, 0,
                                "setting \"trusted\" of %s: found \"%.60s\", expected a "
                                "network, as in 192.0.2.0/24",
                                section, networks->items[i]);
    return true;
}

static bool check_trusted(struct conf_reader *reader, const struct conf *conf)
{
    return check_networks(reader, "throttle", &conf->throttle.trusted) &&
           check_networks(reader, "limits", &conf->limits.trusted);
}

static bool check_auth(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_words *sources = &conf->auth.sources;
    bool proven_otherwise = *conf->oauth.keys != '\0' || *conf->tls.client_ca_file != '\0';
    bool ok = true;

    if (sources->count == 0 && (conf->auth.look_up || !proven_otherwise))
        return conf_fail_in(reader, "auth", 0,
                            "setting \"sources\" of auth: found none, expected passwd, ldap");
    for (size_t i = 0; ok && i < sources->count; i++) {
        if (strcmp(sources->items[i], "passwd") == 0)
            ok = check_passwd(reader, conf);
        else if (strcmp(sources->items[i], "ldap") == 0)
            ok = check_ldap(reader, conf);
        else
            ok = conf_fail_in(reader, "auth", 0,
                              "setting \"sources\" of auth: found \"%.60s\", expected passwd, ldap",
                              sources->items[i]);
    }
    return ok;
}

/* Where a line is to be changed: the section that a source needs, or else that which asks it. */
static const char *section_or_auth(const char *section, const char *in_file)
{
    return in_file == NULL ? "auth" : section;
}

static bool check_passwd(struct conf_reader *reader, const struct conf *conf)
{
    if (*conf->passwd.file == '\0')
        return conf_fail_in(reader, section_or_auth("passwd", conf->passwd.in_file), 0,
                            "auth asks the source \"passwd\", but \"file\" of passwd is not set");
    return conf_check_file(reader, "passwd", 0, "file", conf->passwd.file);
}

static bool check_ldap(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_ldap *ldap = &conf->ldap;

    if (ldap->uri.count == 0)
        return conf_fail_in(reader, section_or_auth("ldap", ldap->in_file), 0,
                            "auth asks the source \"ldap\", but \"uri\" of ldap is not set");
    if (*ldap->networks_attribute != '\0' && conf->auth_cache.negative_ttl > 0)
        return conf_fail_in(reader, "ldap", 0,
                            "\"networks_attribute\" of ldap goes with no \"negative_ttl\" of "
                            "auth_cache: wrong passwords that are refused from memory would tell "
                            "a right one at a wrong place");
    for (size_t i = 0; i < ldap->uri.count; i++)
        if (!check_ldap_uri(reader, ldap, ldap->uri.items[i]))
            return false;
    return check_ldap_account(reader, ldap) && check_ldap_search(reader, ldap) &&
           check_ldap_rules(reader, "allow_if", &ldap->allow_if) &&
           check_ldap_rules(reader, "refuse_if", &ldap->refuse_if) &&
           (*ldap->ca_file == '\0' ||
            conf_check_file(reader, "ldap", 0, "ca_file", ldap->ca_file)) &&
           (*ldap->client_certificate == '\0' ||
            conf_check_file(reader, "ldap", 0, "client_certificate", ldap->client_certificate)) &&
           (*ldap->client_key == '\0' ||
            conf_check_file(reader, "ldap", 0, "client_key", ldap->client_key));
}

/* The account of a connection without a certificate or a local socket is nobody's. */
static bool check_ldap_uri(struct conf_reader *reader, const struct conf_ldap *ldap,
                           const char *uri)
{
    bool tls =
        conf_starts_with(uri, "ldaps://") || (conf_starts_with(uri, "ldap://") && ldap->start_tls);

    if (!conf_starts_with(uri, "ldap://") && !conf_starts_with(uri, "ldaps://") &&
        !conf_starts_with(uri, "ldapi://"))
        return conf_fail_in(
            reader, "ldap", 0,
            "setting \"uri\" of ldap: found \"%.60s\", expected ldap://, ldaps:// or ldapi://",
            uri);
    if (*ldap->client_certificate != '\0' && conf_starts_with(uri, "ldap://") && !tls)
        return conf_fail_in(reader, "ldap", 0,
                            "\"client_certificate\" of ldap is set, but \"%.60s\" does not speak "
                            "TLS, as start_tls is off",
                            uri);
    if (ldap->sasl_external && !conf_starts_with(uri, "ldapi://") &&
        *ldap->client_certificate == '\0')
        return conf_fail_in(reader, "ldap", 0,
                            "\"sasl_external\" of ldap is on, but \"%.60s\" is not ldapi://, and "
                            "there is no \"client_certificate\"",
                            uri);
    return true;
}

static bool check_ldap_account(struct conf_reader *reader, const struct conf_ldap *ldap)
{
    bool has_dn = *ldap->bind_dn != '\0', has_password = ldap->bind_password.len > 0;

    if (ldap->sasl_external && (has_dn || has_password))
        return conf_fail_in(reader, "ldap", 0,
                            "\"sasl_external\" of ldap is on: \"bind_dn\" and \"bind_password\" "
                            "have no use");
    if (has_dn != has_password)
        return conf_fail_in(reader, "ldap", 0, "\"%s\" of ldap is set, but \"%s\" is not",
                            has_dn ? "bind_dn" : "bind_password",
                            has_dn ? "bind_password" : "bind_dn");
    if (*ldap->client_key != '\0' && *ldap->client_certificate == '\0')
        return conf_fail_in(reader, "ldap", 0,
                            "\"client_key\" of ldap is set, but \"client_certificate\" is not");
    return true;
}

static bool check_ldap_search(struct conf_reader *reader, const struct conf_ldap *ldap)
{
    if (*ldap->base == '\0' && *ldap->dn_template == '\0')
        return conf_fail_in(reader, "ldap", 0,
                            "neither \"base\" nor \"dn_template\" of ldap is set");
    if (*ldap->dn_template != '\0' && (ldap->referrals || *ldap->decoy_dn != '\0'))
        return conf_fail_in(reader, "ldap", 0,
                            "\"%s\" of ldap has no use with \"dn_template\": no search is made",
                            ldap->referrals ? "referrals" : "decoy_dn");
    return true;
}

static bool check_ldap_rules(struct conf_reader *reader, const char *setting,
                             const struct conf_words *rules)
{
    for (size_t i = 0; i < rules->count; i++) {
        const char *rule = rules->items[i], *equals = strchr(rule, '=');

        if (equals == NULL || equals == rule || equals[1] == '\0')
            return conf_fail_in(
                reader, "ldap", 0,
                "setting \"%s\" of ldap: found \"%.60s\", expected \"attribute=value\"", setting,
                rule);
    }
    return true;
}

static bool check_oauth(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_oauth *oauth = &conf->oauth;
    const char *missing = *oauth->keys == '\0'         ? "keys"
                          : *oauth->issuer == '\0'     ? "issuer"
                          : oauth->audience.count == 0 ? "audience"
                          : *oauth->user_claim == '\0' ? "user_claim"
                                                       : NULL;

    if (*oauth->keys == '\0' && *oauth->issuer == '\0' && oauth->audience.count == 0)
        return true;
    if (missing != NULL)
        return conf_fail_in(reader, "oauth", 0, "\"%s\" of oauth is not set", missing);
    for (size_t i = 0; i < oauth->algorithms.count; i++) {
        if (!is_signature_algorithm(oauth->algorithms.items[i]))
            return conf_fail_in(
                reader, "oauth", 0,
                "setting \"algorithms\" of oauth: found \"%.60s\", expected RS256, RS384, RS512, "
                "PS256, PS384, PS512, ES256, ES384, ES512 or EdDSA",
                oauth->algorithms.items[i]);
    }
    return check_token_keys(reader, oauth->keys) &&
           (*oauth->keys_ca_file == '\0' ||
            conf_check_file(reader, "oauth", 0, "keys_ca_file", oauth->keys_ca_file));
}

static bool is_signature_algorithm(const char *name)
{
    static const char *const names[] = {"RS256", "RS384", "RS512", "PS256", "PS384",
                                        "PS512", "ES256", "ES384", "ES512", "EdDSA"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], name) == 0)
            return true;
    }
    return false;
}

static bool check_token_keys(struct conf_reader *reader, const char *keys)
{
    if (*keys == '/')
        return conf_check_file(reader, "oauth", 0, "keys", keys);
    return is_key_url(keys) ||
           conf_fail_in(reader, "oauth", 0,
                        "setting \"keys\" of oauth: found \"%.60s\", expected an absolute path, or "
                        "https://host/..., or http://127.0.0.1/... and the like",
                        keys);
}

/* Keys that come in clear may come from anyone, so only this machine may send them so. */
static bool is_key_url(const char *url)
{
    bool in_clear = conf_starts_with(url, "http://");
    char authority[HOST_MAX + 8], host[HOST_MAX];
    uint16_t port;

    if (!in_clear && !conf_starts_with(url, "https://"))
        return false;
    url = strchr(url, '/') + 2;

    size_t len = strcspn(url, "/?#");

    if (len == 0 || len >= HOST_MAX || url[strcspn(url, " \\")] != '\0')
        return false;
    snprintf(authority, sizeof authority, "%.*s", (int)len, url);
    if (strchr(authority, '@') != NULL) /* a password does not belong here, nor a false host */
        return false;
    if (!address_split(authority, host, &port)) {
        snprintf(authority + len, sizeof authority - len, ":443");
        if (!address_split(authority, host, &port))
            return false;
    }
    return !in_clear || is_loopback(host);
}

static bool is_loopback(const char *host)
{
    static const char *const networks[] = {"127.0.0.0/8", "::1"};
    union address address;
    struct network network;

    if (strcmp(host, "localhost") == 0)
        return true;
    for (size_t i = 0; address_of(host, 1, &address) && i < sizeof networks / sizeof *networks; i++)
        if (network_parse(networks[i], &network) && network_contains(&network, &address))
            return true;
    return false;
}
