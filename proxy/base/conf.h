/*
 * proxy.conf as C structs: one struct per section, one member per row of settings.def. A
 * configuration is immutable once read, and counted: a process may have several, the one in force
 * and older ones. Whoever keeps a pointer into it from one turn of a loop to another holds it.
 */
#ifndef IMAPMUX_BASE_CONF_H
#define IMAPMUX_BASE_CONF_H

#include "proxy/base/err.h"
#include "proxy/base/secret.h"
#include "proxy/base/settings.def"

#include <stdint.h>
#include <stdio.h>

struct conf_words {
    char **items; /* NUL-terminated strings */
    size_t count;
};

#define CONF_TYPE_TEXT     char *
#define CONF_TYPE_PATH     char * /* made absolute; "" when unset */
#define CONF_TYPE_WORDS    struct conf_words
#define CONF_TYPE_FLAG     bool
#define CONF_TYPE_NUMBER   int64_t
#define CONF_TYPE_DURATION uint64_t /* milliseconds */
#define CONF_TYPE_SIZE     size_t   /* bytes */
#define CONF_TYPE_SECRET   struct secret
#define CONF_TYPE_CHOICE   int /* index into the row's words: see the enums below */

/* What every section begins with. */
#define CONF_HEAD                                                                                  \
    char *title;         /* "" for sections without one */                                         \
    const char *in_file; /* NULL when it is not there */                                           \
    int line;            /* where it starts in the file; 0 when it is not there */                 \
    size_t id;           /* of a shard: see shard_titles */
struct conf_head {
    CONF_HEAD
};

/*
 * struct conf_process, struct conf_log, ...: the settings of one section. MANY sections also have a
 * title.
 */
#define CONF_MEMBER(kind, name, ...) CONF_TYPE_##kind name;
#define CONF_STRUCT(section, cardinality, rows, help)                                              \
    struct conf_##section {                                                                        \
        CONF_HEAD                                                                                  \
        rows(CONF_MEMBER)                                                                          \
    };
SETTINGS_SECTIONS(CONF_STRUCT)

/* ONE sections are members by their name; MANY sections are arrays: `shards` and `shard_count`. */
#define CONF_FIELD_ONE(section) struct conf_##section section;
#define CONF_FIELD_MANY(section)                                                                   \
    struct conf_##section *section##s;                                                             \
    size_t section##_count;
#define CONF_FIELD(section, cardinality, rows, help) CONF_FIELD_##cardinality(section)
struct conf {
    int64_t read_at; /* seconds since 1970 */
    SETTINGS_SECTIONS(CONF_FIELD)
    struct conf_words files; /* that it was read from: proxy.conf, what it includes, secrets */
    /*
     * By a shard's id, which stays the same through all configurations of a process: of the shards,
     * and of those that earlier ones had. What there is for each shard is kept by its id.
     */
    struct conf_words shard_titles;
    struct conf_seen *seen; /* the files that it names, as they were: conf_change.c */
    size_t seen_count;
    _Atomic size_t holders; /* beside the first one */
};

enum {
    CONF_TITLE_MAX = 63,   /* octets of a shard's title */
    CONF_SHARD_IDS = 4096, /* in the life of a process */
};

/* The words of CHOICE rows, in the order of settings.def. */
enum conf_log_format { LOG_FORMAT_LOGFMT, LOG_FORMAT_JSON };
enum conf_log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };
enum conf_log_output { LOG_OUTPUT_STDERR, LOG_OUTPUT_JOURNALD, LOG_OUTPUT_SYSLOG };
enum conf_log_facility {
    LOG_FACILITY_MAIL,
    LOG_FACILITY_DAEMON,
    LOG_FACILITY_AUTH,
    LOG_FACILITY_AUTHPRIV,
    LOG_FACILITY_LOCAL0,
    LOG_FACILITY_LOCAL7 = LOG_FACILITY_LOCAL0 + 7
};
enum conf_tls_version { TLS_MIN_1_2, TLS_MIN_1_3 };
enum conf_ticket_keys { TICKET_KEYS_OWN, TICKET_KEYS_FILE, TICKET_KEYS_REDIS };
enum conf_client_user { CLIENT_USER_CN, CLIENT_USER_UID, CLIENT_USER_EMAIL, CLIENT_USER_UPN };
enum conf_tls_mode { TLS_NONE, TLS_STARTTLS, TLS_IMPLICIT };
enum conf_capability_policy { CAPABILITY_BACKEND, CAPABILITY_COMMON };
enum conf_shard_login {
    SHARD_LOGIN_PASSWORD,
    SHARD_LOGIN_MASTER_AUTHZID,
    SHARD_LOGIN_MASTER_SUFFIX
};
enum conf_passwordless_login {
    PASSWORDLESS_AS_LOGIN,
    PASSWORDLESS_MASTER_AUTHZID,
    PASSWORDLESS_MASTER_SUFFIX
};
enum conf_client_address { CLIENT_ADDRESS_ID, CLIENT_ADDRESS_PROXY, CLIENT_ADDRESS_NONE };
enum conf_ldap_scope { LDAP_SEARCH_BASE, LDAP_SEARCH_ONE, LDAP_SEARCH_SUBTREE };

/*
 * Reads and checks the file and what it includes. NULL on failure, with "file:line: what was found,
 * what was expected" in *err (ERR_CONFIG). Everything that can be known without the network is
 * checked: types, ranges, unknown and doubled names, addresses and networks that do not parse,
 * files that cannot be read, a listener with TLS without a certificate, a source that is named but
 * not configured, a shard without address, master login without master.
 */
struct conf *conf_open(const char *path, struct err *err);

/* Ends what conf_open began: the first hold. Nulls the pointer; harmless on NULL. */
void conf_close(struct conf **conf);

/*
 * From any thread. The last one to release it wipes and frees it; nulls the pointer, harmless on
 * NULL.
 */
const struct conf *conf_hold(const struct conf *conf);
void conf_release(const struct conf **conf);

/* Whether Redis is asked for routes. */
bool conf_routes_by_redis(const struct conf *conf);

/* Whether anything in it needs a connection to Redis. */
bool conf_uses_redis(const struct conf *conf);

/* Is it one of them, to the letter? */
bool conf_has_word(const struct conf_words *words, const char *word);

/* The shard with this title, or this id; NULL when the configuration has none. */
const struct conf_shard *conf_find_shard(const struct conf *conf, const char *title);
const struct conf_shard *conf_shard_of(const struct conf *conf, size_t id);

/*
 * Every file that it names or was read from, by an absolute path: the section and its index there,
 * the setting; "" for those that it was read from. Stops when `visit` returns false, and returns
 * that.
 */
struct conf_place {
    const char *section;
    size_t index;
    const char *setting, *path;
};
bool conf_each_path(const struct conf *conf,
                    bool (*visit)(void *owner, const struct conf_place *place), void *owner);

/*
 * Begins the text of *err, which may be NULL, with where this section stands, "file:line: ". Always
 * false.
 */
bool conf_blame(const void *section, struct err *err);

/* Reads a duration as it is written there, "90s", of at most `max_ms`. */
bool conf_read_duration(const char *text, uint64_t max_ms, uint64_t *ms_out);

/*
 * The configuration as the text of a proxy.conf, what is included in its place: only what differs
 * from the defaults, or `all` settings; of the section `only`, unless that is NULL. In place of
 * secrets stands a mask.
 */
void conf_print(FILE *out, const struct conf *conf, const char *only, bool all);

/* Is there a section of this name? */
bool conf_has_section(const char *name);

/* Every setting with its default and its help, as a proxy.conf with all lines commented out. */
void conf_print_defaults(FILE *out);

/* The same as a Markdown page, for docs/configuration.md. */
void conf_print_markdown(FILE *out);

#endif
