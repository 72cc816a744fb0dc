/*
 * Owns the steps of reading again: all users in Redis' hash `moving`; then the workers are asked
 * whom they hold, for the move of some may be over, and who has sessions, if that is to be known;
 * and of these, too, Redis publishes the routes, some at a time.
 */
#include "proxy/fleet/reread.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/hearing.h"
#include "proxy/net/redis_link.h"
#include "proxy/process/ask.h"
#include "proxy/session/users.h"

#include <jansson.h>

enum { USERS_MAX = 100 }; /* of one call */

enum step { IDLE, MOVING, WORKERS, USERS };

/* Users, and the shards of their sessions; "": held. */
struct list {
    json_t *users;
    bool is_cut; /* there was no memory for some */
};

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
    bool wanted;         /* to begin anew */
    bool thorough;       /* to look for strays, too */
    bool round_thorough; /* the same of what is under way; workers read it */
    enum step step;
    struct list *lists; /* by each worker */
    size_t list_count;
    json_t *users; /* all of them */
    void *next;    /* which Redis has not been asked for */
};

/*
 * KEYS: moving. ARGV: the prefix of all keys; our channel; users with the shards they are at, or
 * "": all that are being moved. Who is where the route leads to needs no event.
 */
static const char script_text[] =
    "local function tell(user, shard)\n"
    "  local key = ARGV[1] .. 'user:{' .. user .. '}'\n"
    "  local route = redis.pcall('HMGET', key, 'state', 'epoch', 'shard')\n"
    "  if route.err then return end\n"
    "  local stray = shard ~= '' and route[3] and route[3] ~= shard\n"
    "  if shard ~= '' and not stray then return end\n"
    "  local absent = redis.call('EXISTS', key) == 0\n"
    "  redis.call('PUBLISH', ARGV[2], cjson.encode({event = 'route', user = user,\n"
    "    epoch = tonumber(route[2] or 0) or 0, stray = stray or false,\n"
    "    state = route[1] or (absent and 'gone' or 'active')}))\n"
    "end\n"
    "if ARGV[3] == '' then\n"
    "  for _, user in ipairs(redis.call('HKEYS', KEYS[1])) do tell(user, '') end\n"
    "else\n"
    "  for user, shard in pairs(cjson.decode(ARGV[3])) do tell(user, shard) end\n"
    "end\n"
    "return 0\n";

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

static void forget_users(struct reread *r)
{
    for (size_t i = 0; r->lists != NULL && i < r->list_count; i++)
        json_decref(r->lists[i].users);
    mem_free(r->lists);
    json_decref(r->users);
    r->lists = NULL;
    r->users = NULL;
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
    forget_users(r);
    mem_free(r);
}

/* --- steps --- */

static void stop(struct reread *r, bool again)
{
    forget_users(r);
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
        log_event_limited(LOG_LEVEL_ERROR, "reading moves refused", "%.*s", (int)reply->len,
                          reply->str);
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
static void add_user(struct list *list, const char *user, const char *shard)
{
    if (json_object_set_new(list->users, user, json_string(shard)) != 0)
        list->is_cut = true;
}

static void add_held(void *owner, const char *user, uint64_t epoch)
{
    (void)epoch;
    add_user(owner, user, "");
}

static void add_session(void *owner, const struct users_session *session)
{
    if (session->shard[0] != '\0')
        add_user(owner, session->user, session->shard);
}

static void list_users(struct ask *ask, struct home *home, size_t number)
{
    struct reread *r = (struct reread *)ask;

    r->lists[number].users = json_object();
    if (r->round_thorough)
        users_each(home, add_session, &r->lists[number]);
    users_held_each(home, add_held, &r->lists[number]);
}

static void ask_users(struct reread *r);

/* Whoever is left out could be held for ever: then all is done again. */
static void on_listed(struct ask *ask)
{
    struct reread *r = (struct reread *)ask;
    bool complete;

    r->step = USERS;
    r->users = json_object();
    complete = r->users != NULL;
    for (size_t i = 0; i < r->list_count && complete; i++)
        complete = !r->lists[i].is_cut && json_object_update(r->users, r->lists[i].users) == 0;
    if (!complete) {
        stop(r, true);
        return;
    }
    r->next = json_object_iter(r->users);
    ask_users(r);
}

static void list_workers(struct reread *r)
{
    struct control *control = r->control;

    if (control->workers == NULL) {
        stop(r, false);
        return;
    }
    r->list_count = workers_count(control->workers);
    r->lists = mem_array(r->list_count, sizeof *r->lists);
    r->ask = (struct ask){.visit = list_users, .on_done = on_listed};
    r->step = WORKERS;
    r->round_thorough = r->thorough;
    if (r->lists == NULL || !ask_workers(&r->ask, control->workers, &control->inbox))
        stop(r, true);
}

/* The next users in JSON; NULL without memory. */
static char *next_users(struct reread *r)
{
    json_t *some = json_object();
    bool good = some != NULL;
    char *text;

    for (size_t i = 0; i < USERS_MAX && r->next != NULL; i++) {
        good = good && json_object_set(some, json_object_iter_key(r->next),
                                       json_object_iter_value(r->next)) == 0;
        r->next = json_object_iter_next(r->users, r->next);
    }
    text = good ? json_dumps(some, JSON_COMPACT) : NULL;
    json_decref(some);
    return text;
}

static void ask_users(struct reread *r)
{
    if (r->next != NULL) {
        char *users = next_users(r);

        if (users == NULL || !read_users(r, users))
            stop(r, true);
        mem_free(users);
        return;
    }
    stop(r, false);
    r->thorough = r->thorough && !r->round_thorough;
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
        ask_users(r);
    }
}

void reread_start(struct reread *reread, bool thorough)
{
    reread->wanted = true;
    reread->thorough = reread->thorough || thorough;
    reread_retry(reread);
}

void reread_retry(struct reread *reread)
{
    if (reread->wanted && reread->step == IDLE)
        begin(reread);
}
