/*
 * Owns who has been asked what, and who has answered. A question is put, and the proxies that there
 * are at that moment are listed, in one script, which is never called twice.
 */
#include "proxy/fleet/questions.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/answer.h"
#include "proxy/fleet/hearing.h"
#include "proxy/fleet/membership.h"
#include "proxy/net/redis_link.h"

#include <inttypes.h>
#include <stdio.h>
#include <utlist.h>

enum { PATIENCE_MS = 2000, NUMBER_MAX = 24 };

/* Another proxy that has been asked. */
struct asked {
    struct asked *next;
    char id[PROXY_ID_MAX], host[64];
    json_int_t pieces; /* so far */
    bool listed, answered, lost;
};

/* A question of ours. */
struct asking {
    struct asking *prev, *next;
    struct questions *questions;
    struct fleet_question *question; /* NULL: nobody wants to know any more */
    char id[PROXY_ID_MAX];
    struct redis_command *command;
    struct asked *others;
    bool answered_here, is_put, overdue, cut;
    const char *failure; /* why the others could not be asked */
    uv_timer_t timer;
    struct turn_task task;
};

struct questions {
    struct control *control;
    const char *id;
    struct redis_script put;
    struct asking *list;
};

/*
 * KEYS: proxies. ARGV: the channel of all, the question, how many octets all answers may have.
 * Returns [id, host] of each proxy.
 */
static const char put_text[] =
    "local all, list = redis.call('HGETALL', KEYS[1]), {}\n"
    "for i = 1, #all, 2 do\n"
    "  local good, record = pcall(cjson.decode, all[i + 1])\n"
    "  list[#list + 1] = {all[i], good and record.host or ''}\n"
    "end\n"
    "local question = cjson.decode(ARGV[2])\n"
    "question.bytes = math.floor(tonumber(ARGV[3]) / math.max(#list, 1))\n"
    "redis.call('PUBLISH', ARGV[1], cjson.encode(question))\n"
    "return cjson.encode(list)\n";

static void review(struct turn_task *task);
static void on_overdue(uv_timer_t *timer);

/* --- life --- */

struct questions *questions_open(struct control *control, const char *id, struct err *err)
{
    struct questions *q = mem_new(sizeof *q);

    if (q == NULL)
        err_set(err, ERR_INTERNAL, "fleet: no memory");
    if (q == NULL || !redis_script_init(&q->put, put_text, err)) {
        mem_free(q);
        return NULL;
    }
    q->control = control;
    q->id = id;
    return q;
}

static void asking_closed(uv_handle_t *handle)
{
    struct asking *asking = handle->data;
    struct asked *next;

    for (struct asked *asked = asking->others; asked != NULL; asked = next) {
        next = asked->next;
        mem_free(asked);
    }
    mem_free(asking);
}

static void close_asking(struct asking *asking)
{
    struct questions *q = asking->questions;

    if (asking->command != NULL)
        redis_command_cancel(asking->command);
    turn_cancel(q->control->env.turn, &asking->task);
    DL_DELETE(q->list, asking);
    uv_close((uv_handle_t *)&asking->timer, asking_closed);
}

void questions_close(struct questions **questions)
{
    struct questions *q = *questions;

    *questions = NULL;
    if (q == NULL)
        return;
    while (q->list != NULL)
        close_asking(q->list);
    mem_free(q);
}

/* --- who is asked --- */

static struct asked *find_asked(const struct asking *asking, const char *id)
{
    struct asked *asked = asking->others;

    while (asked != NULL && strcmp(asked->id, id) != 0)
        asked = asked->next;
    return asked;
}

/* The proxy of this id, made if need be; NULL without memory, or when the id is none. */
static struct asked *asked_for(struct asking *asking, const char *id)
{
    struct asked *asked = find_asked(asking, id);

    if (asked != NULL || strlen(id) >= PROXY_ID_MAX)
        return asked;
    asked = mem_new(sizeof *asked);
    if (asked == NULL)
        return NULL;
    snprintf(asked->id, sizeof asked->id, "%s", id);
    LL_PREPEND(asking->others, asked);
    return asked;
}

/* False when there is one that cannot be waited for. */
static bool list_others(struct asking *asking, const json_t *list)
{
    bool complete = true;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)list, i, row)
    {
        const char *id = json_string_value(json_array_get(row, 0));
        const char *host = json_string_value(json_array_get(row, 1));
        struct asked *asked = NULL;

        if (id != NULL && strcmp(id, asking->questions->id) == 0)
            continue;
        if (id != NULL)
            asked = asked_for(asking, id);
        complete = complete && asked != NULL;
        if (asked == NULL)
            continue;
        asked->listed = true;
        snprintf(asked->host, sizeof asked->host, "%s", host == NULL ? "" : host);
    }
    return complete;
}

/* From hiredis: only noted. */
static void on_put(void *owner, const redisReply *reply, const struct err *err)
{
    struct asking *asking = owner;
    json_t *list = NULL;

    (void)err; /* the link has logged it */
    asking->command = NULL;
    asking->is_put = true;
    if (reply != NULL && reply->type == REDIS_REPLY_STRING)
        list = json_loadb(reply->str, reply->len, 0, NULL);
    if (list == NULL)
        asking->failure = "Redis does not answer: only this proxy was asked";
    else if (!list_others(asking, list))
        asking->failure = "some proxies could not be waited for";
    json_decref(list);
    turn_post(asking->questions->control->env.turn, &asking->task);
}

/* The question as it goes to the others, which know by it whom to answer. NULL without memory. */
static char *write_ask(const struct asking *asking, const json_t *question)
{
    json_t *event = json_pack("{s:s, s:s, s:s}", "event", "ask", "id", asking->id, "from",
                              asking->questions->id);
    char *text = NULL;

    if (event != NULL && json_object_update_missing(event, (json_t *)question) == 0)
        text = json_dumps(event, JSON_COMPACT);
    json_decref(event);
    return text;
}

static bool put(struct asking *asking, const json_t *question)
{
    struct questions *q = asking->questions;
    const struct env *env = &q->control->env;
    char proxies[REDIS_KEY_MAX], channel[REDIS_KEY_MAX], bytes[NUMBER_MAX];
    char *text = write_ask(asking, question);
    struct err err;

    if (text != NULL && redis_key(proxies, &env->conf->redis, "proxies", NULL) &&
        hearing_channel(channel, sizeof channel, &env->conf->redis, NULL)) {
        snprintf(bytes, sizeof bytes, "%d", ANSWER_BYTES_MAX);

        const struct span arguments[] = {span_of(proxies), span_of(channel), span_of(text),
                                         span_of(bytes)};

        asking->command =
            redis_link_call(env->redis, &q->put, arguments, 4, 1, on_put, asking, &err);
    }
    mem_free(text);
    return asking->command != NULL;
}

/* --- ours --- */

/* False when they make no sense. */
static bool pass_items(struct asking *asking, json_t *items)
{
    if (!json_is_array(items))
        return false;
    if (asking->question != NULL && json_array_size(items) > 0)
        asking->question->on_items(asking->question, items);
    return true;
}

static void pass_piece(struct asking *asking, struct span piece)
{
    char *text = mem_new(piece.len + 2);
    json_t *items = NULL;

    if (text != NULL) {
        text[0] = '[';
        memcpy(text + 1, piece.ptr, piece.len);
        text[piece.len + 1] = ']';
        items = json_loadb(text, piece.len + 2, 0, NULL);
    }
    if (!pass_items(asking, items))
        asking->failure = "out of memory";
    json_decref(items);
    mem_free(text);
}

static void on_answered_here(void *owner, struct answer *answer)
{
    struct asking *asking = owner;
    struct span piece;

    while (answer_next(answer, &piece))
        pass_piece(asking, piece);
    asking->cut = asking->cut || answer_is_cut(answer);
    answer_free(answer);
    asking->answered_here = true;
    turn_post(asking->questions->control->env.turn, &asking->task);
}

static bool make_id(char id_out[PROXY_ID_MAX])
{
    uint64_t random;

    if (uv_random(NULL, NULL, &random, sizeof random, 0, NULL) != 0)
        return false;
    snprintf(id_out, PROXY_ID_MAX, "%016" PRIx64, random);
    return true;
}

bool questions_ask(struct questions *questions, struct fleet_question *question, struct err *err)
{
    const struct env *env = &questions->control->env;
    struct asking *asking = mem_new(sizeof *asking);

    if (asking == NULL || !make_id(asking->id)) {
        mem_free(asking);
        return err_set(err, ERR_INTERNAL, "out of memory, or of random numbers");
    }
    if (answer_start(questions->control, question->question, questions->id, ANSWER_BYTES_MAX,
                     on_answered_here, asking, err) == NULL) {
        mem_free(asking);
        return false;
    }
    asking->questions = questions;
    asking->question = question;
    asking->task.run = review;
    question->asking = asking;
    DL_APPEND(questions->list, asking);
    uv_timer_init(env->loop, &asking->timer);
    asking->timer.data = asking;
    uv_timer_start(&asking->timer, on_overdue, PATIENCE_MS, 0);
    if (env->redis == NULL || !put(asking, question->question)) {
        asking->is_put = true;
        if (env->redis != NULL)
            asking->failure = "Redis does not answer: only this proxy was asked";
    }
    return true;
}

void questions_cancel(struct fleet_question *question)
{
    struct asking *asking = question->asking;

    question->asking = NULL;
    if (asking == NULL)
        return;
    asking->question = NULL;
    turn_post(asking->questions->control->env.turn, &asking->task);
}

static void on_overdue(uv_timer_t *timer)
{
    struct asking *asking = timer->data;

    asking->overdue = true;
    turn_post(asking->questions->control->env.turn, &asking->task);
}

/* Of those who have not answered, or not wholly; names as many as there is room for. */
static size_t list_silent(const struct asking *asking, char *names, size_t size)
{
    size_t count = 0, len = 0;

    for (const struct asked *asked = asking->others; asked != NULL; asked = asked->next) {
        if (!asked->listed || (asked->answered && !asked->lost))
            continue;
        if (len < size)
            len += (size_t)snprintf(names + len, size - len, "%s%s (%s)", count > 0 ? ", " : "",
                                    asked->host, asked->id);
        count++;
    }
    return count;
}

static void report(struct asking *asking)
{
    struct fleet_question *question = asking->question;
    struct err err = {0};
    char names[200] = "";
    size_t silent = list_silent(asking, names, sizeof names);

    if (silent > 0)
        err_set(&err, ERR_UNAVAILABLE, "%zu of the proxies did not answer: %s", silent, names);
    else if (asking->failure != NULL || !asking->is_put)
        err_set(&err, ERR_UNAVAILABLE, "%s",
                asking->failure != NULL ? asking->failure
                                        : "Redis does not answer: only this proxy was asked");
    else if (asking->cut)
        err_set(&err, ERR_LIMIT, "there is more than can be shown at once: ask about less");
    asking->question = NULL;
    question->asking = NULL;
    question->on_done(question, &err);
}

/* Is it over? What this process itself says is always waited for: letters cannot be called back. */
static void review(struct turn_task *task)
{
    struct asking *asking = (struct asking *)((char *)task - offsetof(struct asking, task));
    bool waits = !asking->is_put;

    for (const struct asked *asked = asking->others; asked != NULL; asked = asked->next)
        waits = waits || (asked->listed && !asked->answered);
    if (!asking->answered_here)
        return;
    if (asking->question != NULL && waits && !asking->overdue)
        return;
    if (asking->question != NULL)
        report(asking);
    close_asking(asking);
}

void questions_hear_answer(struct questions *questions, const json_t *event)
{
    const char *id = json_string_value(json_object_get(event, "id"));
    const char *proxy = json_string_value(json_object_get(event, "proxy"));
    struct asking *asking = questions->list;
    struct asked *asked;

    while (asking != NULL && id != NULL && strcmp(asking->id, id) != 0)
        asking = asking->next;
    if (asking == NULL || id == NULL || proxy == NULL || (asked = asked_for(asking, proxy)) == NULL)
        return; /* of a question that is over */
    if (json_integer_value(json_object_get(event, "number")) != asked->pieces++ ||
        !pass_items(asking, json_object_get(event, "items")))
        asked->lost = true;
    asking->cut = asking->cut || json_is_true(json_object_get(event, "cut"));
    asked->answered = json_is_true(json_object_get(event, "last"));
    turn_post(questions->control->env.turn, &asking->task);
}
