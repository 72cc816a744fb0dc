/*
 * What is said to a store to log a user in, read back as a store reads it: the commands I and L and
 * nothing else, with the very name and password. The first octet chooses the shard's settings, the
 * second the store's capabilities; then come the name, the password and the client's ID fields,
 * each but the last with a line end behind it.
 */
#include <assert.h>
#include <stdint.h>

#include "auth/sasl.h"
#include "proxy/imap/args.h"
#include "proxy/imap/scan.h"
#include "proxy/store_login.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TEXT_MAX = 4096 };

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

static void check(const struct store_login *login, const struct conf_shard *shard,
                  const struct store_client *client, bool with_id, bool with_plain)
{
    struct buf all, name;
    struct args args;
    struct span word, authzid = {"", 0}, password = secret_span(client->password);

    buf_init(&name, TEXT_MAX + 64);
    assert(buf_append_text(&name, shard->login == SHARD_LOGIN_MASTER_AUTHZID ? "" : client->user));
    if (shard->login == SHARD_LOGIN_MASTER_SUFFIX)
        assert(buf_append_text(&name, separator));
    if (shard->login != SHARD_LOGIN_PASSWORD) {
        assert(buf_append_text(&name, master));
        password = secret_span(&shard->master_password);
    }
    if (shard->login == SHARD_LOGIN_MASTER_AUTHZID)
        authzid = span_of(client->user);
    join(login, &all);

    struct span rest = buf_span(&all);

    if (with_id)
        check_id(take_command(&rest));
    args_init(&args, take_command(&rest));
    assert(args_tag(&args, &word) && span_is(word, "L") && args_space(&args));
    assert(args_word(&args, &word));
    if (with_plain) {
        struct span answer = take_line(&rest);

        answer.len -= answer.len > 0; /* its CR */
        assert(span_is(word, "AUTHENTICATE"));
        check_plain(&args, answer, authzid, buf_span(&name), password);
    } else {
        assert(span_is(word, "LOGIN"));
        check_arg(&args, buf_span(&name));
        check_arg(&args, password);
        assert(args_end(&args));
    }
    assert(rest.len == 0);
    buf_release(&all);
    buf_release(&name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const lists[] = {"IMAP4rev1",          "ID",
                                        "AUTH=PLAIN",         "ID AUTH=PLAIN",
                                        "AUTH=PLAIN SASL-IR", "ID AUTH=PLAIN SASL-IR"};
    char user[TEXT_MAX];
    struct conf_shard shard = {.master_user = master,
                               .master_separator = separator,
                               .master_password = {top, sizeof top - 1}};
    struct secret secret = {0};
    struct store_client client = {
        .user = user, .session_id = "s1", .proxy_ttl = 4, .password = &secret};
    struct store_login login;

    if (size < 2 || size > TEXT_MAX)
        return 0;

    struct span capabilities = span_of(lists[data[1] % (sizeof lists / sizeof lists[0])]);
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
    assert(secret_set(&secret, password));
    assert(address_parse("192.0.2.1:4660", &client.address));
    assert(address_parse("[2001:db8::2]:993", &client.local));
    store_login_init(&login);
    if (store_login_possible(&shard, capabilities)) {
        assert(store_login_write(&login, &shard, capabilities, &client));
        check(&login, &shard, &client,
              data[1] % 2 == 1 && shard.client_address != CLIENT_ADDRESS_NONE, data[1] % 6 > 1);
    }
    store_login_release(&login);
    secret_release(&secret);
    return 0;
}
