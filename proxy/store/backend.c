/*
 * Owns a connection to a store while no relay has it: its steps, and what the store may say in
 * each.
 *
 * To open: dial, connect, [tls], greeting, [capability, starttls, tls,] [capability,] warm; which
 * are taken depends on the shard's settings and on what the store says.
 */
#include "proxy/store/backend.h"

#include "proxy/base/mem.h"
#include "proxy/imap/caps.h"
#include "proxy/imap/reply.h"
#include "proxy/imap/scan.h"
#include "proxy/net/dial.h"
#include "proxy/net/proxyproto.h"

#include <assert.h>
#include <stdio.h>

enum step {
    STEP_DIAL, /* opening: a failure leads to the next address */
    STEP_CONNECT,
    STEP_TLS,
    STEP_GREETING,
    STEP_CAPABILITY,
    STEP_STARTTLS,
    STEP_WARM, /* from here on a failure is final */
    STEP_LOGIN,
    STEP_CAPABILITY_AFTER,
    STEP_READY,
    STEP_LEAVING,
    STEP_PARKED,
    STEP_CHECK,
    STEP_RESET,
    STEP_CAPABILITY_RESET
};

enum {
    LINE_MAX_BYTES = 64 * 1024, /* longest line of a store while we listen */
    NOTICES_MAX = 4096,
    /* What is said to the client in one line: more than any store has, less than clients take. */
    CAPABILITIES_MAX = 8 * 1024,
    TEXT_MAX = 1024,
    READ_SIZE = 4 * 1024,
    TIDY_TIMEOUT_MS = 2000 /* to leave, check and reset: else a new one is quicker */
};

/* What is held only while something is under way. Its memory goes in the timer's close callback. */
struct operation {
    uv_timer_t deadline;
    struct dial dial;
    struct err err; /* of the last address that failed */
    struct store_login login;
};

struct backend {
    const struct env *env;
    struct backend_target *target;
    const struct conf_shard *shard;    /* the target's */
    const struct store_client *client; /* while opening for it or logging in */
    const struct backend_events *events;
    void *owner;
    struct conn *conn;
    struct operation *operation; /* NULL while none is under way, or for lack of memory */
    struct turn_task later;      /* answers an operation that needs no word of the store */
    struct shared_text *capabilities, *text;
    struct url *referral; /* NULL: none */
    uint64_t heard_ms;    /* when the store has said something last, to us */
    struct scan scan;
    size_t scanned;
    struct buf input;
    struct buf notices;
    union address address;
    uint8_t step;
    bool busy;     /* an operation is under way: an answer is owed */
    bool got_word; /* the store has said something about the login */
    bool stale;    /* see backend_is_stale */
};

static void say(struct backend *b, const char *text);
static void try_next_address(struct backend *b);
static void on_address(struct dial *dial, const struct err *err);
static void on_open(void *owner);
static void on_readable(void *owner);
static void on_drained(void *owner);
static void on_broken(void *owner);
static void on_deadline(uv_timer_t *timer);
static void fail_without_memory(struct turn_task *task);
static void fail_without_way(struct turn_task *task);

static const struct conn_events conn_events = {on_open, on_readable, on_drained, on_broken};

/* --- life --- */

static bool comes_last(void *owner, const union address *address)
{
    const struct backend *b = owner;

    return b->target->store != NULL && store_address_is_down(b->target->store, address);
}

/* False without memory. */
static bool start_operation(struct backend *b)
{
    struct operation *operation = mem_new(sizeof *operation);

    b->busy = true;
    b->operation = operation;
    if (operation == NULL)
        return false;
    operation->dial.env = b->env;
    operation->dial.names = &b->shard->address;
    operation->dial.on_ready = on_address;
    operation->dial.comes_last = comes_last;
    operation->dial.owner = b;
    store_login_init(&operation->login);
    uv_timer_init(b->env->loop, &operation->deadline);
    operation->deadline.data = b;
    return true;
}

static void timer_closed(uv_handle_t *handle)
{
    struct operation *operation =
        (struct operation *)((char *)handle - offsetof(struct operation, deadline));

    mem_free(operation);
}

static void end_operation(struct backend *b)
{
    struct operation *operation = b->operation;

    b->busy = false;
    b->operation = NULL;
    turn_cancel(b->env->turn, &b->later);
    if (operation == NULL)
        return;
    dial_release(&operation->dial);
    store_login_release(&operation->login);
    uv_close((uv_handle_t *)&operation->deadline, timer_closed);
}

static void arm(struct backend *b, uint64_t timeout_ms)
{
    uv_timer_start(&b->operation->deadline, on_deadline, timeout_ms, 0);
}

/* An answer never comes inside the call that asks for it. */
static void answer_later(struct backend *b, void (*run)(struct turn_task *task))
{
    b->later.run = run;
    turn_post(b->env->turn, &b->later);
}

/* An operation begins. False without memory: it fails by itself. */
static bool begin(struct backend *b, enum step step, uint64_t timeout_ms)
{
    assert(!b->busy);
    b->step = (uint8_t)step;
    if (!start_operation(b)) {
        answer_later(b, fail_without_memory);
        return false;
    }
    arm(b, timeout_ms);
    return true;
}

struct backend *backend_open(const struct env *env, struct backend_target *target,
                             const struct store_client *client, const struct backend_events *events,
                             void *owner)
{
    struct backend *b = mem_new(sizeof *b);

    if (b == NULL)
        return NULL;
    b->env = env;
    b->target = target;
    b->shard = target->shard;
    b->client = client;
    b->events = events;
    b->owner = owner;
    buf_init(&b->input, LINE_MAX_BYTES + READ_SIZE);
    buf_init(&b->notices, NOTICES_MAX);
    if (!start_operation(b)) {
        mem_free(b);
        return NULL;
    }
    gauge_add(&env->counters->backends_open, 1);
    try_next_address(b); /* a name is looked up first: the answer comes later */
    return b;
}

void backend_close(struct backend **backend)
{
    struct backend *b = *backend;

    *backend = NULL;
    if (b == NULL)
        return;
    gauge_add(&b->env->counters->backends_open, -1);
    if (b->conn != NULL && !b->busy && (b->step == STEP_WARM || b->step == STEP_PARKED))
        backend_log_out(b);
    end_operation(b);
    conn_close(&b->conn);
    buf_release(&b->input);
    buf_release(&b->notices);
    shared_text_release(&b->capabilities);
    shared_text_release(&b->text);
    mem_free(b->referral);
    mem_free(b);
}

/* The answer is not waited for. */
void backend_log_out(struct backend *backend)
{
    say(backend, "P LOGOUT\r\n");
}

/* Tells the owner, who may close us: the last thing a caller does. */
static void answer(struct backend *b, const struct err *err)
{
    struct err told = *err; /* it may be the operation's */

    assert(b->busy);
    b->client = NULL;
    end_operation(b);
    if (told.kind != ERR_NONE)
        conn_close(&b->conn);
    b->events->on_answer(b->owner, &told);
}

/* --- opening: every address of every name, in turn --- */

/* The shard's next source address of this family; NULL: the system chooses. */
static const union address *next_source(struct backend *b, sa_family_t family,
                                        union address *address)
{
    const struct conf_words *sources = &b->shard->source_address;

    for (size_t i = 0; i < sources->count; i++) {
        const char *text = sources->items[b->target->source_turn++ % sources->count];

        if (address_of(text, 0, address) && address->any.sa_family == family)
            return address;
    }
    return NULL;
}

/* False when not even a socket can be had; why is kept. */
static bool try_address(struct backend *b, const union address *to)
{
    union address source;

    b->address = *to;
    b->step = STEP_CONNECT;
    buf_release(&b->input);
    buf_release(&b->notices);
    shared_text_release(&b->capabilities);
    b->scanned = 0;
    scan_init(&b->scan, SCAN_SERVER, LINE_MAX_BYTES, LINE_MAX_BYTES);
    arm(b, b->shard->connect_timeout);
    b->conn = conn_connect(b->env, to, next_source(b, to->any.sa_family, &source), &conn_events, b,
                           &b->operation->err);
    return b->conn != NULL;
}

static void try_next_address(struct backend *b)
{
    for (;;) {
        switch (dial_next(&b->operation->dial)) {
        case DIAL_ADDRESS:
            if (try_address(b, b->operation->dial.to))
                return;
            break;
        case DIAL_LATER:
            b->step = STEP_DIAL;
            arm(b, b->shard->connect_timeout);
            return;
        case DIAL_END:
            counter_add(&b->env->counters->backend_failures, 1);
            answer(b, &b->operation->err);
            return;
        }
    }
}

static void on_address(struct dial *dial, const struct err *err)
{
    struct backend *b = dial->owner;

    if (err->kind != ERR_NONE)
        b->operation->err = *err;
    try_next_address(b);
}

/* A failure before the login was sent: nothing is lost by trying elsewhere. */
static void fail_address(struct backend *b, const char *why)
{
    struct operation *opening = b->operation;
    char address[ADDRESS_TEXT_MAX] = "";

    if (b->step != STEP_DIAL)
        address_text(&b->address, address);
    err_set(&opening->err, ERR_UNAVAILABLE, "store %s: %s",
            address[0] == '\0' ? opening->dial.host : address, why);
    conn_close(&b->conn);
    dial_skip(&opening->dial);
    try_next_address(b);
}

/* A failure that no other address can mend. */
static void fail(struct backend *b, enum err_kind kind, const char *why)
{
    struct err err = {0};
    char address[ADDRESS_TEXT_MAX];

    address_text(&b->address, address);
    err_set(&err, kind, "store %s: %s", address, why);
    counter_add(&b->env->counters->backend_failures, 1);
    answer(b, &err);
}

/* Whatever is under way fails, and may have ended the backend. */
static void fail_at(struct backend *b, const char *why)
{
    if (b->step < STEP_WARM)
        fail_address(b, why);
    else if (b->busy)
        fail(b, ERR_UNAVAILABLE, why);
    else
        b->events->on_lost(b->owner);
}

/* The store has gone. */
static void fail_gone(struct backend *b, const char *why)
{
    b->stale = b->step == STEP_LOGIN && !b->got_word;
    fail_at(b, why);
}

static void on_deadline(uv_timer_t *timer)
{
    struct backend *b = timer->data;

    fail_at(b, b->step == STEP_DIAL       ? "its name is not found in time"
               : b->step <= STEP_GREETING ? "no answer in time"
               : b->step <= STEP_READY    ? "login takes too long"
                                          : "no answer in time");
}

static void fail_without_memory(struct turn_task *task)
{
    struct backend *b = (struct backend *)((char *)task - offsetof(struct backend, later));

    fail(b, ERR_UNAVAILABLE, "no memory");
}

/* The store is well, but what it offers is not what the shard's settings want for such a user. */
static void fail_without_way(struct turn_task *task)
{
    struct backend *b = (struct backend *)((char *)task - offsetof(struct backend, later));

    fail(b, ERR_CONFIG, "offers no way to log this user in: see login and passwordless_login");
}

static void start_tls(struct backend *b)
{
    const struct dial *dial = &b->operation->dial;
    const char *name = b->shard->tls_name[0] == '\0' ? dial->host : b->shard->tls_name;

    b->step = STEP_TLS;
    if (conn_queued(b->conn) > 0 || !conn_start_tls_client(b->conn, b->target->tls, name,
                                                           &b->target->memories[dial->name_index]))
        fail_address(b, "cannot set up TLS");
}

/* The PROXY header is the first thing that the store reads. */
static bool send_proxy_header(struct backend *b)
{
    const struct store_client *client = b->client;
    char header[512];

    assert(client != NULL);
    size_t len = proxyproto_write(&client->address, &client->local, client->session_id,
                                  client->tls_version, client->tls_cipher, header, sizeof header);
    return len > 0 && conn_write(b->conn, (struct span){header, len});
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
    if (b->shard->client_address == CLIENT_ADDRESS_PROXY && !send_proxy_header(b))
        fail_address(b, "cannot send the PROXY protocol header");
    else if (b->shard->tls == TLS_IMPLICIT)
        start_tls(b);
    else
        b->step = STEP_GREETING;
}

static void on_broken(void *owner)
{
    struct backend *b = owner;

    fail_gone(b, conn_failure(b->conn));
}

static void on_drained(void *owner)
{
    (void)owner; /* what is written here is small */
}

/* --- reading --- */

/* What a response led to. */
enum verdict {
    VERDICT_MORE, /* read on */
    VERDICT_TLS,  /* the store is ready for TLS */
    VERDICT_DONE, /* the operation has succeeded; the step is set */
    VERDICT_GONE  /* failed: the backend may be gone */
};

static enum verdict take_response(struct backend *b, struct span line);

static void start_tls_now(struct backend *b)
{
    if (buf_len(&b->input) > 0)
        fail_address(b, "bytes in clear behind STARTTLS"); /* somebody is in between */
    else
        start_tls(b);
}

static void done(struct backend *b)
{
    conn_want_read(b->conn, b->step != STEP_READY); /* the relay switches it on again */
    answer(b, &(struct err){0});
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
        if (verdict == VERDICT_DONE && b->step != STEP_PARKED) {
            done(b);
            return;
        }
    }
    if (b->step == STEP_LOGIN)
        conn_hurry(b->conn);               /* Cyrus answers ID and the login in two segments */
    if (b->busy && b->step == STEP_PARKED) /* what came behind the answer has been heard, too */
        done(b);
}

static void on_readable(void *owner)
{
    struct backend *b = owner;
    char *room;
    ssize_t count;

    if (b->busy && b->operation == NULL)
        return; /* its answer is under way */
    room = buf_reserve(&b->input, READ_SIZE);
    if (room == NULL) {
        fail_at(b, "a response is too long");
        return;
    }
    count = conn_read(b->conn, room, READ_SIZE);
    if (buf_len(&b->input) == 0 && count <= 0)
        buf_release(&b->input); /* an idle connection holds no buffer */
    if (count > 0) {
        b->heard_ms = uv_now(b->env->loop);
        buf_commit(&b->input, (size_t)count);
        take_responses(b);
    } else if (count != CONN_AGAIN) {
        fail_gone(b, count == CONN_EOF ? "closed by the store" : conn_failure(b->conn));
    }
}

/* --- asking --- */

/* A broken connection reports itself: by on_readable or on_broken. */
static void say(struct backend *b, const char *text)
{
    conn_write(b->conn, span_of(text));
}

static bool can(const struct backend *b, const char *capability)
{
    return caps_has(backend_capabilities(b), capability);
}

/* Without memory it has none, as one that says nothing. */
static void keep_capabilities(struct backend *b, struct span list)
{
    struct backend_target *target = b->target;
    bool logged_in = b->step >= STEP_LOGIN && b->step < STEP_RESET;

    shared_text_release(&b->capabilities);
    b->capabilities = shared_text_of(list, logged_in ? &target->login_capabilities
                                                     : &target->greeting_capabilities);
}

static bool has_capabilities(const struct backend *b)
{
    return backend_capabilities(b).len > 0;
}

static enum verdict ask_capabilities(struct backend *b, enum step step)
{
    b->step = (uint8_t)step;
    say(b, "C CAPABILITY\r\n");
    return VERDICT_MORE;
}

static enum verdict give_up_address(struct backend *b, const char *why)
{
    fail_address(b, why);
    return VERDICT_GONE;
}

static enum verdict give_up(struct backend *b, const char *why)
{
    fail(b, ERR_UNAVAILABLE, why);
    return VERDICT_GONE;
}

static enum verdict succeed(struct backend *b, enum step step)
{
    b->step = (uint8_t)step;
    return VERDICT_DONE;
}

/* Capabilities are known: TLS first if it is wanted, else all is ready for a login. */
static enum verdict go_on(struct backend *b)
{
    if (b->shard->tls == TLS_STARTTLS && conn_tls(b->conn) == NULL) {
        if (!can(b, "STARTTLS"))
            return give_up_address(b, "the store offers no STARTTLS");
        b->step = STEP_STARTTLS;
        say(b, "S STARTTLS\r\n");
        return VERDICT_MORE;
    }
    if (!store_login_possible(b->shard, backend_capabilities(b)))
        return give_up_address(b, "the store offers no way to log in (AUTH=PLAIN or LOGIN)");
    return succeed(b, STEP_WARM);
}

static void after_tls(struct backend *b)
{
    if (SSL_session_reused(conn_tls(b->conn)))
        counter_add(&b->env->counters->backend_tls_resumed, 1);
    if (b->shard->tls == TLS_IMPLICIT) {
        b->step = STEP_GREETING;
    } else {
        shared_text_release(&b->capabilities); /* what was said in clear counts no more */
        ask_capabilities(b, STEP_CAPABILITY);
    }
}

/* --- logging in --- */

/* ID and login go in one write: one round trip where the store takes initial responses. */
void backend_log_in(struct backend *backend, const struct store_client *client)
{
    assert(backend->step == STEP_WARM);
    if (!begin(backend, STEP_LOGIN, backend->shard->login_timeout))
        return;

    struct store_login *login = &backend->operation->login;

    backend->client = client;
    backend->got_word = false;
    if (store_login_way(backend->shard, backend_capabilities(backend), client) ==
        STORE_LOGIN_NONE) {
        answer_later(backend, fail_without_way);
        return;
    }
    if (!store_login_write(login, backend->shard, backend_capabilities(backend), client)) {
        answer_later(backend, fail_without_memory);
        return;
    }
    conn_write(backend->conn, buf_span(&login->now));
    buf_release(&login->now);
    shared_text_release(&backend->capabilities); /* those after login count */
}

bool backend_is_stale(const struct backend *backend)
{
    return backend->stale;
}

const struct url *backend_referral(const struct backend *backend)
{
    return backend->referral;
}

/* "+": the next part of what was kept back. */
static enum verdict send_pending(struct backend *b)
{
    struct store_login *login = &b->operation->login;

    if (buf_len(&login->on_plus) == 0)
        return give_up(b, "an unexpected \"+\" at login");
    conn_write(b->conn, buf_span(&login->on_plus));
    buf_release(&login->on_plus);
    buf_append(&login->on_plus, buf_span(&login->on_second_plus));
    buf_release(&login->on_second_plus);
    return VERDICT_MORE;
}

/*
 * Whose fault a refused login is. A master user that is refused is the admin's affair, never a
 * wrong password.
 */
static enum err_kind fault_of(const struct backend *b, const struct reply *reply)
{
    if (span_is(reply->code, "LIMIT"))
        return ERR_LIMIT;
    if (!store_login_is_own(b->operation->login.way) || reply->kind != REPLY_NO)
        return ERR_UNAVAILABLE;
    if (span_is(reply->code, "AUTHENTICATIONFAILED"))
        return ERR_CREDENTIALS;
    if (span_is(reply->code, "EXPIRED"))
        return ERR_EXPIRED;
    return span_is(reply->code, "CONTACTADMIN") || span_is(reply->code, "AUTHORIZATIONFAILED")
               ? ERR_ADMIN
               : ERR_UNAVAILABLE;
}

/* The user is elsewhere, whoever has logged in: false if it is not told where. */
static bool refers(struct backend *b, const struct reply *reply)
{
    struct url url;

    if (reply->kind != REPLY_NO || !span_is(reply->code, "REFERRAL") ||
        !url_parse(reply->code_args, &url))
        return false;
    b->referral = mem_new(sizeof *b->referral);
    if (b->referral == NULL)
        return false;
    *b->referral = url;
    return true;
}

static enum verdict refused(struct backend *b, const struct reply *reply)
{
    char why[200];
    enum err_kind kind = refers(b, reply) ? ERR_REFERRAL : fault_of(b, reply);

    snprintf(why, sizeof why, "login refused: [%.*s%s%.*s] %.*s",
             (int)(reply->code.len < 32 ? reply->code.len : 32), reply->code.ptr,
             reply->code_args.len > 0 ? " " : "",
             (int)(reply->code_args.len < 64 ? reply->code_args.len : 64), reply->code_args.ptr,
             (int)(reply->text.len < 100 ? reply->text.len : 100), reply->text.ptr);
    fail(b, kind, why);
    return VERDICT_GONE;
}

static enum verdict ready_for_session(struct backend *b)
{
    return backend_capabilities(b).len <= CAPABILITIES_MAX
               ? succeed(b, STEP_READY)
               : give_up(b, "the store's capabilities are too long");
}

static enum verdict take_login_answer(struct backend *b, const struct reply *reply)
{
    struct span text = {reply->text.ptr, reply->text.len < TEXT_MAX ? reply->text.len : TEXT_MAX};

    if (!span_is(reply->tag, "L")) /* the answer to ID */
        return VERDICT_MORE;
    if (reply->kind != REPLY_OK)
        return refused(b, reply);
    shared_text_release(&b->text);
    b->text = shared_text_of(text, &b->target->login_text);
    if (span_is(reply->code, "ALERT")) /* its place is taken by the capabilities */
        buf_printf(&b->notices, "* OK [ALERT] %.*s\r\n", SPAN_ARG(reply->text));
    if (span_is(reply->code, "CAPABILITY"))
        keep_capabilities(b, reply->code_args);
    return has_capabilities(b) ? ready_for_session(b) : ask_capabilities(b, STEP_CAPABILITY_AFTER);
}

/* --- between two sessions --- */

void backend_leave(struct backend *backend, bool selected)
{
    assert(backend->step == STEP_READY);
    scan_init(&backend->scan, SCAN_SERVER, LINE_MAX_BYTES, LINE_MAX_BYTES);
    backend->scanned = 0; /* it may have been lent in the middle of a line */
    conn_set_owner(backend->conn, &conn_events, backend);
    if (!begin(backend, STEP_LEAVING, TIDY_TIMEOUT_MS))
        return;
    say(backend, selected ? "P UNSELECT\r\n" : "P NOOP\r\n");
    conn_want_read(backend->conn, true);
}

static void is_fresh(struct turn_task *task)
{
    struct backend *b = (struct backend *)((char *)task - offsetof(struct backend, later));

    b->step = STEP_READY;
    done(b);
}

void backend_check(struct backend *backend)
{
    const struct env *env = backend->env;

    assert(backend->step == STEP_PARKED && !backend->busy);
    if (uv_now(env->loop) - backend->heard_ms < env->conf->pool.check_after) {
        backend->busy = true;
        answer_later(backend, is_fresh);
    } else if (begin(backend, STEP_CHECK, TIDY_TIMEOUT_MS)) {
        say(backend, "P NOOP\r\n");
    }
}

void backend_reset(struct backend *backend)
{
    assert(backend->step == STEP_PARKED);
    if (begin(backend, STEP_RESET, TIDY_TIMEOUT_MS))
        say(backend, "P UNAUTHENTICATE\r\n");
}

/* RFC 8437: the connection is as it was before the login, under the same TLS. */
static enum verdict take_reset_answer(struct backend *b, const struct reply *reply)
{
    if (reply->kind != REPLY_OK)
        return give_up(b, "the store refuses UNAUTHENTICATE");
    shared_text_release(&b->capabilities);
    buf_release(&b->notices);
    if (!span_is(reply->code, "CAPABILITY"))
        return ask_capabilities(b, STEP_CAPABILITY_RESET);
    keep_capabilities(b, reply->code_args);
    return succeed(b, STEP_WARM);
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
        return take_login_answer(b, reply);
    case STEP_CAPABILITY_AFTER:
        return ok && has_capabilities(b)
                   ? ready_for_session(b)
                   : give_up(b, "the store gives no capabilities after login");
    case STEP_LEAVING:
        return ok && span_is(reply->tag, "P") ? succeed(b, STEP_PARKED)
                                              : give_up(b, "the store does not let go");
    case STEP_CHECK:
        return ok && span_is(reply->tag, "P") ? succeed(b, STEP_READY)
                                              : give_up(b, "the store does not answer NOOP");
    case STEP_RESET:
        return take_reset_answer(b, reply);
    case STEP_CAPABILITY_RESET:
        return ok && store_login_possible(b->shard, backend_capabilities(b))
                   ? succeed(b, STEP_WARM)
                   : give_up(b, "the store offers no new login");
    default:
        fail_at(b, "an unexpected answer");
        return VERDICT_GONE;
    }
}

/*
 * What a store may say while nobody listens: status that is harmless. Capabilities that change, or
 * anything about a mailbox, tell that the connection is not what it seems.
 */
static bool may_be_said(const struct backend *b, const struct reply *reply)
{
    if (b->step == STEP_WARM || b->step == STEP_PARKED || b->step == STEP_CHECK)
        return reply->kind == REPLY_OK;
    return b->step != STEP_LEAVING || reply->kind != REPLY_CAPABILITY;
}

static enum verdict take_untagged(struct backend *b, const struct reply *reply, struct span line)
{
    if (reply->kind == REPLY_BYE) {
        fail_gone(b, "says BYE");
        return VERDICT_GONE;
    }
    if (!may_be_said(b, reply)) {
        fail_at(b, "says what it was not asked");
        return VERDICT_GONE;
    }
    if (reply->kind == REPLY_CAPABILITY)
        keep_capabilities(b, reply->text);
    else if (b->step >= STEP_LOGIN && span_is(reply->code, "ALERT"))
        buf_append(&b->notices, line); /* for the user to see (RFC 9051 7.1), if it fits */
    return VERDICT_MORE;
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
    if (b->step == STEP_LOGIN && !reply_is_untagged(&reply) && !span_is(reply.tag, "I"))
        b->got_word = true;
    if (reply.kind == REPLY_CONTINUE && b->step == STEP_LOGIN)
        return send_pending(b);
    if (reply.kind == REPLY_CONTINUE) {
        fail_at(b, "an unexpected \"+\"");
        return VERDICT_GONE;
    }
    return reply_is_untagged(&reply) ? take_untagged(b, &reply, line) : take_tagged(b, &reply);
}

/* --- what the owner gets --- */

struct conn *backend_conn(struct backend *backend)
{
    return backend->conn;
}

struct span backend_capabilities(const struct backend *backend)
{
    return shared_text_span(backend->capabilities);
}

struct span backend_login_text(const struct backend *backend)
{
    return shared_text_span(backend->text);
}

struct buf *backend_notices(struct backend *backend)
{
    return &backend->notices;
}

struct buf *backend_rest(struct backend *backend)
{
    return &backend->input;
}

const union address *backend_address(const struct backend *backend)
{
    return &backend->address;
}
