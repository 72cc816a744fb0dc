/* URLs that stores refer to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "proxy/imap/url.h"

static void good(const char *text, const char *user, const char *host, uint16_t port)
{
    struct url url;

    assert_true(url_parse(span_of(text), &url));
    assert_string_equal(url.user, user);
    assert_string_equal(url.host, host);
    assert_int_equal(url.port, port);
}

static void bad(struct span text)
{
    struct url url;

    assert_false(url_parse(text, &url));
}

static void what_servers_write(void **state)
{
    (void)state;
    good("imap://MIKE@SERVER2/", "MIKE", "SERVER2", 0); /* RFC 2221 4 */
    good("imap://user;AUTH=*@SERVER2/", "user", "SERVER2", 0);
    good("IMAP://matthew;auth=GSSAPI@server2/", "matthew", "server2", 0);
    good("imap://ann;AUTH=PLAIN@blue.example.org:1143/", "ann", "blue.example.org", 1143);
    good("imap://ann@[2001:db8::1]:1143/", "ann", "2001:db8::1", 1143);
    good("imap://ann@[::1]/", "ann", "::1", 0);
    good("imap://ann@192.0.2.1", "ann", "192.0.2.1", 0);
    good("imap://blue.example.org/", "", "blue.example.org", 0);
    good("imap://;AUTH=*@blue.example.org/", "", "blue.example.org", 0);
    good("imap://ann@blue/INBOX;UIDVALIDITY=1/;UID=2@x:9", "ann", "blue", 0);
}

static void users_are_decoded(void **state)
{
    (void)state;
    good("imap://ann%40example.org@blue/", "ann@example.org", "blue", 0);
    good("imap://ann@example.org;AUTH=PLAIN@blue:143/", "ann@example.org", "blue", 143);
    good("imap://%61%4e%4Ea;AUTH=*@blue/", "aNNa", "blue", 0);
    good("imap://b%c3%b6rn%3b%2f@blue/", "b\xc3\xb6rn;/", "blue", 0);
    good("imap://a%2520b@blue/", "a%20b", "blue", 0);
}

static void what_is_no_url(void **state)
{
    static const char *const texts[] = {
        "",
        "imap:/",
        "imap://",
        "imap:///",
        "imap://@/",
        "imap://ann@/",
        "imap://ann@:143/",
        "imaps://ann@blue/",
        "http://ann@blue/",
        "ann@blue",
        "imap://ann@blue:0/",
        "imap://ann@blue:65536/",
        "imap://ann@blue:x/",
        "imap://ann@blue:143 /",
        "imap://ann@blue.example.org%2f/",
        "imap://ann@b lue/",
        "imap://ann@[::1/",
        "imap://ann@::1/",
        "imap://ann@[blue]/",
        "imap://ann@[::1]x/",
        "imap://ann%4@blue/",
        "imap://ann%@blue/",
        "imap://ann%4g@blue/",
        "imap://ann%00@blue/",
        "imap://ann%0d%0ax@blue/",
        "imap://ann%7f@blue/",
        "imap://a\tnn@blue/",
        "imap://ann@blue?x/",
        "imap://ann@blue imap://ann@red/",
    };

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        bad(span_of(texts[i]));
    bad((struct span){"imap://ann@blue\0/", 17});
    bad((struct span){"imap://a\0nn@blue/", 17});
}

static void all_is_bounded(void **state)
{
    char text[2 * URL_MAX], name[2 * HOST_MAX];
    struct url url;

    (void)state;
    memset(name, 'a', sizeof name);
    snprintf(text, sizeof text, "imap://%.*s@blue/", URL_USER_MAX, name);
    assert_true(url_parse(span_of(text), &url));
    snprintf(text, sizeof text, "imap://%.*s@blue/", URL_USER_MAX + 1, name);
    bad(span_of(text));
    snprintf(text, sizeof text, "imap://ann@%.*s/", HOST_MAX - 1, name);
    assert_true(url_parse(span_of(text), &url));
    snprintf(text, sizeof text, "imap://ann@%.*s/", HOST_MAX, name);
    bad(span_of(text));
    snprintf(text, sizeof text, "imap://ann@blue/%*s", URL_MAX, "x");
    bad(span_of(text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_servers_write),
        cmocka_unit_test(users_are_decoded),
        cmocka_unit_test(what_is_no_url),
        cmocka_unit_test(all_is_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
