/*
 * User names: what is accepted holds only what may be in a name, is its own normal form, and comes
 * out of every spelling that differs in case. The first octet chooses the settings.
 */
#include <assert.h>
#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>

#include "auth/username.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@+='";
static char none[] = "", domain[] = "example.org";
static char renamed[] = "old.example=new.example", stripped[] = "gone.example=";
static char *map[] = {renamed, stripped};

static struct conf_username settings(uint8_t choice)
{
    return (struct conf_username){
        .lowercase = choice & 1,
        .utf8 = choice & 2,
        .default_domain = choice & 4 ? domain : none,
        .domain_map = {map, choice & 8 ? 2 : 0},
        .max_length = choice & 16 ? 20 : 255,
        .allowed = allowed,
    };
}

/* Octets of the character at `at`, decoded and encoded again: 0 if that gives other octets. */
static size_t character_len(const uint8_t *at)
{
    size_t len = at[0] < 0x80 ? 1 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
    uint32_t code = len == 1 ? at[0] : at[0] & (0x7fu >> len);

    for (size_t i = 1; i < len; i++) {
        if (at[i] >> 6 != 2)
            return 0;
        code = code << 6 | (at[i] & 0x3f);
    }

    size_t shortest = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    bool is_surrogate = code >= 0xd800 && code < 0xe000;

    return shortest == len && !is_surrogate && code <= 0x10ffff && (len == 1 || at[0] >= 0xc0) ? len
                                                                                               : 0;
}

static void check_name(const struct conf_username *conf, const char *name)
{
    size_t len = strlen(name);
    const char *at = strrchr(name, '@');

    assert(len > 0 && len <= (size_t)conf->max_length);
    assert(at == NULL || (at > name && at[1] != '\0'));
    assert(at != NULL || conf->default_domain[0] == '\0');
    for (const uint8_t *ch = (const uint8_t *)name; *ch != '\0';) {
        size_t octets = character_len(ch);

        assert(octets > 0 && (octets > 1 ? conf->utf8 : strchr(allowed, *ch) != NULL));
        assert(!conf->lowercase || !isupper(*ch));
        ch += octets;
    }
}

/* Whether the name is so plain that nobody could object to it. */
static bool is_plain(struct span raw)
{
    for (size_t i = 0; i < raw.len; i++)
        if (raw.ptr[i] == '\0' || raw.ptr[i] == '@' || strchr(allowed, raw.ptr[i]) == NULL)
            return false;
    return raw.len > 0 && raw.len <= 8; /* with the default domain still below max_length */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[USERNAME_MAX + 1], again[USERNAME_MAX + 1], upper[USERNAME_MAX];

    if (size < 1)
        return 0;

    struct conf_username conf = settings(data[0]);
    struct span raw = {(const char *)data + 1, size - 1};

    if (!username_normalise(&conf, raw, name)) {
        assert(!is_plain(raw));
        return 0;
    }
    check_name(&conf, name);
    if (strchr(name, '@') == strrchr(name, '@') &&
        memchr(raw.ptr, '@', raw.len) == memrchr(raw.ptr, '@', raw.len))
        assert(username_normalise(&conf, span_of(name), again) && strcmp(name, again) == 0);
    for (size_t i = 0; i < raw.len; i++)
        upper[i] = (char)toupper(data[i + 1]); /* in the C locale: ASCII alone */
    if (conf.lowercase)
        assert(username_normalise(&conf, (struct span){upper, raw.len}, again) &&
               strcmp(name, again) == 0);
    return 0;
}
