/* Owns the questions of others that are being answered. */
#include "proxy/fleet/replies.h"

#include "proxy/base/buf.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/answer.h"
#include "proxy/fleet/hearing.h"
#include "proxy/fleet/membership.h"
#include "proxy/net/redis_link.h"

#include <assert.h>

enum { REPLIES_MAX = 16 /* at once; further questions are not answered */ };

struct reply {
    struct replies *replies;
    char id[PROXY_ID_MAX];       /* of the question */
    char channel[REDIS_KEY_MAX]; /* of who asks */
};

struct replies {
    struct control *control;
    const char *id;
    struct redis_script publish;
    size_t count;
};

/* ARGV: a channel, a message. Unlike the command alone it is never sent twice. */
static const char publish_text[] = "return redis.call('PUBLISH', ARGV[1], ARGV[2])\n";

struct replies *replies_open(struct control *control, const char *id, struct err *err)
{
    struct replies *replies = mem_new(sizeof *replies);

    if (replies == NULL)
        err_set(err, ERR_INTERNAL, "fleet: no memory");
    if (replies == NULL || !redis_script_init(&replies->publish, publish_text, err)) {
        mem_free(replies);
        return NULL;
    }
    replies->control = control;
    replies->id = id;
    return replies;
}

void replies_close(struct replies **replies)
{
    assert(*replies == NULL || (*replies)->count == 0);
    mem_free(*replies);
    *replies = NULL;
}

static void publish_piece(const struct reply *reply, struct span items, int number, bool last,
                          bool cut)
{
    struct replies *replies = reply->replies;
    struct span arguments[2];
    struct buf message;
    struct err err;

    buf_init(&message, 2 * ANSWER_PIECE_MAX);
    if (buf_printf(&message,
                   "{\"event\":\"answer\",\"id\":\"%s\",\"proxy\":\"%s\",\"number\":%d,"
                   "\"last\":%s,\"cut\":%s,\"items\":[",
                   reply->id, replies->id, number, last ? "true" : "false",
                   cut ? "true" : "false") &&
        buf_append(&message, items) && buf_append_text(&message, "]}")) {
        arguments[0] = span_of(reply->channel);
        arguments[1] = buf_span(&message);
        redis_link_call(replies->control->env.redis, &replies->publish, arguments, 2, 0, NULL, NULL,
                        &err);
    }
    buf_release(&message);
}

static void on_answered(void *owner, struct answer *answer)
{
    struct reply *reply = owner;
    bool cut = answer_is_cut(answer);
    struct span piece = {"", 0};
    bool more = answer_next(answer, &piece);
    int number = 0;

    do { /* at least once */
        struct span items = piece;

        more = more && answer_next(answer, &piece);
        publish_piece(reply, items, number++, !more, cut);
    } while (more);
    answer_free(answer);
    counter_add(&reply->replies->control->env.counters->fleet_questions, 1);
    reply->replies->count--;
    mem_free(reply);
}

static bool is_id(const char *text)
{
    return text != NULL && strlen(text) == PROXY_ID_MAX - 1 &&
           strspn(text, "0123456789abcdef") == PROXY_ID_MAX - 1;
}

void replies_hear_ask(struct replies *replies, const json_t *event)
{
    const char *id = json_string_value(json_object_get(event, "id"));
    const char *from = json_string_value(json_object_get(event, "from"));
    json_int_t bytes = json_integer_value(json_object_get(event, "bytes"));
    struct reply *reply;
    struct err err = {0};

    if (!is_id(id) || !is_id(from) || bytes <= 0 || strcmp(from, replies->id) == 0 ||
        replies->count >= REPLIES_MAX)
        return;
    reply = mem_new(sizeof *reply);
    if (reply == NULL)
        return;
    reply->replies = replies;
    memcpy(reply->id, id, sizeof reply->id);
    if (hearing_channel(reply->channel, sizeof reply->channel, &replies->control->env.conf->redis,
                        from) &&
        answer_start(replies->control, event, replies->id,
                     bytes < ANSWER_BYTES_MAX ? (size_t)bytes : ANSWER_BYTES_MAX, on_answered,
                     reply, &err) != NULL) {
        replies->count++;
        return;
    }
    log_event_limited(LOG_LEVEL_WARNING, "question not answered", "from=%s: %s", from, err.text);
    mem_free(reply);
}
