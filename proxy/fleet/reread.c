/*
 * Owns the steps of reading again: all users in Redis' hash `moving`; then the workers are asked
 * whom they hold, for the move of some may be over, and of these, too, Redis publishes the routes,
 * some at a time.
 */
#include "proxy/fleet/reread.h"

#include "proxy/ask.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/hearing.h"
#include "proxy/net/redis_link.h"
#include "proxy/users.h"

#include <jansson.h>

enum { USERS_MAX = 100 }; /* of one call */

enum step { IDLE, MOVING, WORKERS, HELD };

struct reread {
    struct ask ask; /* first member */
    struct control *control;
    void (*on_read)(void *owner);
    void *owner;
    struct redis_script script;
    char channel[REDIS_KEY_MAX];
    struct redis_command *command;
    struct turn_task task;
    bool answered, good;
    bool wanted; /* to begin anew */
    enum step step;
    json_t **lists; /* of names, by each worker */
    size_t list_count;
    json_t *held; /* all of them */
    size_t next;  /* which Redis has not been asked for */
};

/*
 * KEYS: moving. ARGV: the prefix of all keys; our channel; a list of users, or "": all that are
 * being moved.
 */
static const char script_text[] =
    "local users = ARGV[3] == '' and redis.call('HKEYS', KEYS[1]) or cjson.decode(ARGV[3])\n"
    "for _, user in ipairs(users) do\n"
    "  local key = ARGV[1] .. 'user:{' .. user .. '}'\n"
    "  local route = redis.pcall('HMGET', key, 'state', 'epoch')\n"
    "  if not route.err then\n"
    "    local absent = redis.call('EXISTS', key) == 0\n"
    "    redis.call('PUBLISH', ARGV[2], cjson.encode({event = 'route', user = user,\n"
    "      epoch = tonumber(route[2] or 0) or 0,\n"
    "      state = route[1] or (absent and 'gone' or 'active')}))\n"
    "  end\n"
    "end\n"
    "return #users\n";

static void settle(struct turn_task *task);

/* --- life --- */

struct reread *reread_open(struct control *control, const char *id, void (*on_read)(void *owner),
                           void *owner, struct err *err)
{
    struct reread *r = mem_new(sizeof *r);

    if (r == NULL ||
        !hearing_channel(r->channel, sizeof r->channel, &control->env.conf->redis, id)) {
        err_set(err, ERR_INTERNAL, "fleet: no memory, or no room for the channel");
        mem_free(r);
        return NULL;
    }
    if (!redis_script_init(&r->script, script_text, err)) {
        mem_free(r);
        return NULL;
    }
    r->control = control;
    r->on_read = on_read;
    r->owner = owner;
    r->task.run = settle;
    return r;
}

static void forget_held(struct reread *r)
{
    for (size_t i = 0; r->lists != NULL && i < r->list_count; i++)
        json_decref(r->lists[i]);
    mem_free(r->lists);
    json_decref(r->held);
    r->lists = NULL;
    r->held = NULL;
}

void reread_close(struct reread **reread)
{
    struct reread *r = *reread;

    *reread = NULL;
    if (r == NULL)
        return;
    if (r->command != NULL)
        redis_command_cancel(r->command);
    turn_cancel(r->control->env.turn, &r->task);
    forget_held(r);
    mem_free(r);
}

/* --- steps --- */

static void stop(struct reread *r, bool again)
{
    forget_held(r);
    r->step = IDLE;
    r->wanted = r->wanted || again;
}

/* From hiredis: only noted. */
static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct reread *r = owner;

    (void)err; /* the link has logged it */
    r->command = NULL;
    r->answered = true;
    r->good = reply != NULL && reply->type == REDIS_REPLY_INTEGER;
    if (reply != NULL && reply->type == REDIS_REPLY_ERROR)
        log_event(LOG_LEVEL_ERROR, "reading moves refused", "%.*s", (int)reply->len, reply->str);
    turn_post(r->control->env.turn, &r->task);
}

/* False when it cannot be sent. */
static bool read_users(struct reread *r, const char *users)
{
    const struct env *env = &r->control->env;
    char moving[REDIS_KEY_MAX];
    struct err err;

    if (!redis_key(moving, &env->conf->redis, "moving", NULL))
        return false;

    const struct span arguments[] = {span_of(moving), span_of(env->conf->redis.prefix),
                                     span_of(r->channel), span_of(users)};

    r->command = redis_link_call(env->redis, &r->script, arguments, 4, 1, on_reply, r, &err);
    return r->command != NULL;
}

static void begin(struct reread *r)
{
    if (redis_link_connection(r->control->env.redis) == 0)
        return;
    r->wanted = false;
    r->step = MOVING;
    if (!read_users(r, ""))
        stop(r, true);
}

/* On the worker's thread. */
static void add_held(void *owner, const char *user, uint64_t epoch)
{
    (void)epoch;
    json_array_append_new(owner, json_string(user));
}

static void list_held(struct ask *ask, struct home *home, size_t number)
{
    struct reread *r = (struct reread *)ask;

    r->lists[number] = json_array();
    users_held_each(home, add_held, r->lists[number]);
}

static void ask_held(struct reread *r);

static void on_listed(struct ask *ask)
{
    struct reread *r = (struct reread *)ask;

    r->step = HELD;
    r->next = 0;
    r->held = json_array();
    for (size_t i = 0; i < r->list_count; i++)
        json_array_extend(r->held, r->lists[i]);
    ask_held(r);
}

static void list_workers(struct reread *r)
{
    struct control *control = r->control;

    if (control->workers == NULL) {
        stop(r, false);
        return;
    }
    r->list_count = workers_count(control->workers);
    r->lists = mem_array(r->list_count, sizeof(json_t *));
    r->ask = (struct ask){.visit = list_held, .on_done = on_listed};
    r->step = WORKERS;
    if (r->lists == NULL || !ask_workers(&r->ask, control->workers, &control->inbox))
        stop(r, true);
}

/* The next users as a list in JSON; NULL without memory. */
static char *next_users(struct reread *r)
{
    json_t *list = json_array();
    char *text;

    for (size_t i = 0; i < USERS_MAX && r->next < json_array_size(r->held); i++)
        json_array_append(list, json_array_get(r->held, r->next++));
    text = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    return text;
}

static void ask_held(struct reread *r)
{
    if (r->next < json_array_size(r->held)) {
        char *users = next_users(r);

        if (users == NULL || !read_users(r, users))
            stop(r, true);
        mem_free(users);
        return;
    }
    stop(r, false);
    counter_add(&r->control->env.counters->fleet_reads, 1);
    r->on_read(r->owner);
}

/* What has failed is not tried again in haste: it would fail again. */
static void settle(struct turn_task *task)
{
    struct reread *r = (struct reread *)((char *)task - offsetof(struct reread, task));

    if (!r->answered)
        return;
    r->answered = false;
    if (!r->good) {
        stop(r, true);
    } else if (r->wanted) {
        stop(r, true);
        begin(r);
    } else if (r->step == MOVING) {
        list_workers(r);
    } else {
        ask_held(r);
    }
}

void reread_start(struct reread *reread)
{
    reread->wanted = true;
    reread_retry(reread);
}

void reread_retry(struct reread *reread)
{
    if (reread->wanted && reread->step == IDLE)
        begin(reread);
}
