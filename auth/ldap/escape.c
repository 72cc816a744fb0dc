/* Owns the escaping of LDAP strings and the variables of their templates. */
#include "auth/ldap/escape.h"

#include <assert.h>

static bool escape(struct span value, const char *specials, struct buf *out);
static bool expand_variable(const char **pattern, struct span user, enum ldap_escape_kind kind,
                            struct buf *out, struct err *err);
static struct span variable_value(struct span name, struct span user);
static bool too_long(struct err *err);

bool ldap_escape_filter(struct span value, struct buf *out)
{
    return escape(value, "()*\\", out);
}

/* Spaces and "#" need it only at the ends of a value, but a template may put a value there. */
bool ldap_escape_dn(struct span value, struct buf *out)
{
    return escape(value, "\"+,;<=>\\ #", out);
}

/* Both grammars take backslash and two hexadecimal digits for any octet; control characters always
 * go that way. */
static bool escape(struct span value, const char *specials, struct buf *out)
{
    for (size_t i = 0; i < value.len; i++) {
        unsigned char ch = (unsigned char)value.ptr[i];
        bool special = ch < 0x20 || ch == 0x7f || strchr(specials, ch) != NULL;

        if (special ? !buf_printf(out, "\\%02x", ch)
                    : !buf_append(out, (struct span){value.ptr + i, 1}))
            return false;
    }
    return true;
}

bool ldap_escape_expand(const char *pattern, struct span user, enum ldap_escape_kind kind,
                        struct buf *out, struct err *err)
{
    while (*pattern != '\0') {
        size_t plain = strcspn(pattern, "%");

        if (!buf_append(out, (struct span){pattern, plain}))
            return too_long(err);
        pattern += plain;
        if (*pattern == '%' && !expand_variable(&pattern, user, kind, out, err))
            return false;
    }
    return true;
}

/* *pattern stands on a percent sign and moves behind what it begins. */
static bool expand_variable(const char **pattern, struct span user, enum ldap_escape_kind kind,
                            struct buf *out, struct err *err)
{
    const char *text = *pattern;

    if (text[1] == '%') {
        *pattern += 2;
        return buf_append_text(out, "%") || too_long(err);
    }

    size_t length = text[1] == '{' ? strcspn(text + 2, "}") : 0;
    struct span value = {NULL, 0};

    if (length > 0 && text[2 + length] == '}')
        value = variable_value((struct span){text + 2, length}, user);
    if (value.ptr == NULL)
        return err_set(err, ERR_CONFIG,
                       "expected %%{user}, %%{username}, %%{domain} or %%%%, found \"%.20s\"",
                       text);
    if (kind == LDAP_ESCAPE_DN && value.len == 0)
        return err_set(err, ERR_CREDENTIALS, "the name has no such part");
    *pattern += 2 + length + 1;
    return (kind == LDAP_ESCAPE_DN ? ldap_escape_dn(value, out) : ldap_escape_filter(value, out)) ||
           too_long(err);
}

/* A span without address for an unknown name. */
static struct span variable_value(struct span name, struct span user)
{
    assert(user.ptr != NULL);

    const char *at = user.len == 0 ? NULL : memrchr(user.ptr, '@', user.len);
    size_t local_len = at == NULL ? user.len : (size_t)(at - user.ptr);

    if (span_equal(name, span_of("user")))
        return user;
    if (span_equal(name, span_of("username")))
        return (struct span){user.ptr, local_len};
    if (span_equal(name, span_of("domain")))
        return at == NULL ? span_of("") : span_after(user, local_len + 1);
    return (struct span){NULL, 0};
}

static bool too_long(struct err *err)
{
    return err_set(err, ERR_LIMIT, "the expanded text is too long");
}
