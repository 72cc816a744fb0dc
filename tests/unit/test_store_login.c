/*
 * What is said to a store to log a user in, as one text: what goes at once, and, each behind a bar,
 * what answers the first and the second "+".
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "auth/sasl.h"
#include "proxy/base/mem.h"
#include "proxy/store/store_login.h"

static char master[] = "master", star[] = "*", plus[] = "+";
static char top[] = "top";

struct bench {
    struct conf_shard shard;
    struct secret password;
    struct store_client client;
    struct store_login login;
};

static void bench_init(struct bench *b, struct span password)
{
    *b = (struct bench){
        .shard = {.master_user = master,
                  .master_separator = star,
                  .master_password = {top, 3},
                  .client_address = CLIENT_ADDRESS_NONE},
        .client = {.user = "ann", .session_id = "s1", .proxy_ttl = 5, .id = {"", 0}},
    };
    assert_true(secret_set(&b->password, password));
    b->client.password = &b->password;
    assert_true(address_parse("192.0.2.1:4660", &b->client.address));
    assert_true(address_parse("[2001:db8::2]:993", &b->client.local));
    store_login_init(&b->login);
}

static void bench_release(struct bench *b)
{
    store_login_release(&b->login);
    secret_release(&b->password);
}

static bool write_login(struct bench *b, const char *capabilities)
{
    store_login_release(&b->login);
    return store_login_write(&b->login, &b->shard, span_of(capabilities), &b->client);
}

static void expect(struct bench *b, const char *capabilities, const char *expected)
{
    struct buf all;

    assert_true(write_login(b, capabilities));
    buf_init(&all, 10000);
    assert_true(buf_append(&all, buf_span(&b->login.now)) && buf_append_text(&all, "|") &&
                buf_append(&all, buf_span(&b->login.on_plus)) && buf_append_text(&all, "|") &&
                buf_append(&all, buf_span(&b->login.on_second_plus)) &&
                buf_append(&all, (struct span){"", 1}));
    assert_string_equal(buf_span(&all).ptr, expected);
    buf_release(&all);
}

/* ---- the login ---- */

static void credentials_by_mode(void **state)
{
    static const struct {
        int login;
        const char *capabilities, *expected;
    } cases[] = {
        /* \0ann\0secret */
        {SHARD_LOGIN_PASSWORD, "IMAP4rev1 AUTH=PLAIN SASL-IR",
         "L AUTHENTICATE PLAIN AGFubgBzZWNyZXQ=\r\n||"},
        {SHARD_LOGIN_PASSWORD, "auth=plain sasl-ir LOGINDISABLED",
         "L AUTHENTICATE PLAIN AGFubgBzZWNyZXQ=\r\n||"},
        {SHARD_LOGIN_PASSWORD, "AUTH=PLAIN", "L AUTHENTICATE PLAIN\r\n|AGFubgBzZWNyZXQ=\r\n|"},
        {SHARD_LOGIN_PASSWORD, "IMAP4rev1 SASL-IR AUTH=LOGIN", "L LOGIN \"ann\" \"secret\"\r\n||"},
        {SHARD_LOGIN_PASSWORD, "", "L LOGIN \"ann\" \"secret\"\r\n||"},
        /* ann\0master\0top */
        {SHARD_LOGIN_MASTER_AUTHZID, "AUTH=PLAIN SASL-IR",
         "L AUTHENTICATE PLAIN YW5uAG1hc3RlcgB0b3A=\r\n||"},
        {SHARD_LOGIN_MASTER_AUTHZID, "AUTH=PLAIN",
         "L AUTHENTICATE PLAIN\r\n|YW5uAG1hc3RlcgB0b3A=\r\n|"},
        /* \0ann*master\0top */
        {SHARD_LOGIN_MASTER_SUFFIX, "AUTH=PLAIN SASL-IR",
         "L AUTHENTICATE PLAIN AGFubiptYXN0ZXIAdG9w\r\n||"},
        {SHARD_LOGIN_MASTER_SUFFIX, "AUTH=PLAIN",
         "L AUTHENTICATE PLAIN\r\n|AGFubiptYXN0ZXIAdG9w\r\n|"},
        {SHARD_LOGIN_MASTER_SUFFIX, "IMAP4rev1", "L LOGIN \"ann*master\" \"top\"\r\n||"},
    };
    struct bench b;

    (void)state;
    bench_init(&b, span_of("secret"));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        b.shard.login = cases[i].login;
        b.client.password = cases[i].login == SHARD_LOGIN_PASSWORD ? &b.password : NULL;
        expect(&b, cases[i].capabilities, cases[i].expected);
    }
    b.shard.master_separator = plus;
    expect(&b, "", "L LOGIN \"ann+master\" \"top\"\r\n||");
    bench_release(&b);
}

static void login_is_quoted_or_in_literals(void **state)
{
    static const struct {
        const char *user, *password, *expected;
    } cases[] = {
        {"a b", " ~!#", "L LOGIN \"a b\" \" ~!#\"\r\n||"},
        {"a\"b", "\\\"\\", "L LOGIN \"a\\\"b\" \"\\\\\\\"\\\\\"\r\n||"},
        {"ann", "", "L LOGIN \"ann\" \"\"\r\n||"},
        {"ann", "{3}", "L LOGIN \"ann\" \"{3}\"\r\n||"},
        {"ann", "\xc3\xa4", "L LOGIN {3}\r\n|ann {2}\r\n|\xc3\xa4\r\n"},
        {"\xc3\xa4nn", "x\"y\\", "L LOGIN {4}\r\n|\xc3\xa4nn {4}\r\n|x\"y\\\r\n"},
        {"ann", "a\rb", "L LOGIN {3}\r\n|ann {3}\r\n|a\rb\r\n"},
        {"ann", "\n", "L LOGIN {3}\r\n|ann {1}\r\n|\n\r\n"},
        {"ann", "\t", "L LOGIN {3}\r\n|ann {1}\r\n|\t\r\n"},
        {"ann", "\x7f", "L LOGIN {3}\r\n|ann {1}\r\n|\x7f\r\n"},
        {"\x1f", "", "L LOGIN {1}\r\n|\x1f {0}\r\n|\r\n"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b;

        bench_init(&b, span_of(cases[i].password));
        b.client.user = cases[i].user;
        expect(&b, "", cases[i].expected);
        bench_release(&b);
    }
}

/* Whatever octets a password has, the store hears them as they are. */
static void all_octets_reach_the_store(void **state)
{
    char bytes[256];

    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i + 1); /* the NUL comes last */
    for (size_t len = 0; len <= sizeof bytes; len++) {
        struct bench b;
        struct buf message;

        bench_init(&b, (struct span){bytes, len});
        buf_init(&message, 1000);
        assert_true(write_login(&b, "AUTH=PLAIN"));
        struct span answer = buf_span(&b.login.on_plus);
        assert_memory_equal(answer.ptr + answer.len - 2, "\r\n", 2);
        answer.len -= 2;
        assert_true(sasl_decode_base64(answer, &message));
        assert_int_equal(buf_len(&message), 5 + len);
        assert_memory_equal(buf_span(&message).ptr, "\0ann\0", 5);
        assert_memory_equal(buf_span(&message).ptr + 5, bytes, len);
        buf_release(&message);

        assert_true(write_login(&b, ""));
        answer = buf_span(&b.login.on_second_plus);
        if (len > 0) { /* 1 cannot be quoted */
            assert_int_equal(answer.len, len + 2);
            assert_memory_equal(answer.ptr, bytes, len);
        }
        bench_release(&b);
    }
}

/* Who logs in by what at a store with these capabilities; the settings are those of the shard. */
enum comes_by { BY_PASSWORD, BY_CERTIFICATE, BY_TOKEN };

static void ways(void **state)
{
    enum { PASSWORD, MASTER_AUTHZID, MASTER_SUFFIX };
    static const struct {
        int login, passwordless;
        bool forward_token;
        enum comes_by by;
        const char *capabilities;
        enum store_login_way way;
    } cases[] = {
        {PASSWORD, 0, true, BY_PASSWORD, "AUTH=PLAIN AUTH=XOAUTH2", STORE_LOGIN_PASSWORD},
        {PASSWORD, MASTER_SUFFIX, true, BY_PASSWORD, "", STORE_LOGIN_PASSWORD},
        {MASTER_AUTHZID, 0, true, BY_PASSWORD, "AUTH=PLAIN", STORE_LOGIN_MASTER_AUTHZID},
        {MASTER_SUFFIX, MASTER_AUTHZID, true, BY_PASSWORD, "AUTH=PLAIN", STORE_LOGIN_MASTER_SUFFIX},
        /* without a password of one's own */
        {PASSWORD, 0, true, BY_CERTIFICATE, "AUTH=PLAIN", STORE_LOGIN_NONE},
        {MASTER_AUTHZID, 0, true, BY_CERTIFICATE, "AUTH=PLAIN", STORE_LOGIN_MASTER_AUTHZID},
        {MASTER_SUFFIX, 0, true, BY_CERTIFICATE, "", STORE_LOGIN_MASTER_SUFFIX},
        {PASSWORD, MASTER_AUTHZID, true, BY_CERTIFICATE, "AUTH=PLAIN", STORE_LOGIN_MASTER_AUTHZID},
        {PASSWORD, MASTER_SUFFIX, true, BY_CERTIFICATE, "AUTH=PLAIN", STORE_LOGIN_MASTER_SUFFIX},
        {MASTER_SUFFIX, MASTER_AUTHZID, true, BY_CERTIFICATE, "AUTH=PLAIN",
         STORE_LOGIN_MASTER_AUTHZID},
        {PASSWORD, MASTER_SUFFIX, true, BY_CERTIFICATE, "AUTH=OAUTHBEARER",
         STORE_LOGIN_MASTER_SUFFIX},
        /* tokens */
        {PASSWORD, 0, true, BY_TOKEN, "AUTH=OAUTHBEARER AUTH=XOAUTH2", STORE_LOGIN_OAUTHBEARER},
        {PASSWORD, 0, true, BY_TOKEN, "AUTH=PLAIN auth=xoauth2", STORE_LOGIN_XOAUTH2},
        {MASTER_SUFFIX, 0, true, BY_TOKEN, "AUTH=XOAUTH2 LOGINDISABLED", STORE_LOGIN_XOAUTH2},
        {PASSWORD, MASTER_AUTHZID, true, BY_TOKEN, "AUTH=PLAIN", STORE_LOGIN_MASTER_AUTHZID},
        {PASSWORD, MASTER_SUFFIX, false, BY_TOKEN, "AUTH=OAUTHBEARER", STORE_LOGIN_MASTER_SUFFIX},
        {MASTER_AUTHZID, 0, false, BY_TOKEN, "AUTH=PLAIN AUTH=XOAUTH2", STORE_LOGIN_MASTER_AUTHZID},
        {PASSWORD, 0, false, BY_TOKEN, "AUTH=PLAIN AUTH=OAUTHBEARER", STORE_LOGIN_NONE},
        {PASSWORD, 0, true, BY_TOKEN, "AUTH=PLAIN AUTH=OAUTHBEARERS", STORE_LOGIN_NONE},
        /* LOGIN has no authorization identity: the master would be logged in as itself */
        {PASSWORD, MASTER_AUTHZID, true, BY_CERTIFICATE, "AUTH=LOGIN", STORE_LOGIN_NONE},
        {MASTER_SUFFIX, MASTER_AUTHZID, true, BY_TOKEN, "", STORE_LOGIN_NONE},
        {MASTER_AUTHZID, 0, true, BY_PASSWORD, "AUTH=OAUTHBEARER", STORE_LOGIN_NONE},
        {MASTER_AUTHZID, 0, true, BY_CERTIFICATE, "AUTH=XOAUTH2", STORE_LOGIN_NONE},
        /* a store that takes tokens only */
        {PASSWORD, 0, true, BY_PASSWORD, "AUTH=OAUTHBEARER LOGINDISABLED", STORE_LOGIN_NONE},
        {MASTER_SUFFIX, 0, true, BY_CERTIFICATE, "AUTH=XOAUTH2 LOGINDISABLED", STORE_LOGIN_NONE},
    };
    struct bench b;

    (void)state;
    bench_init(&b, span_of("secret"));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        b.shard.login = cases[i].login;
        b.shard.passwordless_login = cases[i].passwordless;
        b.shard.forward_token = cases[i].forward_token;
        b.client.password = cases[i].by == BY_PASSWORD ? &b.password : NULL;
        b.client.token = cases[i].by == BY_TOKEN ? &b.password : NULL;

        enum store_login_way way =
            store_login_way(&b.shard, span_of(cases[i].capabilities), &b.client);

        if (way != cases[i].way)
            fail_msg("case %zu: way %d, not %d", i, way, cases[i].way);
        assert_int_equal(write_login(&b, cases[i].capabilities), way != STORE_LOGIN_NONE);
        assert_int_equal(b.login.way, way);
        if (way != STORE_LOGIN_NONE)
            assert_true(store_login_possible(&b.shard, span_of(cases[i].capabilities)));
        assert_int_equal(store_login_is_own(way), way == STORE_LOGIN_PASSWORD ||
                                                      way == STORE_LOGIN_OAUTHBEARER ||
                                                      way == STORE_LOGIN_XOAUTH2);
    }
    bench_release(&b);
}

static void passwordless_users_come_by_the_master(void **state)
{
    static const struct {
        int passwordless;
        const char *capabilities, *expected;
    } cases[] = {
        /* ann\0master\0top */
        {PASSWORDLESS_MASTER_AUTHZID, "AUTH=PLAIN SASL-IR",
         "L AUTHENTICATE PLAIN YW5uAG1hc3RlcgB0b3A=\r\n||"},
        /* \0ann*master\0top */
        {PASSWORDLESS_MASTER_SUFFIX, "AUTH=PLAIN SASL-IR",
         "L AUTHENTICATE PLAIN AGFubiptYXN0ZXIAdG9w\r\n||"},
        {PASSWORDLESS_MASTER_SUFFIX, "", "L LOGIN \"ann*master\" \"top\"\r\n||"},
    };
    struct bench b;

    (void)state;
    bench_init(&b, span_of("helpdesk's own"));
    b.client.password = NULL;
    b.client.master = "helpdesk"; /* who it is means nothing to the store */
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        b.shard.passwordless_login = cases[i].passwordless;
        expect(&b, cases[i].capabilities, cases[i].expected);
    }
    bench_release(&b);
}

static void tokens_are_passed_on(void **state)
{
    static const struct {
        const char *user, *capabilities, *expected;
    } cases[] = {
        /* n,a=ann,^Aauth=Bearer to.ken^A^A; behind the bar what answers the reason of a refusal */
        {"ann", "AUTH=OAUTHBEARER SASL-IR",
         "L AUTHENTICATE OAUTHBEARER bixhPWFubiwBYXV0aD1CZWFyZXIgdG8ua2VuAQE=\r\n|AQ==\r\n|"},
        {"ann", "AUTH=OAUTHBEARER",
         "L AUTHENTICATE OAUTHBEARER\r\n|bixhPWFubiwBYXV0aD1CZWFyZXIgdG8ua2VuAQE=\r\n|AQ==\r\n"},
        /* user=ann^Aauth=Bearer to.ken^A^A */
        {"ann", "AUTH=XOAUTH2 SASL-IR",
         "L AUTHENTICATE XOAUTH2 dXNlcj1hbm4BYXV0aD1CZWFyZXIgdG8ua2VuAQE=\r\n|\r\n|"},
        {"ann", "AUTH=XOAUTH2",
         "L AUTHENTICATE XOAUTH2\r\n|dXNlcj1hbm4BYXV0aD1CZWFyZXIgdG8ua2VuAQE=\r\n|\r\n"},
        /* n,a=a=2Cb=3Dc=3D2C=2C,^A...: "," and "=" within a name (RFC 5801 4) */
        {"a,b=c=2C,", "AUTH=OAUTHBEARER SASL-IR",
         "L AUTHENTICATE OAUTHBEARER "
         "bixhPWE9MkNiPTNEYz0zRDJDPTJDLAFhdXRoPUJlYXJlciB0by5rZW4BAQ==\r\n|AQ==\r\n|"},
        /* XOAUTH2 has no escapes */
        {"a,b=c", "AUTH=XOAUTH2 SASL-IR",
         "L AUTHENTICATE XOAUTH2 dXNlcj1hLGI9YwFhdXRoPUJlYXJlciB0by5rZW4BAQ==\r\n|\r\n|"},
    };
    struct bench b;

    (void)state;
    bench_init(&b, span_of("to.ken"));
    b.client.password = NULL;
    b.client.token = &b.password;
    b.shard.forward_token = true;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        b.client.user = cases[i].user;
        expect(&b, cases[i].capabilities, cases[i].expected);
    }
    bench_release(&b);
}

static void whether_a_login_is_possible(void **state)
{
    static const struct {
        const char *capabilities;
        bool password, authzid, suffix;
    } cases[] = {
        {"", true, false, true},
        {"IMAP4rev1 AUTH=LOGIN SASL-IR", true, false, true},
        {"IMAP4rev1 AUTH=PLAIN", true, true, true},
        {"auth=plain LOGINDISABLED", true, true, true},
        {"IMAP4rev1 LOGINDISABLED", false, false, false},
        {"logindisabled AUTH=PLAINX AUTH=", false, false, false},
        {"XLOGINDISABLED", true, false, true},
    };
    struct conf_shard shard = {0};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct span capabilities = span_of(cases[i].capabilities);

        shard.login = SHARD_LOGIN_PASSWORD;
        assert_int_equal(store_login_possible(&shard, capabilities), cases[i].password);
        shard.login = SHARD_LOGIN_MASTER_AUTHZID;
        assert_int_equal(store_login_possible(&shard, capabilities), cases[i].authzid);
        shard.login = SHARD_LOGIN_MASTER_SUFFIX;
        assert_int_equal(store_login_possible(&shard, capabilities), cases[i].suffix);
    }
    shard.login = SHARD_LOGIN_PASSWORD; /* a store for tokens, or for passwordless users, will do */
    shard.forward_token = true;
    assert_true(store_login_possible(&shard, span_of("LOGINDISABLED AUTH=XOAUTH2")));
    shard.forward_token = false;
    assert_false(store_login_possible(&shard, span_of("LOGINDISABLED AUTH=XOAUTH2")));
    shard.login = SHARD_LOGIN_MASTER_AUTHZID;
    shard.passwordless_login = PASSWORDLESS_MASTER_SUFFIX;
    assert_true(store_login_possible(&shard, span_of("AUTH=XOAUTH2")));
    assert_false(store_login_possible(&shard, span_of("AUTH=XOAUTH2 LOGINDISABLED")));
}

/* ---- ID ---- */

#define LOGIN "L LOGIN \"ann\" \"secret\"\r\n||"

static void id_by_setting_and_capability(void **state)
{
    static const struct {
        int client_address;
        const char *capabilities, *expected;
    } cases[] = {
        {CLIENT_ADDRESS_ID, "IMAP4rev1 ID",
         "I ID (\"x-originating-ip\" \"192.0.2.1\" \"x-originating-port\" \"4660\" "
         "\"x-connected-ip\" \"2001:db8::2\" \"x-connected-port\" \"993\" "
         "\"x-session-id\" \"s1\" \"x-proxy-ttl\" \"5\")\r\n" LOGIN},
        {CLIENT_ADDRESS_ID, "IMAP4rev1", LOGIN},
        {CLIENT_ADDRESS_ID, "IDLE XID", LOGIN},
        /* the address is in the header then, but a loop must be noticed */
        {CLIENT_ADDRESS_PROXY, "id",
         "I ID (\"x-session-id\" \"s1\" \"x-proxy-ttl\" \"5\")\r\n" LOGIN},
        {CLIENT_ADDRESS_PROXY, "IMAP4rev1", LOGIN},
        {CLIENT_ADDRESS_NONE, "IMAP4rev1 ID", LOGIN},
    };
    struct bench b;

    (void)state;
    bench_init(&b, span_of("secret"));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        b.shard.client_address = cases[i].client_address;
        expect(&b, cases[i].capabilities, cases[i].expected);
    }
    bench_release(&b);
}

static void id_tells_what_the_client_said(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, span_of("secret"));
    b.shard.client_address = CLIENT_ADDRESS_PROXY;
    b.client.id = (struct span){"\"name\" \"a % b\" \"os\" NIL and no more", 23};
    b.client.proxy_ttl = 1;
    b.client.session_id = "abc-1";
    expect(&b, "ID",
           "I ID (\"x-session-id\" \"abc-1\" \"x-proxy-ttl\" \"1\" "
           "\"name\" \"a % b\" \"os\" NIL)\r\n" LOGIN);
    expect(&b, "ID AUTH=PLAIN",
           "I ID (\"x-session-id\" \"abc-1\" \"x-proxy-ttl\" \"1\" "
           "\"name\" \"a % b\" \"os\" NIL)\r\nL AUTHENTICATE PLAIN\r\n|AGFubgBzZWNyZXQ=\r\n|");
    bench_release(&b);
}

/* ---- sizes ---- */

enum { PIECE_MAX = 256 * 1024 };

static char *long_text(size_t len, char ch)
{
    char *text = mem_array(len + 1, 1);

    assert_non_null(text);
    memset(text, ch, len);
    return text;
}

static bool fits(const char *capabilities, char ch, size_t len)
{
    char *text = long_text(len, ch);
    struct bench b;

    bench_init(&b, (struct span){text, len});
    bool good = write_login(&b, capabilities);
    bench_release(&b);
    mem_free(text);
    return good;
}

/* By the octet: the largest password that fits into the pieces, and one more. */
static void passwords_fit_up_to_a_size(void **state)
{
    static const struct {
        const char *capabilities;
        char ch;
        size_t most;
    } cases[] = {
        {"AUTH=PLAIN SASL-IR", 'p', (PIECE_MAX - 23) / 4 * 3 - 5}, /* L AUTHENTICATE PLAIN ... */
        {"AUTH=PLAIN", 'p', (PIECE_MAX - 2) / 4 * 3 - 5},
        {"", 'p', PIECE_MAX - 18}, /* L LOGIN "ann" "" CRLF */
        {"", '"', (PIECE_MAX - 18) / 2},
        {"", '\n', PIECE_MAX - 2},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_true(cases[i].most > 64 * 1024); /* SASL's longest line */
        assert_true(fits(cases[i].capabilities, cases[i].ch, cases[i].most));
        assert_false(fits(cases[i].capabilities, cases[i].ch, cases[i].most + 1));
        assert_false(fits(cases[i].capabilities, cases[i].ch, 2 * PIECE_MAX));
    }
}

static void tokens_fit_up_to_a_size(void **state)
{
    static const char *const stores[] = {"AUTH=OAUTHBEARER", "AUTH=OAUTHBEARER SASL-IR",
                                         "AUTH=XOAUTH2", "AUTH=XOAUTH2 SASL-IR"};

    (void)state;
    for (size_t i = 0; i < 2 * sizeof stores / sizeof stores[0]; i++) {
        size_t len = i % 2 == 0 ? 48 * 1024 : PIECE_MAX; /* SASL_TOKEN_MAX; one that is too long */
        char *text = long_text(len, 't');
        struct bench b;

        bench_init(&b, (struct span){text, len});
        b.client.password = NULL;
        b.client.token = &b.password;
        b.shard.forward_token = true;
        assert_int_equal(write_login(&b, stores[i / 2]), i % 2 == 0);
        bench_release(&b);
        mem_free(text);
    }
}

static void an_id_that_does_not_fit_is_no_login(void **state)
{
    char *id = long_text(PIECE_MAX, 'i');
    struct bench b;

    (void)state;
    bench_init(&b, span_of("secret"));
    b.shard.client_address = CLIENT_ADDRESS_ID;
    b.client.id = span_of(id);
    assert_false(write_login(&b, "ID"));
    assert_false(write_login(&b, "ID AUTH=PLAIN SASL-IR"));
    assert_true(write_login(&b, "AUTH=PLAIN"));
    b.client.id.len = PIECE_MAX / 2;
    assert_true(write_login(&b, "ID"));
    bench_release(&b);
    mem_free(id);
}

static void nothing_is_kept_when_it_is_released(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, span_of("\n"));
    store_login_release(&b.login); /* nor was there anything */
    assert_true(write_login(&b, ""));
    store_login_release(&b.login);
    assert_int_equal(buf_len(&b.login.now), 0);
    assert_int_equal(buf_len(&b.login.on_plus), 0);
    assert_int_equal(buf_len(&b.login.on_second_plus), 0);
    assert_null(b.login.now.bytes);
    assert_true(write_login(&b, "")); /* and it can be used again */
    bench_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(credentials_by_mode),
        cmocka_unit_test(login_is_quoted_or_in_literals),
        cmocka_unit_test(all_octets_reach_the_store),
        cmocka_unit_test(ways),
        cmocka_unit_test(passwordless_users_come_by_the_master),
        cmocka_unit_test(tokens_are_passed_on),
        cmocka_unit_test(whether_a_login_is_possible),
        cmocka_unit_test(id_by_setting_and_capability),
        cmocka_unit_test(id_tells_what_the_client_said),
        cmocka_unit_test(passwords_fit_up_to_a_size),
        cmocka_unit_test(tokens_fit_up_to_a_size),
        cmocka_unit_test(an_id_that_does_not_fit_is_no_login),
        cmocka_unit_test(nothing_is_kept_when_it_is_released),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
