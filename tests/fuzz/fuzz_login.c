/*
 * IMAP before login, as a client speaks it: the same is answered, and the same is understood, in
 * one piece and octet by octet; whatever comes, answers are whole lines that fit the question, and
 * nobody logs in by what is not offered. The first octet chooses the listener, and whether the
 * client has a certificate. Every login is refused, so that the client may go on.
 */
#include "tests/fuzz/memory_conn.h"

#include "proxy/net/client_certificate.h"
#include "proxy/session/login.h"

#include <stdio.h>
#include <stdlib.h>

enum { INPUT_MAX = 8 * 1024, HEARD_MAX = 64 * INPUT_MAX };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* One client, and all that was heard of it. */
struct play {
    struct login login;
    struct conn *client;
    struct err refusal;
    struct buf answers;
    struct buf heard; /* who logged in, and how; the end */
};

static char plain[] = "PLAIN", login_word[] = "login", external[] = "External";
static char oauthbearer[] = "OAUTHBEARER", xoauth2[] = "xoauth2";

/* What a listener offers; empty: all. */
static char *mechanisms[][3] = {{NULL},
                                {plain, NULL},
                                {login_word, NULL},
                                {external, NULL},
                                {plain, external, NULL},
                                {xoauth2, NULL},
                                {login_word, oauthbearer, NULL},
                                {login_word, external, NULL}};

static const char certificate_user[] = "cert";
static bool has_certificate;

/* In the place of client_certificate.c: nobody shakes hands here. */
bool client_certificate_user(const SSL *client, const struct conf_tls *tls, char *user_out,
                             size_t size)
{
    (void)tls;
    if (client == NULL || !has_certificate)
        return false;
    assert(size > sizeof certificate_user);
    memcpy(user_out, certificate_user, sizeof certificate_user);
    return true;
}

static struct conf conf = {.login = {.greeting = (char *)"ready",
                                     .max_bad_commands = 10,
                                     .max_line = 512,
                                     .max_sasl_line = 1024,
                                     .max_literal = 64},
                           .oauth = {.keys = (char *)"keys", .discovery_url = (char *)""},
                           .auth = {.sources = {.count = 1}}};

static void hear(struct play *play, const char *what, struct span detail)
{
    assert(buf_append_text(&play->heard, what) && buf_append(&play->heard, detail) &&
           buf_append_text(&play->heard, "\n"));
}

/* Whether the greeting, the first line that was said, has this word. */
static bool is_offered(const struct play *play, const char *word)
{
    struct span greeting = buf_span(&play->answers);
    const char *end = memchr(greeting.ptr, ']', greeting.len);
    char line[512];

    assert(end != NULL && (size_t)(end - greeting.ptr) < sizeof line - 2);
    memcpy(line, greeting.ptr, (size_t)(end - greeting.ptr));
    memcpy(line + (end - greeting.ptr), " ", 2);
    return strstr(line, word) != NULL;
}

static void check_login(const struct play *play)
{
    const struct login *login = &play->login;
    const struct sasl_credentials *who = &login->who;
    char word[32];

    assert(conn_tls(login->client) != NULL || login->listener->plaintext_login);
    snprintf(word, sizeof word, " AUTH=%s ", login->method);
    assert(is_offered(play, word) ||
           (strcmp(login->method, "LOGIN") == 0 && !is_offered(play, " LOGINDISABLED ")));
    if (who->proof == AUTH_BY_CERTIFICATE)
        assert(strcmp(login->method, "EXTERNAL") == 0 && has_certificate &&
               strcmp(who->user, certificate_user) == 0 && who->secret.len == 0);
    else if (strcmp(login->method, "EXTERNAL") == 0)
        assert(who->user[0] == '\0'); /* what cannot be right */
    if (who->proof == AUTH_BY_TOKEN)
        assert(strstr(login->method, "OAUTH") != NULL && who->user[0] == '\0' &&
               who->secret.len > 0);
    assert(who->login_as[0] == '\0' || strcmp(login->method, "LOGIN") != 0);
}

static void hear_login(struct play *play)
{
    const struct sasl_credentials *who = &play->login.who;

    check_login(play);
    hear(play, "method ", span_of(play->login.method));
    hear(play, "user ", span_of(who->user));
    hear(play, "as ", span_of(who->login_as));
    hear(play, "secret ", secret_span(&who->secret));
    hear(play, "id ", buf_span(&play->login.id.fields));
}

/* What the session does; false when the client is let go, or TLS would start. */
static bool run(struct play *play)
{
    for (;;) {
        switch (login_run(&play->login)) {
        case LOGIN_MORE:
            return true;
        case LOGIN_IDENTIFIED:
            hear_login(play);
            if (login_refuse(&play->login, &play->refusal))
                continue;
            hear(play, "refused too often", span_of(""));
            return false;
        case LOGIN_START_TLS:
            assert(play->login.listener->tls == TLS_STARTTLS && play->client->tls == NULL);
            hear(play, "TLS", span_of(""));
            return false;
        case LOGIN_OVER:
            hear(play, "over ", span_of(play->login.over));
            return false;
        }
    }
}

static void play_all(struct play *play, const struct conf_listener *listener, bool tls,
                     struct span in, size_t step)
{
    buf_init(&play->heard, HEARD_MAX);
    buf_init(&play->answers, HEARD_MAX);
    memory_conn_open(&play->client, &play->answers);
    play->client->tls = tls ? memory_conn_tls() : NULL;
    login_init(&play->login, &conf, listener, play->client);
    assert(login_greet(&play->login));
    while (in.len > 0) {
        struct span piece = {in.ptr, step < in.len ? step : in.len};

        assert(login_feed(&play->login, piece));
        if (!run(play))
            return;
        in = span_after(in, piece.len);
    }
}

static void play_release(struct play *play)
{
    login_release(&play->login);
    conn_close(&play->client);
    buf_release(&play->answers);
    buf_release(&play->heard);
}

/* Whole lines, each with a tag that a client can have sent, or none; no octet that is no text. */
static void check_answers(struct span out)
{
    while (out.len > 0) {
        const char *end = memchr(out.ptr, '\n', out.len);
        size_t tag_len = 0;

        assert(end != NULL && end > out.ptr && end[-1] == '\r');
        for (const char *ch = out.ptr; ch < end - 1; ch++)
            assert((unsigned char)*ch >= ' ' && (unsigned char)*ch < 0x7f);
        while (out.ptr[tag_len] != ' ' && out.ptr[tag_len] != '\r')
            tag_len++;
        assert(tag_len > 0 && tag_len <= LOGIN_TAG_MAX && strchr("(){%\"\\", out.ptr[0]) == NULL);
        out = span_after(out, (size_t)(end - out.ptr) + 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct play whole, octets;

    if (size < 1 || size > INPUT_MAX)
        return 0;

    struct conf_listener listener = {.tls = data[0] & 1 ? TLS_STARTTLS : TLS_NONE,
                                     .plaintext_login = data[0] & 2};
    bool tls = data[0] & 4;
    char **offered = mechanisms[data[0] >> 3 & 7];

    for (listener.mechanisms.items = offered; offered[listener.mechanisms.count] != NULL;)
        listener.mechanisms.count++;
    has_certificate = data[0] & 64;
    whole.refusal.kind = octets.refusal.kind = data[0] & 128 ? ERR_AUTHORIZATION : ERR_CREDENTIALS;

    struct span in = {(const char *)data + 1, size - 1};

    play_all(&whole, &listener, tls, in, in.len);
    play_all(&octets, &listener, tls, in, 1);
    check_answers(buf_span(&whole.answers));
    assert(span_equal(buf_span(&whole.answers), buf_span(&octets.answers)));
    assert(span_equal(buf_span(&whole.heard), buf_span(&octets.heard)));
    play_release(&whole);
    play_release(&octets);
    return 0;
}
