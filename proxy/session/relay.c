/*
 * Owns the bytes between a client and its store: what is read, decided about, held, and passed on.
 *
 * Each direction reads into the worker's scratch buffer, behind what was held, shows it to the
 * dialog and writes runs of it straight to the other side. One read for each event, then the loop
 * turns.
 */
#include "proxy/session/relay.h"

#include "proxy/base/clock.h"
#include "routing/freshness.h"

#include <assert.h>

enum {
    HELD_MAX = 256 * 1024, /* what came behind a login, at the most */
    OWN_MAX = 64 * 1024,
    LOGOUT_MAX = 64 + DIALOG_TAG_MAX,
    /* A reader that lags this far behind stops the other side until all of it has gone. */
    QUEUE_HIGH = 32 * 1024
};

static void client_open(void *owner);
static void client_readable(void *owner);
static void client_drained(void *owner);
static void client_broken(void *owner);
static void backend_readable(void *owner);
static void backend_drained(void *owner);
static void backend_broken(void *owner);
static void update_client_reading(struct relay *r);

static const struct conn_events client_events = {client_open, client_readable, client_drained,
                                                 client_broken};
static const struct conn_events backend_events = {client_open, backend_readable, backend_drained,
                                                  backend_broken};

/* Connections are open before they are relayed. */
static void client_open(void *owner)
{
    (void)owner;
    assert(false);
}

static void nothing(void *owner)
{
    (void)owner;
}

static const struct conn_events no_events = {nothing, nothing, nothing, nothing};

/* Tells the owner, who may free the relay: the last thing a caller does. Always false. */
static bool end(struct relay *r, enum relay_end why)
{
    if (!r->client_left && !r->backend_left)
        r->why = why;
    r->on_end(r->owner);
    return false;
}

/* Whoever listens hears of it. */
static void tell(const struct relay *r, enum relay_way way, const struct scan *at,
                 struct span bytes)
{
    if (r->on_passed != NULL)
        r->on_passed(r->tap, way, at, bytes);
}

/* --- lines of our own --- */

static bool say(struct relay *r, struct span line)
{
    tell(r, RELAY_OWN, NULL, line);
    return conn_write(r->client, line);
}

/* At once at a response boundary, else as soon as there is one. */
static bool flush_own(struct relay *r)
{
    if (buf_len(&r->own) == 0 || !dialog_server_at_line_start(&r->dialog))
        return true;
    if (!say(r, buf_span(&r->own)))
        return end(r, RELAY_CLIENT_BROKEN);
    buf_release(&r->own);
    return true;
}

static bool refuse(struct relay *r, const struct dialog_step *step)
{
    if (!buf_printf(&r->own, "%.*s BAD %s\r\n", SPAN_ARG(step->tag), step->text))
        return end(
            r,
            RELAY_PROTOCOL); /* a client that sends nothing but such commands, within one literal */
    return flush_own(r);
}

/* --- leaving --- */

static const char lost[] = "* BYE [UNAVAILABLE] The connection to the mail store was lost.\r\n";

/*
 * The store is done with, whatever the reason. The client gets what is queued, and the end; what it
 * still sends is read and dropped until it closes, for closing over unread bytes would reset the
 * connection and lose our last words.
 */
static void leave_backend(struct relay *r, enum relay_end why, const char *bye)
{
    if (r->backend_left)
        return; /* it broke once more while we wrote to it */
    if (!r->client_left)
        r->why = why;
    r->backend_left = true;
    conn_want_read(r->backend, false);
    if (buf_len(&r->backend_held) > 0) {
        tell(r, RELAY_FROM_STORE, &r->dialog.server, buf_span(&r->backend_held));
        conn_write(r->client, buf_span(&r->backend_held));
    } else if (bye != NULL && !r->client_left && dialog_server_at_line_start(&r->dialog)) {
        say(r, span_of(bye));
    }
    buf_release(&r->backend_held);
    if (r->client_left && conn_queued(r->client) == 0) {
        end(r, why);
        return;
    }
    if (!r->client_left) { /* else client_drained ends it */
        buf_release(&r->client_held);
        conn_finish(r->client);
        conn_want_read(r->client, true);
    }
    r->on_linger(r->owner);
}

/*
 * The client sends no more. If that leaves the store clean this is the end, else the store answers
 * what it was asked, and ends.
 */
static void leave_client(struct relay *r)
{
    if (r->keeps_backend && relay_leaves_clean(r) && conn_queued(r->client) == 0) {
        end(r, RELAY_CLIENT_LEFT);
        return;
    }
    if (r->backend_left) {
        r->client_left = true;
        conn_want_read(r->client, false);
        if (conn_queued(r->client) == 0)
            end(r, r->why);
        return; /* else client_drained ends it */
    }
    r->why = RELAY_CLIENT_LEFT;
    r->client_left = true;
    conn_want_read(r->client, false);
    /* Of an unfinished command the store shall see what there is. */
    if (buf_len(&r->client_held) > 0)
        conn_write(r->backend, buf_span(&r->client_held));
    buf_release(&r->client_held);
    conn_finish(r->backend);
    r->on_linger(r->owner);
}

/* No command is under way, or it is IDLE: the next one may have begun, but not for the store. */
static bool client_is_answered(const struct relay *r)
{
    return (dialog_open_count(&r->dialog) == 0 || dialog_client_idles(&r->dialog)) &&
           buf_len(&r->own) == 0 && buf_len(&r->logout) == 0;
}

/* Whether the client waits for nothing. */
static bool client_rests(const struct relay *r)
{
    return client_is_answered(r) && buf_len(&r->client_held) == 0;
}

/* Whether it can be told to go, too. */
static bool at_rest(const struct relay *r)
{
    return client_rests(r) && dialog_server_at_line_start(&r->dialog);
}

/* The store's connection is the owner's to close from now on. */
static void strand(struct relay *r)
{
    r->why = RELAY_STRANDED;
    r->backend_left = true;
    conn_want_read(r->backend, false);
    conn_set_owner(r->backend, &no_events, NULL);
    r->backend = NULL;
    r->on_end(r->owner);
}

/*
 * The store is lost, or says BYE on its own. A client that waits for nothing need not hear of it at
 * once, together with all the others: that is for the owner to decide.
 */
static void lose_backend(struct relay *r, enum relay_end why)
{
    bool told = dialog_bye_seen(&r->dialog);

    if (!r->client_left && !r->backend_left && at_rest(r) && !told)
        strand(r);
    else
        leave_backend(r, why, told ? NULL : lost);
}

struct span relay_last_words(const struct relay *relay)
{
    return buf_len(&relay->backend_held) > 0 ? buf_span(&relay->backend_held) : span_of(lost);
}

bool relay_leaves_clean(const struct relay *relay)
{
    return dialog_is_clean(&relay->dialog) && !relay->backend_left && !relay->client_left &&
           conn_queued(relay->backend) == 0 && buf_len(&relay->client_held) == 0;
}

/* The client's LOGOUT is answered as soon as all that was asked before it is. */
static bool finish_logout(struct relay *r)
{
    if (buf_len(&r->logout) == 0 || dialog_open_count(&r->dialog) > 0 ||
        !dialog_server_at_line_start(&r->dialog))
        return true;
    say(r, buf_span(&r->logout));
    buf_release(&r->logout);
    return end(r, RELAY_LOGOUT);
}

static bool begin_logout(struct relay *r, const struct dialog_step *step)
{
    if (!buf_printf(&r->logout, "* BYE Logging out\r\n%.*s OK Logout completed.\r\n",
                    SPAN_ARG(step->tag)))
        return end(r, RELAY_PROTOCOL);
    return finish_logout(r);
}

bool relay_say_still_here(struct relay *relay)
{
    if (!dialog_client_idles(&relay->dialog) || !at_rest(relay) || relay->backend_left)
        return false;
    say(relay, span_of("* OK Still here\r\n")); /* a failure is met on reading */
    return true;
}

/* Ends if it was asked to, and a command boundary is reached. False when the relay has ended. */
static bool end_if_asked(struct relay *r)
{
    bool between = buf_len(&r->client_held) == 0 || dialog_client_at_start(&r->dialog);

    if (r->bye == NULL || r->backend_left || !between || !client_is_answered(r) ||
        !dialog_server_at_line_start(&r->dialog))
        return true;
    if (r->client_left) { /* it has had its answers: no word more */
        leave_backend(r, RELAY_ASKED, NULL);
        return false;
    }
    say(r, span_of(r->bye)); /* a failure is met on reading */
    return end(r, RELAY_ASKED);
}

void relay_end_politely(struct relay *relay, const char *bye)
{
    relay->bye = bye;
    if (end_if_asked(relay))
        update_client_reading(relay);
}

void relay_interject(struct relay *relay, const char *bye)
{
    if (!relay->client_left && !relay->backend_left && dialog_server_at_line_start(&relay->dialog))
        say(relay, span_of(bye));
}

bool relay_has_left_store(const struct relay *relay)
{
    return relay->backend_left;
}

/* --- from the client to the store --- */

/* Decides about the client's bytes; what is undecided is held. False when the relay has ended. */
static bool pass_from_client(struct relay *r, struct span in)
{
    while (in.len > 0) {
        const struct scan before = r->dialog.client;
        struct dialog_step step;

        dialog_client(&r->dialog, in, &step);
        switch (step.action) {
        case DIALOG_PASS:
            r->bytes_from_client += step.len;
            counter_add(&r->env->counters->bytes_from_clients, step.len);
            tell(r, RELAY_FROM_CLIENT, &before, (struct span){in.ptr, step.len});
            conn_write(r->backend,
                       (struct span){in.ptr, step.len}); /* a failure is met on reading */
            break;
        case DIALOG_REFUSE:
            if (!refuse(r, &step))
                return false;
            break;
        case DIALOG_EAT:
            break;
        case DIALOG_LOGOUT:
            return begin_logout(r, &step); /* what follows it is dropped */
        case DIALOG_MORE:
        case DIALOG_WAIT:
            return buf_append(&r->client_held, in) || end(r, RELAY_PROTOCOL);
        default:
            return end(r, RELAY_PROTOCOL);
        }
        in = span_after(in, step.len);
    }
    return true;
}

/* It is to end, and has begun no further command: it is only heard whether it leaves by itself. */
static bool begins_nothing(const struct relay *r)
{
    return r->bye != NULL && dialog_client_at_start(&r->dialog);
}

/*
 * Reads the client, but not while the store or the client itself lags, or the client's next bytes
 * cannot be judged, or it would begin a command that shall not begin.
 */
static void update_client_reading(struct relay *r)
{
    if (r->client_left || r->backend_left)
        return;
    if (dialog_client_waits(&r->dialog) || begins_nothing(r)) {
        conn_want_read(r->client, false);
        conn_want_end(r->client);
    } else {
        conn_want_read(r->client, conn_queued(r->backend) < QUEUE_HIGH &&
                                      conn_queued(r->client) < QUEUE_HIGH &&
                                      buf_len(&r->logout) == 0);
    }
}

/* The bytes held go first in the scratch buffer. */
static size_t unhold(struct relay *r, struct buf *held)
{
    size_t len = buf_len(held);

    assert(len < r->scratch_size);
    if (len > 0)
        memcpy(r->scratch, buf_span(held).ptr, len);
    buf_release(held);
    return len;
}

/* Puts back what unhold took: it was there before, so it fits. */
static void hold_again(struct relay *r, struct buf *held, size_t len)
{
    buf_append(held, (struct span){r->scratch, len});
}

/* The loop's clock is that of before the process was frozen, if that was inside a turn. */
static bool is_fenced_off(const struct relay *r)
{
    return freshness_fences_off(r->env->freshness, clock_ms());
}

static void client_readable(void *owner)
{
    struct relay *r = owner;

    if (is_fenced_off(r)) {
        conn_want_read(r->client, false); /* the end of all sessions is on its way here */
        return;
    }
    if (!r->client_left && !r->backend_left && begins_nothing(r)) {
        leave_client(r);
        return;
    }
    if (!r->client_left && !r->backend_left && dialog_client_waits(&r->dialog)) {
        r->on_linger(r->owner); /* it has sent its end: no store may make it wait for long now */
        return;
    }

    size_t held = unhold(r, &r->client_held);
    ssize_t count = conn_read(r->client, r->scratch + held, r->scratch_size - held);

    if (count < 0) {
        hold_again(r, &r->client_held, held);
        if (count == CONN_EOF)
            leave_client(r);
        else
            end(r, RELAY_CLIENT_BROKEN);
        return;
    }
    if (r->backend_left)
        return;
    if (count > 0)
        r->last_active_ms = uv_now(r->env->loop);
    if (pass_from_client(r, (struct span){r->scratch, held + (size_t)count}))
        update_client_reading(r);
}

static void backend_drained(void *owner)
{
    update_client_reading(owner);
}

static void client_broken(void *owner)
{
    end(owner, RELAY_CLIENT_BROKEN);
}

/* --- from the store to the client --- */

/* Writes a capability line with the list that the client may see. */
static bool rewrite(struct relay *r, struct span in, const struct dialog_step *step)
{
    char line[2 * DIALOG_LINE_MAX];
    size_t tail_offset = step->list_offset + step->list_len, tail = step->len - tail_offset;
    struct span list = {in.ptr + step->list_offset, step->list_len};

    memcpy(line, in.ptr, step->list_offset);
    ptrdiff_t len =
        caps_rewrite(list, r->filter, line + step->list_offset, sizeof line - step->len);
    if (len < 0)
        return end(r, RELAY_PROTOCOL);
    memcpy(line + step->list_offset + len, in.ptr + tail_offset, tail);
    return conn_write(r->client, (struct span){line, step->list_offset + (size_t)len + tail}) ||
           end(r, RELAY_CLIENT_BROKEN);
}

/*
 * The store says BYE on its own. What a client that waits for nothing hears of it, and when, is
 * for the owner to decide: false then. All others hear it at once.
 */
static bool hear_farewell(struct relay *r, struct span in)
{
    if (r->client_left || !client_rests(r) || !buf_append(&r->backend_held, in))
        return true;
    strand(r);
    return false;
}

/* Decides about the store's bytes; what is undecided is held. False when the relay has ended. */
static bool pass_from_backend(struct relay *r, struct span in)
{
    while (in.len > 0) {
        const struct scan before = r->dialog.server;
        struct dialog_step step;

        dialog_server(&r->dialog, in, &step);
        switch (step.action) {
        case DIALOG_PASS:
            tell(r, RELAY_FROM_STORE, &before, (struct span){in.ptr, step.len});
            if (!conn_write(r->client, (struct span){in.ptr, step.len}))
                return end(r, RELAY_CLIENT_BROKEN);
            break;
        case DIALOG_REWRITE:
            tell(r, RELAY_FROM_STORE, &before, (struct span){in.ptr, step.len});
            if (!rewrite(r, in, &step))
                return false;
            break;
        case DIALOG_MORE:
            return buf_append(&r->backend_held, in) || end(r, RELAY_PROTOCOL);
        case DIALOG_FAREWELL:
            if (!hear_farewell(r, in))
                return false;
            continue; /* now it passes */
        default:
            return end(r, RELAY_PROTOCOL);
        }
        r->bytes_to_client += step.len;
        counter_add(&r->env->counters->bytes_to_clients, step.len);
        if (!flush_own(r))
            return false;
        in = span_after(in, step.len);
    }
    return true;
}

/* The store has spoken: the client's bytes that waited for it can be judged now. */
static bool release_client(struct relay *r)
{
    if (buf_len(&r->client_held) == 0 || dialog_client_waits(&r->dialog) || r->client_left)
        return true;
    struct buf waiting = r->client_held;
    buf_init(&r->client_held, waiting.ceiling);
    bool goes_on = pass_from_client(r, buf_span(&waiting));
    buf_release(&waiting);
    return goes_on;
}

static void update_backend_reading(struct relay *r)
{
    if (!r->backend_left)
        conn_want_read(r->backend, conn_queued(r->client) < QUEUE_HIGH);
}

/* After bytes of the store: everything that they may have changed. */
static void settle(struct relay *r)
{
    if (!release_client(r) || !finish_logout(r) || !end_if_asked(r))
        return;
    update_client_reading(r);
    update_backend_reading(r);
}

/*
 * Beyond the fence the store is not heard, either: what it says may let go of octets that wait for
 * it, and nobody shall be told that it has done what came to it too late.
 */
static void backend_readable(void *owner)
{
    struct relay *r = owner;

    if (is_fenced_off(r)) {
        conn_want_read(r->backend, false);
        return;
    }

    size_t held = unhold(r, &r->backend_held);
    ssize_t count = conn_read(r->backend, r->scratch + held, r->scratch_size - held);

    if (count < 0) {
        hold_again(r, &r->backend_held, held);
        lose_backend(r, count == CONN_EOF ? RELAY_BACKEND_LEFT : RELAY_BACKEND_BROKEN);
        return;
    }
    if (count > 0)
        r->last_active_ms = uv_now(r->env->loop);
    if (pass_from_backend(r, (struct span){r->scratch, held + (size_t)count}))
        settle(r);
}

static void client_drained(void *owner)
{
    struct relay *r = owner;

    if (r->client_left && r->backend_left) {
        end(r, r->why);
        return;
    }
    update_backend_reading(r);
    update_client_reading(r);
}

/* What it has said before is read first, when the client has taken what there is for it. */
static void backend_broken(void *owner)
{
    struct relay *r = owner;

    if (conn_queued(r->client) == 0)
        lose_backend(r, RELAY_BACKEND_BROKEN);
}

/* --- life --- */

/* Takes what was read before the relay was there. */
static bool pass_early(struct relay *r, struct buf *early,
                       bool (*pass)(struct relay *r, struct span in))
{
    struct buf taken = *early;

    buf_init(early, taken.ceiling);
    bool goes_on = pass(r, buf_span(&taken));
    buf_release(&taken);
    return goes_on;
}

void relay_start(struct relay *relay, bool keeps_backend, struct buf *from_client,
                 struct buf *from_backend)
{
    assert(relay->scratch_size >= RELAY_SCRATCH_MIN);
    dialog_init(&relay->dialog);
    relay->keeps_backend = keeps_backend;
    if (keeps_backend)
        dialog_take_logout(&relay->dialog);
    buf_init(&relay->client_held, HELD_MAX);
    buf_init(&relay->backend_held, HELD_MAX);
    buf_init(&relay->own, OWN_MAX);
    buf_init(&relay->logout, LOGOUT_MAX);
    relay->last_active_ms = uv_now(relay->env->loop);
    conn_set_owner(relay->client, &client_events, relay);
    conn_set_owner(relay->backend, &backend_events, relay);
    if (pass_early(relay, from_backend, pass_from_backend) &&
        pass_early(relay, from_client, pass_from_client))
        settle(relay);
}

void relay_release(struct relay *relay)
{
    conn_set_owner(relay->client, &no_events, NULL);
    if (relay->backend != NULL)
        conn_set_owner(relay->backend, &no_events, NULL);
    buf_release(&relay->client_held);
    buf_release(&relay->backend_held);
    buf_release(&relay->own);
    buf_release(&relay->logout);
}
