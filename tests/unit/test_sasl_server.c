/*
 * The exchanges of all mechanisms: tables of messages, good and bad. In them "^A" stands for octet
 * 1 and "^0" for a NUL, and what an exchange led to is one text.
 */
#include "auth/sasl_server.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
/* after its friends */
#include <cmocka.h>

#include <jansson.h>

struct bench {
    struct sasl_server server;
    struct sasl_credentials who;
    struct buf challenge;
};

static void bench_start(struct bench *b, const char *mechanism)
{
    buf_release(&b->challenge);
    buf_init(&b->challenge, 4096);
    assert_true(sasl_server_start(&b->server, sasl_mechanism_name(span_of(mechanism)), &b->who,
                                  &b->challenge));
}

static void bench_release(struct bench *b)
{
    buf_release(&b->challenge);
    secret_release(&b->who.secret);
    *b = (struct bench){0};
}

static enum sasl_outcome step(struct bench *b, struct span message)
{
    /* A copy of this very size: reading behind it is noticed. */
    char *copy = malloc(message.len > 0 ? message.len : 1);
    enum sasl_outcome outcome;

    assert_non_null(copy);
    if (message.len > 0)
        memcpy(copy, message.ptr, message.len);
    buf_release(&b->challenge);
    outcome = sasl_server_step(&b->server, (struct span){copy, message.len}, &b->challenge);
    free(copy);
    if (outcome == SASL_CHALLENGE) {
        assert_non_null(b->server.mechanism);
    } else {
        assert_null(b->server.mechanism);
        assert_int_equal(buf_len(&b->challenge), 0);
    }
    return outcome;
}

/* The text with its "^A" and "^0" as octets. */
static struct span octets(const char *text)
{
    static char bytes[4096];
    size_t len = 0;

    for (; *text != '\0'; text++) {
        bool special = text[0] == '^' && (text[1] == 'A' || text[1] == '0');

        bytes[len++] = special ? (char)(text[1] == 'A') : *text;
        text += special;
    }
    return (struct span){bytes, len};
}

static enum sasl_outcome step_text(struct bench *b, const char *message)
{
    return step(b, octets(message));
}

/* "password of ann as bob: secret"; "no" if it was refused. */
static const char *told(const struct bench *b, enum sasl_outcome outcome)
{
    static const char *const proofs[] = {
        [AUTH_BY_PASSWORD] = "password",
        [AUTH_BY_CERTIFICATE] = "certificate",
        [AUTH_BY_TOKEN] = "token",
    };
    static char text[2048];

    if (outcome == SASL_REFUSED)
        return "no";
    assert_int_equal(outcome, SASL_IDENTIFIED);
    snprintf(text, sizeof text, "%s of <%s> as <%s>: %.*s", proofs[b->who.proof], b->who.user,
             b->who.login_as, (int)b->who.secret.len,
             b->who.secret.bytes == NULL ? "" : b->who.secret.bytes);
    return text;
}

static void expect(const char *mechanism, const char *message, const char *expected)
{
    struct bench b = {0};

    if (strcmp(mechanism, "EXTERNAL") == 0)
        snprintf(b.who.user, sizeof b.who.user, "cert");
    bench_start(&b, mechanism);

    const char *got = told(&b, step_text(&b, message));

    if (strcmp(got, expected) != 0)
        fail_msg("%s \"%s\": %s, not %s", mechanism, message, got, expected);
    bench_release(&b);
}

struct row {
    const char *message, *expected;
};

static void expect_all(const char *mechanism, const struct row *rows, size_t count)
{
    for (size_t i = 0; i < count; i++)
        expect(mechanism, rows[i].message, rows[i].expected);
}

#define EXPECT_ALL(mechanism, rows) expect_all(mechanism, rows, sizeof(rows) / sizeof(rows)[0])

static void names_of_mechanisms(void **state)
{
    static const char *const known[] = {"PLAIN", "LOGIN", "EXTERNAL", "OAUTHBEARER", "XOAUTH2"};
    static const char *const unknown[] = {"",       "PLAI",    "PLAINX",        " PLAIN",
                                          "PLAIN ", "XOAUTH",  "SCRAM-SHA-256", "ANONYMOUS",
                                          "NTLM",   "EXTERNA", "GS2-PLAIN",     "OAUTHBEARER-PLUS"};
    char lower[16];

    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        assert_string_equal(sasl_mechanism_name(span_of(known[i])), known[i]);
        for (size_t c = 0; c <= strlen(known[i]); c++)
            lower[c] = (char)(known[i][c] | (known[i][c] >= 'A' ? 0x20 : 0));
        assert_string_equal(sasl_mechanism_name(span_of(lower)), known[i]);
    }
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
        assert_null(sasl_mechanism_name(span_of(unknown[i])));
    assert_null(sasl_mechanism_name((struct span){"PLAIN\0", 6}));
}

/* RFC 4616 4 has the first two. */
static void plain(void **state)
{
    static const struct row rows[] = {
        {"^0tim^0tanstaaftanstaaf", "password of <tim> as <>: tanstaaftanstaaf"},
        {"Ursel^0Kurt^0xipj3plmq", "password of <Kurt> as <Ursel>: xipj3plmq"},
        {"tim^0tim^0x", "password of <tim> as <tim>: x"}, /* the session compares */
        {"^0t m^0 x ", "password of <t m> as <>:  x "},
        {"^0\xc3\xa4^0\xc3\xa4", "password of <\xc3\xa4> as <>: \xc3\xa4"},
        {"", "no"},
        {"^0", "no"},
        {"^0^0", "no"},
        {"^0^0x", "no"},
        {"^0tim^0", "no"},
        {"tim", "no"},
        {"tim^0x", "no"},
        {"^0tim^0x^0", "no"},
        {"^0tim^0x^0y", "no"},
        {"^0^0tim^0x", "no"},
    };

    (void)state;
    EXPECT_ALL("PLAIN", rows);
}

static void external(void **state)
{
    static const struct row rows[] = {
        {"", "certificate of <cert> as <>: "},
        {"ann", "certificate of <cert> as <ann>: "},
        {"cert", "certificate of <cert> as <cert>: "},
        {"^0", "no"},
        {"ann^0", "no"},
        {"^0ann^0x", "no"}, /* PLAIN's */
    };

    (void)state;
    EXPECT_ALL("EXTERNAL", rows);
}

/* RFC 7628 4.1 has the first. */
static void oauthbearer(void **state)
{
    static const struct row rows[] = {
        {"n,a=user@example.com,^Ahost=server.example.com^Aport=143^A"
         "auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==^A^A",
         "token of <> as <user@example.com>: vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="},
        {"n,,^Aauth=Bearer t^A^A", "token of <> as <>: t"},
        {"y,,^Aauth=Bearer t^A^A", "token of <> as <>: t"},
        {"N,A=ann,^AAuth=bEARER t^A^A", "token of <> as <ann>: t"}, /* ABNF knows no case */
        {"n,a=a=2Cb=3Dc,^Aauth=Bearer t^A^A", "token of <> as <a,b=c>: t"},
        {"n,a=\xc3\xa4,^Aauth=Bearer t^A^A", "token of <> as <\xc3\xa4>: t"},
        {"n,,^Ax=y^Aauth=Bearer t^A^A", "token of <> as <>: t"},
        {"n,,^Aauth=Bearer t^Ax=y^A^A", "token of <> as <>: t"},
        {"n,,^Aauth=Bearer t^Auser=bob^A^A", "token of <> as <>: t"}, /* that is XOAUTH2's */
        {"n,a=ann,^Aauth=Bearer a-._~+/=!^A^A", "token of <> as <ann>: a-._~+/=!"},
        /* the header */
        {"", "no"},
        {"^A", "no"},
        {"^Aauth=Bearer t^A^A", "no"},
        {"n", "no"},
        {"n,", "no"},
        {"n,,", "no"},
        {"n,a=ann", "no"},
        {"n,a=ann^Aauth=Bearer t^A^A", "no"},
        {"n^Aauth=Bearer t^A^A", "no"},
        {"x,,^Aauth=Bearer t^A^A", "no"},
        {",,^Aauth=Bearer t^A^A", "no"},
        {"nn,,^Aauth=Bearer t^A^A", "no"},
        {"p=tls-unique,,^Aauth=Bearer t^A^A", "no"}, /* channel binding, which nobody offers */
        {"p,,^Aauth=Bearer t^A^A", "no"},
        {"F,n,,^Aauth=Bearer t^A^A", "no"},
        {"n,ann,^Aauth=Bearer t^A^A", "no"},
        {"n,a,^Aauth=Bearer t^A^A", "no"},
        {"n,b=ann,^Aauth=Bearer t^A^A", "no"},
        {"n,,,^Aauth=Bearer t^A^A", "no"},
        {"n,a=ann,x^Aauth=Bearer t^A^A", "no"},
        /* the name */
        {"n,a=,^Aauth=Bearer t^A^A", "no"},
        {"n,a=a=b,^Aauth=Bearer t^A^A", "no"},
        {"n,a=a=,^Aauth=Bearer t^A^A", "no"},
        {"n,a=a=2,^Aauth=Bearer t^A^A", "no"},
        {"n,a=a=20,^Aauth=Bearer t^A^A", "no"},
        {"n,a=a=2E,^Aauth=Bearer t^A^A", "no"},
        {"n,a=a^0b,^Aauth=Bearer t^A^A", "no"},
        {"n,a=a=00,^Aauth=Bearer t^A^A", "no"},
        /* the pairs */
        {"n,,^A", "no"},
        {"n,,^A^A", "no"}, /* asks what is wanted (RFC 7628 3.2.3): told by the refusal */
        {"n,,auth=Bearer t^A^A", "no"},
        {"n,,^Aauth=Bearer t", "no"},
        {"n,,^Aauth=Bearer t^A", "no"},
        {"n,,^Aauth=Bearer t^A^A^A", "no"},
        {"n,,^Aauth=Bearer t^A^Ax", "no"},
        {"n,,^Aauth=Bearer t^Ax", "no"},
        {"n,,^A^Aauth=Bearer t^A^A", "no"},
        {"n,,^Ahost=h^A^A", "no"},
        {"n,,^Aauth=Bearer t^Aauth=Bearer u^A^A", "no"}, /* which? */
        {"n,,^Aauth=^Aauth=Bearer u^A^A", "no"},
        /* the token */
        {"n,,^Aauth=^A^A", "no"},
        {"n,,^Aauth=Bearer^A^A", "no"},
        {"n,,^Aauth=Bearer ^A^A", "no"},
        {"n,,^Aauth=Bearer  t^A^A", "no"},
        {"n,,^Aauth=Bearer t t^A^A", "no"},
        {"n,,^Aauth=Bearer t\t^A^A", "no"},
        {"n,,^Aauth=Bearer t\r\n^A^A", "no"},
        {"n,,^Aauth=Bearer t^0^A^A", "no"},
        {"n,,^Aauth=Bearer \xc3\xa4^A^A", "no"},
        {"n,,^Aauth=Bearer \x7f^A^A", "no"},
        {"n,,^Aauth=Basic dDp0^A^A", "no"},
        {"n,,^Aauth=t^A^A", "no"},
    };

    (void)state;
    EXPECT_ALL("OAUTHBEARER", rows);
}

/* The first is Google's example, with another token. */
static void xoauth2(void **state)
{
    static const struct row rows[] = {
        {"user=someuser@example.com^Aauth=Bearer ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg^A^A",
         "token of <> as <someuser@example.com>: ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"},
        {"auth=Bearer t^Auser=ann^A^A", "token of <> as <ann>: t"},
        {"USER=ann^AAUTH=bearer t^A^A", "token of <> as <ann>: t"},
        {"user=a=2Cb,c^Aauth=Bearer t^A^A", "token of <> as <a=2Cb,c>: t"}, /* no escapes here */
        {"user=^Aauth=Bearer t^A^A", "token of <> as <>: t"},
        {"auth=Bearer t^A^A", "token of <> as <>: t"},
        {"x=y^Auser=ann^Aauth=Bearer t^Aauthx=y^A^A", "token of <> as <ann>: t"},
        {"", "no"},
        {"^A", "no"},
        {"^A^A", "no"},
        {"user=ann", "no"},
        {"user=ann^A^A", "no"},
        {"user=ann^Aauth=Bearer t", "no"},
        {"user=ann^Aauth=Bearer t^A", "no"},
        {"user=ann^Aauth=Bearer t^A^A^A", "no"},
        {"user=ann^A^Aauth=Bearer t^A^A", "no"},
        {"user=ann^Aauth=Bearer t^Ax", "no"},
        {"user=ann^0^Aauth=Bearer t^A^A", "no"},
        {"user=^0^Aauth=Bearer t^A^A", "no"},
        {"user=ann^Auser=bob^Aauth=Bearer t^A^A", "no"}, /* who? */
        {"user=ann^Auser=^Aauth=Bearer t^A^A", "no"},
        {"user=^Auser=ann^Aauth=Bearer t^A^A", "no"},
        {"user=ann^Aauth=Bearer t^Auser=bob^A^A", "no"},
        {"user=ann^Aauth=Bearer t^Aauth=Bearer t^A^A", "no"},
        {"user=ann^Aauth=Bearer ^A^A", "no"},
        {"n,a=ann,^Aauth=Bearer t^A^A", "token of <> as <>: t"}, /* a pair that means nothing */
    };

    (void)state;
    EXPECT_ALL("XOAUTH2", rows);
}

static void login_in_two_steps(void **state)
{
    static const struct {
        const char *user, *password, *expected;
    } rows[] = {
        {"ann", "secret", "password of <ann> as <>: secret"},
        {"ann", "", "password of <ann> as <>: "}, /* the session refuses it */
        {"", "secret", "password of <> as <>: secret"},
        {"ann^0", "secret", "password of <> as <>: secret"},
        {"^0ann^0x", "secret", "password of <> as <>: secret"},
        {"a b\xc3\xa4", "\xc3\xa4", "password of <a b\xc3\xa4> as <>: \xc3\xa4"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct bench b = {0};

        bench_start(&b, "login");
        assert_true(span_equal(buf_span(&b.challenge), span_of("Username:")));
        assert_int_equal(step_text(&b, rows[i].user), SASL_CHALLENGE);
        assert_true(span_equal(buf_span(&b.challenge), span_of("Password:")));
        assert_string_equal(told(&b, step_text(&b, rows[i].password)), rows[i].expected);
        bench_release(&b);
    }
}

/* Names up to one octet less than there is room for, tokens up to SASL_TOKEN_MAX. */
static void sizes(void **state)
{
    static const struct {
        const char *mechanism, *before, *behind;
        bool is_token, too_long_is_nobody; /* else it is refused */
    } cases[] = {
        {"PLAIN", "", "^0ann^0x", false, false},
        {"PLAIN", "^0", "^0x", false, true},
        {"EXTERNAL", "", "", false, false},
        {"OAUTHBEARER", "n,a=", ",^Aauth=Bearer t^A^A", false, false},
        {"XOAUTH2", "user=", "^Aauth=Bearer t^A^A", false, false},
        {"OAUTHBEARER", "n,,^Aauth=Bearer ", "^A^A", true, false},
        {"XOAUTH2", "auth=Bearer ", "^A^A", true, false},
    };

    (void)state;
    for (size_t i = 0; i < 3 * sizeof cases / sizeof cases[0]; i++) {
        size_t c = i / 3, most = cases[c].is_token ? SASL_TOKEN_MAX : SASL_NAME_MAX - 1;
        size_t len = i % 3 == 0 ? most : i % 3 == 1 ? most + 1 : 4 * most;
        struct bench b = {0};
        struct buf message;
        char *room;

        buf_init(&message, 1 << 20);
        assert_true(buf_append(&message, octets(cases[c].before)));
        room = buf_reserve(&message, len);
        assert_non_null(room);
        memset(room, 'x', len);
        buf_commit(&message, len);
        assert_true(buf_append(&message, octets(cases[c].behind)));
        bench_start(&b, cases[c].mechanism);

        enum sasl_outcome outcome = step(&b, buf_span(&message));
        bool good = len == most, nobody = !good && cases[c].too_long_is_nobody;

        if (outcome != (good || nobody ? SASL_IDENTIFIED : SASL_REFUSED))
            fail_msg("%s with %zu octets", cases[c].mechanism, len);
        if (good && cases[c].is_token)
            assert_int_equal(b.who.secret.len, len);
        else if (good)
            assert_true(strlen(b.who.user) == len || strlen(b.who.login_as) == len);
        else if (nobody)
            assert_string_equal(b.who.user, "");
        buf_release(&message);
        bench_release(&b);
    }
}

/* Every octet within a name that is escaped, and every cut of a good message. */
static void names_of_any_octets(void **state)
{
    (void)state;
    for (int octet = 0; octet < 256; octet++) {
        char name = (char)octet, text[64], expected[64];
        struct bench b = {0};
        const char *written = octet == ',' ? "=2C" : octet == '=' ? "=3D" : (char[]){name, 0};
        int len = snprintf(text, sizeof text, "n,a=a%sb,\1auth=Bearer t\1\1", written);

        if (octet == 0) { /* which snprintf has left out */
            memmove(text + 6, text + 5, (size_t)len++ - 5);
            text[5] = '\0';
        }
        bench_start(&b, "OAUTHBEARER");
        enum sasl_outcome outcome = step(&b, (struct span){text, (size_t)len});
        if (octet == 0) {
            assert_int_equal(outcome, SASL_REFUSED);
        } else {
            snprintf(expected, sizeof expected, "token of <> as <a%cb>: t", octet);
            assert_string_equal(told(&b, outcome), expected);
        }
        bench_release(&b);
    }
}

static void cut_messages_are_refused(void **state)
{
    static const struct row whole[] = {
        {"OAUTHBEARER", "n,a=user,^Ahost=h^Aauth=Bearer token^A^A"},
        {"XOAUTH2", "user=user^Aauth=Bearer token^A^A"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++) {
        for (size_t len = 0; len <= octets(whole[i].expected).len; len++) {
            struct bench b = {0};
            struct span message = octets(whole[i].expected);

            bench_start(&b, whole[i].message);
            assert_int_equal(step(&b, (struct span){message.ptr, len}),
                             len == message.len ? SASL_IDENTIFIED : SASL_REFUSED);
            bench_release(&b);
        }
    }
}

/* What was said before the exchange does not count in it. */
static void a_new_exchange_begins_with_nothing(void **state)
{
    struct bench b = {0};

    (void)state;
    bench_start(&b, "XOAUTH2");
    assert_string_equal(told(&b, step_text(&b, "user=bob^Aauth=Bearer t^A^A")),
                        "token of <> as <bob>: t");
    bench_start(&b, "PLAIN");
    assert_int_equal(buf_len(&b.challenge), 0);
    assert_string_equal(told(&b, step_text(&b, "^0ann^0x")), "password of <ann> as <>: x");
    bench_start(&b, "PLAIN");
    assert_string_equal(told(&b, step_text(&b, "bob^0ann^0x")), "password of <ann> as <bob>: x");
    bench_start(&b, "LOGIN");
    assert_int_equal(step_text(&b, "carl"), SASL_CHALLENGE);
    bench_start(&b, "LOGIN"); /* given up, and begun again */
    assert_int_equal(step_text(&b, "ann"), SASL_CHALLENGE);
    assert_string_equal(told(&b, step_text(&b, "y")), "password of <ann> as <>: y");
    bench_release(&b);
}

/* The reason as an object; NULL where the mechanism gives none. */
static json_t *explain(struct bench *b, const char *mechanism, const char *scope, const char *url)
{
    json_t *object;

    bench_start(b, mechanism);
    assert_int_equal(step_text(b, "x"), SASL_REFUSED);
    if (!sasl_server_explain(&b->server, mechanism, scope, url, &b->challenge)) {
        assert_null(b->server.mechanism);
        return NULL;
    }
    object = json_loadb(buf_span(&b->challenge).ptr, buf_len(&b->challenge), 0, NULL);
    assert_true(json_is_object(object));
    return object;
}

static void refused_tokens_are_explained(void **state)
{
    static const struct {
        const char *scope, *url;
        size_t members;
    } cases[] = {
        {"", "", 1},
        {"mail openid", "", 2},
        {"", "https://login.example.com/.well-known/openid-configuration", 2},
        {"with \"quotes\" \\ and \xc3\xa4", "https://login.example.com/\"", 3},
    };
    static const char *const mechanisms[] = {"OAUTHBEARER", "XOAUTH2"};

    (void)state;
    for (size_t i = 0; i < 2 * sizeof cases / sizeof cases[0]; i++) {
        struct bench b = {0};
        json_t *reason = explain(&b, mechanisms[i % 2], cases[i / 2].scope, cases[i / 2].url);

        assert_non_null(reason);
        assert_int_equal(json_object_size(reason), cases[i / 2].members);
        assert_string_equal(json_string_value(json_object_get(reason, "status")), "invalid_token");
        if (cases[i / 2].scope[0] != '\0')
            assert_string_equal(json_string_value(json_object_get(reason, "scope")),
                                cases[i / 2].scope);
        if (cases[i / 2].url[0] != '\0')
            assert_string_equal(json_string_value(json_object_get(reason, "openid-configuration")),
                                cases[i / 2].url);
        json_decref(reason);
        /* RFC 7628 3.2.3 wants ^A; a second token is no second try */
        assert_int_equal(step_text(&b, i < 4 ? "^A" : "n,,^Aauth=Bearer t^A^A"), SASL_REFUSED);
        bench_release(&b);
    }
}

static void other_refusals_are_not(void **state)
{
    static const char *const mechanisms[] = {"PLAIN", "EXTERNAL"};

    (void)state;
    for (size_t i = 0; i < sizeof mechanisms / sizeof mechanisms[0]; i++) {
        struct bench b = {0};

        bench_start(&b, mechanisms[i]);
        assert_int_equal(step_text(&b, "^0"), SASL_REFUSED);
        assert_false(sasl_server_explain(&b.server, mechanisms[i], "s", "u", &b.challenge));
        assert_false(sasl_server_explain(&b.server, "LOGIN", "s", "u", &b.challenge));
        assert_null(b.server.mechanism);
        assert_int_equal(buf_len(&b.challenge), 0);
        bench_release(&b);
    }
}

static void a_reason_that_does_not_fit_is_none(void **state)
{
    struct bench b = {0};

    (void)state;
    bench_start(&b, "XOAUTH2");
    assert_int_equal(step_text(&b, ""), SASL_REFUSED);
    buf_init(&b.challenge, 10);
    assert_false(sasl_server_explain(&b.server, "XOAUTH2", "", "", &b.challenge));
    assert_null(b.server.mechanism);
    bench_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_of_mechanisms),
        cmocka_unit_test(plain),
        cmocka_unit_test(external),
        cmocka_unit_test(oauthbearer),
        cmocka_unit_test(xoauth2),
        cmocka_unit_test(login_in_two_steps),
        cmocka_unit_test(sizes),
        cmocka_unit_test(names_of_any_octets),
        cmocka_unit_test(cut_messages_are_refused),
        cmocka_unit_test(a_new_exchange_begins_with_nothing),
        cmocka_unit_test(refused_tokens_are_explained),
        cmocka_unit_test(other_refusals_are_not),
        cmocka_unit_test(a_reason_that_does_not_fit_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
