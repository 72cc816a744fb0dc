/* Owns the commands that log a user in at a store. */
#include "proxy/store/store_login.h"

#include "auth/sasl.h"
#include "proxy/imap/caps.h"

enum { PIECE_MAX = 256 * 1024 }; /* a password of SASL's longest line, in base64, and a name */

void store_login_init(struct store_login *login)
{
    buf_init(&login->now, PIECE_MAX);
    buf_init(&login->on_plus, PIECE_MAX);
    buf_init(&login->on_second_plus, PIECE_MAX);
}

void store_login_release(struct store_login *login)
{
    buf_release(&login->now);
    buf_release(&login->on_plus);
    buf_release(&login->on_second_plus);
}

static bool takes_tokens(const struct conf_shard *shard, struct span capabilities)
{
    return shard->forward_token &&
           (caps_has(capabilities, "AUTH=OAUTHBEARER") || caps_has(capabilities, "AUTH=XOAUTH2"));
}

static enum store_login_way password_way(const struct conf_shard *shard)
{
    static const enum store_login_way ways[] = {
        [SHARD_LOGIN_PASSWORD] = STORE_LOGIN_PASSWORD,
        [SHARD_LOGIN_MASTER_AUTHZID] = STORE_LOGIN_MASTER_AUTHZID,
        [SHARD_LOGIN_MASTER_SUFFIX] = STORE_LOGIN_MASTER_SUFFIX,
    };

    return ways[shard->login];
}

static enum store_login_way passwordless_way(const struct conf_shard *shard)
{
    switch ((enum conf_passwordless_login)shard->passwordless_login) {
    case PASSWORDLESS_MASTER_AUTHZID:
        return STORE_LOGIN_MASTER_AUTHZID;
    case PASSWORDLESS_MASTER_SUFFIX:
        return STORE_LOGIN_MASTER_SUFFIX;
    default:
        return shard->login == SHARD_LOGIN_PASSWORD ? STORE_LOGIN_NONE : password_way(shard);
    }
}

/*
 * The way if the store offers it. LOGIN has no authorization identity: the master would be logged
 * in as itself.
 */
static enum store_login_way offered(enum store_login_way way, struct span capabilities)
{
    bool by_login = !caps_has(capabilities, "LOGINDISABLED") && way != STORE_LOGIN_MASTER_AUTHZID;

    return by_login || caps_has(capabilities, "AUTH=PLAIN") ? way : STORE_LOGIN_NONE;
}

bool store_login_possible(const struct conf_shard *shard, struct span capabilities)
{
    return takes_tokens(shard, capabilities) ||
           offered(password_way(shard), capabilities) != STORE_LOGIN_NONE ||
           offered(passwordless_way(shard), capabilities) != STORE_LOGIN_NONE;
}

enum store_login_way store_login_way(const struct conf_shard *shard, struct span capabilities,
                                     const struct store_client *client)
{
    if (client->password != NULL)
        return offered(password_way(shard), capabilities);
    if (client->token != NULL && takes_tokens(shard, capabilities))
        return caps_has(capabilities, "AUTH=OAUTHBEARER") ? STORE_LOGIN_OAUTHBEARER
                                                          : STORE_LOGIN_XOAUTH2;
    return offered(passwordless_way(shard), capabilities);
}

enum store_login_way store_login_foreseen(const struct conf_shard *shard,
                                          const struct store_client *client)
{
    static const char everything[] = "AUTH=PLAIN AUTH=OAUTHBEARER AUTH=XOAUTH2";

    return store_login_way(shard, span_of(everything), client);
}

bool store_login_is_foreseen(const struct conf_shard *shard, const struct store_client *client)
{
    return store_login_foreseen(shard, client) != STORE_LOGIN_NONE;
}

const char *store_login_name(enum store_login_way way)
{
    static const char *const names[] = {
        [STORE_LOGIN_NONE] = "none",
        [STORE_LOGIN_PASSWORD] = "password",
        [STORE_LOGIN_MASTER_AUTHZID] = "master_authzid",
        [STORE_LOGIN_MASTER_SUFFIX] = "master_suffix",
        [STORE_LOGIN_OAUTHBEARER] = "oauthbearer",
        [STORE_LOGIN_XOAUTH2] = "xoauth2",
    };

    return names[way];
}

bool store_login_is_own(enum store_login_way way)
{
    return way == STORE_LOGIN_PASSWORD || way == STORE_LOGIN_OAUTHBEARER ||
           way == STORE_LOGIN_XOAUTH2;
}

/*
 * ID tells the store where the client is; names beginning with x- are a convention that Dovecot
 * set. x-proxy-ttl goes along in any case: it is how a loop of proxies is noticed.
 */
static bool write_id(struct buf *out, const struct conf_shard *shard,
                     const struct store_client *client)
{
    char address[ADDRESS_TEXT_MAX], local[ADDRESS_TEXT_MAX];
    bool fits = buf_append_text(out, "I ID (");

    address_host_text(&client->address, address);
    address_host_text(&client->local, local);
    if (shard->client_address == CLIENT_ADDRESS_ID)
        fits = fits && buf_printf(out,
                                  "\"x-originating-ip\" \"%s\" \"x-originating-port\" \"%u\" "
                                  "\"x-connected-ip\" \"%s\" \"x-connected-port\" \"%u\" ",
                                  address, (unsigned)address_port(&client->address), local,
                                  (unsigned)address_port(&client->local));
    return fits && buf_printf(out, "\"x-session-id\" \"%s\" \"x-proxy-ttl\" \"%u\"%s%.*s)\r\n",
                              client->session_id, client->proxy_ttl, client->id.len > 0 ? " " : "",
                              SPAN_ARG(client->id));
}

/*
 * Who logs in, and as whom. `name_out` is what LOGIN wants. NULL when it does not fit.
 */
static const struct secret *credentials(enum store_login_way way, const struct conf_shard *shard,
                                        const struct store_client *client, struct buf *authzid_out,
                                        struct buf *name_out)
{
    bool fits;

    if (way == STORE_LOGIN_PASSWORD)
        return buf_append_text(name_out, client->user) ? client->password : NULL;
    if (way == STORE_LOGIN_MASTER_AUTHZID)
        fits = buf_append_text(authzid_out, client->user) &&
               buf_append_text(name_out, shard->master_user);
    else
        fits = buf_printf(name_out, "%s%s%s", client->user, shard->master_separator,
                          shard->master_user);
    return fits ? &shard->master_password : NULL;
}

/* AUTHENTICATE, with the initial response where the store takes it (RFC 4959). */
static bool write_authenticate(struct store_login *login, const char *mechanism, bool with_initial,
                               const struct buf *message)
{
    bool fits =
        buf_append_text(&login->now, "L AUTHENTICATE ") && buf_append_text(&login->now, mechanism);

    if (fits && with_initial)
        fits =
            buf_append_text(&login->now, " ") && sasl_encode_base64(buf_span(message), &login->now);
    else if (fits)
        fits = sasl_encode_base64(buf_span(message), &login->on_plus) &&
               buf_append_text(&login->on_plus, "\r\n");
    return fits && buf_append_text(&login->now, "\r\n");
}

/* RFC 4616. */
static bool write_plain(struct store_login *login, bool with_initial, const struct buf *authzid,
                        const struct buf *name, const struct secret *password)
{
    struct span nul = {"", 1};
    struct buf message;
    bool fits;

    buf_init(&message, PIECE_MAX);
    fits = buf_append(&message, buf_span(authzid)) && buf_append(&message, nul) &&
           buf_append(&message, buf_span(name)) && buf_append(&message, nul) &&
           buf_append(&message, secret_span(password)) &&
           write_authenticate(login, "PLAIN", with_initial, &message);
    buf_release(&message);
    return fits;
}

/* saslname (RFC 5801 4). */
static bool add_saslname(struct buf *out, const char *name)
{
    bool fits = true;

    for (; fits && *name != '\0'; name++)
        fits = *name == ','   ? buf_append_text(out, "=2C")
               : *name == '=' ? buf_append_text(out, "=3D")
                              : buf_append(out, (struct span){name, 1});
    return fits;
}

/*
 * OAUTHBEARER (RFC 7628 3.1) or XOAUTH2. A store that refuses the token says why first, in a
 * challenge that wants an answer.
 */
static bool write_token(struct store_login *login, bool with_initial,
                        const struct store_client *client)
{
    bool standard = login->way == STORE_LOGIN_OAUTHBEARER;
    struct buf message, *last = with_initial ? &login->on_plus : &login->on_second_plus;
    bool fits;

    buf_init(&message, PIECE_MAX);
    fits = standard ? buf_append_text(&message, "n,a=") && add_saslname(&message, client->user) &&
                          buf_append_text(&message, ",")
                    : buf_append_text(&message, "user=") && buf_append_text(&message, client->user);
    fits =
        fits && buf_append_text(&message, "\1auth=Bearer ") &&
        buf_append(&message, secret_span(client->token)) && buf_append_text(&message, "\1\1") &&
        write_authenticate(login, standard ? "OAUTHBEARER" : "XOAUTH2", with_initial, &message) &&
        buf_append_text(last, standard ? "AQ==\r\n" : "\r\n");
    buf_release(&message);
    return fits;
}

static bool fits_quoted(struct span text)
{
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] < ' ' || (unsigned char)text.ptr[i] > '~')
            return false;
    return true;
}

static bool add_quoted(struct buf *out, struct span text)
{
    bool fits = buf_append_text(out, "\"");

    for (size_t i = 0; fits && i < text.len; i++) {
        if (text.ptr[i] == '"' || text.ptr[i] == '\\')
            fits = buf_append_text(out, "\\");
        fits = fits && buf_append(out, (struct span){text.ptr + i, 1});
    }
    return fits && buf_append_text(out, "\"");
}

/* LOGIN, for stores without AUTH=PLAIN: quoted strings, or literals for what cannot be quoted. */
static bool write_login(struct store_login *login, struct span user, struct span password)
{
    struct buf *now = &login->now;

    if (fits_quoted(user) && fits_quoted(password))
        return buf_append_text(now, "L LOGIN ") && add_quoted(now, user) &&
               buf_append_text(now, " ") && add_quoted(now, password) &&
               buf_append_text(now, "\r\n");
    return buf_printf(now, "L LOGIN {%zu}\r\n", user.len) && buf_append(&login->on_plus, user) &&
           buf_printf(&login->on_plus, " {%zu}\r\n", password.len) &&
           buf_append(&login->on_second_plus, password) &&
           buf_append_text(&login->on_second_plus, "\r\n");
}

/* With a name and a password, the user's or the master's. */
static bool write_password(struct store_login *login, const struct conf_shard *shard,
                           struct span capabilities, const struct store_client *client)
{
    struct buf authzid, name;

    buf_init(&authzid, PIECE_MAX);
    buf_init(&name, PIECE_MAX);
    const struct secret *password = credentials(login->way, shard, client, &authzid, &name);
    bool fits = password != NULL;
    if (fits && caps_has(capabilities, "AUTH=PLAIN"))
        fits = write_plain(login, caps_has(capabilities, "SASL-IR"), &authzid, &name, password);
    else if (fits)
        fits = write_login(login, buf_span(&name), secret_span(password));
    buf_release(&authzid);
    buf_release(&name);
    return fits;
}

bool store_login_write(struct store_login *login, const struct conf_shard *shard,
                       struct span capabilities, const struct store_client *client)
{
    bool fits = true;

    login->way = store_login_way(shard, capabilities, client);
    if (shard->client_address != CLIENT_ADDRESS_NONE && caps_has(capabilities, "ID"))
        fits = write_id(&login->now, shard, client);
    if (!fits || login->way == STORE_LOGIN_NONE)
        return false;
    if (login->way == STORE_LOGIN_OAUTHBEARER || login->way == STORE_LOGIN_XOAUTH2)
        return write_token(login, caps_has(capabilities, "SASL-IR"), client);
    return write_password(login, shard, capabilities, client);
}
