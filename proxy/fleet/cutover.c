/*
 * Owns the scripts of cutovers, and the way from one to the next: script, replicas, and for a
 * commit both once more.
 *
 * WAIT tells of what its own connection has written, so it counts only on the connection of the
 * script; and each script that is waited for writes something, also when all is done already.
 */
#include "proxy/fleet/cutover.h"

#include "proxy/base/mem.h"
#include "proxy/net/redis_link.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { NUMBER_MAX = 24 };

enum step {
    STEP_BEGIN,
    STEP_LOOK,
    STEP_COMMIT,
    STEP_ACTIVATE,
    STEP_ABORT,
    STEP_GO_BACK, /* once replicas know that the move is over */
    STEP_COUNT
};

/*
 * KEYS: the user's hash, `moving`, the user's acks, `proxies`, `beats`; of begin, the target
 * shard, too.
 * ARGV: the channel of events, user, move, CUTOVER_LEASE_MS, redis.replicas; of begin: to, from,
 * backend_user.
 *
 * Each script starts with the route as it is, once a move whose time has passed has been ended:
 * one that is committed goes forward, any other one back. With replicas it is only noted that it is
 * over, so that nobody commits it any more: the beats of proxies (membership.c) do the rest once
 * replicas know that.
 */
static const char head[] =
    "local key, moving, acks, proxies = KEYS[1], KEYS[2], KEYS[3], KEYS[4]\n"
    "local channel, user, move = ARGV[1], ARGV[2], ARGV[3]\n"
    "local replicas = tonumber(ARGV[5])\n"
    "local time = redis.call('TIME')\n"
    "local now = time[1] * 1000 + math.floor(time[2] / 1000)\n"
    "local route\n"
    "local function read()\n"
    "  route = {}\n"
    "  local fields = redis.call('HGETALL', key)\n"
    "  for i = 1, #fields, 2 do route[fields[i]] = fields[i + 1] end\n"
    "  route.state = route.state or 'active'\n"
    "end\n"
    "local function publish()\n"
    "  redis.call('PUBLISH', channel, cjson.encode({event = 'route', user = user,\n"
    "    epoch = tonumber(route.epoch), state = route.state}))\n"
    "end\n"
    "local function refresh() redis.call('HSET', key, 'until', now + tonumber(ARGV[4])) end\n"
    "local function note_over()\n"
    "  route.over = route.over or redis.call('INCR', KEYS[5])\n"
    "  redis.call('HSET', key, 'over', route.over)\n"
    "end\n"
    "local function finish(shard)\n"
    "  redis.call('HINCRBY', key, 'epoch', 1)\n" /* first: it refuses what is no number */
    "  redis.call('HSET', key, 'shard', shard, 'state', 'active')\n"
    "  redis.call('HDEL', key, 'target', 'move', 'until', 'over')\n"
    "  redis.call('HDEL', moving, user)\n"
    "  redis.call('DEL', acks)\n"
    "  read()\n"
    "  publish()\n"
    "end\n"
    "local function finish_forward()\n"
    "  redis.call('HSET', key, 'moved_by', route.move, 'moved_from', route.shard)\n"
    "  finish(route.target)\n"
    "end\n"
    "local function is_done()\n"
    "  local done = route.state == 'active' and route.moved_by == move\n"
    "  if done then redis.call('HSET', key, 'moved_by', move) end\n"
    "  return done\n"
    "end\n"
    "local function lacking()\n"
    "  local missing, count, acked = {}, 0, 0\n"
    "  local held = {}\n"
    "  local fields = redis.call('HGETALL', acks)\n"
    "  for i = 1, #fields, 2 do held[fields[i]] = fields[i + 1] end\n"
    "  fields = redis.call('HGETALL', proxies)\n"
    "  for i = 1, #fields, 2 do\n"
    "    local id = fields[i]\n"
    "    if held[id] == route.epoch then\n"
    "      acked = acked + 1\n"
    "    else\n"
    "      count = count + 1\n"
    "      if count <= 20 then\n"
    "        local good, record = pcall(cjson.decode, fields[i + 1])\n"
    "        if not good or type(record) ~= 'table' then record = {} end\n"
    "        local seen = tonumber(record.seen_ms) or now\n"
    "        local fence = tonumber(record.fence_ms) or 0\n"
    "        missing[count] = {id = id, host = record.host, pid = record.pid,\n"
    "          seen_seconds = math.max(0, math.floor((now - seen) / 1000)),\n"
    "          until_seconds = math.max(0, math.floor((seen + fence - now) / 1000))}\n"
    "      end\n"
    "    end\n"
    "  end\n"
    "  return missing, count, acked\n"
    "end\n"
    "local function answer(refused, passes)\n"
    "  local missing, count, acked = {}, 0, 0\n"
    "  if not refused then read() end\n"
    "  if route.state == 'moving' then missing, count, acked = lacking() end\n"
    "  return cjson.encode({refused = refused, passes = passes, state = route.state, shard = "
    "route.shard,\n"
    "    target = route.target, from = route.target and route.shard or route.moved_from,\n"
    "    epoch = tonumber(route.epoch) or 0, acked = acked, missing = missing, lacking = count,\n"
    "    done = route.state == 'active' and route.moved_by == move})\n"
    "end\n"
    "local function refuse_others()\n"
    "  if route.move then\n"
    "    return answer('being moved to ' .. tostring(route.target) .. ', by move ' .. route.move)\n"
    "  end\n"
    "  return answer('no such move is under way: ' .. (route.shard and route.state .. ' at shard "
    "'\n"
    "    .. route.shard or 'there is no route in Redis'))\n"
    "end\n"
    "read()\n"
    "if (tonumber(route['until']) or 0) <= now then\n"
    "  if replicas > 0 then\n"
    "    if route.state == 'moving' then note_over() end\n"
    "  elseif route.state == 'moving' then\n"
    "    finish(route.shard)\n"
    "  elseif route.state == 'committed' then\n"
    "    finish_forward()\n"
    "  end\n"
    "end\n"
    "local is_over = route.state == 'moving' and route.over\n";

static const char *const bodies[STEP_COUNT] = {
    [STEP_BEGIN] =
        "local to, from, backend_user = ARGV[6], route.shard or ARGV[7], ARGV[8]\n"
        "if route.move then\n"
        "  if route.move ~= move or route.target ~= to then return refuse_others() end\n"
        "  if is_over then return answer('the move is over: it is going back', true) end\n"
        "  refresh()\n"
        "  return answer()\n"
        "end\n"
        "if route.shard == to and is_done() then return answer() end\n"
        "if route.aborted == move then return answer('the move was aborted') end\n"
        "if route.state ~= 'active' then return answer('the route is ' .. route.state) end\n"
        "if from == '' then return answer('no source of routes knows this user') end\n"
        "if from == to then return answer('at shard ' .. to .. ' already') end\n"
        "if redis.call('HGET', KEYS[6], 'state') == 'down' then\n"
        "  return answer('shard ' .. to .. ' was taken down')\n"
        "end\n"
        "redis.call('HINCRBY', key, 'epoch', 1)\n"
        "redis.call('HSET', key, 'shard', from, 'state', 'moving', 'target', to, 'move', move)\n"
        "if not route.shard and backend_user ~= '' and not route.backend_user then\n"
        "  redis.call('HSET', key, 'backend_user', backend_user)\n"
        "end\n"
        "redis.call('HDEL', key, 'aborted')\n"
        "refresh()\n"
        "read()\n"
        "redis.call('HSET', moving, user, route.epoch)\n"
        "redis.call('DEL', acks)\n"
        "publish()\n"
        "return answer()\n",
    [STEP_LOOK] = "if is_done() then return answer() end\n"
                  "if route.move ~= move then return refuse_others() end\n"
                  "if is_over then return answer('the move is over: it is going back') end\n"
                  "refresh()\n"
                  "return answer()\n",
    [STEP_COMMIT] =
        "if is_done() then return answer() end\n"
        "if route.move ~= move then return refuse_others() end\n"
        "if is_over then return answer('the move is over: it is going back') end\n"
        "if route.state == 'moving' then\n"
        "  local missing, count = lacking()\n"
        "  if count > 0 then\n"
        "    local names = {}\n"
        "    for i = 1, math.min(count, 3) do names[i] = missing[i].id end\n"
        "    return answer(count .. (count > 1 and ' proxies have' or ' proxy has') ..\n"
        "      ' not let go of the user yet: ' .. table.concat(names, ', ') ..\n"
        "      (count > 3 and ', ...' or ''))\n"
        "  end\n"
        "  redis.call('HSET', key, 'state', 'committed')\n"
        "end\n"
        "refresh()\n"
        "return answer()\n",
    [STEP_ACTIVATE] = "if is_done() then return answer() end\n"
                      "if route.move ~= move then return refuse_others() end\n"
                      "if route.state ~= 'committed' then return answer('not committed') end\n"
                      "finish_forward()\n"
                      "return answer()\n",
    [STEP_ABORT] = "if is_done() then return answer('the move is done') end\n"
                   "if route.move == move then\n"
                   "  if route.state ~= 'moving' then return answer('committed already') end\n"
                   "  redis.call('HSET', key, 'aborted', move)\n"
                   "  if replicas > 0 then note_over() else finish(route.shard) end\n"
                   "elseif route.move then\n"
                   "  return refuse_others()\n"
                   "end\n"
                   "return answer()\n",
    [STEP_GO_BACK] = "if is_over and route.move == move then\n"
                     "  finish(route.shard)\n"
                     "end\n"
                     "return answer()\n",
};

struct cutovers {
    const struct env *env;
    struct redis_link *redis;
    char *texts[STEP_COUNT];
    struct redis_script scripts[STEP_COUNT];
};

static void run(struct cutover_request *request, enum step step);
static void go_on(struct turn_task *task);

static const struct conf_redis *settings(const struct cutovers *cutovers)
{
    return &cutovers->env->conf->redis;
}

/* --- life --- */

static bool make_script(struct cutovers *cutovers, enum step step, struct err *err)
{
    size_t size = sizeof head + strlen(bodies[step]);
    char *text = mem_new(size);

    cutovers->texts[step] = text;
    if (text == NULL)
        return err_set(err, ERR_INTERNAL, "cutovers: no memory");
    snprintf(text, size, "%s%s", head, bodies[step]);
    return redis_script_init(&cutovers->scripts[step], text, err);
}

struct cutovers *cutovers_open(const struct env *env, struct err *err)
{
    struct cutovers *cutovers = mem_new(sizeof *cutovers);
    bool good = true;

    if (cutovers == NULL) {
        err_set(err, ERR_INTERNAL, "cutovers: no memory");
        return NULL;
    }
    cutovers->env = env;
    for (int step = 0; good && step < STEP_COUNT; step++)
        good = make_script(cutovers, (enum step)step, err);
    if (good)
        cutovers->redis = redis_link_open(env, err);
    if (cutovers->redis == NULL)
        cutovers_close(&cutovers);
    return cutovers;
}

void cutovers_close(struct cutovers **cutovers)
{
    struct cutovers *c = *cutovers;

    *cutovers = NULL;
    if (c == NULL)
        return;
    redis_link_close(&c->redis);
    for (int step = 0; step < STEP_COUNT; step++)
        mem_free(c->texts[step]);
    mem_free(c);
}

/* --- ids of moves --- */

bool cutover_new_move(char move_out[CUTOVER_MOVE_TEXT + 1])
{
    uint64_t random;

    if (uv_random(NULL, NULL, &random, sizeof random, 0, NULL) != 0)
        return false;
    snprintf(move_out, CUTOVER_MOVE_TEXT + 1, "%016" PRIx64, random);
    return true;
}

bool cutover_is_move(const char *text)
{
    return strlen(text) == CUTOVER_MOVE_TEXT &&
           strspn(text, "0123456789abcdef") == CUTOVER_MOVE_TEXT;
}

/* --- answers --- */

static void answer(struct cutover_request *request)
{
    json_t *state = request->state;
    struct err err = request->err;

    request->state = NULL;
    request->cutovers = NULL;
    request->on_answer(request, state, request->place, &err);
    json_decref(state);
}

void cutover_cancel(struct cutover_request *request)
{
    if (request->cutovers == NULL)
        return;
    if (request->command != NULL)
        redis_command_cancel(request->command);
    turn_cancel(request->cutovers->env->turn, &request->task);
    json_decref(request->state);
    request->state = NULL;
    request->cutovers = NULL;
}

static enum cutover_place place_of(const json_t *state)
{
    const char *word = json_string_value(json_object_get(state, "state"));

    if (json_is_true(json_object_get(state, "done")))
        return CUTOVER_NEW;
    return word != NULL && strcmp(word, "committed") == 0 ? CUTOVER_BETWEEN : CUTOVER_OLD;
}

/* Lua's tables do not tell an empty list from an empty object. */
static bool complete(json_t *state)
{
    const json_t *missing = json_object_get(state, "missing");

    return json_is_array(missing) || json_object_set_new(state, "missing", json_array()) == 0;
}

/* What a script has said. */
static void read_reply(struct cutover_request *request, const redisReply *reply)
{
    struct err *err = &request->err;

    if (reply->type == REDIS_REPLY_ERROR) {
        err_set(err, ERR_UNAVAILABLE, "redis: %.*s", (int)reply->len, reply->str);
        return;
    }
    if (reply->type == REDIS_REPLY_STRING)
        request->state = json_loadb(reply->str, reply->len, 0, NULL);
    if (!json_is_object(request->state)) {
        err_set(err, ERR_UNAVAILABLE, "redis: what it has of the user makes no sense");
        return;
    }

    const char *refused = json_string_value(json_object_get(request->state, "refused"));

    request->place = place_of(request->state);
    if (refused != NULL)
        err_set(err,
                json_is_true(json_object_get(request->state, "passes")) ? ERR_UNAVAILABLE
                                                                        : ERR_PEER,
                "%s", refused);
    else if (!complete(request->state))
        err_set(err, ERR_INTERNAL, "no memory for the state of a cutover");
}

/* From hiredis: only noted. */
static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct cutover_request *request = owner;

    request->command = NULL;
    request->connection = redis_link_connection(request->cutovers->redis);
    json_decref(request->state);
    request->state = NULL;
    if (request->step != STEP_ACTIVATE) /* which leads from between only forward */
        request->place = CUTOVER_UNKNOWN;
    if (reply == NULL)
        request->err = *err;
    else
        read_reply(request, reply);
    turn_post(request->cutovers->env->turn, &request->task);
}

/* From hiredis: only noted. */
static void on_waited(void *owner, const redisReply *reply, const struct err *err)
{
    struct cutover_request *request = owner;
    const struct cutovers *cutovers = request->cutovers;
    long long have = reply != NULL && reply->type == REDIS_REPLY_INTEGER ? reply->integer : 0;

    request->command = NULL;
    if (reply == NULL)
        request->err = *err;
    else if (request->connection != redis_link_connection(cutovers->redis))
        err_set(&request->err, ERR_UNAVAILABLE, "redis: the connection was lost");
    else if (have < settings(cutovers)->replicas)
        err_set(&request->err, ERR_UNAVAILABLE, "redis: %lld replicas have it, and %lld must", have,
                (long long)settings(cutovers)->replicas);
    turn_post(cutovers->env->turn, &request->task);
}

/* --- steps --- */

/* False with the request's err set. */
static bool send_wait(struct cutover_request *request)
{
    const struct conf_redis *redis = settings(request->cutovers);
    char count[NUMBER_MAX], timeout[NUMBER_MAX];
    const char *words[] = {"WAIT", count, timeout};
    size_t lens[] = {strlen("WAIT"), 0, 0};

    lens[1] = (size_t)snprintf(count, sizeof count, "%" PRId64, redis->replicas);
    lens[2] = (size_t)snprintf(timeout, sizeof timeout, "%" PRIu64, redis->timeout / 2);
    request->command = redis_link_send(request->cutovers->redis, 3, words, lens, on_waited, request,
                                       &request->err);
    return request->command != NULL;
}

/* A script has been answered, or the replicas have. */
static void go_on(struct turn_task *task)
{
    struct cutover_request *request =
        (struct cutover_request *)((char *)task - offsetof(struct cutover_request, task));
    bool relied_on = request->step != STEP_LOOK && request->step != STEP_GO_BACK;
    bool was_waited_for = request->waits;

    request->waits = !was_waited_for && relied_on && request->err.kind == ERR_NONE &&
                     settings(request->cutovers)->replicas > 0;
    if (request->waits && send_wait(request))
        return;
    if (request->err.kind == ERR_NONE && request->step == STEP_COMMIT)
        run(request, STEP_ACTIVATE);
    else if (was_waited_for && request->err.kind == ERR_NONE && request->step == STEP_ABORT)
        run(request, STEP_GO_BACK);
    else
        answer(request);
}

static bool send_step(struct cutover_request *request)
{
    struct cutovers *cutovers = request->cutovers;
    const struct conf_redis *redis = settings(cutovers);
    char keys[6][REDIS_KEY_MAX], channel[REDIS_KEY_MAX], lease[NUMBER_MAX], replicas[NUMBER_MAX];
    struct span arguments[REDIS_ARGUMENTS_MAX];
    bool begins = request->step == STEP_BEGIN;
    size_t key_count = begins ? 6 : 5, count = 0;

    if (!redis_key(keys[0], redis, "user", request->user) ||
        !redis_key(keys[1], redis, "moving", NULL) ||
        !redis_key(keys[2], redis, "acks", request->user) ||
        !redis_key(keys[3], redis, "proxies", NULL) || !redis_key(keys[4], redis, "beats", NULL) ||
        (begins && !redis_key(keys[5], redis, "shard", request->to)) ||
        !redis_key(channel, redis, "events", NULL))
        return err_set(&request->err, ERR_CONFIG, "redis: no room for a key");
    while (count < key_count) {
        arguments[count] = span_of(keys[count]);
        count++;
    }
    snprintf(lease, sizeof lease, "%d", CUTOVER_LEASE_MS);
    snprintf(replicas, sizeof replicas, "%" PRId64, redis->replicas);
    arguments[count++] = span_of(channel);
    arguments[count++] = span_of(request->user);
    arguments[count++] = span_of(request->move);
    arguments[count++] = span_of(lease);
    arguments[count++] = span_of(replicas);
    if (begins) {
        arguments[count++] = span_of(request->to);
        arguments[count++] = span_of(request->from);
        arguments[count++] = span_of(request->backend_user);
    }
    request->command =
        redis_link_call(cutovers->redis, &cutovers->scripts[request->step], arguments, count,
                        key_count, on_reply, request, &request->err);
    return request->command != NULL;
}

static void run(struct cutover_request *request, enum step step)
{
    request->step = (int)step;
    request->waits = false;
    if (!send_step(request))
        turn_post(request->cutovers->env->turn, &request->task);
}

static void start(struct cutovers *cutovers, struct cutover_request *request, enum step step)
{
    assert(request->cutovers == NULL);
    request->cutovers = cutovers;
    request->command = NULL;
    request->task = (struct turn_task){.run = go_on};
    request->state = NULL;
    request->place = CUTOVER_UNKNOWN;
    request->err = (struct err){0};
    run(request, step);
}

void cutover_begin(struct cutovers *cutovers, struct cutover_request *request)
{
    start(cutovers, request, STEP_BEGIN);
}

void cutover_look(struct cutovers *cutovers, struct cutover_request *request)
{
    start(cutovers, request, STEP_LOOK);
}

void cutover_commit(struct cutovers *cutovers, struct cutover_request *request)
{
    start(cutovers, request, STEP_COMMIT);
}

void cutover_abort(struct cutovers *cutovers, struct cutover_request *request)
{
    start(cutovers, request, STEP_ABORT);
}
