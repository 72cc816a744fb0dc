/*
 * Owns the handler that writes routes to Redis. All lines are judged in their order; some are
 * refused at once, the others by a script, a batch at a time.
 */
#include "proxy/admin/handlers.h"

#include "auth/username.h"
#include "proxy/base/mem.h"
#include "proxy/net/redis_link.h"
#include "proxy/process/control.h"
#include "routing/route.h"

#include <stdio.h>

enum { BATCH = 64, COLUMNS_MAX = 3 };

/*
 * ARGV: channel of events, what keys of users begin with, "replace" or "", "dry" or "", a JSON list
 * of [user, shard, name at the store, or false to leave it as it is]. Returns a JSON list of
 * [action, from, why].
 */
static const char script_text[] =
    "local channel, prefix, replace, dry = ARGV[1], ARGV[2], ARGV[3] ~= '', ARGV[4] ~= ''\n"
    "local function judge(user, shard, name)\n"
    "  local key = prefix .. user .. '}'\n"
    "  local route = redis.call('HMGET', key, 'shard', 'state', 'backend_user', 'target')\n"
    "  local from, state = route[1] or '', route[2] or 'active'\n"
    "  if state == 'moving' or state == 'committed' then\n"
    "    return {'refused', from, 'is being moved to ' .. (route[4] or '?')}\n"
    "  end\n"
    "  if from == shard and (not name or name == (route[3] or '')) then\n"
    "    return {'same', from, ''}\n"
    "  end\n"
    "  if from ~= '' and not replace then return {'refused', from, 'has another route'} end\n"
    "  if not dry then\n"
    "    local epoch = redis.call('HINCRBY', key, 'epoch', 1)\n"
    "    redis.call('HSET', key, 'shard', shard)\n"
    "    redis.call('HDEL', key, 'moved_by', 'moved_from')\n"
    "    if name and name ~= '' then redis.call('HSET', key, 'backend_user', name) end\n"
    "    if name == '' then redis.call('HDEL', key, 'backend_user') end\n"
    "    redis.call('PUBLISH', channel,\n"
    "      cjson.encode({event = 'route', user = user, epoch = epoch, state = state}))\n"
    "  end\n"
    "  return {from == '' and 'new' or 'changed', from, ''}\n"
    "end\n"
    "local answers = {}\n"
    "for i, line in ipairs(cjson.decode(ARGV[5])) do\n"
    "  local good, answer = pcall(judge, line[1], line[2], line[3])\n"
    "  if not good then\n"
    "    answer = {'refused', '', type(answer) == 'table' and answer.err or tostring(answer)}\n"
    "  end\n"
    "  answers[i] = answer\n"
    "end\n"
    "return cjson.encode(answers)\n";

struct import {
    struct admin_call *call;
    struct control *control;
    struct redis_script script;
    struct redis_command *command;
    struct turn_task task;
    char *text;    /* the lines, */
    char *rest;    /* and those that are to come */
    json_t *items; /* of the batch, all its lines */
    json_t *asked; /* of the batch, what the script is asked */
    json_t *answers;
    struct err err;
};

static void free_import(struct import *import)
{
    json_decref(import->items);
    json_decref(import->asked);
    json_decref(import->answers);
    mem_free(import->text);
    mem_free(import);
}

static void cancel(struct admin_call *call)
{
    struct import *import = call->state;

    if (import->command != NULL)
        redis_command_cancel(import->command);
    turn_cancel(import->control->env.turn, &import->task);
    free_import(import);
}

/* --- lines --- */

/* Takes the next line, and puts a NUL behind it; NULL at the end. */
static char *next_line(char **rest)
{
    char *line = *rest;
    size_t len = strcspn(line, "\n");

    if (*line == '\0')
        return NULL;
    *rest += len + (line[len] == '\n');
    line[len] = '\0';
    if (len > 0 && line[len - 1] == '\r')
        line[len - 1] = '\0';
    return line;
}

static struct span trimmed(struct span text)
{
    while (text.len > 0 && strchr(" \t", text.ptr[0]) != NULL)
        text = span_after(text, 1);
    while (text.len > 0 && strchr(" \t", text.ptr[text.len - 1]) != NULL)
        text.len--;
    return text;
}

/* The octets between quotes, where two stand for one (RFC 4180); moves on behind them. */
static struct span unquote(char **at)
{
    char *in = *at + 1, *out = *at;
    struct span value = {out, 0};

    for (; *in != '\0'; in++) {
        if (*in == '"' && *++in != '"')
            break;
        out[value.len++] = *in;
    }
    *at = in;
    return value;
}

/* How many columns there are; no more than COLUMNS_MAX are kept. The line is overwritten. */
static size_t split(char *line, struct span columns_out[COLUMNS_MAX])
{
    for (size_t count = 0;; line++) {
        struct span value =
            *line == '"' ? unquote(&line) : trimmed((struct span){line, strcspn(line, ",")});

        if (count < COLUMNS_MAX)
            columns_out[count] = value;
        count++;
        line += strcspn(line, ",");
        if (*line == '\0')
            return count;
    }
}

/* Why the line cannot be meant; NULL when it can. */
static const char *judge(const struct conf *conf, const struct span *columns, size_t count,
                         char user_out[USERNAME_MAX + 1])
{
    char shard[SHARD_NAME_MAX + 1];

    if (count < 2 || count > COLUMNS_MAX)
        return "no USER,SHARD or USER,SHARD,NAME";
    if (!username_normalise(&conf->username, columns[0], user_out))
        return "this cannot be the name of a user";
    snprintf(shard, sizeof shard, "%.*s", SPAN_ARG(columns[1]));
    if (columns[1].len > SHARD_NAME_MAX || conf_find_shard(conf, shard) == NULL)
        return "there is no such shard";
    if (count == COLUMNS_MAX && columns[2].len > BACKEND_USER_MAX)
        return "the name at the store is too long";
    return NULL;
}

/* Adds an item for the line, and asks for it unless it is refused. False without memory. */
static bool add_line(struct import *import, char *line)
{
    struct span columns[COLUMNS_MAX] = {{"", 0}, {"", 0}, {"", 0}};
    size_t count = split(line, columns);
    char user[USERNAME_MAX + 1];
    const char *why = judge(import->control->env.conf, columns, count, user);
    struct span name = why == NULL ? span_of(user) : columns[0];

    if (json_array_append_new(import->items,
                              json_pack("{s:s%, s:s, s:s, s:s%, s:s}", "user", name.ptr, name.len,
                                        "action", why == NULL ? "" : "refused", "from", "", "to",
                                        columns[1].ptr, columns[1].len, "why",
                                        why == NULL ? "" : why)) != 0)
        return false;
    if (why != NULL)
        return true;
    json_t *given =
        count == COLUMNS_MAX ? json_stringn(columns[2].ptr, columns[2].len) : json_false();
    return json_array_append_new(import->asked, json_pack("[s, s%, o]", user, columns[1].ptr,
                                                          columns[1].len, given)) == 0;
}

static bool fill_batch(struct import *import)
{
    char *line;

    while (json_array_size(import->items) < BATCH && (line = next_line(&import->rest)) != NULL)
        if (line[0] != '\0' && line[0] != '#' && !add_line(import, line))
            return err_set(&import->err, ERR_INTERNAL, "out of memory");
    return true;
}

/* --- batches --- */

/* From hiredis: only noted. */
static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct import *import = owner;

    import->command = NULL;
    if (reply == NULL)
        import->err = *err;
    else if (reply->type == REDIS_REPLY_ERROR)
        err_set(&import->err, ERR_UNAVAILABLE, "redis: %.*s", (int)reply->len, reply->str);
    else if (reply->type == REDIS_REPLY_STRING)
        import->answers = json_loadb(reply->str, reply->len, 0, NULL);
    if (import->err.kind == ERR_NONE &&
        json_array_size(import->answers) != json_array_size(import->asked))
        err_set(&import->err, ERR_UNAVAILABLE, "redis: the answer makes no sense");
    turn_post(import->control->env.turn, &import->task);
}

static bool send_batch(struct import *import)
{
    const struct control *control = import->control;
    const struct conf_redis *redis = &control->env.conf->redis;
    char channel[REDIS_KEY_MAX], users[REDIS_KEY_MAX];
    char *lines = json_dumps(import->asked, JSON_COMPACT);
    bool replace = admin_argument(import->call, "replace") != NULL,
         dry = admin_argument(import->call, "dry-run") != NULL;

    if (lines == NULL)
        return err_set(&import->err, ERR_INTERNAL, "out of memory");
    if (!redis_key(channel, redis, "events", NULL) || !redis_key(users, redis, "user:{", NULL))
        err_set(&import->err, ERR_CONFIG, "redis: no room for a key");

    const struct span arguments[] = {span_of(channel), span_of(users),
                                     span_of(replace ? "replace" : ""), span_of(dry ? "dry" : ""),
                                     span_of(lines)};

    if (import->err.kind == ERR_NONE)
        import->command = redis_link_call(control->env.redis, &import->script, arguments, 5, 0,
                                          on_reply, import, &import->err);
    mem_free(lines);
    return import->command != NULL;
}

static void end(struct import *import)
{
    struct admin_call *call = import->call;

    if (import->err.kind != ERR_NONE)
        admin_fail(call, &import->err);
    else
        admin_answer(call, json_null());
    free_import(import);
}

/* What the client was told has been taken: the next lines, or the end. */
static void next_batch(struct admin_call *call)
{
    struct import *import = call->state;

    if (fill_batch(import) && json_array_size(import->items) == 0) {
        end(import);
        return;
    }
    if (import->err.kind != ERR_NONE || json_array_size(import->asked) == 0 || !send_batch(import))
        turn_post(import->control->env.turn, &import->task);
}

/* Puts the answers to the lines that were asked for, which are those without an action. */
static void merge_answers(struct import *import)
{
    json_t *item;
    size_t i, next = 0;

    json_array_foreach(import->items, i, item)
    {
        const json_t *answer;

        if (json_string_length(json_object_get(item, "action")) > 0)
            continue;
        answer = json_array_get(import->answers, next++);
        if (json_object_set(item, "action", json_array_get(answer, 0)) != 0 ||
            json_object_set(item, "from", json_array_get(answer, 1)) != 0 ||
            json_object_set(item, "why", json_array_get(answer, 2)) != 0)
            err_set(&import->err, ERR_INTERNAL, "no memory for an answer of Redis");
    }
}

/* A batch has been answered, or that has failed. */
static void go_on(struct turn_task *task)
{
    struct import *import = (struct import *)((char *)task - offsetof(struct import, task));
    json_t *item;
    size_t i;

    if (import->err.kind != ERR_NONE) {
        end(import);
        return;
    }
    merge_answers(import);
    json_array_foreach(import->items, i, item)
    {
        admin_item(import->call, json_incref(item));
    }
    json_array_clear(import->items);
    json_array_clear(import->asked);
    json_decref(import->answers);
    import->answers = NULL;
    if (admin_queued(import->call) == 0)
        next_batch(import->call);
}

void run_routes_import(struct admin_call *call)
{
    struct control *control = call->context;
    const char *csv = admin_argument(call, "csv");
    struct import *import = control->env.redis == NULL ? NULL : mem_new(sizeof *import);

    if (import == NULL) {
        admin_refuse(call, "the configuration has no Redis, or there is no memory");
        return;
    }
    *import = (struct import){.call = call,
                              .control = control,
                              .task.run = go_on,
                              .text = mem_copy_text(csv, strlen(csv)),
                              .items = json_array(),
                              .asked = json_array()};
    call->state = import;
    call->cancel = cancel;
    call->on_drained = next_batch;
    import->rest = import->text;
    if (import->text == NULL || import->items == NULL || import->asked == NULL)
        err_set(&import->err, ERR_INTERNAL, "out of memory");
    if (import->err.kind == ERR_NONE &&
        redis_script_init(&import->script, script_text, &import->err))
        next_batch(call);
    else
        turn_post(control->env.turn, &import->task);
}
