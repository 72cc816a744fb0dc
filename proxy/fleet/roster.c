/* Owns how the records of proxies are read and taken away. */
#include "proxy/fleet/roster.h"

#include "proxy/base/log.h"

#include <inttypes.h>
#include <stdio.h>

enum { NUMBER_MAX = 24 };

/* What is said of a record that shall go. */
enum { FORGOTTEN, NO_RECORD, LIVES };

/* KEYS: proxies. Returns [id, host, pid, ms since it was seen, sessions] of each. */
static const char list_text[] =
    "local time = redis.call('TIME')\n"
    "local now = time[1] * 1000 + math.floor(time[2] / 1000)\n"
    "local all, list = redis.call('HGETALL', KEYS[1]), {}\n"
    "for i = 1, #all, 2 do\n"
    "  local good, record = pcall(cjson.decode, all[i + 1])\n"
    "  if good then\n"
    "    list[#list + 1] = {all[i], record.host, record.pid, now - record.seen_ms,\n"
    "      record.sessions}\n"
    "  end\n"
    "end\n"
    "return cjson.encode(list)\n";

/* KEYS: proxies. ARGV: id, within how many ms it must have been seen to be alive. */
static const char forget_text[] =
    "local time = redis.call('TIME')\n"
    "local now = time[1] * 1000 + math.floor(time[2] / 1000)\n"
    "local text = redis.call('HGET', KEYS[1], ARGV[1])\n"
    "if not text then return 1 end\n"
    "local good, record = pcall(cjson.decode, text)\n"
    "if good and now - record.seen_ms < tonumber(ARGV[2]) then return 2 end\n"
    "redis.call('HDEL', KEYS[1], ARGV[1])\n"
    "return 0\n";

static const char *state_of(const struct roster_request *request, const char *id, json_int_t ms)
{
    if (id != NULL && strcmp(id, request->id) == 0)
        return "self";
    return (uint64_t)ms < request->env->conf->redis.node_expiry ? "live" : "silent";
}

static void read_list(struct roster_request *request, const redisReply *reply)
{
    json_t *rows = json_loadb(reply->str, reply->len, 0, NULL), *list = json_array(), *row;
    bool good = rows != NULL && list != NULL;
    size_t i;

    json_array_foreach(rows, i, row)
    {
        json_int_t ms = json_integer_value(json_array_get(row, 3));
        const char *id = json_string_value(json_array_get(row, 0));

        json_t *item = json_pack("{s:O?, s:O?, s:O?, s:I, s:O?, s:s}", "id", json_array_get(row, 0),
                                 "host", json_array_get(row, 1), "pid", json_array_get(row, 2),
                                 "seen_seconds", ms < 0 ? 0 : ms / 1000, "sessions",
                                 json_array_get(row, 4), "state", state_of(request, id, ms));

        good = json_array_append_new(list, item) == 0 && good;
    }
    json_decref(rows);
    request->list = list;
    if (!good)
        err_set(&request->err, ERR_INTERNAL, "no memory for all proxies");
}

static void read_verdict(struct roster_request *request, long long verdict)
{
    if (verdict == NO_RECORD)
        err_set(&request->err, ERR_PEER, "there is no proxy %.20s", request->forget);
    else if (verdict == LIVES)
        err_set(&request->err, ERR_PEER, "proxy %.20s lives: stop it, and it is forgotten",
                request->forget);
}

/* From hiredis: only noted. */
static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct roster_request *request = owner;

    request->command = NULL;
    if (reply == NULL)
        request->err = *err;
    else if (reply->type == REDIS_REPLY_STRING && request->forget == NULL)
        read_list(request, reply);
    else if (reply->type == REDIS_REPLY_INTEGER && request->forget != NULL)
        read_verdict(request, reply->integer);
    else
        err_set(&request->err, ERR_UNAVAILABLE, "redis: %.*s",
                reply->type == REDIS_REPLY_ERROR ? (int)reply->len : 0, reply->str);
    turn_post(request->env->turn, &request->task);
}

static void answer(struct turn_task *task)
{
    struct roster_request *request =
        (struct roster_request *)((char *)task - offsetof(struct roster_request, task));
    json_t *list = request->list;

    request->list = NULL;
    request->on_answer(request, list, &request->err);
    json_decref(list);
}

void roster_ask(struct roster_request *request)
{
    const struct conf_redis *conf = &request->env->conf->redis;
    char proxies[REDIS_KEY_MAX], expiry[NUMBER_MAX];
    struct span arguments[3];

    request->list = NULL;
    request->command = NULL;
    request->err = (struct err){0};
    request->task = (struct turn_task){.run = answer};
    snprintf(expiry, sizeof expiry, "%" PRIu64, conf->node_expiry);
    if (!redis_key(proxies, conf, "proxies", NULL)) {
        err_set(&request->err, ERR_CONFIG, "redis: no room for the key");
    } else if (redis_script_init(&request->script,
                                 request->forget == NULL ? list_text : forget_text,
                                 &request->err)) {
        arguments[0] = span_of(proxies);
        arguments[1] = span_of(request->forget == NULL ? "" : request->forget);
        arguments[2] = span_of(expiry);
        request->command = redis_link_call(request->env->redis, &request->script, arguments, 3, 1,
                                           on_reply, request, &request->err);
    }
    if (request->command == NULL)
        turn_post(request->env->turn, &request->task);
}

void roster_cancel(struct roster_request *request)
{
    if (request->command != NULL)
        redis_command_cancel(request->command);
    request->command = NULL;
    turn_cancel(request->env->turn, &request->task);
    json_decref(request->list);
    request->list = NULL;
}
