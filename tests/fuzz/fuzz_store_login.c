/*
 * What is said to a store to log a user in, read back as a store reads it: the commands I and L and
 * nothing else, with the very name and password or token, and nothing at all where the store does
 * not offer what is wanted. The first octet chooses the shard's settings and what the client has
 * come with, the second the store's capabilities; then come the name, the password or token, and
 * the client's ID fields, each but the last with a line end behind it.
 */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>

#include "auth/sasl.h"
#include "auth/sasl_server.h"
#include "proxy/imap/args.h"
#include "proxy/imap/scan.h"
#include "proxy/store/store_login.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TEXT_MAX = 4096 };

/* A store, by the bits of the second octet. */
struct offers {
    bool id, plain, initial, no_login, oauthbearer, xoauth2;
};

static char master[] = "mas\"ter", separator[] = "*", top[] = "t\\op";

static struct span take_line(struct span *rest)
{
    const char *end = rest->len == 0 ? NULL : memchr(rest->ptr, '\n', rest->len);
    struct span line = {rest->ptr, end == NULL ? rest->len : (size_t)(end - rest->ptr)};

    *rest = span_after(*rest, end == NULL ? line.len : line.len + 1);
    return line;
}

/* The pieces as they go over the wire when the store says "+" as often as it can. */
static void join(const struct store_login *login, struct buf *all)
{
    buf_init(all, 1 << 20);
    assert(buf_append(all, buf_span(&login->now)) && buf_append(all, buf_span(&login->on_plus)) &&
           buf_append(all, buf_span(&login->on_second_plus)));
}

/* The next command, literals included, as a store cuts it. */
static struct span take_command(struct span *rest)
{
    struct scan scan;
    struct piece piece;
    size_t len = 0;

    scan_init(&scan, SCAN_CLIENT, 0, 0);
    do {
        ptrdiff_t count = scan_next(&scan, span_after(*rest, len), &piece);

        assert(count > 0);
        len += (size_t)count;
    } while (!piece.ends_line);

    struct span command = {rest->ptr, len};

    *rest = span_after(*rest, len);
    return command;
}

static void check_id(struct span command)
{
    struct args args;
    struct span word;
    struct arg name, value;
    enum args_id more;
    char key[64];

    args_init(&args, command);
    assert(args_tag(&args, &word) && span_is(word, "I") && args_space(&args));
    assert(args_word(&args, &word) && span_is(word, "ID") && args_space(&args));
    for (bool started = false; (more = args_id(&args, started, &name, &value)) == ARGS_ID_PAIR;
         started = true)
        assert(arg_copy(&name, key, sizeof key) > 0);
    assert(more == ARGS_ID_END && args_end(&args));
}

static void check_arg(struct args *args, struct span expected)
{
    static char text[2 * TEXT_MAX];
    struct arg arg;

    assert(args_space(args) && args_astring(args, &arg));
    size_t len = arg_copy(&arg, text, sizeof text);
    assert(span_equal((struct span){text, len}, expected));
}

static void check_plain(struct args *args, struct span message, struct span authzid,
                        struct span name, struct span password)
{
    struct buf bytes;
    struct sasl_plain plain;
    struct span word;

    assert(args_space(args) && args_word(args, &word) && span_is(word, "PLAIN"));
    if (args_space(args))
        assert(args_word(args, &message));
    assert(args_end(args));
    buf_init(&bytes, 1 << 20);
    assert(sasl_decode_base64(message, &bytes));
    if (sasl_parse_plain(buf_span(&bytes), &plain))
        assert(span_equal(plain.authzid, authzid) && span_equal(plain.authcid, name) &&
               span_equal(plain.password, password));
    else
        assert(name.len == 0 || password.len == 0 || memchr(password.ptr, '\0', password.len));
    buf_release(&bytes);
}

/* The message goes back through the server's side, if it is one that could come from a client. */
static void check_token(struct args *args, struct span answer, const struct store_client *client,
                        const char *mechanism)
{
    struct sasl_credentials who = {.secret = {0}};
    struct sasl_server server;
    struct span word, token = secret_span(client->token);
    struct buf bytes, challenge;
    bool sensible = client->user[0] != '\0' && strlen(client->user) < SASL_NAME_MAX &&
                    strchr(client->user, '\1') == NULL && token.len > 0;

    for (size_t i = 0; i < token.len; i++)
        sensible = sensible && token.ptr[i] > ' ' && token.ptr[i] <= '~';
    assert(args_space(args) && args_word(args, &word) && span_is(word, mechanism));
    if (args_space(args))
        assert(args_word(args, &answer));
    assert(args_end(args));
    buf_init(&bytes, 1 << 20);
    buf_init(&challenge, 64);
    assert(sasl_decode_base64(answer, &bytes));
    if (sensible) {
        assert(sasl_server_start(&server, mechanism, &who, &challenge));
        assert(sasl_server_step(&server, buf_span(&bytes), &challenge) == SASL_IDENTIFIED);
        assert(who.proof == AUTH_BY_TOKEN && strcmp(who.login_as, client->user) == 0);
        assert(span_equal(secret_span(&who.secret), token));
    }
    secret_release(&who.secret);
    buf_release(&bytes);
    buf_release(&challenge);
}

/* Who the store is told, for a login by name and password. */
static void check_password(struct args *args, struct span answer, bool with_plain,
                           enum store_login_way way, const struct store_client *client)
{
    struct span authzid = {"", 0}, password = {top, sizeof top - 1};
    struct buf name;

    buf_init(&name, TEXT_MAX + 64);
    if (way == STORE_LOGIN_MASTER_AUTHZID)
        authzid = span_of(client->user);
    else
        assert(buf_append_text(&name, client->user));
    if (way == STORE_LOGIN_MASTER_SUFFIX)
        assert(buf_append_text(&name, separator));
    if (way == STORE_LOGIN_PASSWORD)
        password = secret_span(client->password);
    else
        assert(buf_append_text(&name, master));
    if (with_plain) {
        check_plain(args, answer, authzid, buf_span(&name), password);
    } else {
        assert(authzid.len == 0 && way != STORE_LOGIN_MASTER_AUTHZID);
        check_arg(args, buf_span(&name));
        check_arg(args, password);
        assert(args_end(args));
    }
    buf_release(&name);
}

static void check(const struct store_login *login, enum store_login_way way,
                  const struct store_client *client, const struct offers *store, bool with_id)
{
    bool by_token = way == STORE_LOGIN_OAUTHBEARER || way == STORE_LOGIN_XOAUTH2;
    bool by_login = !by_token && !store->plain;
    struct buf all;
    struct args args;
    struct span word, answer = {"", 0};

    join(login, &all);

    struct span rest = buf_span(&all);

    if (with_id)
        check_id(take_command(&rest));
    args_init(&args, take_command(&rest));
    assert(args_tag(&args, &word) && span_is(word, "L") && args_space(&args));
    assert(args_word(&args, &word) && span_is(word, by_login ? "LOGIN" : "AUTHENTICATE"));
    if (!by_login && !store->initial) {
        answer = take_line(&rest);
        answer.len -= answer.len > 0; /* its CR */
    }
    if (by_token) {
        check_token(&args, answer, client, way == STORE_LOGIN_XOAUTH2 ? "XOAUTH2" : "OAUTHBEARER");
        /* what answers the reason of a refusal */
        assert(span_is(take_line(&rest), way == STORE_LOGIN_XOAUTH2 ? "\r" : "AQ==\r"));
    } else {
        check_password(&args, answer, store->plain, way, client);
    }
    assert(rest.len == 0);
    buf_release(&all);
}

/* By the settings alone, and then by what the store offers. */
static enum store_login_way expected_way(const struct conf_shard *shard,
                                         const struct store_client *client,
                                         const struct offers *store)
{
    int wanted = client->password == NULL && shard->passwordless_login != PASSWORDLESS_AS_LOGIN
                     ? shard->passwordless_login
                     : shard->login;

    if (client->token != NULL && shard->forward_token && store->oauthbearer)
        return STORE_LOGIN_OAUTHBEARER;
    if (client->token != NULL && shard->forward_token && store->xoauth2)
        return STORE_LOGIN_XOAUTH2;
    if (wanted == SHARD_LOGIN_PASSWORD)
        return client->password != NULL && (store->plain || !store->no_login) ? STORE_LOGIN_PASSWORD
                                                                              : STORE_LOGIN_NONE;
    if (wanted == SHARD_LOGIN_MASTER_AUTHZID)
        return store->plain ? STORE_LOGIN_MASTER_AUTHZID : STORE_LOGIN_NONE;
    return store->plain || !store->no_login ? STORE_LOGIN_MASTER_SUFFIX : STORE_LOGIN_NONE;
}

static void try_login(const struct conf_shard *shard, const struct store_client *client,
                      const struct offers *store)
{
    enum store_login_way way = expected_way(shard, client, store);
    struct store_login login;
    char capabilities[128];

    snprintf(capabilities, sizeof capabilities, "IMAP4rev1%s%s%s%s%s%s", store->id ? " ID" : "",
             store->plain ? " AUTH=PLAIN" : "", store->initial ? " SASL-IR" : "",
             store->no_login ? " LOGINDISABLED" : "", store->oauthbearer ? " AUTH=OAUTHBEARER" : "",
             store->xoauth2 ? " AUTH=XOAUTH2" : "");
    store_login_init(&login);
    assert(store_login_way(shard, span_of(capabilities), client) == way);
    assert(way == STORE_LOGIN_NONE || store_login_possible(shard, span_of(capabilities)));
    assert(store_login_write(&login, shard, span_of(capabilities), client) ==
           (way != STORE_LOGIN_NONE));
    if (way != STORE_LOGIN_NONE)
        check(&login, way, client, store,
              store->id && shard->client_address != CLIENT_ADDRESS_NONE);
    store_login_release(&login);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char user[TEXT_MAX];
    struct conf_shard shard = {.master_user = master,
                               .master_separator = separator,
                               .master_password = {top, sizeof top - 1}};
    struct secret secret = {0};
    struct store_client client = {.user = user, .session_id = "s1", .proxy_ttl = 4};

    if (size < 2 || size > TEXT_MAX)
        return 0;

    const struct offers store = {.id = data[1] & 1,
                                 .plain = data[1] & 2,
                                 .initial = data[1] & 4,
                                 .no_login = data[1] & 8,
                                 .oauthbearer = data[1] & 16,
                                 .xoauth2 = data[1] & 32};
    struct span rest = {(const char *)data + 2, size - 2};
    struct span name = take_line(&rest), password = take_line(&rest);
    struct args fields;
    struct arg key, value;

    if (memchr(name.ptr, '\0', name.len) != NULL ||
        memchr(password.ptr, '\0', password.len) != NULL)
        return 0; /* no name has one; LOGIN cannot say such a password, and the store refuses it */
    memcpy(user, name.ptr, name.len);
    user[name.len] = '\0';
    args_init(&fields, rest); /* the client's ID is given in the form that login.c makes of it */
    for (client.id = (struct span){rest.ptr, 0};
         args_string(&fields, &key) && args_space(&fields) && args_string(&fields, &value) &&
         key.kind == ARG_QUOTED && value.kind == ARG_QUOTED && key.value_len > 0 &&
         key.value_len < 31;) {
        client.id.len = (size_t)(fields.rest.ptr - rest.ptr);
        if (!args_space(&fields))
            break;
    }
    shard.login = data[0] % 3;
    shard.client_address = data[0] / 3 % 3;
    shard.passwordless_login = data[0] / 9 % 3;
    shard.forward_token = data[0] >= 162;
    client.password = data[0] / 27 % 3 == 0 ? &secret : NULL;
    client.token = data[0] / 27 % 3 == 1 ? &secret : NULL;
    assert(secret_set(&secret, password));
    assert(address_parse("192.0.2.1:4660", &client.address));
    assert(address_parse("[2001:db8::2]:993", &client.local));
    try_login(&shard, &client, &store);
    secret_release(&secret);
    return 0;
}
