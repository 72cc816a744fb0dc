/*
 * Tags that are too long; and a token that is refused: the client is told why in a challenge, and
 * its answer to that, whatever it is, ends the login (RFC 7628 3.2.3). The connection's other end
 * is a buffer.
 */
#include "tests/fuzz/memory_conn.h"

#include "auth/sasl.h"
#include "proxy/session/login.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
/* after its friends */
#include <cmocka.h>

/* {"status":"invalid_token"} */
#define REASON "+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\r\n"
#define NO     "a NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"

static struct conf conf = {.login = {.greeting = (char *)"ready",
                                     .max_bad_commands = 3,
                                     .max_line = 512,
                                     .max_sasl_line = 1024,
                                     .max_literal = 64},
                           .oauth = {.keys = (char *)"keys", .discovery_url = (char *)""},
                           .auth = {.sources = {.count = 1}}};
static const struct conf_listener listener = {.tls = TLS_NONE, .plaintext_login = true};

struct bench {
    struct login login;
    struct conn *client;
    struct buf answers;
};

/* A client that has just said "a AUTHENTICATE" with this mechanism, and a token. */
static void bench_init(struct bench *b, const char *mechanism)
{
    struct buf challenge;

    *b = (struct bench){0};
    buf_init(&b->answers, 64 * 1024);
    buf_init(&challenge, 64);
    memory_conn_open(&b->client, &b->answers);
    login_init(&b->login, &conf, &listener, b->client);
    snprintf(b->login.tag, sizeof b->login.tag, "a");
    b->login.method = mechanism;
    assert_true(sasl_server_start(&b->login.sasl, mechanism, &b->login.who, &challenge));
    b->login.sasl.mechanism = NULL; /* it is over */
    assert_true(secret_set(&b->login.who.secret, span_of("to.ken")));
    buf_release(&challenge);
}

static void bench_release(struct bench *b)
{
    login_release(&b->login);
    conn_close(&b->client);
    buf_release(&b->answers);
}

static bool refuse(struct bench *b, enum err_kind kind)
{
    struct err err = {0};

    err_set(&err, kind, "refused");
    return login_refuse(&b->login, &err);
}

static enum login_outcome hear(struct bench *b, const char *text)
{
    assert_true(login_feed(&b->login, span_of(text)));
    return login_run(&b->login);
}

static void expect(struct bench *b, const char *answers)
{
    struct span got = buf_span(&b->answers);

    if (!span_equal(got, span_of(answers)))
        fail_msg("%.*s", SPAN_ARG(got));
    buf_release(&b->answers);
}

static void any_answer_ends_it(void **state)
{
    static const char *const answers[] = {"AQ==\r\n",
                                          "\r\n",
                                          "\n",
                                          "*\r\n",
                                          "not base64\r\n",
                                          "b LOGIN ann x\r\n",
                                          "b AUTHENTICATE PLAIN {3}\r\n"};
    static const char *const mechanisms[] = {"OAUTHBEARER", "XOAUTH2"};

    (void)state;
    for (size_t i = 0; i < 2 * sizeof answers / sizeof answers[0]; i++) {
        struct bench b;

        bench_init(&b, mechanisms[i % 2]);
        assert_true(refuse(&b, ERR_CREDENTIALS));
        assert_int_equal(b.login.who.secret.len, 0);
        expect(&b, REASON);
        assert_int_equal(login_run(&b.login), LOGIN_MORE); /* nothing has come */
        expect(&b, "");
        for (const char *ch = answers[i / 2]; *ch != '\0'; ch++) { /* octet by octet */
            expect(&b, "");
            assert_int_equal(hear(&b, (char[]){*ch, '\0'}), LOGIN_MORE);
        }
        expect(&b, NO);
        assert_int_equal(hear(&b, "b NOOP\r\n"), LOGIN_MORE);
        expect(&b, "b OK NOOP completed.\r\n");
        bench_release(&b);
    }
}

static void what_follows_is_a_command(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, "OAUTHBEARER");
    assert_true(refuse(&b, ERR_CREDENTIALS));
    assert_int_equal(hear(&b, "AQ==\r\nb NOOP\r\nc LOGIN ann secret\r\nd NOOP\r\n"),
                     LOGIN_IDENTIFIED);
    expect(&b, REASON NO "b OK NOOP completed.\r\n");
    assert_string_equal(b.login.who.user, "ann");
    assert_int_equal(b.login.who.proof, AUTH_BY_PASSWORD);
    assert_true(refuse(&b, ERR_CREDENTIALS)); /* now it is a password: nothing to explain */
    expect(&b, "c NO [AUTHENTICATIONFAILED] Authentication failed.\r\n");
    assert_int_equal(login_run(&b.login), LOGIN_MORE);
    expect(&b, "d OK NOOP completed.\r\n");
    bench_release(&b);
}

static void only_refused_tokens_are_explained(void **state)
{
    static const struct {
        const char *mechanism;
        enum err_kind kind;
        const char *answer;
    } cases[] = {
        {"PLAIN", ERR_CREDENTIALS, NO},
        {"LOGIN", ERR_CREDENTIALS, NO},
        {"EXTERNAL", ERR_CREDENTIALS, NO},
        {"XOAUTH2", ERR_AUTHORIZATION,
         "a NO [AUTHORIZATIONFAILED] You may not log in as this user.\r\n"},
        {"OAUTHBEARER", ERR_UNAVAILABLE,
         "a NO [UNAVAILABLE] Temporarily unavailable, please try again later.\r\n"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b;

        bench_init(&b, cases[i].mechanism);
        assert_true(refuse(&b, cases[i].kind));
        expect(&b, cases[i].answer);
        assert_int_equal(hear(&b, "b NOOP\r\n"), LOGIN_MORE);
        expect(&b, "b OK NOOP completed.\r\n");
        bench_release(&b);
    }
}

/* They count as other failed logins do, each once. */
static void too_many_end_the_session(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, "XOAUTH2");
    for (unsigned times = 1; times <= 3; times++) {
        assert_true(refuse(&b, ERR_CREDENTIALS));
        assert_int_equal(hear(&b, "\r\n"), times < 3 ? LOGIN_MORE : LOGIN_OVER);
        expect(&b, times < 3 ? REASON NO : REASON NO "* BYE Too many failed logins.\r\n");
    }
    assert_string_equal(b.login.over, "too many failed logins");
    bench_release(&b);
}

static void an_answer_may_be_too_long(void **state)
{
    char line[2000];
    struct bench b;

    (void)state;
    memset(line, 'A', sizeof line);
    line[sizeof line - 1] = '\0';
    memcpy(line, "b NOOP ", 7);
    bench_init(&b, "XOAUTH2");
    assert_true(refuse(&b, ERR_CREDENTIALS));
    assert_int_equal(hear(&b, line), LOGIN_OVER);
    expect(&b, REASON "a BAD [LIMIT] Command line too long.\r\n* BYE Command line too long.\r\n");
    bench_release(&b);
}

/* No answer could carry it; and an untagged one would leave the client waiting for its own. */
static void a_tag_that_is_too_long_begins_nothing(void **state)
{
    static const char *const commands[] = {"LOGIN ann secret\r\n", "AUTHENTICATE PLAIN\r\n",
                                           "NOOP\r\n"};

    (void)state;
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        char line[LOGIN_TAG_MAX + 64];
        struct bench b;

        memset(line, 'a', LOGIN_TAG_MAX + 1);
        snprintf(line + LOGIN_TAG_MAX + 1, sizeof line - LOGIN_TAG_MAX - 1, " %s", commands[i]);
        bench_init(&b, "PLAIN");
        assert_int_equal(hear(&b, line), LOGIN_MORE);
        expect(&b, "* BAD Expected a tag and a command.\r\n");
        assert_int_equal(hear(&b, line + 1), i == 0 ? LOGIN_IDENTIFIED : LOGIN_MORE);
        bench_release(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_answer_ends_it),
        cmocka_unit_test(what_follows_is_a_command),
        cmocka_unit_test(only_refused_tokens_are_explained),
        cmocka_unit_test(too_many_end_the_session),
        cmocka_unit_test(an_answer_may_be_too_long),
        cmocka_unit_test(a_tag_that_is_too_long_begins_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
