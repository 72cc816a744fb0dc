/*
 * Owns the talk with the two stores, side by side. Each is asked for its namespaces and for a list
 * of all mailboxes, with their STATUS where the store can do that (RFC 5819); then for the STATUS
 * of each that is still lacking, some at a time.
 */
#include "proxy/store/verify.h"

#include "proxy/base/mem.h"
#include "proxy/imap/caps.h"
#include "proxy/imap/reply.h"
#include "proxy/imap/scan.h"
#include "proxy/store/backend.h"

#include <assert.h>
#include <stdio.h>

enum {
    RESPONSE_MAX = 64 * 1024,
    READ_SIZE = 16 * 1024,
    TOLD_MAX = 64 * 1024 * 1024, /* by one store, in all */
    QUESTIONS_MAX = 32           /* STATUS under way at once */
};

#define STATUS_ITEMS "(MESSAGES UIDNEXT UIDVALIDITY)"

enum side_step { SIDE_OPENS, SIDE_LOGS_IN, SIDE_SPACES, SIDE_LISTS, SIDE_COUNTS, SIDE_DONE };

struct side {
    struct verify *verify;
    enum side_step step;
    struct backend_target target;
    struct backend *backend;
    struct store_client client;
    struct inventory inventory;
    struct inventory_mailbox *next; /* to be asked for its STATUS */
    unsigned questions;
    struct scan scan;
    struct buf input;
    size_t scanned, told;
};

struct verify {
    const struct env *env;
    struct verify_request *request; /* NULL once it is answered or cancelled */
    const struct conf *conf;        /* which has the shards: held */
    const struct tls *tls;          /* held */
    struct side from, to;
    uv_timer_t deadline;
};

static void on_backend(void *owner, const struct err *err);
static void on_lost(void *owner);
static void on_open(void *owner);
static void on_readable(void *owner);
static void on_drained(void *owner);
static void on_broken(void *owner);
static void on_deadline(uv_timer_t *timer);

static const struct backend_events backend_events = {on_backend, on_lost};
static const struct conn_events conn_events = {on_open, on_readable, on_drained, on_broken};

/* --- life --- */

static bool open_side(struct side *side, struct verify *verify, const struct conf_shard *shard,
                      const char *user, struct err *err)
{
    side->verify = verify;
    side->target = (struct backend_target){
        .shard = shard,
        .tls = tls_shard_context(verify->tls, shard),
        .memories = mem_array(shard->address.count, sizeof(struct tls_memory)),
    };
    side->client = (struct store_client){.user = user, .session_id = "verify", .proxy_ttl = 1};
    address_of("127.0.0.1", 1, &side->client.address); /* there is no client but us */
    side->client.local = side->client.address;
    scan_init(&side->scan, SCAN_SERVER, RESPONSE_MAX, RESPONSE_MAX);
    buf_init(&side->input, RESPONSE_MAX + READ_SIZE);
    if (!store_login_is_foreseen(shard, &side->client))
        return err_set(err, ERR_CONFIG,
                       "shard %s has no passwordless way to log in: set its passwordless_login",
                       shard->title);
    if (side->target.memories != NULL)
        side->backend =
            backend_open(verify->env, &side->target, &side->client, &backend_events, side);
    return side->backend != NULL || err_set(err, ERR_INTERNAL, "no memory to verify");
}

static void close_side(struct side *side)
{
    struct backend_target *target = &side->target;

    backend_close(&side->backend);
    inventory_release(&side->inventory);
    buf_release(&side->input);
    for (size_t i = 0; target->memories != NULL && i < target->shard->address.count; i++)
        tls_memory_release(&target->memories[i]);
    mem_free(target->memories);
    shared_text_release(&target->greeting_capabilities);
    shared_text_release(&target->login_capabilities);
    shared_text_release(&target->login_text);
}

static void deadline_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

static void close_verify(struct verify *verify)
{
    if (verify->request != NULL)
        verify->request->verify = NULL;
    close_side(&verify->from);
    close_side(&verify->to);
    conf_release(&verify->conf);
    tls_release(&verify->tls);
    uv_close((uv_handle_t *)&verify->deadline, deadline_closed);
}

bool verify_start(const struct env *env, const struct tls *tls, struct verify_request *request,
                  struct err *err)
{
    struct verify *verify = mem_new(sizeof *verify);

    if (verify == NULL)
        return err_set(err, ERR_INTERNAL, "no memory to verify");
    verify->env = env;
    verify->conf = conf_hold(env->conf);
    verify->tls = tls_hold(tls);
    verify->request = request;
    request->verify = verify;
    uv_timer_init(env->loop, &verify->deadline);
    verify->deadline.data = verify;
    uv_timer_start(&verify->deadline, on_deadline, env->conf->cutover.verify_timeout, 0);
    if (open_side(&verify->from, verify, request->from, request->from_user, err) &&
        open_side(&verify->to, verify, request->to, request->to_user, err))
        return true;
    close_verify(verify);
    return false;
}

void verify_cancel(struct verify_request *request)
{
    if (request->verify != NULL)
        close_verify(request->verify);
}

/* --- answers --- */

/* The last thing that a caller does. */
static void answer(struct verify *verify, const struct inventory_comparison *comparison,
                   const struct err *err)
{
    struct verify_request *request = verify->request;

    close_verify(verify);
    request->on_answer(request, comparison, err);
}

static void fail(struct side *side, enum err_kind kind, const char *why)
{
    struct err err = {0};

    err_set(&err, kind, "shard %s: %s", side->target.shard->title, why);
    answer(side->verify, NULL, &err);
}

static void compare(struct verify *verify)
{
    struct inventory_comparison comparison = {0};
    struct err err = {0};

    if (!inventory_compare(&verify->from.inventory, &verify->to.inventory,
                           verify->from.target.shard->title, verify->to.target.shard->title,
                           &comparison))
        err_set(&err, ERR_INTERNAL, "no memory to verify");
    answer(verify, err.kind == ERR_NONE ? &comparison : NULL, &err);
}

static void on_deadline(uv_timer_t *timer)
{
    struct verify *verify = timer->data;
    struct side *slow = verify->from.step == SIDE_DONE ? &verify->to : &verify->from;

    fail(slow, ERR_UNAVAILABLE, "not done within verify_timeout");
}

/* --- questions --- */

static void say(struct side *side, const char *text)
{
    conn_write(backend_conn(side->backend), span_of(text)); /* a failure is an event */
}

static void ask_list(struct side *side)
{
    side->step = SIDE_LISTS;
    say(side, caps_has(backend_capabilities(side->backend), "LIST-STATUS")
                  ? "L LIST \"\" \"*\" RETURN (STATUS " STATUS_ITEMS ")\r\n"
                  : "L LIST \"\" \"*\"\r\n");
}

static void ask_spaces(struct side *side)
{
    struct span capabilities = backend_capabilities(side->backend);

    if (!caps_has(capabilities, "NAMESPACE") && !caps_has(capabilities, "IMAP4rev2")) {
        ask_list(side);
        return;
    }
    side->step = SIDE_SPACES;
    say(side, "N NAMESPACE\r\n");
}

/* False for a name that no quoted string can hold, or without memory: it stays uncounted. */
static bool ask_status(struct side *side, const char *name)
{
    struct buf command;
    bool fits = strpbrk(name, "\r\n") == NULL;

    buf_init(&command, RESPONSE_MAX * 2);
    fits = fits && buf_append_text(&command, "S STATUS \"");
    for (; fits && *name != '\0'; name++)
        fits = (strchr("\"\\", *name) == NULL || buf_append_text(&command, "\\")) &&
               buf_append(&command, (struct span){name, 1});
    fits = fits && buf_append_text(&command, "\" " STATUS_ITEMS "\r\n") &&
           conn_write(backend_conn(side->backend), buf_span(&command));
    buf_release(&command);
    return fits;
}

/* Asks for what is lacking; false when nothing is, and nothing is under way. */
static bool ask_on(struct side *side)
{
    side->step = SIDE_COUNTS;
    for (; side->next != NULL && side->questions < QUESTIONS_MAX; side->next = side->next->hh.next)
        if (side->next->path != NULL && !side->next->counted && ask_status(side, side->next->name))
            side->questions++;
    return side->questions > 0;
}

/* --- what the store says --- */

/* False when the side is over; then the whole may be. */
static bool finish(struct side *side)
{
    struct verify *verify = side->verify;

    side->step = SIDE_DONE;
    backend_log_out(side->backend);
    backend_close(&side->backend);
    buf_release(&side->input);
    if (verify->from.step == SIDE_DONE && verify->to.step == SIDE_DONE)
        compare(verify);
    return false;
}

static bool give_up(struct side *side, const char *why)
{
    fail(side, ERR_UNAVAILABLE, why);
    return false;
}

static bool take_tagged(struct side *side, const struct reply *reply)
{
    switch (side->step) {
    case SIDE_SPACES: /* without them, all are the user's */
        ask_list(side);
        return true;
    case SIDE_LISTS:
        if (reply->kind != REPLY_OK)
            return give_up(side, "it refuses LIST");
        side->next = side->inventory.by_name;
        return ask_on(side) || finish(side);
    case SIDE_COUNTS: /* who has no STATUS is found by the comparison */
        side->questions--;
        return ask_on(side) || finish(side);
    default:
        return give_up(side, "an answer that nobody has asked for");
    }
}

/* One whole response. False when the side is over. */
static bool take_response(struct side *side, struct span response)
{
    struct reply reply;
    struct err err = {0};

    if (!reply_parse(response, &reply) || reply.kind == REPLY_CONTINUE)
        return give_up(side, "it does not speak IMAP");
    if (!reply_is_untagged(&reply))
        return take_tagged(side, &reply);
    if (reply.kind == REPLY_BYE)
        return give_up(side, "it says BYE");
    if (inventory_take(&side->inventory, response, &err))
        return true;
    fail(side, err.kind, err.text);
    return false;
}

/* Cuts the input into responses, literals included; false when the side is over. */
static bool take_input(struct side *side)
{
    while (side->scanned < buf_len(&side->input)) {
        struct piece piece;
        ptrdiff_t count =
            scan_next(&side->scan, span_after(buf_span(&side->input), side->scanned), &piece);

        if (count <= 0)
            return give_up(side, "a response is too long");
        side->scanned += (size_t)count;
        if (piece.kind != PIECE_TEXT || !piece.ends_line)
            continue;
        if (!take_response(side, (struct span){buf_span(&side->input).ptr, side->scanned}))
            return false;
        buf_consume(&side->input, side->scanned);
        side->scanned = 0;
    }
    return true;
}

static void on_readable(void *owner)
{
    struct side *side = owner;
    struct conn *conn = backend_conn(side->backend);
    char *room = buf_reserve(&side->input, READ_SIZE);
    ssize_t count = room == NULL ? CONN_BROKEN : conn_read(conn, room, READ_SIZE);

    if (room == NULL) {
        give_up(side, "a response is too long");
    } else if (count > 0) {
        buf_commit(&side->input, (size_t)count);
        side->told += (size_t)count;
        if (side->told > TOLD_MAX)
            give_up(side, "it tells too much");
        else
            take_input(side);
    } else if (count != CONN_AGAIN) {
        give_up(side, count == CONN_EOF ? "closed by the store" : conn_failure(conn));
    }
}

static void on_open(void *owner)
{
    (void)owner; /* it was open when it came */
}

static void on_drained(void *owner)
{
    (void)owner; /* what is asked is small, and bounded */
}

static void on_broken(void *owner)
{
    struct side *side = owner;

    give_up(side, conn_failure(backend_conn(side->backend)));
}

/* --- the way to the store --- */

static void begin_talk(struct side *side)
{
    struct conn *conn = backend_conn(side->backend);
    struct buf *rest = backend_rest(side->backend);

    conn_set_owner(conn, &conn_events, side);
    conn_want_read(conn, true);
    ask_spaces(side);
    if (!buf_append(&side->input, buf_span(rest))) {
        give_up(side, "no memory");
        return;
    }
    buf_release(rest);
    take_input(side);
}

static void on_backend(void *owner, const struct err *err)
{
    struct side *side = owner;

    if (err->kind != ERR_NONE) {
        fail(side, err->kind, err->text);
    } else if (side->step == SIDE_OPENS) {
        side->step = SIDE_LOGS_IN;
        backend_log_in(side->backend, &side->client);
    } else {
        begin_talk(side);
    }
}

static void on_lost(void *owner)
{
    struct side *side = owner;

    fail(side, ERR_UNAVAILABLE, "closed by the store"); /* it is never warm for long */
}
