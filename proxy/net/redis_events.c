/*
 * Owns a subscription: which channels Redis has confirmed on the present connection, and what is
 * told of that. Replies are checked for their form, for a subscriber is sent more than it asks for.
 */
#include "proxy/net/redis_events.h"

#include "proxy/base/mem.h"
#include "proxy/net/redis_connection.h"

#include <assert.h>

struct redis_events {
    const struct env *env;
    const struct redis_events_handlers *handlers;
    void *owner;
    const char *const *channels;
    size_t channel_count;
    struct redis_connection *connection; /* NULL once closed */
    uv_timer_t timer;                    /* the limit of Redis' confirmations */
    size_t confirmed;                    /* channels, on this connection */
    struct turn_task down;               /* on_down is due */
};

static void subscribe(void *owner);
static void on_lost(void *owner, bool was_up, const struct err *err);
static void on_reply(void *owner, const redisReply *reply);
static void on_confirmed(struct redis_events *events);
static void overdue(uv_timer_t *timer);
static void run_down(struct turn_task *task);
static void events_closed(uv_handle_t *handle);

static const struct redis_connection_handlers connection_handlers = {
    .purpose = "events",
    .on_up = subscribe,
    .on_down = on_lost,
    .on_reply = on_reply,
};

struct redis_events *redis_events_open(const struct env *env, const char *const *channels,
                                       size_t count, const struct redis_events_handlers *handlers,
                                       void *owner, struct err *err)
{
    struct redis_events *events = mem_new(sizeof *events);

    assert(count > 0 && count <= REDIS_CHANNELS_MAX);
    if (events == NULL) {
        err_set(err, ERR_INTERNAL, "redis: no memory");
        return NULL;
    }
    *events = (struct redis_events){.env = env,
                                    .handlers = handlers,
                                    .owner = owner,
                                    .channels = channels,
                                    .channel_count = count,
                                    .down = {.run = run_down}};
    events->connection = redis_connection_open(env, &connection_handlers, events, err);
    if (events->connection == NULL) {
        mem_free(events);
        return NULL;
    }
    uv_timer_init(env->loop, &events->timer); /* cannot fail */
    events->timer.data = events;
    return events;
}

void redis_events_restart(struct redis_events *events, const char *why)
{
    struct err err;

    err_set(&err, ERR_UNAVAILABLE, "%s", why);
    redis_connection_drop(events->connection, &err);
}

void redis_events_close(struct redis_events **events)
{
    struct redis_events *e = *events;

    *events = NULL;
    if (e == NULL)
        return;
    redis_connection_close(&e->connection);
    turn_cancel(e->env->turn, &e->down);
    uv_close((uv_handle_t *)&e->timer, events_closed);
}

static void events_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

/* The connection is good. Inside hiredis. */
static void subscribe(void *owner)
{
    struct redis_events *events = owner;
    const char *argv[1 + REDIS_CHANNELS_MAX] = {"SUBSCRIBE"};
    size_t argv_len[1 + REDIS_CHANNELS_MAX] = {strlen("SUBSCRIBE")};

    for (size_t i = 0; i < events->channel_count; i++) {
        argv[1 + i] = events->channels[i];
        argv_len[1 + i] = strlen(events->channels[i]);
    }
    uv_timer_start(&events->timer, overdue, events->env->conf->redis.timeout, 0);
    if (!redis_connection_request(events->connection, 1 + (int)events->channel_count, argv,
                                  argv_len))
        redis_events_restart(events, "no memory to subscribe");
}

static void overdue(uv_timer_t *timer)
{
    struct redis_events *events = timer->data;
    struct err err;

    err_set(&err, ERR_UNAVAILABLE, "SUBSCRIBE: no answer in time");
    redis_connection_reject(events->connection, &err);
}

/*
 * Told in the next turn, for it may be the owner who ends the connection; another one takes longer
 * to come about.
 */
static void on_lost(void *owner, bool was_up, const struct err *err)
{
    struct redis_events *events = owner;

    (void)err;
    if (was_up && events->confirmed == events->channel_count)
        turn_post(events->env->turn, &events->down);
    events->confirmed = 0;
    uv_timer_stop(&events->timer);
}

static void run_down(struct turn_task *task)
{
    struct redis_events *events =
        (struct redis_events *)((char *)task - offsetof(struct redis_events, down));

    events->handlers->on_down(events->owner);
}

static bool is_text(const redisReply *reply, const char *text)
{
    return reply->type == REDIS_REPLY_STRING &&
           span_equal((struct span){reply->str, reply->len}, span_of(text));
}

/* An array of three, the second of which is the name of a channel. */
static bool is_of_channel(const redisReply *reply, const char *kind)
{
    return reply->type == REDIS_REPLY_ARRAY && reply->elements == 3 &&
           is_text(reply->element[0], kind) && reply->element[1]->type == REDIS_REPLY_STRING;
}

static void on_reply(void *owner, const redisReply *reply)
{
    struct redis_events *events = owner;
    bool is_up = events->confirmed == events->channel_count;
    struct err err;

    if (!is_up && is_of_channel(reply, "subscribe") &&
        is_text(reply->element[1], events->channels[events->confirmed])) {
        on_confirmed(events);
    } else if (is_of_channel(reply, "message") && reply->element[2]->type == REDIS_REPLY_STRING) {
        if (is_up) /* else the owner has yet to read what it is about */
            events->handlers->on_message(
                events->owner, reply->element[1]->str,
                (struct span){reply->element[2]->str, reply->element[2]->len});
    } else {
        err_set(&err, ERR_UNAVAILABLE, "SUBSCRIBE: %s",
                reply->type == REDIS_REPLY_ERROR ? reply->str : "unexpected reply");
        redis_connection_reject(events->connection, &err);
    }
}

static void on_confirmed(struct redis_events *events)
{
    if (++events->confirmed < events->channel_count)
        return;
    uv_timer_stop(&events->timer);
    events->handlers->on_up(events->owner);
}
