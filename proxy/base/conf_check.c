/*
 * Owns what a configuration must be beyond the types of its values. Each check names the section
 * that is at fault.
 */
#include "proxy/base/conf_private.h"

#include "proxy/base/address.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { PREFIX_MAX = 255, TICKET_ROTATIONS_MAX = 16 };

static bool check_log(struct conf_reader *reader, const struct conf *conf);
static bool check_process(struct conf_reader *reader, const struct conf *conf);
static bool check_admin(struct conf_reader *reader, const struct conf *conf);
static bool check_http(struct conf_reader *reader, const struct conf *conf);
static bool check_certificates(struct conf_reader *reader, const struct conf *conf);
static bool check_tls(struct conf_reader *reader, const struct conf *conf);
static bool check_listeners(struct conf_reader *reader, const struct conf *conf);
static bool check_listener(struct conf_reader *reader, const struct conf *conf, size_t index);
static bool check_referrals(struct conf_reader *reader, const struct conf *conf);
static bool check_route(struct conf_reader *reader, const struct conf *conf);
static bool check_redis(struct conf_reader *reader, const struct conf *conf);
static bool check_shards(struct conf_reader *reader, const struct conf *conf);
static bool check_shard(struct conf_reader *reader, const struct conf *conf, size_t index);
static bool check_replica(struct conf_reader *reader, const struct conf *conf, size_t index);

bool conf_check(struct conf_reader *reader, const struct conf *conf)
{
    static bool (*const checks[])(struct conf_reader * reader, const struct conf *conf) = {
        check_process,   check_log,        check_admin, check_http,  check_certificates, check_tls,
        check_listeners, conf_check_login, check_route, check_redis, check_shards,
    };

    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++)
        if (!checks[i](reader, conf))
            return false;
    return conf_check_paths(reader, conf);
}

/* Lines that are sent where nobody is would vanish without a word. */
static bool check_log(struct conf_reader *reader, const struct conf *conf)
{
    static const char *const sockets[] = {[LOG_OUTPUT_STDERR] = NULL,
                                          [LOG_OUTPUT_JOURNALD] = "/run/systemd/journal/socket",
                                          [LOG_OUTPUT_SYSLOG] = "/dev/log"};
    const char *path = sockets[conf->log.output];

    return path == NULL || access(path, W_OK) == 0 ||
           conf_fail_in(reader, "log", 0, "setting \"output\" of log: %s: %s", path,
                        strerrordesc_np(errno));
}

static bool check_group(struct conf_reader *reader, const char *section, const char *setting,
                        const char *name)
{
    return *name == '\0' || getgrnam(name) != NULL ||
           conf_fail_in(reader, section, 0, "setting \"%s\" of %s: there is no group \"%.60s\"",
                        setting, section, name);
}

static bool check_process(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_process *process = &conf->process;
    const struct passwd *user = *process->user == '\0' ? NULL : getpwnam(process->user);

    if (user != NULL && user->pw_uid == 0)
        return conf_fail_in(reader, "process", 0,
                            "setting \"user\" of process: \"%.60s\" is root itself", process->user);
    if (*process->user != '\0' && user == NULL)
        return conf_fail_in(reader, "process", 0,
                            "setting \"user\" of process: there is no user \"%.60s\"",
                            process->user);
    if (*process->group != '\0' && *process->user == '\0')
        return conf_fail_in(reader, "process", 0, "\"group\" of process is set, but not \"user\"");
    return check_group(reader, "process", "group", process->group);
}

static bool check_admin(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_admin *admin = &conf->admin;
    size_t mode_len = strlen(admin->mode);
    size_t path_max =
        sizeof((struct sockaddr_un){0}.sun_path) - sizeof ".1234567"; /* a pid behind */

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
    return check_group(reader, "admin", "group", admin->group) &&
           check_group(reader, "admin", "readers", admin->readers);
}

/*
 * The listener that has the address, of those before the `at`th address of the `index`th listener;
 * NULL when none has. The kernel would not mind, and give clients to either.
 */
static const struct conf_listener *who_listens(const struct conf *conf, size_t index, size_t at,
                                               const union address *address)
{
    union address other;

    for (size_t i = 0; i <= index && i < conf->listener_count; i++) {
        const struct conf_words *texts = &conf->listeners[i].address;

        for (size_t j = 0; j < texts->count && (i < index || j < at); j++)
            if (address_port(address) != 0 && address_parse(texts->items[j], &other) &&
                address->any.sa_family == other.any.sa_family &&
                memcmp(address, &other, address_size(address)) == 0)
                return &conf->listeners[i];
    }
    return NULL;
}

static bool check_http(struct conf_reader *reader, const struct conf *conf)
{
    const char *text = conf->http.address;
    union address address;

    if (*text == '\0')
        return true;
    if (!address_parse(text, &address))
        return conf_fail_in(reader, "http", 0,
                            "setting \"address\" of http: found \"%.60s\", expected a numeric "
                            "address with port, as in 127.0.0.1:8080 or [::1]:8080",
                            text);

    const struct conf_listener *other = who_listens(conf, conf->listener_count, 0, &address);

    return other == NULL ||
           conf_fail_in(reader, "http", 0, "setting \"address\" of http: listener \"%.63s\" has %s",
                        other->title, text);
}

static bool check_certificates(struct conf_reader *reader, const struct conf *conf)
{
    for (size_t i = 0; i < conf->certificate_count; i++) {
        const struct conf_certificate *certificate = &conf->certificates[i];

        if (*certificate->chain == '\0')
            return conf_fail_in(reader, "certificate", i,
                                "certificate \"%.63s\": \"chain\" is not set", certificate->title);
        if (!conf_check_file(reader, "certificate", i, "chain", certificate->chain))
            return false;
        if (*certificate->key != '\0' &&
            !conf_check_file(reader, "certificate", i, "key", certificate->key))
            return false;
    }
    return true;
}

static bool check_ticket_keys(struct conf_reader *reader, const struct conf_tls *tls)
{
    if (tls->ticket_keys != TICKET_KEYS_FILE)
        return tls->session_lifetime <= TICKET_ROTATIONS_MAX * tls->ticket_rotation ||
               conf_fail_in(reader, "tls", 0,
                            "\"ticket_rotation\" of tls is too short: \"session_lifetime\" may be "
                            "%d times as long at the most",
                            TICKET_ROTATIONS_MAX);
    if (*tls->ticket_keys_file == '\0')
        return conf_fail_in(
            reader, "tls", 0,
            "\"ticket_keys\" of tls is \"file\", but \"ticket_keys_file\" is not set");
    return conf_check_file(reader, "tls", 0, "ticket_keys_file", tls->ticket_keys_file);
}

static bool check_tls(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_tls *tls = &conf->tls;

    if (*tls->client_crl_file != '\0' && *tls->client_ca_file == '\0')
        return conf_fail_in(reader, "tls", 0,
                            "\"client_crl_file\" of tls is set, but \"client_ca_file\" is not");
    return check_ticket_keys(reader, tls) &&
           (*tls->client_ca_file == '\0' ||
            conf_check_file(reader, "tls", 0, "client_ca_file", tls->client_ca_file)) &&
           (*tls->client_crl_file == '\0' ||
            conf_check_file(reader, "tls", 0, "client_crl_file", tls->client_crl_file));
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
        if (strcasestr(name, "OAUTH") != NULL && *conf->oauth.keys == '\0')
            return conf_fail_in(reader, "listener", index,
                                "listener \"%.63s\" offers %s, but \"keys\" of oauth is not set",
                                listener->title, name);
    }
    return true;
}

static bool check_addresses(struct conf_reader *reader, const struct conf *conf, size_t index)
{
    const struct conf_listener *listener = &conf->listeners[index], *other;
    union address address;

    if (listener->address.count == 0)
        return conf_fail_in(reader, "listener", index, "listener \"%.63s\": \"address\" is not set",
                            listener->title);
    for (size_t i = 0; i < listener->address.count; i++) {
        const char *text = listener->address.items[i];

        if (!address_parse(text, &address))
            return conf_fail_in(
                reader, "listener", index,
                "setting \"address\" of listener \"%.63s\": found \"%.60s\", expected a numeric "
                "address with port, as in 192.0.2.1:993 or [::]:993",
                listener->title, text);
        other = who_listens(conf, index, i, &address);
        if (other != NULL)
            return conf_fail_in(
                reader, "listener", index,
                "setting \"address\" of listener \"%.63s\": listener \"%.63s\" has %s already",
                listener->title, other->title, text);
    }
    return true;
}

static bool check_listener(struct conf_reader *reader, const struct conf *conf, size_t index)
{
    const struct conf_listener *listener = &conf->listeners[index];
    struct network network;

    if (!check_addresses(reader, conf, index))
        return false;
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

static bool check_route_file(struct conf_reader *reader, const struct conf *conf)
{
    if (*conf->route.file == '\0')
        return conf_fail_in(reader, "route", 0,
                            "route asks the source \"file\", but \"file\" of route is not set");
    return conf_check_file(reader, "route", 0, "file", conf->route.file);
}

static bool check_default_shard(struct conf_reader *reader, const struct conf *conf)
{
    const char *title = conf->route.default_shard;

    if (*title == '\0')
        return conf_fail_in(
            reader, "route", 0,
            "route asks the source \"default\", but \"default_shard\" of route is not set");
    return conf_find_shard(conf, title) != NULL ||
           conf_fail_in(reader, "route", 0,
                        "setting \"default_shard\" of route: there is no shard \"%.63s\"", title);
}

static bool check_rings(struct conf_reader *reader, const struct conf *conf)
{
    if (conf->ring_count == 0)
        return conf_fail_in(reader, "route", 0,
                            "route asks the source \"ring\", but there is no ring section");
    for (size_t i = 0; i < conf->ring_count; i++) {
        const struct conf_ring *ring = &conf->rings[i];

        for (size_t j = 0; j < ring->shards.count; j++)
            if (conf_find_shard(conf, ring->shards.items[j]) == NULL)
                return conf_fail_in(
                    reader, "ring", i,
                    "setting \"shards\" of ring \"%.63s\": there is no shard \"%.63s\"",
                    ring->title, ring->shards.items[j]);
    }
    return true;
}

static bool check_route_source(struct conf_reader *reader, const struct conf *conf,
                               const char *name)
{
    if (strcmp(name, "redis") == 0 || strcmp(name, "ldap") == 0)
        return true;
    if (strcmp(name, "file") == 0)
        return check_route_file(reader, conf);
    if (strcmp(name, "ring") == 0)
        return check_rings(reader, conf);
    if (strcmp(name, "default") == 0)
        return check_default_shard(reader, conf);
    return conf_fail_in(reader, "route", 0,
                        "setting \"sources\" of route: found \"%.60s\", expected redis, ldap, "
                        "file, ring, default",
                        name);
}

/* The place of a source in the order, from 1; 0 when it is not asked. */
static size_t source_place(const struct conf *conf, const char *name)
{
    const struct conf_words *sources = &conf->route.sources;

    for (size_t i = 0; i < sources->count; i++)
        if (strcmp(sources->items[i], name) == 0)
            return i + 1;
    return 0;
}

static bool check_route_order(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_words *sources = &conf->route.sources;
    size_t redis = source_place(conf, "redis"), ring = source_place(conf, "ring");
    size_t last = source_place(conf, "default");

    for (size_t i = 0; i < sources->count; i++)
        if (source_place(conf, sources->items[i]) != i + 1)
            return conf_fail_in(reader, "route", 0,
                                "setting \"sources\" of route: \"%.60s\" is there twice",
                                sources->items[i]);
    if (last != 0 && last < sources->count)
        return conf_fail_in(reader, "route", 0,
                            "setting \"sources\" of route: \"%.60s\" is never asked, for "
                            "\"default\" before it knows everybody",
                            sources->items[last]);
    if (ring != 0 && redis > ring)
        return conf_fail_in(reader, "route", 0,
                            "setting \"sources\" of route: \"redis\" must stand before \"ring\", "
                            "which writes there what it chooses");
    return redis != 0 || *conf->route.snapshot == '\0' ||
           conf_fail_in(reader, "route", 0,
                        "\"snapshot\" of route is set, but the source \"redis\" is not asked");
}

static bool check_referrals(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_route *route = &conf->route;

    return !route->keep_referrals ||
           (source_place(conf, "redis") != 0 && route->follow_referrals > 0) ||
           conf_fail_in(
               reader, "route", 0,
               "\"keep_referrals\" of route needs \"follow_referrals\", and the source redis");
}

/*
 * A proxy says that it lives three times in node_expiry: shorter, and all sessions end now and
 * then.
 */
static bool check_fence(struct conf_reader *reader, const struct conf *conf)
{
    return source_place(conf, "redis") == 0 ||
           conf->route.keep_while_down >= conf->redis.node_expiry ||
           conf_fail_in(reader, "route", 0,
                        "setting \"keep_while_down\" of route: expected no less than "
                        "\"node_expiry\" of redis");
}

static bool check_route(struct conf_reader *reader, const struct conf *conf)
{
    const struct conf_words *sources = &conf->route.sources;

    if (sources->count == 0)
        return conf_fail_in(
            reader, "route", 0,
            "setting \"sources\" of route: found none, expected redis, ldap, file, ring, default");
    for (size_t i = 0; i < sources->count; i++)
        if (!check_route_source(reader, conf, sources->items[i]))
            return false;
    return check_route_order(reader, conf) && check_referrals(reader, conf) &&
           check_fence(reader, conf);
}

static bool check_sentinels(struct conf_reader *reader, const struct conf_redis *redis)
{
    bool has_master = redis->sentinel_master[0] != '\0';
    char host[HOST_MAX];
    uint16_t port;

    if (has_master != (redis->sentinels.count > 0))
        return conf_fail_in(reader, "redis", 0, "redis has \"%s\", but \"%s\" is not set",
                            has_master ? "sentinel_master" : "sentinels",
                            has_master ? "sentinels" : "sentinel_master");
    for (size_t i = 0; i < redis->sentinels.count; i++)
        if (!address_split(redis->sentinels.items[i], host, &port))
            return conf_fail_in(
                reader, "redis", 0,
                "setting \"sentinels\" of redis: found \"%.60s\", expected host:port",
                redis->sentinels.items[i]);
    return true;
}

static bool check_redis(struct conf_reader *reader, const struct conf *conf)
{
    const char *address = conf->redis.address;
    char host[HOST_MAX];
    uint16_t port;

    if (!conf_uses_redis(conf))
        return true;
    if (!check_sentinels(reader, &conf->redis))
        return false;
    if (conf->redis.sentinels.count == 0 && !conf_starts_with(address, "unix:/") &&
        !address_split(address, host, &port))
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
    if (conf->shard_titles.count > CONF_SHARD_IDS)
        return conf_fail_in(reader, "shard", 0,
                            "a process can have %d shards in all, those that were removed included",
                            CONF_SHARD_IDS);
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

    if (title_len == 0 || title_len > CONF_TITLE_MAX ||
        shard->title[strspn(shard->title, allowed)] != '\0')
        return conf_fail_in(reader, "shard", index,
                            "found a shard \"%.64s\", expected a title of 1 to %d letters, digits, "
                            "\".\", \"_\", \"-\"",
                            shard->title, CONF_TITLE_MAX);
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
    if ((*shard->probe_user == '\0') != (shard->probe_password.len == 0))
        return conf_fail_in(reader, "shard", index,
                            "shard \"%s\": \"%s\" is not set, but the other one is", shard->title,
                            *shard->probe_user == '\0' ? "probe_user" : "probe_password");
    if (!check_replica(reader, conf, index))
        return false;
    return *shard->tls_ca_file == '\0' ||
           conf_check_file(reader, "shard", index, "tls_ca_file", shard->tls_ca_file);
}

/* One step, and no more: whoever has a replica has the mail, and is nobody's stand-in. */
static bool check_replica(struct conf_reader *reader, const struct conf *conf, size_t index)
{
    const struct conf_shard *shard = &conf->shards[index];
    const struct conf_shard *replica = conf_find_shard(conf, shard->replica);

    if (*shard->replica == '\0')
        return true;
    if (replica == NULL || replica == shard)
        return conf_fail_in(reader, "shard", index,
                            "setting \"replica\" of shard \"%s\": found \"%.63s\", expected the "
                            "title of another shard",
                            shard->title, shard->replica);
    return *replica->replica == '\0' ||
           conf_fail_in(reader, "shard", index,
                        "setting \"replica\" of shard \"%s\": \"%s\" has a replica itself",
                        shard->title, replica->title);
}

bool conf_check_file(struct conf_reader *reader, const char *section, size_t index,
                     const char *setting, const char *path)
{
    struct stat status;
    int failure = 0;

    /* AT_EACCESS: with the capabilities that the process has. */
    if (faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) != 0 || stat(path, &status) != 0)
        failure = errno;
    else if (S_ISDIR(status.st_mode))
        failure = EISDIR;
    errno = failure;
    return failure == 0 || conf_fail_in(reader, section, index, "setting \"%s\" of %s: %.120s: %s",
                                        setting, section, path, conf_why_unread(path));
}
