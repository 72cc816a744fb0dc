/*
 * Owns the handlers that keep what imapmuxctl moves in one go: the parameters of a wave in the hash
 * `waves`, and what became of its users in a hash `wave:{id}`. What either means is imapmuxctl's
 * affair. One at a time works on a wave: whoever holds the key `wave_holder:{id}`.
 */
#include "proxy/admin/handlers.h"
#include "proxy/admin/pages.h"

#include "proxy/base/mem.h"
#include "proxy/process/control.h"

#include <stdio.h>

enum { ID_MAX = 64 };

/* --- writing: create, add, hold --- */

/* KEYS: waves, wave:{id}, wave_holder:{id}. ARGV: id, a text. They return why not, or nothing. */
static const char create_script[] =
    "local there = redis.call('HGET', KEYS[1], ARGV[1])\n"
    "if there and there ~= ARGV[2] then return 'there is such a wave already' end\n"
    "redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])\n";

static const char add_script[] =
    "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 'there is no such wave' end\n"
    "for user, result in pairs(cjson.decode(ARGV[2])) do\n"
    "  redis.call('HSET', KEYS[2], user, result)\n"
    "end\n";

static const char hold_script[] =
    "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 'there is no such wave' end\n"
    "local holder = redis.call('GET', KEYS[3])\n"
    "if holder and holder ~= ARGV[2] then return 'held by ' .. holder end\n"
    "redis.call('SET', KEYS[3], ARGV[2], 'PX', 30000)\n";

static const char release_script[] =
    "if redis.call('GET', KEYS[3]) == ARGV[2] then redis.call('DEL', KEYS[3]) end\n";

struct writing {
    struct admin_call *call;
    const struct env *env;
    struct redis_script script;
    struct redis_command *command;
    struct turn_task task;
    struct err err;
};

static void cancel_writing(struct admin_call *call)
{
    struct writing *writing = call->state;

    if (writing->command != NULL)
        redis_command_cancel(writing->command);
    turn_cancel(writing->env->turn, &writing->task);
    mem_free(writing);
}

static void finish_writing(struct turn_task *task)
{
    struct writing *writing = (struct writing *)((char *)task - offsetof(struct writing, task));

    if (writing->err.kind != ERR_NONE)
        admin_fail(writing->call, &writing->err);
    else
        admin_answer(writing->call, json_null());
    mem_free(writing);
}

/* From hiredis: only noted. */
static void on_written(void *owner, const redisReply *reply, const struct err *err)
{
    struct writing *writing = owner;

    writing->command = NULL;
    if (reply == NULL)
        writing->err = *err;
    else if (reply->type != REDIS_REPLY_NIL)
        err_set(&writing->err, ERR_PEER, "%.*s", (int)reply->len, reply->str);
    turn_post(writing->env->turn, &writing->task);
}

/* False when it has been refused. */
static bool check(struct admin_call *call)
{
    const struct control *control = call->context;
    const char *id = admin_argument(call, "wave");
    size_t len = strlen(id);

    if (control->env.redis == NULL)
        admin_refuse(call, "the configuration has no Redis");
    else if (len == 0 || len > ID_MAX ||
             strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != len)
        admin_refuse(call, "the id of a wave has letters, digits and -_., %d at the most", ID_MAX);
    else
        return true;
    return false;
}

static bool send_writing(struct writing *writing, const char *script, const char *id,
                         const char *text)
{
    const struct conf_redis *redis = &writing->env->conf->redis;
    char waves[REDIS_KEY_MAX], wave[REDIS_KEY_MAX], holder[REDIS_KEY_MAX];

    if (!redis_key(waves, redis, "waves", NULL) || !redis_key(wave, redis, "wave", id) ||
        !redis_key(holder, redis, "wave_holder", id))
        return err_set(&writing->err, ERR_CONFIG, "redis: no room for a key");
    const struct span arguments[] = {span_of(waves), span_of(wave), span_of(holder), span_of(id),
                                     span_of(text)};

    if (!redis_script_init(&writing->script, script, &writing->err))
        return false;
    writing->command = redis_link_call(writing->env->redis, &writing->script, arguments, 5, 3,
                                       on_written, writing, &writing->err);
    return writing->command != NULL;
}

static void write_text(struct admin_call *call, const char *script, const char *text)
{
    struct control *control = call->context;
    struct writing *writing = mem_new(sizeof *writing);

    if (writing == NULL) {
        admin_answer(call, NULL);
        return;
    }
    writing->call = call;
    writing->env = &control->env;
    writing->task.run = finish_writing;
    call->state = writing;
    call->cancel = cancel_writing;
    if (!send_writing(writing, script, admin_argument(call, "wave"), text))
        turn_post(control->env.turn, &writing->task);
}

/* Takes over what was made of the argument; NULL when it could not be. */
static void write_made(struct admin_call *call, const char *script, char *text)
{
    if (text == NULL)
        admin_refuse(call, "this is no JSON object");
    else
        write_text(call, script, text);
    mem_free(text);
}

void run_wave_create(struct admin_call *call)
{
    json_t *parameters = json_loads(admin_argument(call, "record"), 0, NULL);

    if (check(call))
        write_made(call, create_script,
                   json_is_object(parameters)
                       ? json_dumps(parameters, JSON_COMPACT | JSON_SORT_KEYS)
                       : NULL);
    json_decref(parameters);
}

/* {"ann": {...}} becomes {"ann": "{...}"}: the script keeps each object as a text. */
static char *dump_users(json_t *users)
{
    json_t *texts = json_object(), *value;
    const char *user;
    bool good = json_is_object(users) && texts != NULL;

    json_object_foreach (users, user, value) {
        char *text = json_dumps(value, JSON_COMPACT); /* NULL for what is no list or object */

        good = good && text != NULL && json_object_set_new(texts, user, json_string(text)) == 0;
        mem_free(text);
    }
    char *dumped = good ? json_dumps(texts, JSON_COMPACT) : NULL;
    json_decref(texts);
    return dumped;
}

void run_wave_add(struct admin_call *call)
{
    json_t *users = json_loads(admin_argument(call, "record"), 0, NULL);

    if (check(call))
        write_made(call, add_script, dump_users(users));
    json_decref(users);
}

void run_wave_hold(struct admin_call *call)
{
    if (check(call))
        write_text(call, admin_argument(call, "release") != NULL ? release_script : hold_script,
                   admin_argument(call, "owner"));
}

/* --- reading: show, list --- */

/* ARGV: cursor, wave:{id}, waves, id. The row of the empty name has the parameters. */
static const char show_script[] =
    PAGES_HEAD "local found = redis.call('HSCAN', ARGV[2], ARGV[1], 'COUNT', 50)\n"
               "local rows = {{'', redis.call('HGET', ARGV[3], ARGV[4])}}\n"
               "for i = 1, #found[2], 2 do rows[#rows + 1] = {found[2][i], found[2][i + 1]} end\n"
               "return pages(found[1], rows)\n";

/* ARGV: cursor, waves, what keys of waves begin with, the same of their holders. */
static const char list_script[] = PAGES_HEAD
    "local found = redis.call('HSCAN', ARGV[2], ARGV[1], 'COUNT', 50)\n"
    "local rows = {}\n"
    "for i = 1, #found[2], 2 do\n"
    "  local id = found[2][i]\n"
    "  rows[#rows + 1] = {id, found[2][i + 1], redis.call('GET', ARGV[4] .. id .. '}'),\n"
    "    redis.call('HLEN', ARGV[3] .. id .. '}')}\n"
    "end\n"
    "return pages(found[1], rows)\n";

struct reading {
    struct pages pages;
    json_t *parameters; /* of one wave */
    char waves[REDIS_KEY_MAX], wave[REDIS_KEY_MAX], holder[REDIS_KEY_MAX];
};

static void free_reading(struct reading *reading)
{
    json_decref(reading->parameters);
    mem_free(reading);
}

static void cancel_reading(struct admin_call *call)
{
    struct reading *reading = call->state;

    pages_cancel(&reading->pages);
    free_reading(reading);
}

/* The members of an object that was kept, behind those that are there; takes over `item`. */
static json_t *add_kept(json_t *item, struct span text)
{
    json_t *kept = json_loadb(text.ptr, text.len, 0, NULL);

    if (item != NULL && json_is_object(kept))
        json_object_update_missing(item, kept);
    json_decref(kept);
    return item;
}

static json_t *make_user(struct pages *pages, const redisReply *row)
{
    struct reading *reading = (struct reading *)pages;
    struct span user = pages_text(row, 0), kept = pages_text(row, 1);

    if (user.len > 0)
        return add_kept(json_pack("{s:s%}", "user", user.ptr, user.len), kept);
    reading->parameters = json_loadb(kept.ptr, kept.len, 0, NULL);
    return NULL;
}

static json_t *make_wave(struct pages *pages, const redisReply *row)
{
    struct span id = pages_text(row, 0), holder = pages_text(row, 2);
    json_int_t users = row->elements > 3 ? row->element[3]->integer : 0;

    (void)pages;
    return add_kept(json_pack("{s:s%, s:I, s:s%}", "wave", id.ptr, id.len, "users", users, "holder",
                              holder.ptr, holder.len),
                    pages_text(row, 1));
}

static void on_shown(struct pages *pages, const struct err *err)
{
    struct reading *reading = (struct reading *)pages;

    if (err->kind != ERR_NONE)
        admin_fail(pages->call, err);
    else if (reading->parameters == NULL)
        admin_refuse(pages->call, "there is no such wave");
    else
        admin_answer(pages->call, json_incref(reading->parameters));
    free_reading(reading);
}

static void on_listed(struct pages *pages, const struct err *err)
{
    if (err->kind != ERR_NONE)
        admin_fail(pages->call, err);
    else
        admin_answer(pages->call, json_null());
    free_reading((struct reading *)pages);
}

/* NULL when the call has been answered. `id` is NULL for all. */
static struct reading *new_reading(struct admin_call *call, const char *id)
{
    struct control *control = call->context;
    const struct conf_redis *redis = &control->env.conf->redis;
    struct reading *reading = control->env.redis == NULL ? NULL : mem_new(sizeof *reading);

    if (reading == NULL || !redis_key(reading->waves, redis, "waves", NULL) ||
        !redis_key(reading->wave, redis, id == NULL ? "wave:{" : "wave", id) ||
        !redis_key(reading->holder, redis, "wave_holder:{", NULL)) {
        admin_refuse(call, "the configuration has no Redis, or there is no memory");
        mem_free(reading);
        return NULL;
    }
    reading->pages.call = call;
    reading->pages.env = &control->env;
    call->state = reading;
    call->cancel = cancel_reading;
    return reading;
}

void run_wave_show(struct admin_call *call)
{
    const char *id = admin_argument(call, "wave");
    struct reading *reading = check(call) ? new_reading(call, id) : NULL;

    if (reading == NULL)
        return;
    reading->pages.script_text = show_script;
    reading->pages.arguments[0] = span_of(reading->wave);
    reading->pages.arguments[1] = span_of(reading->waves);
    reading->pages.arguments[2] = span_of(id);
    reading->pages.argument_count = 3;
    reading->pages.make_item = make_user;
    reading->pages.on_end = on_shown;
    pages_start(&reading->pages);
}

void run_wave_list(struct admin_call *call)
{
    struct reading *reading = new_reading(call, NULL);

    if (reading == NULL)
        return;
    reading->pages.script_text = list_script;
    reading->pages.arguments[0] = span_of(reading->waves);
    reading->pages.arguments[1] = span_of(reading->wave);
    reading->pages.arguments[2] = span_of(reading->holder);
    reading->pages.argument_count = 3;
    reading->pages.make_item = make_wave;
    reading->pages.on_end = on_listed;
    pages_start(&reading->pages);
}
