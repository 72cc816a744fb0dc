/*
 * Owns a connection to a store until it is logged in.
 *
 * Steps, in order; which are taken depends on the shard's settings and on what the store says:
 * resolve, connect, [tls], greeting, [capability, starttls, tls,] [capability,] login,
 * [capability,] ready.
 */
#include "proxy/backend.h"

#include "auth/sasl.h"
#include "proxy/base/mem.h"
#include "proxy/imap/caps.h"
#include "proxy/imap/reply.h"
#include "proxy/imap/scan.h"
#include "proxy/net/resolve.h"

#include <assert.h>
#include <stdio.h>

enum step {
    STEP_RESOLVE,
    STEP_CONNECT,
    STEP_TLS,
    STEP_GREETING,
    STEP_CAPABILITY,
    STEP_STARTTLS,
    STEP_LOGIN,
    STEP_CAPABILITY_AFTER,
    STEP_READY
};

enum {
    LINE_MAX_BYTES = 64 * 1024, /* longest line of a store before and at login */
    NOTICES_MAX = 4096,
    READ_SIZE = 16 * 1024,
    LOGIN_PIECES = 3 /* LOGIN, then user and password when they must be literals */
};

struct backend {
    const struct env *env;
    const struct tls *tls;
    const struct conf_shard *shard;
    const struct backend_login *login;
    backend_answer_fn *on_answer; /* NULL once it has been called */
    void *owner;
    struct conn *conn;
    struct resolve_request resolving;
    uv_timer_t deadline;
    union address addresses[RESOLVE_ADDRESSES_MAX];
    size_t address_count, address_next; /* of the name that is tried */
    size_t name_next;                   /* of shard->address */
    char host[HOST_MAX];
    char address[ADDRESS_TEXT_MAX];
    enum step step;
    struct scan scan;
    size_t scanned;
    struct buf input;
    struct buf capabilities;
    struct buf notices;
    struct buf text;
    struct buf pending;       /* what the next "+" asks for; secret */
    struct buf pending_after; /* and the one after that; secret */
    struct err err;           /* of the last address that failed */
};

static void try_next_name(struct backend *b);
static void on_resolved(struct resolve_request *request, const union address *list, size_t count,
                        const struct err *err);
static void on_open(void *owner);
static void on_readable(void *owner);
static void on_drained(void *owner);
static void on_broken(void *owner);
static void on_deadline(uv_timer_t *timer);

static const struct conn_events events = {on_open, on_readable, on_drained, on_broken};

/* --- life --- */

struct backend *backend_open(const struct env *env, const struct tls *tls,
                             const struct conf_shard *shard, const struct backend_login *login,
                             backend_answer_fn *on_answer, void *owner)
{
    struct backend *b = mem_new(sizeof *b);

    if (b == NULL)
        return NULL;
    b->env = env;
    b->tls = tls;
    b->shard = shard;
    b->login = login;
    b->on_answer = on_answer;
    b->owner = owner;
    b->resolving.on_answer = on_resolved;
    b->resolving.owner = b;
    buf_init(&b->input, LINE_MAX_BYTES + READ_SIZE);
    buf_init(&b->capabilities, LINE_MAX_BYTES);
    buf_init(&b->notices, NOTICES_MAX);
    buf_init(&b->text, LINE_MAX_BYTES);
    buf_init(&b->pending, LINE_MAX_BYTES * 2);
    buf_init(&b->pending_after, LINE_MAX_BYTES * 2);
    uv_timer_init(env->loop, &b->deadline);
    b->deadline.data = b;
    try_next_name(b);
    return b;
}

static void timer_closed(uv_handle_t *handle)
{
    struct backend *b = handle->data;

    mem_free(b);
}

void backend_close(struct backend **backend)
{
    struct backend *b = *backend;

    *backend = NULL;
    if (b == NULL)
        return;
    resolve_cancel(&b->resolving);
    conn_close(&b->conn);
    buf_release(&b->input);
    buf_release(&b->capabilities);
    buf_release(&b->notices);
    buf_release(&b->text);
    buf_release(&b->pending);
    buf_release(&b->pending_after);
    uv_close((uv_handle_t *)&b->deadline, timer_closed);
}

/* Tells the owner, who may close us: the last thing a caller does. */
static void answer(struct backend *b, const struct err *err)
{
    backend_answer_fn *on_answer = b->on_answer;

    assert(on_answer != NULL);
    b->on_answer = NULL;
    uv_timer_stop(&b->deadline);
    buf_release(&b->pending);
    buf_release(&b->pending_after);
    if (err->kind != ERR_NONE) {
        counter_add(&b->env->counters->backend_failures, 1);
        conn_close(&b->conn);
    }
    on_answer(b->owner, err);
}

static void arm(struct backend *b, uint64_t timeout_ms)
{
    uv_timer_start(&b->deadline, on_deadline, timeout_ms, 0);
}

/* --- connecting: every address of every name, in turn --- */

static void try_next_address(struct backend *b);

static void try_next_name(struct backend *b)
{
    uint16_t port = 0;

    if (b->name_next == b->shard->address.count) {
        answer(b, &b->err);
        return;
    }
    b->step = STEP_RESOLVE;
    arm(b, b->shard->connect_timeout);
    address_split(b->shard->address.items[b->name_next++], b->host,
                  &port); /* checked with the configuration */
    resolve(b->env, &b->resolving, b->host, port);
}

static void on_resolved(struct resolve_request *request, const union address *list, size_t count,
                        const struct err *err)
{
    struct backend *b = request->owner;

    if (err->kind != ERR_NONE) {
        b->err = *err;
        try_next_name(b);
        return;
    }
    memcpy(b->addresses, list, count * sizeof *list);
    b->address_count = count;
    b->address_next = 0;
    try_next_address(b);
}

/* A failure before the login was sent: nothing is lost by trying elsewhere. */
static void fail_address(struct backend *b, const char *why)
{
    err_set(&b->err, ERR_UNAVAILABLE, "store %s: %s", b->address[0] == '\0' ? b->host : b->address,
            why);
    conn_close(&b->conn);
    resolve_cancel(&b->resolving);
    try_next_address(b);
}

static void try_next_address(struct backend *b)
{
    while (b->address_next < b->address_count) {
        const union address *to = &b->addresses[b->address_next++];

        address_text(to, b->address);
        b->step = STEP_CONNECT;
        buf_release(&b->input);
        buf_release(&b->capabilities);
        buf_release(&b->notices);
        b->scanned = 0;
        scan_init(&b->scan, SCAN_SERVER, LINE_MAX_BYTES, LINE_MAX_BYTES);
        arm(b, b->shard->connect_timeout);
        b->conn = conn_connect(b->env, to, &events, b, &b->err);
        if (b->conn != NULL)
            return;
    }
    try_next_name(b);
}

/* A failure that no other address can mend. */
static void fail(struct backend *b, enum err_kind kind, const char *why)
{
    struct err err = {0};

    err_set(&err, kind, "store %s: %s", b->address, why);
    answer(b, &err);
}

static void fail_at(struct backend *b, const char *why)
{
    if (b->step < STEP_LOGIN)
        fail_address(b, why);
    else
        fail(b, ERR_UNAVAILABLE, why);
}

static void on_deadline(uv_timer_t *timer)
{
    struct backend *b = timer->data;

    fail_at(b, b->step == STEP_RESOLVE    ? "its name is not found in time"
               : b->step <= STEP_GREETING ? "no answer in time"
                                          : "login takes too long");
}

static void start_tls(struct backend *b)
{
    const char *name = b->shard->tls_name[0] == '\0' ? b->host : b->shard->tls_name;

    b->step = STEP_TLS;
    if (!conn_start_tls_client(b->conn, tls_shard_context(b->tls, b->shard), name))
        fail_address(b, "cannot set up TLS");
}

static void after_tls(struct backend *b);

static void on_open(void *owner)
{
    struct backend *b = owner;

    if (b->step == STEP_TLS) {
        after_tls(b);
        return;
    }
    counter_add(&b->env->counters->backend_connects, 1);
    if (b->shard->tls == TLS_IMPLICIT)
        start_tls(b);
    else
        b->step = STEP_GREETING;
}

static void on_broken(void *owner)
{
    struct backend *b = owner;

    fail_at(b, conn_failure(b->conn));
}

static void on_drained(void *owner)
{
    (void)owner; /* what is written here is small */
}

/* --- reading --- */

/* What a response led to. */
enum verdict {
    VERDICT_MORE,  /* read on */
    VERDICT_TLS,   /* the store is ready for TLS */
    VERDICT_READY, /* logged in */
    VERDICT_GONE   /* failed: the backend may be gone */
};

static enum verdict take_response(struct backend *b, struct span line);

static void start_tls_now(struct backend *b)
{
    if (buf_len(&b->input) > 0)
        fail_address(b, "bytes in clear behind STARTTLS"); /* somebody is in between */
    else
        start_tls(b);
}

/* Cuts the input into responses, literals included, and handles them until one ends the reading. */
static void take_responses(struct backend *b)
{
    while (b->scanned < buf_len(&b->input)) {
        struct piece piece;
        ptrdiff_t count = scan_next(&b->scan, span_after(buf_span(&b->input), b->scanned), &piece);

        if (count <= 0) {
            fail_at(b, "a response is too long");
            return;
        }
        b->scanned += (size_t)count;
        if (piece.kind != PIECE_TEXT || !piece.ends_line)
            continue;
        enum verdict verdict = take_response(b, (struct span){buf_span(&b->input).ptr, b->scanned});
        if (verdict == VERDICT_GONE)
            return;
        buf_consume(&b->input, b->scanned);
        b->scanned = 0;
        if (verdict == VERDICT_TLS) {
            start_tls_now(b);
            return;
        }
        if (verdict == VERDICT_READY) {
            b->step = STEP_READY;
            conn_want_read(b->conn, false);
            answer(b, &(struct err){0});
            return;
        }
    }
}

static void on_readable(void *owner)
{
    struct backend *b = owner;
    char *room = buf_reserve(&b->input, READ_SIZE);
    ssize_t count;

    if (room == NULL) {
        fail_at(b, "a response is too long");
        return;
    }
    count = conn_read(b->conn, room, READ_SIZE);
    if (count > 0) {
        buf_commit(&b->input, (size_t)count);
        take_responses(b);
    } else if (count != CONN_AGAIN) {
        fail_at(b, count == CONN_EOF ? "closed by the store" : conn_failure(b->conn));
    }
}

/* --- asking --- */

static bool say(struct backend *b, const char *text)
{
    return conn_write(b->conn, span_of(text));
}

static bool can(const struct backend *b, const char *capability)
{
    return caps_has(buf_span(&b->capabilities), capability);
}

static void keep_capabilities(struct backend *b, struct span list)
{
    buf_release(&b->capabilities);
    buf_append(&b->capabilities, list); /* fits: it came on a line */
}

static enum verdict ask_capabilities(struct backend *b, enum step step)
{
    b->step = step;
    say(b, "C CAPABILITY\r\n"); /* a broken connection reports itself */
    return VERDICT_MORE;
}

static enum verdict give_up_address(struct backend *b, const char *why)
{
    fail_address(b, why);
    return VERDICT_GONE;
}

static enum verdict log_in(struct backend *b);

/* Capabilities are known: TLS first if it is wanted, else the login. */
static enum verdict go_on(struct backend *b)
{
    if (b->shard->tls == TLS_STARTTLS && conn_tls(b->conn) == NULL) {
        if (!can(b, "STARTTLS"))
            return give_up_address(b, "the store offers no STARTTLS");
        b->step = STEP_STARTTLS;
        say(b, "S STARTTLS\r\n");
        return VERDICT_MORE;
    }
    return log_in(b);
}

static void after_tls(struct backend *b)
{
    if (b->shard->tls == TLS_IMPLICIT) {
        b->step = STEP_GREETING;
    } else {
        buf_release(&b->capabilities); /* what was said in clear counts no more */
        ask_capabilities(b, STEP_CAPABILITY);
    }
}

/* --- logging in --- */

/*
 * ID tells the store where the client is; names beginning with x- are a convention that Dovecot
 * set.
 */
static void write_id(struct backend *b, struct buf *out)
{
    const struct backend_login *login = b->login;
    char client[ADDRESS_TEXT_MAX], local[ADDRESS_TEXT_MAX];

    address_host_text(&login->client, client);
    address_host_text(&login->local, local);
    buf_printf(
        out,
        "I ID (\"x-originating-ip\" \"%s\" \"x-originating-port\" \"%u\" \"x-connected-ip\" \"%s\" "
        "\"x-connected-port\" \"%u\" \"x-session-id\" \"%s\" \"x-proxy-ttl\" \"4\"%s%.*s)\r\n",
        client, (unsigned)address_port(&login->client), local,
        (unsigned)address_port(&login->local), login->session_id,
        login->client_id.len > 0 ? " " : "", SPAN_ARG(login->client_id));
}

/* Who logs in, and as whom: as the shard's `login` says. `login_name_out` is what LOGIN wants. */
static const struct secret *credentials(const struct backend *b, struct buf *authzid_out,
                                        struct buf *name_out)
{
    const struct conf_shard *shard = b->shard;

    if (shard->login == SHARD_LOGIN_PASSWORD) {
        buf_append_text(name_out, b->login->user);
        return b->login->password;
    }
    if (shard->login == SHARD_LOGIN_MASTER_AUTHZID) {
        buf_append_text(authzid_out, b->login->user);
        buf_append_text(name_out, shard->master_user);
    } else {
        buf_printf(name_out, "%s%s%s", b->login->user, shard->master_separator, shard->master_user);
    }
    return &shard->master_password;
}

/* AUTHENTICATE PLAIN (RFC 4616), with the initial response where the store takes it (RFC 4959). */
static bool write_plain(struct backend *b, struct buf *out, const struct buf *authzid,
                        const struct buf *name, const struct secret *password)
{
    struct buf message;
    bool with_initial = can(b, "SASL-IR");
    bool fits;

    buf_init(&message, LINE_MAX_BYTES);
    fits = buf_append(&message, buf_span(authzid)) && buf_append(&message, (struct span){"", 1}) &&
           buf_append(&message, buf_span(name)) && buf_append(&message, (struct span){"", 1}) &&
           buf_append(&message, secret_span(password)) &&
           buf_append_text(out, "L AUTHENTICATE PLAIN");
    if (fits && with_initial)
        fits = buf_append_text(out, " ") && sasl_encode_base64(buf_span(&message), out);
    else if (fits)
        fits = sasl_encode_base64(buf_span(&message), &b->pending) &&
               buf_append_text(&b->pending, "\r\n");
    buf_release(&message);
    return fits && buf_append_text(out, "\r\n");
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
static bool write_login(struct backend *b, struct buf *out, const struct buf *name,
                        const struct secret *password)
{
    struct span user = buf_span(name), secret = secret_span(password);

    if (fits_quoted(user) && fits_quoted(secret))
        return buf_append_text(out, "L LOGIN ") && add_quoted(out, user) &&
               buf_append_text(out, " ") && add_quoted(out, secret) && buf_append_text(out, "\r\n");
    return buf_printf(out, "L LOGIN {%zu}\r\n", user.len) && buf_append(&b->pending, user) &&
           buf_printf(&b->pending, " {%zu}\r\n", secret.len) &&
           buf_append(&b->pending_after, secret) && buf_append_text(&b->pending_after, "\r\n");
}

/* ID and login go in one write: one round trip where the store takes initial responses. */
static enum verdict log_in(struct backend *b)
{
    struct buf authzid, name, out;
    bool plain = can(b, "AUTH=PLAIN");
    bool fits, written;

    if (!plain && (can(b, "LOGINDISABLED") || b->shard->login == SHARD_LOGIN_MASTER_AUTHZID))
        return give_up_address(b, "the store offers no way to log in (AUTH=PLAIN or LOGIN)");
    buf_init(&authzid, LINE_MAX_BYTES);
    buf_init(&name, LINE_MAX_BYTES);
    buf_init(&out, LINE_MAX_BYTES * 4);
    b->step = STEP_LOGIN;
    arm(b, b->shard->login_timeout);
    if (b->shard->send_id && can(b, "ID"))
        write_id(b, &out);
    const struct secret *password = credentials(b, &authzid, &name);
    fits = plain ? write_plain(b, &out, &authzid, &name, password)
                 : write_login(b, &out, &name, password);
    written = fits && conn_write(b->conn, buf_span(&out));
    buf_release(&authzid);
    buf_release(&name);
    buf_release(&out);
    buf_release(&b->capabilities); /* those after login count */
    if (written)
        return VERDICT_MORE;
    fail(b, fits ? ERR_UNAVAILABLE : ERR_INTERNAL,
         fits ? conn_failure(b->conn) : "login does not fit");
    return VERDICT_GONE;
}

/* "+": the next part of what was kept back. */
static enum verdict send_pending(struct backend *b)
{
    bool expected = buf_len(&b->pending) > 0;
    bool written = expected && conn_write(b->conn, buf_span(&b->pending));

    if (!written) {
        fail(b, ERR_UNAVAILABLE, expected ? conn_failure(b->conn) : "an unexpected \"+\" at login");
        return VERDICT_GONE;
    }
    buf_release(&b->pending);
    buf_append(&b->pending, buf_span(&b->pending_after));
    buf_release(&b->pending_after);
    return VERDICT_MORE;
}

/*
 * Whose fault a refused login is. A master user that is refused is the admin's affair, never a
 * wrong password.
 */
static enum verdict refused(struct backend *b, const struct reply *reply)
{
    char why[160];
    enum err_kind kind = ERR_UNAVAILABLE;

    if (span_is(reply->code, "LIMIT"))
        kind = ERR_LIMIT;
    else if (b->shard->login != SHARD_LOGIN_PASSWORD || reply->kind != REPLY_NO)
        kind = ERR_UNAVAILABLE;
    else if (span_is(reply->code, "AUTHENTICATIONFAILED"))
        kind = ERR_CREDENTIALS;
    else if (span_is(reply->code, "EXPIRED"))
        kind = ERR_EXPIRED;
    else if (span_is(reply->code, "CONTACTADMIN") || span_is(reply->code, "AUTHORIZATIONFAILED"))
        kind = ERR_ADMIN;
    snprintf(why, sizeof why, "login refused: [%.*s] %.*s",
             (int)(reply->code.len < 32 ? reply->code.len : 32), reply->code.ptr,
             (int)(reply->text.len < 100 ? reply->text.len : 100), reply->text.ptr);
    fail(b, kind, why);
    return VERDICT_GONE;
}

/* --- responses, by step --- */

static enum verdict take_greeting(struct backend *b, const struct reply *reply)
{
    if (!reply_is_untagged(reply) || reply->kind != REPLY_OK)
        return give_up_address(b, reply->kind == REPLY_BYE       ? "the store greets with BYE"
                                  : reply->kind == REPLY_PREAUTH ? "the store greets with PREAUTH"
                                                                 : "not an IMAP greeting");
    if (span_is(reply->code, "CAPABILITY")) {
        keep_capabilities(b, reply->code_args);
        return go_on(b);
    }
    return ask_capabilities(b, STEP_CAPABILITY);
}

static enum verdict take_tagged(struct backend *b, const struct reply *reply)
{
    bool ok = reply->kind == REPLY_OK;

    switch (b->step) {
    case STEP_CAPABILITY:
        return ok ? go_on(b) : give_up_address(b, "the store refuses CAPABILITY");
    case STEP_STARTTLS:
        return ok ? VERDICT_TLS : give_up_address(b, "the store refuses STARTTLS");
    case STEP_LOGIN:
        if (!span_is(reply->tag, "L")) /* the answer to ID */
            return VERDICT_MORE;
        if (!ok)
            return refused(b, reply);
        buf_append(&b->text, reply->text);
        if (span_is(reply->code, "ALERT")) /* its place is taken by the capabilities */
            buf_printf(&b->notices, "* OK [ALERT] %.*s\r\n", SPAN_ARG(reply->text));
        if (span_is(reply->code, "CAPABILITY"))
            keep_capabilities(b, reply->code_args);
        return buf_len(&b->capabilities) > 0 ? VERDICT_READY
                                             : ask_capabilities(b, STEP_CAPABILITY_AFTER);
    case STEP_CAPABILITY_AFTER:
        if (ok && buf_len(&b->capabilities) > 0)
            return VERDICT_READY;
        fail(b, ERR_UNAVAILABLE, "the store gives no capabilities after login");
        return VERDICT_GONE;
    default:
        return give_up_address(b, "an unexpected answer");
    }
}

/* An alert at login is for the user to see (RFC 9051 7.1). */
static void keep_notice(struct backend *b, const struct reply *reply, struct span line)
{
    if (b->step >= STEP_LOGIN && span_is(reply->code, "ALERT"))
        buf_append(&b->notices, line); /* one too many is not worth the login */
}

static enum verdict take_response(struct backend *b, struct span line)
{
    struct reply reply;

    if (!reply_parse(line, &reply)) {
        fail_at(b, "speaks no IMAP");
        return VERDICT_GONE;
    }
    if (b->step == STEP_GREETING)
        return take_greeting(b, &reply);
    if (reply.kind == REPLY_CONTINUE)
        return send_pending(b);
    if (!reply_is_untagged(&reply))
        return take_tagged(b, &reply);
    if (reply.kind == REPLY_CAPABILITY) {
        keep_capabilities(b, reply.text);
    } else if (reply.kind == REPLY_BYE) {
        fail_at(b, "says BYE");
        return VERDICT_GONE;
    } else {
        keep_notice(b, &reply, line);
    }
    return VERDICT_MORE;
}

/* --- what the owner gets --- */

struct conn *backend_conn(struct backend *backend)
{
    return backend->conn;
}

struct span backend_capabilities(const struct backend *backend)
{
    return buf_span(&backend->capabilities);
}

struct span backend_login_text(const struct backend *backend)
{
    return buf_span(&backend->text);
}

struct buf *backend_notices(struct backend *backend)
{
    return &backend->notices;
}

struct buf *backend_rest(struct backend *backend)
{
    return &backend->input;
}

const char *backend_address(const struct backend *backend)
{
    return backend->address;
}
