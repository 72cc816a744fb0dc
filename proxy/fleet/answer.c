/* Owns what is gathered from the workers for an answer, and which sessions a question is about. */
#include "proxy/fleet/answer.h"

#include "proxy/ask.h"
#include "proxy/base/buf.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/dispatch.h"
#include "proxy/users.h"

#include <stdio.h>

enum what { WHO, KICK };
enum by { BY_NOTHING, BY_USER, BY_ADDRESS, BY_SHARD };

struct piece {
    struct piece *next;
    struct buf text;
};

/* What one worker says; only it touches this until all have been asked. */
struct part {
    struct answer *answer;
    struct piece *first, *last;
    size_t bytes;
    size_t kicked;
    bool cut;
};

struct answer {
    struct ask ask; /* first member */
    const char *id;
    void (*on_done)(void *owner, struct answer *answer);
    void *owner;
    enum what what;
    enum by by;
    char *value, *session; /* kick: one of them is NULL */
    struct network network;
    size_t part_bytes_max;
    struct part *parts;
    size_t part_count;
    size_t next_part; /* whose pieces come after this one: */
    struct piece *piece;
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
    return err_set(err, ERR_PEER, "a question that is not known");
}

/* --- pieces --- */

static struct piece *add_piece(struct part *part)
{
    struct piece *piece = mem_new(sizeof *piece);

    if (piece == NULL)
        return NULL;
    buf_init(&piece->text, ANSWER_PIECE_MAX);
    *(part->last == NULL ? &part->first : &part->last->next) = piece;
    part->last = piece;
    return piece;
}

/* The piece to which so many octets can be added. NULL without memory. */
static struct piece *piece_with_room(struct part *part, size_t size)
{
    return part->last != NULL && buf_len(&part->last->text) + size <= ANSWER_PIECE_MAX
               ? part->last
               : add_piece(part);
}

/* Takes over the reference. */
static void add_item(struct part *part, json_t *item)
{
    size_t size = item == NULL ? 0 : json_dumpb(item, NULL, 0, JSON_COMPACT);
    bool fits = size > 0 && part->bytes + size <= part->answer->part_bytes_max;
    struct piece *piece = fits ? piece_with_room(part, size + 1) : NULL;
    char *room = NULL;

    if (piece != NULL && (buf_len(&piece->text) == 0 || buf_append_text(&piece->text, ",")))
        room = buf_reserve(&piece->text, size);
    if (room != NULL && json_dumpb(item, room, size, JSON_COMPACT) == size) {
        buf_commit(&piece->text, size);
        part->bytes += size;
    } else {
        part->cut = true;
    }
    json_decref(item);
}

bool answer_next(struct answer *answer, struct span *piece_out)
{
    struct piece *next = answer->piece == NULL ? NULL : answer->piece->next;

    while (next == NULL && answer->next_part < answer->part_count)
        next = answer->parts[answer->next_part++].first;
    answer->piece = next;
    if (next != NULL)
        *piece_out = buf_span(&next->text);
    return next != NULL;
}

bool answer_is_cut(const struct answer *answer)
{
    bool cut = false;

    for (size_t i = 0; i < answer->part_count; i++)
        cut = cut || answer->parts[i].cut;
    return cut;
}

void answer_free(struct answer *answer)
{
    struct piece *next;

    for (size_t i = 0; answer->parts != NULL && i < answer->part_count; i++)
        for (struct piece *piece = answer->parts[i].first; piece != NULL; piece = next) {
            next = piece->next;
            buf_release(&piece->text);
            mem_free(piece);
        }
    mem_free(answer->parts);
    mem_free(answer->value);
    mem_free(answer->session);
    mem_free(answer);
}

/* --- on the workers' threads --- */

static bool is_wanted(const struct answer *answer, const struct users_session *session)
{
    switch (answer->by) {
    case BY_USER:
        return strcmp(session->user, answer->value) == 0;
    case BY_ADDRESS:
        return network_contains(&answer->network, session->peer);
    case BY_SHARD:
        return strcmp(session->shard, answer->value) == 0;
    case BY_NOTHING:
        break;
    }
    return true;
}

static void list_session(void *owner, const struct users_session *session)
{
    struct part *part = owner;
    char address[ADDRESS_TEXT_MAX];

    if (!is_wanted(part->answer, session))
        return;
    address_host_text(session->peer, address);
    add_item(part,
             json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:s}", "user", session->user, "address",
                       address, "shard", session->shard, "proxy", part->answer->id, "session",
                       session->id, "since_seconds", (json_int_t)session->since_seconds, "tls",
                       session->tls, "phase", session->phase));
}

static void visit(struct ask *ask, struct home *home, size_t number)
{
    struct answer *answer = (struct answer *)ask;
    struct part *part = &answer->parts[number];

    if (answer->what == KICK)
        part->kicked = users_kick(home, answer->value, answer->session, dispatch_kick_bye);
    else
        users_each(home, list_session, part);
}

/* --- life --- */

static void on_asked(struct ask *ask)
{
    struct answer *answer = (struct answer *)ask;
    size_t kicked = 0;

    for (size_t i = 0; i < answer->part_count; i++)
        kicked += answer->parts[i].kicked;
    if (answer->what == KICK)
        add_item(&answer->parts[0], json_pack("{s:I}", "sessions", (json_int_t)kicked));
    answer->on_done(answer->owner, answer);
}

static bool open_parts(struct answer *answer, size_t count, size_t bytes_max)
{
    answer->parts = mem_array(count, sizeof *answer->parts);
    answer->part_count = count;
    answer->part_bytes_max = bytes_max / count;
    for (size_t i = 0; answer->parts != NULL && i < count; i++)
        answer->parts[i].answer = answer;
    return answer->parts != NULL;
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
    answer->ask = (struct ask){.visit = visit, .on_done = on_asked};
    answer->id = id;
    answer->on_done = on_done;
    answer->owner = owner;
    if (read_question(answer, question, err)) {
        if (open_parts(answer, workers_count(control->workers), bytes_max) &&
            ask_workers(&answer->ask, control->workers, &control->inbox))
            return answer;
        err_set(err, ERR_INTERNAL, "out of memory");
    }
    answer_free(answer);
    return NULL;
}
