/*
 * A connection to a store, through all its life, with a store that may say anything. The first
 * octet chooses the shard's settings, the second what is asked of the connection after the login;
 * the rest is what the store says, in turns with a "|" between them: when one has been heard, the
 * next operation begins. It is played in one piece, line by line, and octet by octet; the last two
 * must come to the same. No turn may betray who the user is before TLS stands, or the password
 * before it is asked for, or lead to what a client could not read.
 */
#include "tests/fuzz/memory_conn.h"

#include "proxy/imap/caps.h"
#include "proxy/store/backend.h"

enum { INPUT_MAX = 8 * 1024, TOLD_MAX = 1 << 20 };
enum cut { CUT_NONE, CUT_LINES, CUT_OCTETS };
enum state { STATE_OPENING, STATE_WARM, STATE_READY, STATE_PARKED, STATE_DEAD };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char address[] = "127.0.0.1:143", none[] = "", master[] = "master", star[] = "*";
static char top[] = "top", own[] = "secret";
static const struct secret password = {own, sizeof own - 1};
static char *addresses[] = {address};

struct play {
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    struct env env;
    struct tls_memory memory;
    struct backend_target target;
    struct store_client client;
    struct backend *backend;
    struct conn *conn;  /* NULL while there is none */
    struct buf said;    /* all that was written to the store */
    size_t said_before; /* octets of it that have been judged */
    struct buf told;    /* what came of each turn, in words */
    enum state state, next;
    bool answered, logged_in;
    bool is_private; /* TLS stands, or nobody wants it */
    uint8_t plan;    /* one bit for each choice between two operations */
};

static struct play *playing; /* whose connection conn_connect makes */

/* --- what backend.c wants of net/conn.c, beside memory_conn.h --- */

struct conn *conn_connect(const struct env *env, const union address *to, const union address *from,
                          const struct conn_events *events, void *owner, struct err *err)
{
    (void)env;
    (void)to;
    (void)from;
    (void)err;
    memory_conn_open(&playing->conn, &playing->said);
    conn_set_owner(playing->conn, events, owner);
    playing->conn->opening = true;
    return playing->conn;
}

bool conn_start_tls_client(struct conn *conn, SSL_CTX *context, const char *server_name,
                           struct tls_memory *memory)
{
    (void)context;
    (void)server_name;
    assert(conn->tls == NULL && memory == &playing->memory);
    conn->tls = memory_conn_tls();
    conn->opening = true;
    return true;
}

ssize_t conn_read(struct conn *conn, char *bytes, size_t size)
{
    size_t len = size < conn->to_read.len ? size : conn->to_read.len;

    assert(!conn->silent && !conn->opening);
    if (len == 0)
        return conn->ended ? CONN_EOF : CONN_AGAIN;
    memcpy(bytes, conn->to_read.ptr, len);
    conn->to_read = span_after(conn->to_read, len);
    return (ssize_t)len;
}

void conn_want_read(struct conn *conn, bool on)
{
    conn->silent = !on;
}

void conn_set_owner(struct conn *conn, const struct conn_events *events, void *owner)
{
    conn->events = events;
    conn->owner = owner;
}

void conn_hurry(struct conn *conn)
{
    (void)conn;
}

size_t conn_queued(const struct conn *conn)
{
    (void)conn;
    return 0;
}

const char *conn_failure(const struct conn *conn)
{
    (void)conn;
    return "broken";
}

/* --- what must hold --- */

static bool holds(struct span text, const char *word)
{
    return text.len > 0 && memmem(text.ptr, text.len, word, strlen(word)) != NULL;
}

/* In clear, where there shall be TLS, and before the login, nothing tells who the user is. */
static void check_said(struct play *play)
{
    struct span said = span_after(buf_span(&play->said), play->said_before);

    assert(play->is_private || said.len == 0 || span_is(said, "S STARTTLS\r\n") ||
           span_is(said, "C CAPABILITY\r\n"));
    assert(play->logged_in || (!holds(said, "ann") && !holds(said, "AGFubg")));
    play->said_before = buf_len(&play->said);
}

static void check_lines(struct span text, bool are_whole)
{
    assert(text.len == 0 || memchr(text.ptr, '\0', text.len) == NULL);
    if (!are_whole)
        assert(text.len == 0 || memchr(text.ptr, '\n', text.len) == NULL);
    while (are_whole && text.len > 0) {
        const char *end = memchr(text.ptr, '\n', text.len);

        assert(end != NULL && text.ptr[0] == '*' && text.ptr[1] == ' ');
        text = span_after(text, (size_t)(end - text.ptr) + 1);
    }
}

/* What the client will be told. */
static void check_ready(struct play *play)
{
    static char list[INPUT_MAX + 1];
    ptrdiff_t len = caps_rewrite(backend_capabilities(play->backend), NULL, list, sizeof list);

    assert(backend_capabilities(play->backend).len > 0 && len >= 0);
    check_lines((struct span){list, (size_t)len}, false);
    check_lines(backend_login_text(play->backend), false);
    check_lines(buf_span(backend_notices(play->backend)), true);
}

/* --- playing --- */

static void on_answer(void *owner, const struct err *err)
{
    struct play *play = owner;

    assert(!play->answered && play->state != STATE_DEAD);
    play->answered = true;
    play->state = err->kind == ERR_NONE ? play->next : STATE_DEAD;
    if (play->state == STATE_READY)
        check_ready(play);
}

static void on_lost(void *owner)
{
    struct play *play = owner;

    assert(play->answered && (play->state == STATE_WARM || play->state == STATE_PARKED));
    play->state = STATE_DEAD;
}

static const struct backend_events events = {on_answer, on_lost};

static bool listens(const struct play *play)
{
    return play->state != STATE_DEAD && play->conn != NULL && !play->conn->silent;
}

/* Lets the loop do what is due, and the connection open, with TLS or without. */
static void settle(struct play *play)
{
    for (int i = 0; i < 3; i++)
        uv_run(&play->loop, UV_RUN_NOWAIT);
    while (play->state != STATE_DEAD && play->conn != NULL && play->conn->opening) {
        check_said(play);
        play->conn->opening = false;
        play->is_private = play->is_private || play->conn->tls != NULL;
        play->conn->events->on_open(play->conn->owner);
    }
    check_said(play);
}

static void hear_piece(struct play *play, struct span piece)
{
    play->conn->to_read = piece;
    do {
        play->conn->events->on_readable(play->conn->owner);
        settle(play);
    } while (listens(play) && play->conn->to_read.len > 0);
}

static size_t piece_len(struct span text, enum cut cut)
{
    const char *end = memchr(text.ptr, '\n', text.len);

    if (cut == CUT_OCTETS)
        return 1;
    return cut == CUT_NONE || end == NULL ? text.len : (size_t)(end - text.ptr) + 1;
}

static void hear(struct play *play, struct span text, enum cut cut)
{
    while (text.len > 0 && listens(play)) {
        size_t len = piece_len(text, cut);

        hear_piece(play, (struct span){text.ptr, len});
        text = span_after(text, len);
    }
}

static void tell(struct play *play, struct span text)
{
    assert(buf_append(&play->told, text) && buf_append_text(&play->told, "\n"));
}

static void tell_turn(struct play *play)
{
    static const char *const words[] = {"opening", "warm", "ready", "parked", "dead"};

    tell(play, span_of(words[play->state]));
    if (play->state != STATE_READY)
        return;
    tell(play, backend_capabilities(play->backend));
    tell(play, backend_login_text(play->backend));
    tell(play, buf_span(backend_notices(play->backend)));
}

static bool choose(struct play *play)
{
    bool chosen = play->plan & 1;

    play->plan >>= 1;
    return chosen;
}

/* The next operation, if the last one is over. */
static void act(struct play *play)
{
    if (!play->answered || play->state == STATE_DEAD)
        return;
    play->answered = false;
    switch (play->state) {
    case STATE_WARM:
        play->next = STATE_READY;
        play->logged_in = true;
        backend_log_in(play->backend, &play->client);
        break;
    case STATE_READY:
        buf_release(backend_rest(play->backend)); /* the session's first bytes: it has had them */
        play->next = STATE_PARKED;
        backend_leave(play->backend, choose(play));
        break;
    case STATE_PARKED:
        play->next = choose(play) ? STATE_READY : STATE_WARM;
        (play->next == STATE_READY ? backend_check : backend_reset)(play->backend);
        break;
    default:
        assert(false);
    }
    settle(play);
}

static void play_open(struct play *play, const struct conf_shard *shard, uint8_t plan)
{
    static const struct conf conf = {.pool = {.check_after = 0}}; /* it always asks */

    *play = (struct play){.plan = plan, .next = STATE_WARM, .is_private = shard->tls == TLS_NONE};
    uv_loop_init(&play->loop);
    turn_init(&play->turn, &play->loop);
    play->env = (struct env){
        .loop = &play->loop, .turn = &play->turn, .conf = &conf, .counters = &play->counters};
    play->target = (struct backend_target){.shard = shard, .memories = &play->memory};
    play->client = (struct store_client){
        .user = "ann", .password = &password, .session_id = "s1", .proxy_ttl = 4};
    assert(address_parse("192.0.2.1:4660", &play->client.address));
    assert(address_parse("192.0.2.2:993", &play->client.local));
    play->client.id = (struct span){"", 0};
    buf_init(&play->said, TOLD_MAX);
    buf_init(&play->told, TOLD_MAX);
    playing = play;
    play->backend = backend_open(&play->env, &play->target, NULL, &events, play);
    assert(play->backend != NULL);
    settle(play);
}

static void play_close(struct play *play)
{
    backend_close(&play->backend);
    assert(play->conn == NULL);
    turn_release(&play->turn);
    uv_run(&play->loop, UV_RUN_DEFAULT);
    assert(uv_loop_close(&play->loop) == 0);
    shared_text_release(&play->target.greeting_capabilities);
    shared_text_release(&play->target.login_capabilities);
    shared_text_release(&play->target.login_text);
}

static void play_all(struct play *play, const struct conf_shard *shard, uint8_t plan,
                     struct span text, enum cut cut)
{
    play_open(play, shard, plan);
    while (text.len > 0 && play->state != STATE_DEAD) {
        const char *end = memchr(text.ptr, '|', text.len);
        size_t len = end == NULL ? text.len : (size_t)(end - text.ptr);

        hear(play, (struct span){text.ptr, len}, cut);
        tell_turn(play);
        act(play);
        text = span_after(text, end == NULL ? len : len + 1);
    }
    if (listens(play)) { /* and hangs up */
        play->conn->ended = true;
        hear_piece(play, (struct span){"", 0});
        assert(play->state == STATE_DEAD);
    }
    play_close(play);
}

static void play_release(struct play *play)
{
    buf_release(&play->said);
    buf_release(&play->told);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct play whole, lines, octets;

    if (size < 2 || size > INPUT_MAX)
        return 0;

    struct conf_shard shard = {
        .title = master,
        .address = {addresses, 1},
        .tls = data[0] % 3,
        .login = data[0] / 3 % 3,
        .client_address = data[0] / 9 % 2 == 0 ? CLIENT_ADDRESS_ID : CLIENT_ADDRESS_NONE,
        .tls_name = none,
        .master_user = master,
        .master_separator = star,
        .master_password = {top, 3},
        .connect_timeout = 60000,
        .login_timeout = 60000,
    };
    struct span text = {(const char *)data + 2, size - 2};

    play_all(&whole, &shard, data[1], text, CUT_NONE);
    play_all(&lines, &shard, data[1], text, CUT_LINES);
    play_all(&octets, &shard, data[1], text, CUT_OCTETS);
    assert(span_equal(buf_span(&lines.told), buf_span(&octets.told)));
    assert(span_equal(buf_span(&lines.said), buf_span(&octets.said)));
    play_release(&whole);
    play_release(&lines);
    play_release(&octets);
    return 0;
}
