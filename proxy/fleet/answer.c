/* Owns what is gathered from the workers for an answer, and which sessions a question is about. */
#include "proxy/fleet/answer.h"

#include "proxy/base/buf.h"
#include "proxy/base/json_text.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/census.h"
#include "proxy/fleet/dispatch.h"
#include "proxy/process/ask.h"
#include "proxy/session/traces.h"
#include "proxy/session/users.h"

#include <stdio.h>

enum what { WHO, KICK, TRACE };
enum by { BY_NOTHING, BY_USER, BY_ADDRESS, BY_SHARD };

struct piece {
    struct piece *next;
    struct buf text;
};

struct answer {
    struct ask ask;       /* kick, trace */
    struct census census; /* who */
    const char *id;
    void (*on_done)(void *owner, struct answer *answer);
    void *owner;
    enum what what;
    enum by by;
    char *value, *session; /* kick: one of them is NULL; trace: its id is the session */
    bool shows_bodies, ends;
    struct network network;
    size_t *kicked; /* by each worker */
    size_t worker_count;
    struct piece *first, *last;
    struct piece *next; /* to be handed out */
    size_t bytes, bytes_max;
    bool cut;
};

/* --- questions --- */

static bool read_who(struct answer *answer, const char *by, struct err *err)
{
    static const char *const words[] = {
        [BY_NOTHING] = "", [BY_USER] = "user", [BY_ADDRESS] = "address", [BY_SHARD] = "shard"};

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(by == NULL ? "" : by, words[i]) == 0)
            answer->by = (enum by)i;
    if (by != NULL && (answer->by == BY_NOTHING || answer->value == NULL))
        return err_set(err, ERR_PEER, "a question by nothing that is known");
    if (answer->by == BY_ADDRESS && !network_parse(answer->value, &answer->network))
        return err_set(err, ERR_PEER, "\"%.100s\" is no address", answer->value);
    return true;
}

static char *copy_of(const json_t *question, const char *name)
{
    const char *text = json_string_value(json_object_get(question, name));

    return text == NULL ? NULL : mem_copy_text(text, strlen(text));
}

static bool read_question(struct answer *answer, const json_t *question, struct err *err)
{
    const char *what = json_string_value(json_object_get(question, "what"));

    if (what != NULL && strcmp(what, "who") == 0) {
        answer->what = WHO;
        answer->value = copy_of(question, "value");
        return read_who(answer, json_string_value(json_object_get(question, "by")), err);
    }
    if (what != NULL && strcmp(what, "kick") == 0) {
        answer->what = KICK;
        answer->value = copy_of(question, "user");
        answer->session = copy_of(question, "session");
        return (answer->value == NULL) != (answer->session == NULL) ||
               err_set(err, ERR_PEER, "neither a user nor a session, or both");
    }
    if (what != NULL && strcmp(what, "trace") == 0) {
        answer->what = TRACE;
        answer->value = copy_of(question, "user");
        answer->session = copy_of(question, "trace");
        answer->shows_bodies = json_is_true(json_object_get(question, "bodies"));
        answer->ends = json_is_true(json_object_get(question, "end"));
        return (answer->value != NULL && answer->session != NULL &&
                strlen(answer->session) <= TRACES_ID_MAX) ||
               err_set(err, ERR_PEER, "a trace of nobody");
    }
    return err_set(err, ERR_PEER, "a question that is not known");
}

/* --- pieces --- */

static struct piece *add_piece(struct answer *answer)
{
    struct piece *piece = mem_new(sizeof *piece);

    if (piece == NULL)
        return NULL;
    buf_init(&piece->text, ANSWER_PIECE_MAX);
    *(answer->last == NULL ? &answer->first : &answer->last->next) = piece;
    answer->last = piece;
    return piece;
}

/* The piece to which so many octets can be added. NULL without memory. */
static struct piece *piece_with_room(struct answer *answer, size_t size)
{
    return answer->last != NULL && buf_len(&answer->last->text) + size <= ANSWER_PIECE_MAX
               ? answer->last
               : add_piece(answer);
}

/* Takes over the reference. */
static void add_item(struct answer *answer, json_t *item)
{
    size_t size = item == NULL ? 0 : json_dumpb(item, NULL, 0, JSON_COMPACT);
    bool fits = size > 0 && answer->bytes + size <= answer->bytes_max;
    struct piece *piece = fits ? piece_with_room(answer, size + 1) : NULL;
    char *room = NULL;

    if (piece != NULL && (buf_len(&piece->text) == 0 || buf_append_text(&piece->text, ",")))
        room = buf_reserve(&piece->text, size);
    if (room != NULL && json_dumpb(item, room, size, JSON_COMPACT) == size) {
        buf_commit(&piece->text, size);
        answer->bytes += size;
    } else {
        answer->cut = true;
    }
    json_decref(item);
}

bool answer_next(struct answer *answer, struct span *piece_out)
{
    struct piece *piece = answer->next;

    if (piece == NULL)
        return false;
    *piece_out = buf_span(&piece->text);
    answer->next = piece->next;
    return true;
}

bool answer_is_cut(const struct answer *answer)
{
    return answer->cut;
}

void answer_free(struct answer *answer)
{
    struct piece *next;

    for (struct piece *piece = answer->first; piece != NULL; piece = next) {
        next = piece->next;
        buf_release(&piece->text);
        mem_free(piece);
    }
    mem_free(answer->kicked);
    mem_free(answer->value);
    mem_free(answer->session);
    mem_free(answer);
}

/* --- who --- */

static struct answer *of_census(const struct census *census)
{
    return (struct answer *)((char *)census - offsetof(struct answer, census));
}

/* On a worker's thread. */
static bool is_wanted(const struct census *census, const struct census_session *session)
{
    const struct answer *answer = of_census(census);

    if (!session->has_user)
        return false;
    switch (answer->by) {
    case BY_USER:
        return strcmp(session->user, answer->value) == 0;
    case BY_ADDRESS:
        return network_contains(&answer->network, &session->peer);
    case BY_SHARD:
        return strcmp(session->shard, answer->value) == 0;
    case BY_NOTHING:
        break;
    }
    return true;
}

static void list_sessions(struct census *census, const struct census_session *list, size_t count)
{
    struct answer *answer = of_census(census);
    char address[ADDRESS_TEXT_MAX];

    for (size_t i = 0; i < count; i++) {
        address_host_text(&list[i].peer, address);
        add_item(answer, json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:s}", "user", list[i].user,
                                   "address", address, "shard", list[i].shard, "proxy", answer->id,
                                   "session", list[i].id, "since_seconds",
                                   (json_int_t)(list[i].age_ms / 1000), "tls", list[i].tls, "phase",
                                   list[i].phase));
    }
}

static void finish(struct answer *answer)
{
    answer->next = answer->first;
    answer->on_done(answer->owner, answer);
}

static void on_listed(struct census *census)
{
    finish(of_census(census));
}

/* --- kick --- */

static void kick(struct ask *ask, struct home *home, size_t number)
{
    struct answer *answer = (struct answer *)ask;

    answer->kicked[number] = users_kick(home, answer->value, answer->session, dispatch_kick_bye);
}

static void on_kicked(struct ask *ask)
{
    struct answer *answer = (struct answer *)ask;
    size_t kicked = 0;

    for (size_t i = 0; i < answer->worker_count; i++)
        kicked += answer->kicked[i];
    add_item(answer, json_pack("{s:I}", "sessions", (json_int_t)kicked));
    finish(answer);
}

/* --- trace: on the thread of the user's worker, as the only one that has something to add --- */

static json_t *line_item(const struct answer *answer, const struct traces_line *line)
{
    return json_pack("{s:I, s:s, s:s, s:s, s:o}", "at_ms", (json_int_t)line->at_ms, "proxy",
                     answer->id, "session", line->session, "from", line->from, "text",
                     json_text(line->text));
}

static bool take_line(void *owner, const struct traces_line *line)
{
    struct answer *answer = owner;
    json_t *item = line_item(answer, line);
    size_t size = item == NULL ? 0 : json_dumpb(item, NULL, 0, JSON_COMPACT);

    if (size == 0 || answer->bytes + size > answer->bytes_max) {
        json_decref(item);
        return false;
    }
    add_item(answer, item);
    return true;
}

static void fetch_trace(struct ask *ask, struct home *home, size_t number)
{
    struct answer *answer = (struct answer *)ask;
    struct traces_loss loss;

    (void)number;
    if (home->home_of(home, answer->value) != home)
        return;

    enum traces_answer told = traces_fetch(home->traces, answer->value, answer->session,
                                           answer->shows_bodies, take_line, answer, &loss);

    if (told != TRACES_TOLD)
        add_item(answer, json_pack("{s:s, s:s}", "proxy", answer->id, "refused",
                                   told == TRACES_OTHER ? "somebody else traces this user"
                                                        : "too many traces, or out of memory"));
    else if (loss.lines > 0)
        add_item(answer, json_pack("{s:I, s:s, s:I}", "at_ms", (json_int_t)loss.at_ms, "proxy",
                                   answer->id, "lost", (json_int_t)loss.lines));
    if (answer->ends)
        traces_end(home->traces, answer->value, answer->session);
}

static void on_fetched(struct ask *ask)
{
    finish((struct answer *)ask);
}

/* --- life --- */

static bool start(struct answer *answer, struct control *control)
{
    if (answer->what == WHO) {
        answer->census =
            (struct census){.wants = is_wanted, .on_sessions = list_sessions, .on_done = on_listed};
        return census_begin(&answer->census, control);
    }
    if (answer->what == TRACE) {
        answer->ask = (struct ask){.visit = fetch_trace, .on_done = on_fetched};
        return ask_workers(&answer->ask, control->workers, &control->inbox);
    }
    answer->worker_count = workers_count(control->workers);
    answer->kicked = mem_array(answer->worker_count, sizeof *answer->kicked);
    answer->ask = (struct ask){.visit = kick, .on_done = on_kicked};
    return answer->kicked != NULL && ask_workers(&answer->ask, control->workers, &control->inbox);
}

struct answer *answer_start(struct control *control, const json_t *question, const char *id,
                            size_t bytes_max, void (*on_done)(void *owner, struct answer *answer),
                            void *owner, struct err *err)
{
    struct answer *answer = control->workers == NULL ? NULL : mem_new(sizeof *answer);

    if (answer == NULL) {
        err_set(err, ERR_INTERNAL, "out of memory, or the process ends");
        return NULL;
    }
    answer->id = id;
    answer->on_done = on_done;
    answer->owner = owner;
    answer->bytes_max = bytes_max;
    if (read_question(answer, question, err)) {
        if (start(answer, control))
            return answer;
        err_set(err, ERR_INTERNAL, "out of memory");
    }
    answer_free(answer);
    return NULL;
}
