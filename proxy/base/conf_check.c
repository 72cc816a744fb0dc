/*
 * Owns what a configuration must be beyond the types of its values. Each check names the section
 * that is at fault.
 */
#include "proxy/base/conf_private.h"

#include "proxy/base/address.h"

#include <errno.h>
#include <grp.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { TITLE_MAX = 63, PREFIX_MAX = 255 };

static bool check_admin(struct conf_reader *reader, const struct conf *conf);
static bool check_certificates(struct conf_reader *reader, const struct conf *conf);
static bool check_tls(struct conf_reader *reader, const struct conf *conf);
static bool check_listeners(struct conf_reader *reader, const struct conf *conf);
static bool check_listener(struct conf_reader *reader, const struct conf *conf, size_t index);
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
static bool check_route(struct conf_reader *reader, const struct conf *conf);
static bool check_redis(struct conf_reader *reader, const struct conf *conf);
static bool check_shards(struct conf_reader *reader, const struct conf *conf);
static bool check_shard(struct conf_reader *reader, const struct conf *conf, size_t index);
static bool check_file(struct conf_reader *reader, const char *section, size_t index,
                       const char *setting, const char *path);
static bool starts_with(const char *text, const char *prefix);

bool conf_check(struct conf_reader *reader, const struct conf *conf)
{
    static bool (*const checks[])(struct conf_reader * reader, const struct conf *conf) = {
        check_admin,    check_certificates, check_tls,    check_listeners,
        check_username, check_trusted,      check_auth,   check_oauth,
        check_route,    check_redis,        check_shards,
    };

    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++)
        if (!checks[i](reader, conf))
            return false;
    return true;
}

static bool check_group(struct conf_reader *reader, const char *setting, const char *name)
{
    return *name == '\0' || getgrnam(name) != NULL ||
           conf_fail_in(reader, "admin", 0, "setting \"%s\" of admin: there is no group \"%.60s\"",
                        setting, name);
}

static bool check_admin(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_admin *admin = &conf->admin;
    size_t mode_len = strlen(admin->mode), path_max = sizeof((struct sockaddr_un){0}.sun_path) - 1;

    if (strlen(admin->socket) > path_max)
        return conf_fail_in(reader, "admin", 0,
                            "setting \"socket\" of admin: %.120s: longer than %zu octets",
                            admin->socket, path_max);
    if (mode_len != 4 || *admin->mode != '0' || strspn(admin->mode, "01234567") != mode_len)
        return conf_fail_in(
            reader, "admin", 0,
            "setting \"mode\" of admin: found \"%.60s\", expected four octal digits, as 0660",
            admin->mode);
    if (*admin->readers != '\0' && strchr("2367", admin->mode[3]) == NULL)
        return conf_fail_in(reader, "admin", 0,
                            "\"readers\" of admin is set, but its \"mode\" keeps them out: imapmux "
                            "looks itself who somebody is, so let it be 0666");
    return check_group(reader, "group", admin->group) &&
           check_group(reader, "readers", admin->readers);
}

static bool check_certificates(struct conf_reader *reader, const struct conf *conf)
{
    for (size_t i = 0; i < conf->certificate_count; i++) {
        const struct conf_certificate *certificate = &conf->certificates[i];

        if (*certificate->chain == '\0')
            return conf_fail_in(reader, "certificate", i,
                                "certificate \"%.63s\": \"chain\" is not set", certificate->title);
        if (!check_file(reader, "certificate", i, "chain", certificate->chain))
            return false;
        if (*certificate->key != '\0' &&
            !check_file(reader, "certificate", i, "key", certificate->key))
            return false;
    }
    return true;
}

static bool check_tls(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_tls *tls = &conf->tls;

    if (*tls->client_crl_file != '\0' && *tls->client_ca_file == '\0')
        return conf_fail_in(reader, "tls", 0,
                            "\"client_crl_file\" of tls is set, but \"client_ca_file\" is not");
    return (*tls->client_ca_file == '\0' ||
            check_file(reader, "tls", 0, "client_ca_file", tls->client_ca_file)) &&
           (*tls->client_crl_file == '\0' ||
            check_file(reader, "tls", 0, "client_crl_file", tls->client_crl_file));
}

static bool check_listeners(struct conf_reader *reader, const struct conf *conf)
{
    if (conf->listener_count == 0)
        return conf_fail_in(reader, "listener", 0, "there is no listener section");
    for (size_t i = 0; i < conf->listener_count; i++) {
        if (!check_listener(reader, conf, i))
            return false;
    }
    return true;
}

static bool is_mechanism(const char *name)
{
    static const char *const names[] = {"PLAIN", "LOGIN", "EXTERNAL", "OAUTHBEARER", "XOAUTH2"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcasecmp(name, names[i]) == 0)
            return true;
    return false;
}

static bool check_mechanisms(struct conf_reader *reader, const struct conf *conf, size_t index)
{
    const struct conf_listener *listener = &conf->listeners[index];

    for (size_t i = 0; i < listener->mechanisms.count; i++) {
        const char *name = listener->mechanisms.items[i];

        if (!is_mechanism(name))
            return conf_fail_in(
                reader, "listener", index,
                "setting \"mechanisms\" of listener \"%.63s\": found \"%.60s\", expected PLAIN, "
                "LOGIN, EXTERNAL, OAUTHBEARER or XOAUTH2",
                listener->title, name);
        if (strcasecmp(name, "EXTERNAL") == 0 && *conf->tls.client_ca_file == '\0')
            return conf_fail_in(
                reader, "listener", index,
                "listener \"%.63s\" offers EXTERNAL, but \"client_ca_file\" of tls is not set",
                listener->title);
    }
    return true;
}

static bool check_listener(struct conf_reader *reader, const struct conf *conf, size_t index)
{
    const struct conf_listener *listener = &conf->listeners[index];
    union address address;
    struct network network;

    if (listener->address.count == 0)
        return conf_fail_in(reader, "listener", index, "listener \"%.63s\": \"address\" is not set",
                            listener->title);
    for (size_t i = 0; i < listener->address.count; i++) {
        if (!address_parse(listener->address.items[i], &address))
            return conf_fail_in(
                reader, "listener", index,
                "setting \"address\" of listener \"%.63s\": found \"%.60s\", expected a numeric "
                "address with port, as in 192.0.2.1:993 or [::]:993",
                listener->title, listener->address.items[i]);
    }
    for (size_t i = 0; i < listener->proxy_protocol.count; i++) {
        if (!network_parse(listener->proxy_protocol.items[i], &network))
            return conf_fail_in(
                reader, "listener", index,
                "setting \"proxy_protocol\" of listener \"%.63s\": found \"%.60s\", expected a "
                "network, as in 192.0.2.0/24",
                listener->title, listener->proxy_protocol.items[i]);
    }
    if (listener->tls != TLS_NONE && conf->certificate_count == 0)
        return conf_fail_in(reader, "listener", index,
                            "listener \"%.63s\" speaks TLS, but there is no certificate section",
                            listener->title);
    return check_mechanisms(reader, conf, index);
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
    bool ok = true;

    if (sources->count == 0)
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

static bool check_passwd(struct conf_reader *reader, const struct conf *conf)
{
    if (*conf->passwd.file == '\0')
        return conf_fail_in(reader, "passwd", 0,
                            "auth asks the source \"passwd\", but \"file\" of passwd is not set");
    return check_file(reader, "passwd", 0, "file", conf->passwd.file);
}

static bool check_ldap(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_ldap *ldap = &conf->ldap;

    if (ldap->uri.count == 0)
        return conf_fail_in(reader, "ldap", 0,
                            "auth asks the source \"ldap\", but \"uri\" of ldap is not set");
    for (size_t i = 0; i < ldap->uri.count; i++)
        if (!check_ldap_uri(reader, ldap, ldap->uri.items[i]))
            return false;
    return check_ldap_account(reader, ldap) && check_ldap_search(reader, ldap) &&
           check_ldap_rules(reader, "allow_if", &ldap->allow_if) &&
           check_ldap_rules(reader, "refuse_if", &ldap->refuse_if) &&
           (*ldap->ca_file == '\0' || check_file(reader, "ldap", 0, "ca_file", ldap->ca_file)) &&
           (*ldap->client_certificate == '\0' ||
            check_file(reader, "ldap", 0, "client_certificate", ldap->client_certificate)) &&
           (*ldap->client_key == '\0' ||
            check_file(reader, "ldap", 0, "client_key", ldap->client_key));
}

/* The account of a connection without a certificate or a local socket is nobody's. */
static bool check_ldap_uri(struct conf_reader *reader, const struct conf_ldap *ldap,
                           const char *uri)
{
    bool tls = starts_with(uri, "ldaps://") || (starts_with(uri, "ldap://") && ldap->start_tls);

    if (!starts_with(uri, "ldap://") && !starts_with(uri, "ldaps://") &&
        !starts_with(uri, "ldapi://"))
        return conf_fail_in(
            reader, "ldap", 0,
            "setting \"uri\" of ldap: found \"%.60s\", expected ldap://, ldaps:// or ldapi://",
            uri);
    if (*ldap->client_certificate != '\0' && starts_with(uri, "ldap://") && !tls)
        return conf_fail_in(reader, "ldap", 0,
                            "\"client_certificate\" of ldap is set, but \"%.60s\" does not speak "
                            "TLS, as start_tls is off",
                            uri);
    if (ldap->sasl_external && !starts_with(uri, "ldapi://") && *ldap->client_certificate == '\0')
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
            check_file(reader, "oauth", 0, "keys_ca_file", oauth->keys_ca_file));
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
        return check_file(reader, "oauth", 0, "keys", keys);
    return is_key_url(keys) ||
           conf_fail_in(reader, "oauth", 0,
                        "setting \"keys\" of oauth: found \"%.60s\", expected an absolute path, or "
                        "https://host/..., or http://127.0.0.1/... and the like",
                        keys);
}

/* Keys that come in clear may come from anyone, so only this machine may send them so. */
static bool is_key_url(const char *url)
{
    bool in_clear = starts_with(url, "http://");
    char authority[HOST_MAX + 8], host[HOST_MAX];
    uint16_t port;

    if (!in_clear && !starts_with(url, "https://"))
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

static bool check_route(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_words *sources = &conf->route.sources;
    bool ok = true;

    if (sources->count == 0)
        return conf_fail_in(reader, "route", 0,
                            "setting \"sources\" of route: found none, expected redis, ldap, file");
    for (size_t i = 0; ok && i < sources->count; i++) {
        if (strcmp(sources->items[i], "redis") == 0 || strcmp(sources->items[i], "ldap") == 0)
            continue;
        if (strcmp(sources->items[i], "file") != 0)
            ok = conf_fail_in(
                reader, "route", 0,
                "setting \"sources\" of route: found \"%.60s\", expected redis, ldap, file",
                sources->items[i]);
        else if (*conf->route.file == '\0')
            ok = conf_fail_in(reader, "route", 0,
                              "route asks the source \"file\", but \"file\" of route is not set");
        else
            ok = check_file(reader, "route", 0, "file", conf->route.file);
    }
    return ok;
}

static bool check_redis(struct conf_reader *reader, const struct conf *conf)
{
    const char *address = conf->redis.address;
    char host[HOST_MAX];
    uint16_t port;

    if (!conf_uses_redis(conf))
        return true;
    if (!starts_with(address, "unix:/") && !address_split(address, host, &port))
        return conf_fail_in(
            reader, "redis", 0,
            "setting \"address\" of redis: found \"%.60s\", expected host:port or unix:/path",
            address);
    return strlen(conf->redis.prefix) <= PREFIX_MAX ||
           conf_fail_in(reader, "redis", 0,
                        "setting \"prefix\" of redis: found %zu octets, expected at most %d",
                        strlen(conf->redis.prefix), PREFIX_MAX);
}

static bool check_shards(struct conf_reader *reader, const struct conf *conf)
{
    if (conf->shard_count == 0)
        return conf_fail_in(reader, "shard", 0, "there is no shard section");
    for (size_t i = 0; i < conf->shard_count; i++) {
        if (!check_shard(reader, conf, i))
            return false;
    }
    return true;
}

static bool check_shard(struct conf_reader *reader, const struct conf *conf, size_t index)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    const struct conf_shard *shard = &conf->shards[index];
    size_t title_len = strlen(shard->title);
    char host[HOST_MAX];
    uint16_t port;

    if (title_len == 0 || title_len > TITLE_MAX ||
        shard->title[strspn(shard->title, allowed)] != '\0')
        return conf_fail_in(reader, "shard", index,
                            "found a shard \"%.64s\", expected a title of 1 to %d letters, digits, "
                            "\".\", \"_\", \"-\"",
                            shard->title, TITLE_MAX);
    if (shard->address.count == 0)
        return conf_fail_in(reader, "shard", index, "shard \"%s\": \"address\" is not set",
                            shard->title);
    for (size_t i = 0; i < shard->address.count; i++) {
        if (!address_split(shard->address.items[i], host, &port))
            return conf_fail_in(
                reader, "shard", index,
                "setting \"address\" of shard \"%s\": found \"%.60s\", expected host:port",
                shard->title, shard->address.items[i]);
    }
    for (size_t i = 0; i < shard->source_address.count; i++) {
        union address source;

        if (!address_of(shard->source_address.items[i], 0, &source))
            return conf_fail_in(
                reader, "shard", index,
                "setting \"source_address\" of shard \"%s\": found \"%.60s\", expected a numeric "
                "address without port",
                shard->title, shard->source_address.items[i]);
    }
    if ((shard->login != SHARD_LOGIN_PASSWORD ||
         shard->passwordless_login != PASSWORDLESS_AS_LOGIN) &&
        (*shard->master_user == '\0' || shard->master_password.len == 0))
        return conf_fail_in(reader, "shard", index,
                            "shard \"%s\" logs in as a master, but \"%s\" is not set", shard->title,
                            *shard->master_user == '\0' ? "master_user" : "master_password");
    return *shard->tls_ca_file == '\0' ||
           check_file(reader, "shard", index, "tls_ca_file", shard->tls_ca_file);
}

/* Is it there, is it a file, may we read it? What is in it is for its reader to say. */
static bool check_file(struct conf_reader *reader, const char *section, size_t index,
                       const char *setting, const char *path)
{
    struct stat status;
    int failure = 0;

    if (access(path, R_OK) != 0 || stat(path, &status) != 0)
        failure = errno;
    else if (S_ISDIR(status.st_mode))
        failure = EISDIR;
    return failure == 0 || conf_fail_in(reader, section, index, "setting \"%s\" of %s: %.120s: %s",
                                        setting, section, path, strerror(failure));
}

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}
