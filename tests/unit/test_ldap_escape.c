/* User names in filters and DNs. */
#include "auth/ldap/escape.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
/* after its friends */
#include <cmocka.h>

static void check(enum ldap_escape_kind kind, const char *pattern, const char *user,
                  const char *expected)
{
    struct err err = {0};
    struct buf out;

    buf_init(&out, 200);

    bool ok = ldap_escape_expand(pattern, span_of(user), kind, &out, &err);

    assert_int_equal(ok, expected != NULL);
    if (ok)
        assert_true(span_equal(buf_span(&out), span_of(expected)));
    else
        assert_int_equal(err.kind, ERR_CONFIG);
    buf_release(&out);
}

static void filters(void **state)
{
    (void)state;
    check(LDAP_ESCAPE_FILTER, "(uid=%{user})", "ann", "(uid=ann)");
    check(LDAP_ESCAPE_FILTER, "(uid=%{user})", "*)(uid=*", "(uid=\\2a\\29\\28uid=\\2a)");
    check(LDAP_ESCAPE_FILTER, "(uid=%{user})", "a\\b\n\x7f", "(uid=a\\5cb\\0a\\7f)");
    check(LDAP_ESCAPE_FILTER, "(cn=%{user})", "b\xc3\xa4r", "(cn=b\xc3\xa4r)");
    check(LDAP_ESCAPE_FILTER, "(&(uid=%{username})(dc=%{domain}))", "a@b@c.d",
          "(&(uid=a@b)(dc=c.d))");
    check(LDAP_ESCAPE_FILTER, "%{username}/%{domain}/%{user}", "ann", "ann//ann");
    check(LDAP_ESCAPE_FILTER, "100%%%%", "ann", "100%%");
    check(LDAP_ESCAPE_FILTER, "%{user}%{user}", "%{user}", "%{user}%{user}");
}

static void names(void **state)
{
    (void)state;
    check(LDAP_ESCAPE_DN, "uid=%{user},dc=example", "ann", "uid=ann,dc=example");
    check(LDAP_ESCAPE_DN, "uid=%{user},dc=x", "a,dc=y", "uid=a\\2cdc\\3dy,dc=x");
    check(LDAP_ESCAPE_DN, "uid=%{user}", "# \"+;<>\\", "uid=\\23\\20\\22\\2b\\3b\\3c\\3e\\5c");
}

static void nul_is_escaped(void **state)
{
    struct buf out;

    (void)state;
    buf_init(&out, 20);
    assert_true(ldap_escape_filter((struct span){"a\0b", 3}, &out));
    assert_true(span_equal(buf_span(&out), span_of("a\\00b")));
    buf_release(&out);
    assert_true(ldap_escape_dn((struct span){"a\0b", 3}, &out));
    assert_true(span_equal(buf_span(&out), span_of("a\\00b")));
    buf_release(&out);
}

static void bad_templates(void **state)
{
    static const char *const bad[] = {"%",        "%{", "%{user",   "%{}",
                                      "%{users}", "%u", "x%{User}", "%{user}%"};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        check(LDAP_ESCAPE_FILTER, bad[i], "ann", NULL);
}

/* A DN's values are not empty, a filter's may be. */
static void missing_parts(void **state)
{
    struct err err = {0};
    struct buf out;

    (void)state;
    check(LDAP_ESCAPE_FILTER, "(o=%{domain})", "ann", "(o=)");
    buf_init(&out, 100);
    assert_false(ldap_escape_expand("o=%{domain}", span_of("ann"), LDAP_ESCAPE_DN, &out, &err));
    assert_int_equal(err.kind, ERR_CREDENTIALS);
    assert_false(ldap_escape_expand("o=%{username}", span_of("@a"), LDAP_ESCAPE_DN, &out, &err));
    assert_int_equal(err.kind, ERR_CREDENTIALS);
    buf_release(&out);
}

static void ceiling_holds(void **state)
{
    struct err err = {0};
    struct buf out;

    (void)state;
    buf_init(&out, 5);
    assert_false(ldap_escape_expand("%{user}", span_of("ann**"), LDAP_ESCAPE_FILTER, &out, &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(filters),        cmocka_unit_test(names),
        cmocka_unit_test(nul_is_escaped), cmocka_unit_test(bad_templates),
        cmocka_unit_test(missing_parts),  cmocka_unit_test(ceiling_holds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
