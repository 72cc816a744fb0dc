/*
 * Owns one move from its first step to its last. move_run is the whole of it, from top to bottom;
 * each step returns false when it has failed, and has said why.
 */
#include "proxy/ctl/move.h"

#include "proxy/ctl/child.h"
#include "proxy/base/clock.h"
#include "proxy/ctl/exchange.h"
#include "proxy/ctl/interrupt.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/random.h>

enum {
    LOOK_EVERY_MS = 100,   /* while proxies let go */
    ALIVE_EVERY_MS = 4000, /* while commands run; a move that nobody looks at for 30 s is over */
    ANSWER_MS = 10000,     /* for a step */
    SETTLE_MS = 45000,     /* for a move that was left alone to be over */
    TELL_FIRST_MS = 1000,  /* whom we wait for is said then, */
    TELL_AGAIN_MS = 5000,  /* and then again */
    NAMED_MAX = 3,         /* so many proxies */
    ATTEMPTS_MAX = 3       /* if moves are lost */
};

static bool fail(struct move *m, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The first reason is the one that counts. */
static bool fail(struct move *m, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (m->why[0] == '\0')
        vsnprintf(m->why, sizeof m->why, format, args);
    va_end(args);
    return false;
}

static void say(const struct move *m, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void say(const struct move *m, const char *format, ...)
{
    char text[512];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    m->plan->say(m->plan->owner, m->user, span_of(text));
}

/* --- asking imapmux --- */

static bool is_given_up(const struct move *m)
{
    return interrupt_count() >= m->plan->give_up_at;
}

static bool may_wait(void *move)
{
    return !is_given_up(move);
}

/* It may be that Redis is down, for as long as the whole timeout of the step. */
static void tell_why_again(void *move, const char *why)
{
    struct move *m = move;

    if (clock_ms() < m->tell_ms)
        return;
    say(m, "trying again: %s", why);
    m->tell_ms = clock_ms() + TELL_AGAIN_MS;
}

/* Takes over the arguments. `on_wait` may be NULL. */
static void ask(struct move *m, const char *command, json_t *arguments, bool (*on_wait)(void *),
                uint64_t limit_ms, struct answer *answer_out)
{
    struct exchange request = {.socket = m->plan->socket,
                               .command = command,
                               .arguments = arguments,
                               .limit_ms = limit_ms,
                               .patience_ms = m->plan->timeout_ms,
                               .on_wait = on_wait,
                               .on_again = tell_why_again,
                               .owner = m};

    m->tell_ms = clock_ms() + TELL_AGAIN_MS;
    exchange(&request, answer_out);
    json_decref(arguments);
}

static json_t *user_and_id(const struct move *m)
{
    return json_pack("{s:s, s:s}", "user", m->user, "move", m->id);
}

/* --- how it stands --- */

enum stand { STAND_UNKNOWN, STAND_OVER, STAND_MOVING, STAND_COMMITTED, STAND_DONE };

static enum stand read_stand(struct move *m, const struct answer *answer)
{
    const char *state = answer_text(answer->result, "state");

    if (answer->kind != ANSWER_DONE)
        return answer->kind == ANSWER_REFUSED ? STAND_OVER : STAND_UNKNOWN;
    json_decref(m->missing);
    m->missing = json_incref(json_object_get(answer->result, "missing"));
    if (strcmp(state, "moving") == 0)
        return STAND_MOVING;
    if (strcmp(state, "committed") == 0)
        return STAND_COMMITTED;
    return json_is_true(json_object_get(answer->result, "done")) ? STAND_DONE : STAND_OVER;
}

/* Asks, which keeps the move alive, too. */
static enum stand ask_stand(struct move *m, bool (*on_wait)(void *), char why_out[512])
{
    uint64_t asked_ms = clock_ms();
    struct answer answer;

    ask(m, "cutover look", user_and_id(m), on_wait, ANSWER_MS, &answer);
    enum stand stand = read_stand(m, &answer);
    if (stand == STAND_MOVING)
        m->looked_ms = asked_ms;
    snprintf(why_out, 512, "%s", answer.kind == ANSWER_DONE ? "it is over" : answer.why);
    answer_release(&answer);
    return stand;
}

/* Is it still ours, and under way? */
static bool look(struct move *m)
{
    char why[512];

    enum stand stand = ask_stand(m, may_wait, why);

    if (stand == STAND_MOVING)
        return true;
    m->lost = stand == STAND_OVER;
    return is_given_up(m) ? fail(m, "it was given up") : fail(m, "the move is lost: %s", why);
}

/* While something runs: false ends it. */
static bool keep_alive(void *move)
{
    struct move *m = move;

    if (is_given_up(m))
        return fail(m, "it was given up");
    return !m->held || clock_ms() - m->looked_ms < ALIVE_EVERY_MS || look(m);
}

/* --- the steps --- */

static void take_line(void *move, struct span line)
{
    struct move *m = move;

    m->plan->say(m->plan->owner, m->user, line);
}

/* Who the user is, comes only by the environment: a name is never part of a command. */
static bool run_command(struct move *m, const char *name, const char *command)
{
    char values[5][sizeof "IMAPMUX_BACKEND_USER=" + MOVE_NAME_MAX];
    const char *const environment[] = {values[0], values[1], values[2], values[3], values[4], NULL};
    struct child child = {command, environment, take_line, keep_alive, m};
    struct err err = {0};

    if (command == NULL)
        return true;
    snprintf(values[0], sizeof values[0], "IMAPMUX_USER=%s", m->name);
    snprintf(values[1], sizeof values[1], "IMAPMUX_FROM=%s", m->from);
    snprintf(values[2], sizeof values[2], "IMAPMUX_TO=%s", m->to);
    snprintf(values[3], sizeof values[3], "IMAPMUX_EPOCH=%" PRIu64, m->epoch);
    snprintf(values[4], sizeof values[4], "IMAPMUX_BACKEND_USER=%s", m->backend_user);
    return child_run(&child, &err) || fail(m, "the %s command %s", name, err.text);
}

static bool begin(struct move *m)
{
    struct answer answer;

    ask(m, "cutover begin",
        json_pack("{s:s, s:s, s:s}", "user", m->user, "to", m->to, "move", m->id), may_wait,
        ANSWER_MS, &answer);
    m->held = answer.kind != ANSWER_REFUSED; /* without an answer, perhaps */
    m->looked_ms = clock_ms();
    if (answer.kind == ANSWER_DONE) {
        snprintf(m->from, sizeof m->from, "%s", answer_text(answer.result, "from"));
        m->epoch = (uint64_t)json_integer_value(json_object_get(answer.result, "epoch"));
    } else {
        fail(m, "it could not begin: %s", answer.why);
    }
    bool done = answer.kind == ANSWER_DONE;
    answer_release(&answer);
    return done;
}

/* "mx2:4711 (seen 3 s ago), mx3:12, 2 more" */
static void name_missing(const struct move *m, char *text, size_t size)
{
    size_t count = json_array_size(m->missing), len = 0;

    for (size_t i = 0; i < count && i < NAMED_MAX && len < size; i++) {
        const json_t *proxy = json_array_get(m->missing, i);

        len += (size_t)snprintf(text + len, size - len, "%s%s (%s, seen %lld s ago)",
                                i > 0 ? ", " : "", answer_text(proxy, "id"),
                                answer_text(proxy, "host"),
                                json_integer_value(json_object_get(proxy, "seen_seconds")));
    }
    if (count > NAMED_MAX && len < size)
        snprintf(text + len, size - len, ", and %zu more", count - NAMED_MAX);
}

static bool wait_for_proxies(struct move *m)
{
    uint64_t end = clock_ms() + m->plan->timeout_ms, tell = clock_ms() + TELL_FIRST_MS;
    char names[256] = "";

    while (look(m)) {
        if (json_array_size(m->missing) == 0)
            return true;
        name_missing(m, names, sizeof names);
        if (clock_ms() >= end)
            return fail(m, "not all have let go of the user in time: %s", names);
        if (clock_ms() >= tell) {
            say(m, "waiting for %s", names);
            tell = clock_ms() + TELL_AGAIN_MS;
        }
        clock_sleep(LOOK_EVERY_MS);
    }
    return false;
}

static void say_differences(const struct move *m, const json_t *items)
{
    for (size_t i = 0; i < json_array_size(items); i++) {
        const json_t *item = json_array_get(items, i);

        say(m, "%s: %s", answer_text(item, "mailbox"), answer_text(item, "differs"));
    }
}

static bool verify_builtin(struct move *m)
{
    struct answer answer;

    ask(m, "cutover verify",
        json_pack("{s:s, s:s, s:s}", "user", m->user, "from", m->from, "to", m->to), keep_alive, 0,
        &answer);
    bool equal = answer.kind == ANSWER_DONE;
    if (equal) {
        m->mailboxes = json_integer_value(json_object_get(answer.result, "mailboxes"));
        m->messages = json_integer_value(json_object_get(answer.result, "messages"));
    } else {
        say_differences(m, answer.items);
        fail(m, "the comparison failed: %s", answer.why);
    }
    answer_release(&answer);
    return equal;
}

static bool verify(struct move *m)
{
    const char *command = m->plan->verify;

    if (command != NULL && strcmp(command, MOVE_VERIFY_BUILTIN) == 0)
        return verify_builtin(m);
    return run_command(m, "verify", command);
}

/* After an attempt that got no "done", for the reason `why`. */
static bool may_commit_again(struct move *m, const char *why, uint64_t end)
{
    char about_look[512];
    enum stand stand = ask_stand(m, NULL, about_look);

    m->committed = stand != STAND_MOVING && stand != STAND_OVER;
    m->lost = stand == STAND_OVER;
    if (stand == STAND_OVER || clock_ms() >= end)
        return fail(m, "the commit failed: %s", why);
    if (stand == STAND_MOVING && json_array_size(m->missing) > 0) /* one has started since */
        return wait_for_proxies(m);
    return true;
}

/* From here nothing interrupts it: what has gone through in part only goes forward. */
static bool commit(struct move *m)
{
    uint64_t end = clock_ms() + m->plan->timeout_ms;

    for (;;) {
        struct answer answer;
        char why[sizeof answer.why];

        ask(m, "cutover commit", user_and_id(m), NULL, ANSWER_MS, &answer);
        bool done = answer.kind == ANSWER_DONE;
        snprintf(why, sizeof why, "%s", answer.why);
        answer_release(&answer);
        if (done)
            return true;
        if (!may_commit_again(m, why, end))
            return false;
        clock_sleep(LOOK_EVERY_MS);
    }
}

/* --- the whole --- */

/* Adds to the reason where the user is now. */
static enum move_end add_place(struct move *m, enum move_end end, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static enum move_end add_place(struct move *m, enum move_end end, const char *format, ...)
{
    size_t len = strlen(m->why);
    va_list args;

    va_start(args, format);
    vsnprintf(m->why + len, sizeof m->why - len, format, args);
    va_end(args);
    return end;
}

/* The user goes on at the old shard, unless it is too late for that. */
static enum move_end go_back(struct move *m)
{
    struct answer answer;

    if (!m->held)
        return add_place(m, MOVE_FAILED, "; the user is at %s", m->from);
    if (m->committed)
        return add_place(m, MOVE_UNSURE,
                         "; it is committed, or may be: if so it goes on by itself, to %s", m->to);
    ask(m, "cutover abort", user_and_id(m), NULL, ANSWER_MS, &answer);
    enum answer_kind kind = answer.kind;
    answer_release(&answer);
    if (kind == ANSWER_DONE)
        return add_place(m, MOVE_FAILED, "; the user is at %s, as before", m->from);
    if (kind == ANSWER_REFUSED)
        return add_place(m, MOVE_FAILED, "; there was no move any more that could end");
    return add_place(m, MOVE_UNSURE,
                     "; the user goes on at %s within 30 s, when the move is seen to be over",
                     m->from);
}

static enum move_end finish(struct move *m, enum move_end end)
{
    json_decref(m->missing);
    m->missing = NULL;
    return end;
}

/* The user is held, and goes on at the new shard. */
static bool cut_over(struct move *m)
{
    return begin(m) && wait_for_proxies(m) && run_command(m, "sync", m->plan->sync) && verify(m) &&
           commit(m);
}

/* A new master of Redis may not know of the move; then the user is at the old shard, as before. */
static bool may_begin_anew(struct move *m, int attempts)
{
    if (!m->lost || attempts >= ATTEMPTS_MAX || is_given_up(m))
        return false;
    say(m, "%s; it is begun anew", m->why);
    m->why[0] = '\0';
    m->held = m->committed = m->lost = false;
    return true;
}

enum move_end move_run(struct move *m)
{
    m->mailboxes = m->messages = -1;
    if (!run_command(m, "presync", m->plan->presync))
        return finish(m, go_back(m));
    uint64_t begun_ms = clock_ms();
    for (int attempts = 1; !cut_over(m); attempts++)
        if (!may_begin_anew(m, attempts))
            return finish(m, go_back(m));
    m->hold_ms = clock_ms() - begun_ms;
    return finish(m, MOVE_MOVED);
}

/* --- before it --- */

static bool make_id(struct move *m)
{
    uint64_t random;

    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return fail(m, "there are no random octets");
    snprintf(m->id, sizeof m->id, "%016" PRIx64, random);
    return true;
}

static enum move_end judge_route(struct move *m, const json_t *route)
{
    const char *name = answer_text(route, "user"), *there = answer_text(route, "backend_user");

    snprintf(m->name, sizeof m->name, "%s", *name == '\0' ? m->user : name);
    snprintf(m->from, sizeof m->from, "%s", answer_text(route, "shard"));
    snprintf(m->backend_user, sizeof m->backend_user, "%s", *there == '\0' ? m->name : there);
    snprintf(m->state, sizeof m->state, "%s", answer_text(route, "state"));
    m->epoch = (uint64_t)json_integer_value(json_object_get(route, "epoch"));
    if (strcmp(m->state, "active") != 0)
        fail(m, "the route is %s", m->state);
    else if (strcmp(m->from, m->to) == 0)
        return MOVE_THERE;
    return m->why[0] == '\0' ? MOVE_READY : MOVE_FAILED;
}

enum move_end move_look_up(struct move *m)
{
    struct answer answer;
    enum move_end end = MOVE_FAILED;

    m->why[0] = m->state[0] = '\0';
    if (!make_id(m))
        return MOVE_FAILED;
    ask(m, "route", json_pack("{s:s}", "user", m->user), may_wait, ANSWER_MS, &answer);
    if (answer.kind == ANSWER_DONE)
        end = judge_route(m, answer.result);
    else
        fail(m, "%s", answer.why);
    answer_release(&answer);
    return end;
}

/* Nobody knows yet what became of the old move: whoever looks again needs its id. */
static enum move_end leave_unsettled(struct move *m, const char *old_id)
{
    snprintf(m->id, sizeof m->id, "%s", old_id);
    return add_place(m, MOVE_UNSURE, "; what became of an earlier move is not known");
}

enum move_end move_settle(struct move *m, const char *old_id)
{
    uint64_t end = clock_ms() + SETTLE_MS;
    struct answer answer;

    ask(m, "cutover abort", json_pack("{s:s, s:s}", "user", m->user, "move", old_id), may_wait,
        ANSWER_MS, &answer);
    answer_release(&answer); /* refused, it is over, or goes forward */
    for (;;) {
        enum move_end now = move_look_up(m);
        bool moves = strcmp(m->state, "moving") == 0 || strcmp(m->state, "committed") == 0;

        if (now != MOVE_FAILED)
            return now;
        if (!moves || clock_ms() >= end || is_given_up(m))
            return moves || m->state[0] == '\0' ? leave_unsettled(m, old_id) : MOVE_FAILED;
        clock_sleep(LOOK_EVERY_MS);
    }
}

json_t *move_describe(const struct move *m, enum move_end end)
{
    static const char *const names[] = {"ready", "moved", "there", "failed", "unsure"};
    json_t *result = json_pack("{s:s, s:s, s:s, s:s}", "user", m->user, "from", m->from, "to",
                               m->to, "state", names[end]);

    if (end == MOVE_MOVED)
        json_object_set_new(result, "hold_ms", json_integer((json_int_t)m->hold_ms));
    if (end == MOVE_MOVED && m->messages >= 0) {
        json_object_set_new(result, "mailboxes", json_integer(m->mailboxes));
        json_object_set_new(result, "messages", json_integer(m->messages));
    }
    if (end == MOVE_FAILED || end == MOVE_UNSURE)
        json_object_set_new(result, "why", json_string(m->why));
    return result;
}
