/*
 * What clients say in a SASL exchange, against a reader that first cuts the whole message into
 * parts and then asks what each of them is. The first octet chooses the mechanism; with LOGIN, what
 * follows the first line end is the password. What refuses a token is told as JSON.
 */
#include "auth/sasl_server.h"

#include <assert.h>
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PARTS_MAX = 8 * 1024 };

static const char *const names[] = {"PLAIN", "LOGIN", "EXTERNAL", "OAUTHBEARER", "XOAUTH2"};

/* What the slow reader makes of a message. */
struct reading {
    bool good;
    enum auth_proof proof;
    struct span user, login_as, secret;
    char name[SASL_NAME_MAX]; /* login_as, if it was escaped */
};

struct parts {
    struct span list[PARTS_MAX];
    size_t count;
};

static struct parts *split(struct span text, char separator)
{
    static struct parts parts;

    parts.count = 0;
    for (size_t start = 0, at = 0; at <= text.len; at++) {
        if (at < text.len && text.ptr[at] != separator)
            continue;
        assert(parts.count < PARTS_MAX);
        parts.list[parts.count++] = (struct span){text.ptr + start, at - start};
        start = at + 1;
    }
    return &parts;
}

static bool can_be_name(struct span name)
{
    for (size_t i = 0; i < name.len; i++)
        if (name.ptr[i] == '\0')
            return false;
    return name.len < SASL_NAME_MAX;
}

static struct span name_or_nobody(struct span name)
{
    return can_be_name(name) ? name : (struct span){"", 0};
}

static struct reading read_plain(struct span message)
{
    const struct parts *parts = split(message, '\0');
    bool good = parts->count == 3 && parts->list[1].len > 0 && parts->list[2].len > 0 &&
                can_be_name(parts->list[0]);

    if (!good)
        return (struct reading){0};
    return (struct reading){.good = true,
                            .proof = AUTH_BY_PASSWORD,
                            .login_as = parts->list[0],
                            .user = name_or_nobody(parts->list[1]),
                            .secret = parts->list[2]};
}

static struct reading read_external(struct span message)
{
    return (struct reading){.good = can_be_name(message),
                            .proof = AUTH_BY_CERTIFICATE,
                            .login_as = message,
                            .user = span_of("cert"),
                            .secret = {"", 0}};
}

static bool has_key(struct span pair, const char *key)
{
    return pair.len >= strlen(key) && span_is((struct span){pair.ptr, strlen(key)}, key);
}

static bool can_be_token(struct span token)
{
    for (size_t i = 0; i < token.len; i++)
        if ((unsigned char)token.ptr[i] < 0x21 || (unsigned char)token.ptr[i] > 0x7e)
            return false;
    return token.len > 0 && token.len <= SASL_TOKEN_MAX;
}

/* Pairs that are ended by octet 1, and one more of that. */
static struct reading read_pairs(struct span text, bool names_user)
{
    const struct parts *parts = split(text, '\1');
    struct reading reading = {.proof = AUTH_BY_TOKEN, .user = {"", 0}, .login_as = {"", 0}};
    unsigned users = 0, tokens = 0;

    if (parts->count < 2 || parts->list[parts->count - 1].len > 0 ||
        parts->list[parts->count - 2].len > 0)
        return reading;
    reading.good = true;
    for (size_t i = 0; i < parts->count - 2; i++) {
        struct span pair = parts->list[i];

        reading.good = reading.good && pair.len > 0;
        if (has_key(pair, "auth=") && ++tokens > 0)
            reading.secret = span_after(pair, 5);
        if (names_user && has_key(pair, "user=") && ++users > 0)
            reading.login_as = span_after(pair, 5);
    }
    reading.good = reading.good && tokens == 1 && users <= 1 && can_be_name(reading.login_as) &&
                   has_key(reading.secret, "Bearer ") &&
                   can_be_token(span_after(reading.secret, 7));
    if (reading.good)
        reading.secret = span_after(reading.secret, 7);
    return reading;
}

/* The name that is written like this, by trying what each of its characters may be. */
static bool unescape(struct span text, char name_out[SASL_NAME_MAX])
{
    static const struct {
        const char *written;
        char ch;
    } escapes[] = {{"=2C", ','}, {"=3D", '='}};
    size_t len = 0;

    while (text.len > 0 && len < SASL_NAME_MAX - 1) {
        size_t taken = text.ptr[0] == '=' || text.ptr[0] == '\0' ? 0 : 1;
        char ch = text.ptr[0];

        for (size_t i = 0; i < 2; i++) {
            if (has_key(text, escapes[i].written)) {
                taken = 3;
                ch = escapes[i].ch;
            }
        }
        if (taken == 0)
            return false;
        name_out[len++] = ch;
        text = span_after(text, taken);
    }
    name_out[len] = '\0';
    return len > 0 && text.len == 0;
}

static struct reading read_oauthbearer(struct span message)
{
    const struct parts *parts = split(message, ',');
    struct reading reading;

    if (parts->count < 3 || (!span_is(parts->list[0], "n") && !span_is(parts->list[0], "y")))
        return (struct reading){0};

    struct span authzid = parts->list[1];
    size_t header = parts->list[0].len + 1 + authzid.len + 1;

    if (message.len == header || message.ptr[header] != '\1')
        return (struct reading){0};
    reading = read_pairs(span_after(message, header + 1), false);
    if (authzid.len > 0 &&
        (!has_key(authzid, "a=") || !unescape(span_after(authzid, 2), reading.name)))
        reading.good = false;
    return reading;
}

static struct reading read_slowly(size_t mechanism, struct span message)
{
    switch (mechanism) {
    case 0:
        return read_plain(message);
    case 2:
        return read_external(message);
    case 3:
        return read_oauthbearer(message);
    default:
        return read_pairs(message, true);
    }
}

static void check(const struct sasl_credentials *who, const struct reading *reading)
{
    struct span login_as = reading->name[0] == '\0' ? reading->login_as : span_of(reading->name);

    assert(who->proof == reading->proof);
    assert(span_equal(span_of(who->user), reading->user));
    assert(span_equal(span_of(who->login_as), login_as));
    assert(span_equal(secret_span(&who->secret), reading->secret));
}

/* A scope of any octets: what JSON cannot say is left out. */
static void check_reason(struct sasl_server *server, const char *name, struct span octets)
{
    char scope[64];
    struct buf reason;

    snprintf(scope, sizeof scope, "%.*s", (int)(octets.len < 60 ? octets.len : 60), octets.ptr);
    buf_init(&reason, 4096);
    if (sasl_server_explain(server, name, scope, scope, &reason)) {
        json_t *object = json_loadb(buf_span(&reason).ptr, buf_len(&reason), 0, NULL);
        const char *told = json_string_value(json_object_get(object, "scope"));

        assert(json_string_value(json_object_get(object, "status")) != NULL);
        assert(told == NULL || strcmp(told, scope) == 0);
        json_decref(object);
        buf_release(&reason);
        assert(sasl_server_step(server, octets, &reason) == SASL_REFUSED && buf_len(&reason) == 0);
    } else {
        assert(name[0] != 'O' && name[0] != 'X');
    }
    assert(server->mechanism == NULL);
    buf_release(&reason);
}

static void play_login(struct sasl_server *server, struct span message, struct buf *challenge)
{
    const char *end = message.len == 0 ? NULL : memchr(message.ptr, '\n', message.len);
    struct span user = {message.ptr, end == NULL ? message.len : (size_t)(end - message.ptr)};
    struct span password = span_after(message, end == NULL ? user.len : user.len + 1);
    struct reading reading = {.proof = AUTH_BY_PASSWORD,
                              .user = name_or_nobody(user),
                              .login_as = {"", 0},
                              .secret = password};

    assert(span_is(buf_span(challenge), "Username:"));
    buf_release(challenge);
    assert(sasl_server_step(server, user, challenge) == SASL_CHALLENGE);
    assert(server->mechanism != NULL && span_is(buf_span(challenge), "Password:"));
    buf_release(challenge);
    assert(sasl_server_step(server, password, challenge) == SASL_IDENTIFIED);
    check(server->who, &reading);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct sasl_credentials who; /* what was said before does not count */
    struct sasl_server server;
    struct buf challenge;

    if (size < 1 || size > PARTS_MAX)
        return 0;

    size_t mechanism = data[0] % (sizeof names / sizeof names[0]);
    const char *name = names[mechanism];
    struct span message = {(const char *)data + 1, size - 1};

    buf_init(&challenge, 64);
    secret_release(&who.secret);
    memcpy(who.user, mechanism == 2 ? "cert" : "", mechanism == 2 ? 5 : 1);
    assert(sasl_mechanism_name(span_of(name)) != NULL);
    assert(sasl_server_start(&server, sasl_mechanism_name(span_of(name)), &who, &challenge));
    if (mechanism == 1) {
        play_login(&server, message, &challenge);
    } else {
        struct reading reading = read_slowly(mechanism, message);
        enum sasl_outcome outcome = sasl_server_step(&server, message, &challenge);

        assert(outcome == (reading.good ? SASL_IDENTIFIED : SASL_REFUSED));
        if (reading.good)
            check(&who, &reading);
    }
    assert(server.mechanism == NULL && buf_len(&challenge) == 0);
    check_reason(&server, name, message);
    secret_release(&who.secret);
    buf_release(&challenge);
    return 0;
}
