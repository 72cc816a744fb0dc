/*
 * Owns the subscription to Redis' events, and the ticks. That a tick has come back tells of the
 * subscription; that none does, although Redis has published it, that the subscription leads
 * nowhere, as to a master that is none any more.
 */
#include "proxy/fleet/hearing.h"

#include "proxy/base/clock.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/redis_events.h"
#include "proxy/net/redis_link.h"

#include <stdio.h>

enum {
    TICK_EACH_MS = 250,
    TRUST_MS = 1000,   /* from when a tick was sent that has come back */
    SILENCE_MS = 2000, /* after a tick was published that does not come back */
    TICKS_MAX = 16     /* on their way at once */
};

struct tick {
    struct hearing *hearing;
    struct redis_command *command;
    json_int_t number; /* 0: none yet */
    uint64_t sent_ms, published_ms;
    bool missed; /* it has been published, and not come back */
};

struct hearing {
    const struct env *env;
    struct freshness *freshness;
    const struct hearing_events *events;
    void *owner;
    char all[REDIS_KEY_MAX], own[REDIS_KEY_MAX]; /* channels */
    const char *channels[2];
    struct redis_events *subscription;
    uv_timer_t timer;
    struct tick ticks[TICKS_MAX];
    json_int_t number; /* of the last tick */
    bool up;
    bool gap_told; /* for the time up to the next tick that comes back */
    uint64_t until_ms;
};

static void on_up(void *owner);
static void on_message(void *owner, const char *channel, struct span message);
static void on_down(void *owner);
static void on_timer(uv_timer_t *timer);

static const struct redis_events_handlers handlers = {on_up, on_message, on_down};

/* --- life --- */

bool hearing_channel(char out[], size_t size, const struct conf_redis *conf, const char *id)
{
    return (size_t)snprintf(out, size, "%sevents%s%s", conf->prefix, id == NULL ? "" : ":",
                            id == NULL ? "" : id) < size;
}

struct hearing *hearing_open(const struct env *env, const char *id, struct freshness *freshness,
                             const struct hearing_events *events, void *owner, struct err *err)
{
    struct hearing *h = mem_new(sizeof *h);

    if (h == NULL || !hearing_channel(h->all, sizeof h->all, &env->conf->redis, NULL) ||
        !hearing_channel(h->own, sizeof h->own, &env->conf->redis, id)) {
        err_set(err, ERR_INTERNAL, "fleet: no memory, or no room for the channels");
        mem_free(h);
        return NULL;
    }
    h->env = env;
    h->freshness = freshness;
    h->events = events;
    h->owner = owner;
    h->channels[0] = h->all;
    h->channels[1] = h->own;
    for (size_t i = 0; i < TICKS_MAX; i++)
        h->ticks[i].hearing = h;
    h->subscription = redis_events_open(env, h->channels, 2, &handlers, h, err);
    if (h->subscription == NULL) {
        mem_free(h);
        return NULL;
    }
    uv_timer_init(env->loop, &h->timer);
    h->timer.data = h;
    uv_timer_start(&h->timer, on_timer, TICK_EACH_MS, TICK_EACH_MS);
    return h;
}

static void timer_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

void hearing_close(struct hearing **hearing)
{
    struct hearing *h = *hearing;

    *hearing = NULL;
    if (h == NULL)
        return;
    redis_events_close(&h->subscription);
    for (size_t i = 0; i < TICKS_MAX; i++)
        if (h->ticks[i].command != NULL)
            redis_command_cancel(h->ticks[i].command);
    uv_close((uv_handle_t *)&h->timer, timer_closed);
}

/* --- the subscription --- */

/* From here on all is heard; of what was before that nothing is known. */
void hearing_begin_anew(struct hearing *h)
{
    h->gap_told = true;
    atomic_store(&h->freshness->complete_since_ms, clock_ms());
    h->events->on_gap(h->owner);
}

static void on_up(void *owner)
{
    struct hearing *h = owner;

    h->up = true;
    hearing_begin_anew(h);
}

static void on_down(void *owner)
{
    struct hearing *h = owner;

    h->up = false;
    h->until_ms = 0;
    atomic_store(&h->freshness->events_until_ms, 0);
    for (size_t i = 0; i < TICKS_MAX; i++)
        h->ticks[i].missed = false;
}

/* Ticks come back in order: those before this one were lost on their way to Redis. */
static void hear_tick(struct hearing *h, json_int_t number)
{
    const struct tick *tick = &h->ticks[number % TICKS_MAX];

    if (number <= 0 || tick->number != number)
        return;
    if (clock_ms() >= h->until_ms && !h->gap_told)
        hearing_begin_anew(h);
    h->gap_told = false;
    for (size_t i = 0; i < TICKS_MAX; i++)
        if (h->ticks[i].number <= number)
            h->ticks[i].missed = false;
    if (tick->sent_ms + TRUST_MS > h->until_ms)
        h->until_ms = tick->sent_ms + TRUST_MS;
    atomic_store(&h->freshness->events_until_ms, h->until_ms);
}

static void complain(struct span message)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_WARNING, "event unusable");
    log_span(&line, "detail", message);
    log_write_limited(&line, NULL);
}

/* What cannot be read may have been of any user: jansson does not tell a want of memory apart. */
static void on_message(void *owner, const char *channel, struct span message)
{
    struct hearing *h = owner;
    json_t *event = json_loadb(message.ptr, message.len, JSON_REJECT_DUPLICATES, NULL);
    const char *name = json_string_value(json_object_get(event, "event"));

    (void)channel;
    if (name == NULL)
        complain(message);
    else if (strcmp(name, "tick") == 0)
        hear_tick(h, json_integer_value(json_object_get(event, "number")));
    else
        h->events->on_event(h->owner, name, event);
    if (event == NULL)
        hearing_begin_anew(h);
    json_decref(event);
}

/* --- ticks --- */

/* From hiredis: only noted. */
static void on_published(void *owner, const redisReply *reply, const struct err *err)
{
    struct tick *tick = owner;

    (void)err; /* the link has logged it */
    tick->command = NULL;
    tick->published_ms = clock_ms();
    if (reply == NULL || reply->type != REDIS_REPLY_INTEGER)
        tick->missed = false;
}

static void send_tick(struct hearing *h)
{
    struct tick *tick = &h->ticks[(h->number + 1) % TICKS_MAX];
    char text[64];
    const char *words[] = {"PUBLISH", h->own, text};
    struct err err;

    if (tick->command != NULL || redis_link_connection(h->env->redis) == 0)
        return;
    h->number++;
    snprintf(text, sizeof text, "{\"event\":\"tick\",\"number\":%lld}", (long long)h->number);
    tick->number = h->number;
    tick->sent_ms = clock_ms();
    tick->command = redis_link_send(h->env->redis, 3, words,
                                    (size_t[]){strlen("PUBLISH"), strlen(h->own), strlen(text)},
                                    on_published, tick, &err);
    tick->missed = tick->command != NULL;
}

static bool is_silent(const struct hearing *h)
{
    for (size_t i = 0; i < TICKS_MAX; i++) {
        const struct tick *tick = &h->ticks[i];

        if (tick->missed && tick->command == NULL && clock_ms() - tick->published_ms >= SILENCE_MS)
            return true;
    }
    return false;
}

static void on_timer(uv_timer_t *timer)
{
    struct hearing *h = timer->data;

    if (!h->up)
        return;
    if (is_silent(h)) {
        counter_add(&h->env->counters->fleet_restarts, 1);
        redis_events_restart(h->subscription, "nothing comes");
    } else {
        send_tick(h);
    }
}
