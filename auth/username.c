/*
 * Owns the rules that make a user name uniform. The steps run in the order of the header: a domain
 * that the map strips is therefore replaced by the default domain, if there is one.
 */
#include "auth/username.h"

#include <assert.h>
#include <stdint.h>

/* A name being built; `bytes` is the caller's user_out. */
struct name {
    char *bytes;
    size_t len;
};

static void fold_case(struct name *name);
static bool map_domain(struct name *name, const struct conf_words *map);
static bool set_domain(struct name *name, size_t local_len, struct span domain);
static const char *find_at(const struct name *name);
static bool chars_allowed(const struct conf_username *conf, const struct name *name);
static size_t utf8_length(const uint8_t *bytes, size_t left);

bool username_normalise(const struct conf_username *conf, struct span raw,
                        char user_out[USERNAME_MAX + 1])
{
    struct name name = {user_out, raw.len};

    user_out[0] = '\0';
    if (raw.len == 0 || raw.len > USERNAME_MAX || memchr(raw.ptr, '\0', raw.len) != NULL)
        return false;
    memcpy(user_out, raw.ptr, raw.len);
    user_out[raw.len] = '\0';
    if (conf->lowercase)
        fold_case(&name);
    if (!map_domain(&name, &conf->domain_map))
        return false;
    if (conf->default_domain[0] != '\0' && find_at(&name) == NULL &&
        !set_domain(&name, name.len, span_of(conf->default_domain)))
        return false;

    const char *at = find_at(&name);
    bool both_parts = at == NULL || (at > name.bytes && at[1] != '\0');

    return both_parts && name.len <= (size_t)conf->max_length && chars_allowed(conf, &name);
}

static void fold_case(struct name *name)
{
    for (size_t i = 0; i < name->len; i++)
        if (name->bytes[i] >= 'A' && name->bytes[i] <= 'Z')
            name->bytes[i] = (char)(name->bytes[i] - 'A' + 'a');
}

/* The last "@": a local part may hold others. */
static const char *find_at(const struct name *name)
{
    return memrchr(name->bytes, '@', name->len);
}

/* Applies the first pair whose `from` is the name's domain, once. */
static bool map_domain(struct name *name, const struct conf_words *map)
{
    const char *at = find_at(name);

    if (at == NULL)
        return true;
    for (size_t i = 0; i < map->count; i++) {
        const char *equals = strchr(map->items[i], '=');

        if (equals == NULL)
            continue;

        size_t from_len = (size_t)(equals - map->items[i]);

        if (from_len == strlen(at + 1) && strncasecmp(at + 1, map->items[i], from_len) == 0)
            return set_domain(name, (size_t)(at - name->bytes), span_of(equals + 1));
    }
    return true;
}

/* Cuts the name after its local part and appends @domain, or nothing for an empty domain. */
static bool set_domain(struct name *name, size_t local_len, struct span domain)
{
    assert(local_len <= name->len);
    name->len = local_len;
    name->bytes[local_len] = '\0';
    if (domain.len == 0)
        return local_len > 0;
    if (domain.len >= USERNAME_MAX - local_len) /* one byte goes to the "@" */
        return false;
    name->bytes[local_len] = '@';
    memcpy(name->bytes + local_len + 1, domain.ptr, domain.len);
    name->len = local_len + 1 + domain.len;
    name->bytes[name->len] = '\0';
    return true;
}

static bool chars_allowed(const struct conf_username *conf, const struct name *name)
{
    const uint8_t *bytes = (const uint8_t *)name->bytes;

    for (size_t i = 0; i < name->len;) {
        size_t length = 1;

        if (bytes[i] < 0x80) {
            if (strchr(conf->allowed, bytes[i]) == NULL)
                return false;
        } else {
            length = conf->utf8 ? utf8_length(bytes + i, name->len - i) : 0;
        }
        if (length == 0)
            return false;
        i += length;
    }
    return true;
}

/* Bytes of the character beyond ASCII that starts here (RFC 3629 4); 0 when it is ill-formed. */
static size_t utf8_length(const uint8_t *bytes, size_t left)
{
    uint8_t lead = bytes[0], low = 0x80, high = 0xbf;
    size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;

    if (lead < 0xc2 || lead > 0xf4 || left < length)
        return 0;
    if (lead == 0xe0)
        low = 0xa0; /* below: overlong */
    else if (lead == 0xed)
        high = 0x9f; /* above: surrogates */
    else if (lead == 0xf0)
        low = 0x90; /* below: overlong */
    else if (lead == 0xf4)
        high = 0x8f; /* above: beyond U+10FFFF */
    if (bytes[1] < low || bytes[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
    return length;
}
