/*
 * Owns the reading of entries. In doubt it is against the user: an attribute that came but was not
 * asked for by this name (an alias, a subtype, "memberOf;range=0-1499") means that what was asked
 * for may have other values than those that are seen.
 */
#include "auth/ldap/entry.h"

#include "auth/username.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/span.h"

#include <assert.h>
#include <stdio.h>

enum { SHARD_MAX = 63, BACKEND_USER_MAX = 255, NETWORKS_MAX = 64, NETWORK_TEXT_MAX = 64 };

/* A text of struct auth_facts, from an attribute with one value. */
enum text { TEXT_USER, TEXT_BACKEND_USER, TEXT_SHARD, TEXT_COUNT };

static const size_t text_max[TEXT_COUNT] = {USERNAME_MAX, BACKEND_USER_MAX, SHARD_MAX};

struct ldap_wishes {
    const char *texts[TEXT_COUNT]; /* attributes; "": not wanted */
    const char *networks;
    const struct conf_words *allow_if, *refuse_if; /* attribute=value */
    char **attributes;                             /* NULL-terminated; each once */
    size_t attribute_count;
    bool any;
};

/* What has been read of one entry. */
struct reading {
    const struct ldap_wishes *wishes;
    const char *user;
    char texts[TEXT_COUNT][USERNAME_MAX + 1];
    struct network networks[NETWORKS_MAX];
    size_t network_count;
    bool networks_bad, allowed, refused;
    struct err err;
};

/* --- what is wanted --- */

/* Notes a name of `len` octets, once. */
static bool want(struct ldap_wishes *wishes, const char *name, size_t len)
{
    if (len == 0)
        return true;
    for (size_t i = 0; i < wishes->attribute_count; i++)
        if (span_is((struct span){name, len}, wishes->attributes[i]))
            return true;

    char *copy = mem_copy_text(name, len);

    if (copy == NULL)
        return false;
    wishes->attributes[wishes->attribute_count++] = copy;
    return true;
}

static bool want_rules(struct ldap_wishes *wishes, const struct conf_words *rules)
{
    for (size_t i = 0; i < rules->count; i++)
        if (!want(wishes, rules->items[i], strcspn(rules->items[i], "=")))
            return false;
    return true;
}

static bool want_all(struct ldap_wishes *wishes)
{
    for (size_t i = 0; i < TEXT_COUNT; i++)
        if (!want(wishes, wishes->texts[i], strlen(wishes->texts[i])))
            return false;
    if (!want(wishes, wishes->networks, strlen(wishes->networks)) ||
        !want_rules(wishes, wishes->allow_if) || !want_rules(wishes, wishes->refuse_if))
        return false;
    wishes->any = wishes->attribute_count > 0;
    return wishes->any || want(wishes, LDAP_NO_ATTRS, strlen(LDAP_NO_ATTRS));
}

struct ldap_wishes *ldap_wishes_open(const struct conf_ldap *conf)
{
    size_t most = TEXT_COUNT + 1 + conf->allow_if.count + conf->refuse_if.count;
    struct ldap_wishes *wishes = mem_new(sizeof *wishes);

    if (wishes == NULL)
        return NULL;
    wishes->texts[TEXT_USER] = conf->user_attribute;
    wishes->texts[TEXT_BACKEND_USER] = conf->backend_user_attribute;
    wishes->texts[TEXT_SHARD] = conf->shard_attribute;
    wishes->networks = conf->networks_attribute;
    wishes->allow_if = &conf->allow_if;
    wishes->refuse_if = &conf->refuse_if;
    wishes->attributes = mem_array(most + 2, sizeof *wishes->attributes);
    if (wishes->attributes == NULL) {
        mem_free(wishes);
        return NULL;
    }
    if (!want_all(wishes))
        ldap_wishes_close(&wishes);
    return wishes;
}

void ldap_wishes_close(struct ldap_wishes **wishes)
{
    struct ldap_wishes *w = *wishes;

    *wishes = NULL;
    if (w == NULL)
        return;
    for (size_t i = 0; i < w->attribute_count; i++)
        mem_free(w->attributes[i]);
    mem_free(w->attributes);
    mem_free(w);
}

bool ldap_wishes_any(const struct ldap_wishes *wishes)
{
    return wishes->any;
}

char **ldap_wishes_attributes(const struct ldap_wishes *wishes)
{
    return wishes->attributes;
}

/* --- what is found --- */

static void log_fault(const struct reading *reading, struct span attribute, const char *fault)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_ERROR, "ldap entry unusable");
    log_text(&line, "user", reading->user);
    log_span(&line, "attribute", attribute);
    log_text(&line, "detail", fault);
    log_write(&line);
}

static void fail(struct reading *reading, struct span attribute, const char *fault)
{
    if (reading->err.kind != ERR_NONE)
        return;
    log_fault(reading, attribute, fault);
    err_set(&reading->err, ERR_INTERNAL, "ldap: the user's entry is unusable");
}

static bool has_control(struct span text)
{
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] < 0x20 || text.ptr[i] == 0x7f)
            return true;
    return false;
}

static void read_text(struct reading *reading, enum text which, struct span name,
                      const struct berval *values)
{
    char *text = reading->texts[which];

    if (values == NULL || values[0].bv_val == NULL)
        return;

    struct span value = {values[0].bv_val, values[0].bv_len};

    if (values[1].bv_val != NULL || text[0] != '\0')
        fail(reading, name, "it has several values");
    else if (value.len > text_max[which] || has_control(value))
        fail(reading, name, "its value is too long, or holds control characters");
    else
        snprintf(text, sizeof reading->texts[which], "%.*s", SPAN_ARG(value));
}

static bool read_network(struct reading *reading, struct span word)
{
    char text[NETWORK_TEXT_MAX + 1];

    if (word.len > NETWORK_TEXT_MAX || reading->network_count == NETWORKS_MAX)
        return false;
    memcpy(text, word.ptr, word.len);
    text[word.len] = '\0';
    return strlen(text) == word.len &&
           network_parse(text, &reading->networks[reading->network_count++]);
}

static bool is_separator(char ch)
{
    return ch == ',' || ch == ' ' || ch == '\t' || ch == '\r' || ch == '\n';
}

/* Separated by commas and white space. False when one is none, or when there is none at all. */
static bool read_network_list(struct reading *reading, struct span list)
{
    size_t count = 0;

    while (list.len > 0) {
        size_t len = 0;

        while (len < list.len && !is_separator(list.ptr[len]))
            len++;
        if (len > 0 && !read_network(reading, (struct span){list.ptr, len}))
            return false;
        count += len > 0;
        list = span_after(list, len < list.len ? len + 1 : len);
    }
    return count > 0;
}

static void read_networks(struct reading *reading, struct span name, const struct berval *values)
{
    for (; values != NULL && values->bv_val != NULL; values++)
        if (!read_network_list(reading, (struct span){values->bv_val, values->bv_len})) {
            log_fault(reading, name, "expected networks, as in 192.0.2.0/24");
            reading->networks_bad = true;
            return;
        }
}

/* Whether one of the rules names this attribute with one of its values. */
static bool one_holds(const struct conf_words *rules, struct span name, const struct berval *values)
{
    for (size_t i = 0; i < rules->count; i++) {
        const char *rule = rules->items[i];
        size_t name_len = strcspn(rule, "=");

        if (rule[name_len] == '\0' || name_len != name.len ||
            strncasecmp(rule, name.ptr, name_len) != 0)
            continue;
        for (const struct berval *value = values; value != NULL && value->bv_val != NULL; value++)
            if (span_is((struct span){value->bv_val, value->bv_len}, rule + name_len + 1))
                return true;
    }
    return false;
}

static void read_attribute(struct reading *reading, struct span name, const struct berval *values)
{
    const struct ldap_wishes *wishes = reading->wishes;
    bool asked_for = false;

    for (size_t i = 0; i < wishes->attribute_count; i++)
        asked_for = asked_for || span_is(name, wishes->attributes[i]);
    if (!asked_for) {
        fail(reading, name,
             "it came in place of what was asked for: name it in proxy.conf as the "
             "directory does");
        return;
    }
    for (size_t i = 0; i < TEXT_COUNT; i++)
        if (span_is(name, wishes->texts[i]))
            read_text(reading, (enum text)i, name, values);
    if (span_is(name, wishes->networks))
        read_networks(reading, name, values);
    reading->allowed = reading->allowed || one_holds(wishes->allow_if, name, values);
    reading->refused = reading->refused || one_holds(wishes->refuse_if, name, values);
}

static void read_attributes(struct reading *reading, LDAP *ldap, LDAPMessage *entry)
{
    BerElement *ber = NULL;
    struct berval dn, name, *values = NULL;
    int code = ldap_get_dn_ber(ldap, entry, &ber, &dn);

    while (code == LDAP_SUCCESS) {
        code = ldap_get_attribute_ber(ldap, entry, ber, &name, &values);
        if (code != LDAP_SUCCESS || name.bv_val == NULL)
            break;
        read_attribute(reading, (struct span){name.bv_val, name.bv_len}, values);
        ber_memfree(values);
        values = NULL;
    }
    ber_free(ber, 0);
    if (code != LDAP_SUCCESS) /* also without memory */
        fail(reading, span_of(""), ldap_err2string(code));
}

/* The facts, if there is anything to tell. */
static struct auth_facts *make_facts(struct reading *reading)
{
    const struct auth_facts facts = {.user = reading->texts[TEXT_USER],
                                     .backend_user = reading->texts[TEXT_BACKEND_USER],
                                     .shard = reading->texts[TEXT_SHARD],
                                     .network_count = reading->network_count};
    struct auth_facts *copy;

    if (facts.user[0] == '\0' && facts.backend_user[0] == '\0' && facts.shard[0] == '\0' &&
        facts.network_count == 0)
        return NULL;
    copy = auth_facts_new(&facts, reading->networks);
    if (copy == NULL)
        err_set(&reading->err, ERR_INTERNAL, "ldap: no memory");
    return copy;
}

void ldap_wishes_read(const struct ldap_wishes *wishes, LDAP *ldap, LDAPMessage *entry,
                      const char *user, struct auth_facts **facts_out, struct err *err_out)
{
    struct reading reading = {.wishes = wishes, .user = user};

    *facts_out = NULL;
    *err_out = (struct err){0};
    if (!wishes->any)
        return;
    read_attributes(&reading, ldap, entry);
    if (reading.networks_bad) { /* no client has this address */
        reading.network_count = 1;
        network_parse("::/128", &reading.networks[0]);
    }
    if (reading.err.kind == ERR_NONE &&
        (reading.refused || (wishes->allow_if->count > 0 && !reading.allowed)))
        err_set(&reading.err, ERR_ADMIN, "ldap: the user's entry does not allow it");
    if (reading.err.kind == ERR_NONE)
        *facts_out = make_facts(&reading);
    *err_out = reading.err;
}
