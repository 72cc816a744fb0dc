/*
 * Owns what Redis is told of this worker's sessions. Each entry has two counts: the sessions there
 * are, and those that Redis has been told of under the present name of the node. Where they differ
 * the entry is queued, and the difference is sent, a bounded number at a time.
 *
 * In Redis a hash is kept for two days after it was last written, so that what dead nodes have left
 * of users and addresses that never come again goes some day. A session may last longer: what was
 * told half a day ago is told again, as a difference of 0.
 *
 * A call that fails, or is not answered in time, may have been done or not. Then nothing that was
 * told counts any more: the node goes down, and comes up under another name as soon as it may.
 */
#include "proxy/session/registry.h"

#include "proxy/base/hash.h"
#include "proxy/base/log.h"
#include "proxy/net/redis_link.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>

enum {
    CALLS_MAX = 64,     /* differences under way at once */
    LOOK_EACH_MS = 200, /* while it is down: is Redis back? */
    TELL_AGAIN_MS = 12 * 60 * 60 * 1000,
    NODE_NAME_MAX = 17,
    NODE_VALUE_MAX = 128,
    NUMBER_MAX = 24,
    ENTRY_KEY_MAX = ADDRESS_TEXT_MAX + 256 + 1
};

enum state { DOWN, ANNOUNCED, UP, RETIRING, RETIRED };

struct registry_entry {
    UT_hash_handle hh;
    TAILQ_ENTRY(registry_entry) link; /* in registry->queue or registry->settled */
    uint32_t sessions;                /* on this worker */
    uint32_t told;                    /* Redis counts so many */
    uint32_t asking;                  /* calls that may add one */
    uint64_t told_ms;                 /* when Redis was told of it last */
    bool queued;
    bool by_address;  /* counts for its address, too */
    const char *user; /* within the key */
    char key[];       /* "address user" */
};

/* What was sent to Redis: a difference, or the question whether there may be one more. */
struct registry_call {
    TAILQ_ENTRY(registry_call) link; /* in registry->calls, then in registry->answered */
    struct registry *registry;
    struct registry_request *request; /* who asks; NULL of a difference, or once cancelled */
    struct registry_entry *entry;     /* of a question; NULL of a difference */
    struct redis_command *command;    /* NULL once it is answered, or given up */
    uint64_t sent_ms;
    enum registry_verdict verdict;
};

TAILQ_HEAD(entry_list, registry_entry);
TAILQ_HEAD(call_list, registry_call);

struct registry {
    const struct env *env;
    struct redis_script script, count_script;
    enum state state;
    char node[NODE_NAME_MAX];   /* "" before the first one */
    char value[NODE_VALUE_MAX]; /* of its key, for people */
    uint64_t announced_ms;
    uint64_t connection;        /* the link's, over which the node was last heard of */
    struct redis_command *beat; /* the node's key is being written, or removed */
    bool beat_good, beat_answered;
    bool lost; /* a call was: noted for the next turn */
    struct turn_task task;
    uv_timer_t timer;    /* the node's key is due; or, while it is down, a look at the link */
    uv_timer_t deadline; /* of the oldest call */
    unsigned handles_open;

    struct registry_entry *by_key;
    struct entry_list queue;   /* where the counts differ */
    struct entry_list settled; /* all others; who was told of longest ago is first */
    struct call_list calls, answered;
    size_t differences; /* of the calls */

    void (*on_retired)(void *owner);
    void *owner;
};

/*
 * KEYS: the user's hash; the address's one, if it counts there.
 * ARGV: what keys of nodes begin with; node; address; the difference; then, if it is to be asked
 * whether there is room for one more: most sessions of the user, from the address, of both.
 * A node that has no key is told so (-1), before it counts anything.
 */
static const char script_text[] =
    "local alive = {}\n"
    "local function is_alive(node)\n"
    "  if alive[node] == nil then alive[node] = redis.call('EXISTS', ARGV[1] .. node .. '}') end\n"
    "  return alive[node] == 1\n"
    "end\n"
    "local function count(key)\n"
    "  local all, here = 0, 0\n"
    "  local fields = redis.call('HGETALL', key)\n"
    "  for i = 1, #fields, 2 do\n"
    "    local node, address = string.match(fields[i], '^(%S*) ?(.*)$')\n"
    "    local sessions = tonumber(fields[i + 1]) or 0\n"
    "    if not is_alive(node) then\n"
    "      redis.call('HDEL', key, fields[i])\n"
    "    else\n"
    "      all = all + sessions\n"
    "      if address == ARGV[3] then here = here + sessions end\n"
    "    end\n"
    "  end\n"
    "  return all, here\n"
    "end\n"
    "local function is_full(sessions, max)\n"
    "  return tonumber(max) > 0 and sessions >= tonumber(max)\n"
    "end\n"
    "local function add(key, field)\n"
    "  if redis.call('HINCRBY', key, field, ARGV[4]) <= 0 then redis.call('HDEL', key, field) end\n"
    "  redis.call('EXPIRE', key, 172800)\n"
    "end\n"
    "if not is_alive(ARGV[2]) then return -1 end\n"
    "if #ARGV > 4 then\n"
    "  local of_user, of_both = count(KEYS[1])\n"
    "  if is_full(of_user, ARGV[5]) then return 1 end\n"
    "  if KEYS[2] and is_full(count(KEYS[2]), ARGV[6]) then return 2 end\n"
    "  if is_full(of_both, ARGV[7]) then return 3 end\n"
    "end\n"
    "add(KEYS[1], ARGV[2] .. ' ' .. ARGV[3])\n"
    "if KEYS[2] then add(KEYS[2], ARGV[2]) end\n"
    "return 0\n";

/* Only counts. KEYS: the user's hash. ARGV: what keys of nodes begin with. */
static const char count_text[] = "local all, fields = 0, redis.call('HGETALL', KEYS[1])\n"
                                 "for i = 1, #fields, 2 do\n"
                                 "  local node = string.match(fields[i], '^(%S*)')\n"
                                 "  if redis.call('EXISTS', ARGV[1] .. node .. '}') == 1 then\n"
                                 "    all = all + (tonumber(fields[i + 1]) or 0)\n"
                                 "  end\n"
                                 "end\n"
                                 "return all\n";

static void on_timer(uv_timer_t *timer);
static void on_deadline(uv_timer_t *timer);
static void settle(struct turn_task *task);
static void go_down(struct registry *registry, const char *why);
static void announce(struct registry *registry);
static void tell(struct registry *registry);

static const struct conf_redis *settings(const struct registry *registry)
{
    return &registry->env->conf->redis;
}

static uint64_t now_ms(const struct registry *registry)
{
    return uv_now(registry->env->loop);
}

static uint64_t beat_ms(const struct registry *registry)
{
    return settings(registry)->node_expiry / 3;
}

static uint64_t answer_ms(const struct registry *registry)
{
    uint64_t timeout = settings(registry)->timeout;

    return timeout < REGISTRY_ANSWER_MAX_MS ? timeout : REGISTRY_ANSWER_MAX_MS;
}

static void post(struct registry *registry)
{
    turn_post(registry->env->turn, &registry->task);
}

/* --- life --- */

static void describe(struct registry *registry)
{
    char host[64] = "";
    size_t size = sizeof host;

    if (uv_os_gethostname(host, &size) != 0)
        host[0] = '\0';
    snprintf(registry->value, sizeof registry->value, "%s %ld", host, (long)uv_os_getpid());
}

struct registry *registry_open(const struct env *env, struct err *err)
{
    struct registry *registry = mem_new(sizeof *registry);

    if (registry == NULL)
        err_set(err, ERR_INTERNAL, "registry: no memory");
    if (registry == NULL || !redis_script_init(&registry->script, script_text, err) ||
        !redis_script_init(&registry->count_script, count_text, err)) {
        mem_free(registry);
        return NULL;
    }
    registry->env = env;
    registry->task.run = settle;
    TAILQ_INIT(&registry->queue);
    TAILQ_INIT(&registry->settled);
    TAILQ_INIT(&registry->calls);
    TAILQ_INIT(&registry->answered);
    describe(registry);
    uv_timer_init(env->loop, &registry->timer);
    uv_timer_init(env->loop, &registry->deadline);
    registry->timer.data = registry->deadline.data = registry;
    registry->handles_open = 2;
    uv_timer_start(&registry->timer, on_timer, LOOK_EACH_MS, LOOK_EACH_MS);
    announce(registry); /* waits for the first connection */
    return registry;
}

static void handle_closed(uv_handle_t *handle)
{
    struct registry *registry = handle->data;

    if (--registry->handles_open == 0)
        mem_free(registry);
}

static void call_free(struct registry_call *call)
{
    if (call->command != NULL)
        redis_command_cancel(call->command);
    if (call->entry == NULL)
        call->registry->differences--;
    else
        call->entry->asking--;
    mem_free(call);
}

static void free_calls(struct call_list *calls)
{
    struct registry_call *call;

    while ((call = TAILQ_FIRST(calls)) != NULL) {
        assert(call->request == NULL);
        TAILQ_REMOVE(calls, call, link);
        call_free(call);
    }
}

static void cancel_beat(struct registry *registry)
{
    if (registry->beat != NULL)
        redis_command_cancel(registry->beat);
    registry->beat = NULL;
    registry->beat_answered = false;
}

void registry_close(struct registry **registry)
{
    struct registry *r = *registry;
    struct registry_entry *entry, *next;

    *registry = NULL;
    if (r == NULL)
        return;
    turn_cancel(r->env->turn, &r->task);
    cancel_beat(r);
    free_calls(&r->calls);
    free_calls(&r->answered);
    HASH_ITER(hh, r->by_key, entry, next)
    {
        assert(entry->sessions == 0);
        HASH_DEL(r->by_key, entry);
        mem_free(entry);
    }
    uv_close((uv_handle_t *)&r->timer, handle_closed);
    uv_close((uv_handle_t *)&r->deadline, handle_closed);
}

/* --- entries --- */

static struct registry_entry *add_entry(struct registry *registry, const char *key)
{
    size_t len = strlen(key);
    struct registry_entry *entry = mem_new(sizeof *entry + len + 1);

    if (entry == NULL)
        return NULL;
    memcpy(entry->key, key, len);
    entry->user = strchr(entry->key, ' ') + 1;
    HASH_ADD_STR(registry->by_key, key, entry);
    if (entry->hh.tbl == NULL) {
        mem_free(entry);
        return NULL;
    }
    TAILQ_INSERT_TAIL(&registry->settled, entry, link);
    entry->told_ms = now_ms(registry);
    return entry;
}

/* The entry, made if need be; NULL without memory. */
static struct registry_entry *entry_for(struct registry *registry,
                                        const struct registry_request *request)
{
    char address[ADDRESS_TEXT_MAX], key[ENTRY_KEY_MAX];
    struct registry_entry *entry;

    address_origin_text(request->address, address);
    snprintf(key, sizeof key, "%s %s", address, request->user);
    HASH_FIND_STR(registry->by_key, key, entry);
    if (entry == NULL) {
        entry = add_entry(registry, key);
        if (entry != NULL)
            entry->by_address = request->address_max > 0;
    }
    return entry;
}

static void move_entry(struct registry *registry, struct registry_entry *entry, bool queued)
{
    TAILQ_REMOVE(entry->queued ? &registry->queue : &registry->settled, entry, link);
    TAILQ_INSERT_TAIL(queued ? &registry->queue : &registry->settled, entry, link);
    entry->queued = queued;
}

/* Queued if Redis is to be told something, gone if there is nothing to tell any more. */
static void review(struct registry *registry, struct registry_entry *entry)
{
    bool differs = entry->sessions != entry->told;

    if (differs != entry->queued)
        move_entry(registry, entry, differs);
    if (entry->sessions > 0 || entry->told > 0 || entry->asking > 0)
        return;
    assert(registry->by_key != NULL);
    HASH_DEL(registry->by_key, entry);
    TAILQ_REMOVE(&registry->settled, entry, link);
    mem_free(entry);
}

/* --- calls --- */

/* From hiredis: only noted. */
static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct registry_call *call = owner;
    struct registry *registry = call->registry;

    call->command = NULL;
    if (reply != NULL && reply->type == REDIS_REPLY_INTEGER && reply->integer >= 0 &&
        reply->integer < REGISTRY_UNKNOWN)
        call->verdict = (enum registry_verdict)reply->integer;
    else
        registry->lost = true;
    if (reply != NULL && reply->type == REDIS_REPLY_ERROR)
        log_event_limited(LOG_LEVEL_ERROR, "registry refused", "%.*s", (int)reply->len, reply->str);
    (void)err; /* the link has logged it */
    TAILQ_REMOVE(&registry->calls, call, link);
    TAILQ_INSERT_TAIL(&registry->answered, call, link);
    post(registry);
}

static struct redis_command *send_call(struct registry_call *call,
                                       const struct registry_entry *entry, int64_t difference,
                                       const struct registry_request *request)
{
    struct registry *registry = call->registry;
    char user_key[REDIS_KEY_MAX], address_key[REDIS_KEY_MAX], nodes[REDIS_KEY_MAX];
    char address[ADDRESS_TEXT_MAX], numbers[4][NUMBER_MAX];
    struct span arguments[REDIS_ARGUMENTS_MAX];
    size_t key_count = entry->by_address ? 2 : 1, count = 0;
    struct err err;

    snprintf(address, sizeof address, "%.*s", (int)(entry->user - 1 - entry->key), entry->key);
    if (!redis_key(user_key, settings(registry), "sessions", entry->user) ||
        !redis_key(address_key, settings(registry), "addresses", address) ||
        !redis_key(nodes, settings(registry), "node:{", NULL))
        return NULL;
    snprintf(numbers[0], NUMBER_MAX, "%" PRId64, difference);
    arguments[count++] = span_of(user_key);
    if (entry->by_address)
        arguments[count++] = span_of(address_key);
    arguments[count++] = span_of(nodes);
    arguments[count++] = span_of(registry->node);
    arguments[count++] = span_of(address);
    arguments[count++] = span_of(numbers[0]);
    if (request != NULL) {
        snprintf(numbers[1], NUMBER_MAX, "%" PRIu32, request->user_max);
        snprintf(numbers[2], NUMBER_MAX, "%" PRIu32, request->address_max);
        snprintf(numbers[3], NUMBER_MAX, "%" PRIu32, request->user_address_max);
        for (size_t i = 1; i < 4; i++)
            arguments[count++] = span_of(numbers[i]);
    }
    return redis_link_call(registry->env->redis, &registry->script, arguments, count, key_count,
                           on_reply, call, &err);
}

struct redis_command *registry_count(struct registry *registry, const char *user,
                                     redis_reply_fn *reply, void *owner)
{
    char key[REDIS_KEY_MAX], nodes[REDIS_KEY_MAX];
    struct err err;

    if (!redis_key(key, settings(registry), "sessions", user) ||
        !redis_key(nodes, settings(registry), "node:{", NULL))
        return NULL;

    const struct span arguments[] = {span_of(key), span_of(nodes)};

    return redis_link_call(registry->env->redis, &registry->count_script, arguments, 2, 1, reply,
                           owner, &err);
}

/* Tells a difference, or asks whether there may be one more. NULL when it cannot be sent. */
static struct registry_call *call_start(struct registry *registry, struct registry_entry *entry,
                                        int64_t difference, struct registry_request *request)
{
    struct registry_call *call = mem_new(sizeof *call);

    if (call == NULL)
        return NULL;
    *call = (struct registry_call){.registry = registry,
                                   .request = request,
                                   .entry = request == NULL ? NULL : entry,
                                   .sent_ms = now_ms(registry),
                                   .verdict = REGISTRY_UNKNOWN};
    call->command = send_call(call, entry, difference, request);
    if (call->command == NULL) {
        mem_free(call);
        return NULL;
    }
    if (request == NULL)
        registry->differences++;
    else
        entry->asking++;
    if (TAILQ_EMPTY(&registry->calls))
        uv_timer_start(&registry->deadline, on_deadline, answer_ms(registry), 0);
    TAILQ_INSERT_TAIL(&registry->calls, call, link);
    return call;
}

static void on_deadline(uv_timer_t *timer)
{
    struct registry *registry = timer->data;
    const struct registry_call *oldest = TAILQ_FIRST(&registry->calls);

    if (registry->state == RETIRING) {
        cancel_beat(registry);
        registry->beat_answered = true;
        post(registry);
    } else if (oldest != NULL) {
        uint64_t age = now_ms(registry) - oldest->sent_ms;

        if (age >= answer_ms(registry))
            go_down(registry, "Redis is too slow");
        else
            uv_timer_start(timer, on_deadline, answer_ms(registry) - age, 0);
    }
}

/* The next one that Redis is to be told of, or NULL. */
static struct registry_entry *next_to_tell(struct registry *registry)
{
    struct registry_entry *oldest = TAILQ_FIRST(&registry->settled);

    if (!TAILQ_EMPTY(&registry->queue))
        return TAILQ_FIRST(&registry->queue);
    return oldest != NULL && now_ms(registry) - oldest->told_ms >= TELL_AGAIN_MS ? oldest : NULL;
}

/* Sends differences, as many as may be under way. */
static void tell(struct registry *registry)
{
    struct registry_entry *entry;

    while (registry->state == UP && registry->differences < CALLS_MAX &&
           (entry = next_to_tell(registry)) != NULL) {
        int64_t difference = (int64_t)entry->sessions - (int64_t)entry->told;

        if (call_start(registry, entry, difference, NULL) == NULL) {
            go_down(registry, "Redis takes no calls");
            return;
        }
        entry->told = entry->sessions;
        entry->told_ms = now_ms(registry);
        move_entry(registry, entry, false); /* behind those told before */
        review(registry, entry);
    }
}

/* --- sessions --- */

bool registry_ask(struct registry *registry, struct registry_request *request)
{
    struct registry_entry *entry;

    request->call = NULL;
    if (registry->state != UP)
        return false;
    entry = entry_for(registry, request);
    if (entry == NULL)
        return false;
    request->call = call_start(registry, entry, 1, request);
    if (request->call == NULL) {
        review(registry, entry);
        go_down(registry, "Redis takes no calls");
        return false;
    }
    return true;
}

void registry_cancel(struct registry_request *request)
{
    if (request->call != NULL)
        request->call->request = NULL; /* if Redis counts it, the difference will be told */
    request->call = NULL;
}

struct registry_entry *registry_add(struct registry *registry,
                                    const struct registry_request *request)
{
    struct registry_entry *entry = entry_for(registry, request);

    if (entry == NULL)
        return NULL;
    entry->sessions++;
    review(registry, entry);
    tell(registry);
    return entry;
}

void registry_leave(struct registry *registry, struct registry_entry **entry)
{
    struct registry_entry *e = *entry;

    *entry = NULL;
    if (e == NULL)
        return;
    assert(e->sessions > 0);
    e->sessions--;
    review(registry, e);
    tell(registry);
}

/* A call that was answered, or is given up. */
static void finish(struct registry *registry, struct registry_call *call)
{
    struct registry_entry *entry = call->entry;
    struct registry_request *request = call->request;
    enum registry_verdict verdict = call->verdict;
    bool counted = verdict == REGISTRY_COUNTED;

    call_free(call);
    if (entry == NULL)
        return;
    if (counted) {
        entry->told++;
        entry->told_ms = now_ms(registry);
        move_entry(registry, entry, entry->queued);
    }
    entry->sessions += counted && request != NULL;
    review(registry, entry); /* it may be gone, but not if it has a session */
    if (request == NULL)
        return;
    request->call = NULL;
    request->on_answer(request, verdict, counted ? entry : NULL);
}

/* --- the node --- */

static bool make_name(struct registry *registry)
{
    uint64_t random;

    if (uv_random(NULL, NULL, &random, sizeof random, 0, NULL) != 0)
        return false;
    snprintf(registry->node, sizeof registry->node, "%016" PRIx64, random);
    return true;
}

/* From hiredis: only noted. */
static void on_beat(void *owner, const redisReply *reply, const struct err *err)
{
    struct registry *registry = owner;

    (void)err; /* the link has logged it */
    registry->beat = NULL;
    registry->beat_answered = true;
    registry->beat_good = reply != NULL && reply->type == REDIS_REPLY_STATUS;
    registry->connection = redis_link_connection(registry->env->redis);
    post(registry);
}

static struct redis_command *send_words(struct registry *registry, const char **words, int count,
                                        redis_reply_fn *on_answer)
{
    size_t lens[8];
    struct err err;

    assert(count <= 8);
    for (int i = 0; i < count; i++)
        lens[i] = strlen(words[i]);
    return redis_link_send(registry->env->redis, count, words, lens, on_answer, registry, &err);
}

/*
 * Writes the node's key; if it is not a new one, only where it is still there: if it has expired,
 * or Redis has lost it, so may have our counts.
 */
static bool send_beat(struct registry *registry, bool is_new)
{
    char key[REDIS_KEY_MAX], expiry[NUMBER_MAX];
    const char *words[] = {"SET", key, registry->value, "PX", expiry, "XX"};

    if (!redis_key(key, settings(registry), "node", registry->node))
        return false;
    snprintf(expiry, sizeof expiry, "%" PRIu64, settings(registry)->node_expiry);
    registry->beat = send_words(registry, words, is_new ? 5 : 6, on_beat);
    return registry->beat != NULL;
}

static struct redis_command *send_removal(struct registry *registry, redis_reply_fn *on_answer)
{
    char key[REDIS_KEY_MAX];
    const char *words[] = {"DEL", key};

    return redis_key(key, settings(registry), "node", registry->node)
               ? send_words(registry, words, 2, on_answer)
               : NULL;
}

/* A new node. What an old one has counted must not count beside it. */
static void announce(struct registry *registry)
{
    registry->announced_ms = now_ms(registry);
    if (registry->node[0] != '\0' && send_removal(registry, NULL) == NULL)
        return; /* another time */
    if (make_name(registry) && send_beat(registry, true))
        registry->state = ANNOUNCED;
}

static void come_up(struct registry *registry)
{
    registry->state = UP;
    counter_add(&registry->env->counters->registry_nodes, 1);
    log_event_limited(LOG_LEVEL_INFO, "sessions shared", "node=%s", registry->node);
    uv_timer_start(&registry->timer, on_timer, beat_ms(registry), beat_ms(registry));
}

/* What is under way is not waited for; and what Redis has said it counts, it counts no more. */
static void give_up_calls(struct registry *registry)
{
    struct registry_call *call;

    while ((call = TAILQ_FIRST(&registry->calls)) != NULL) {
        redis_command_cancel(call->command);
        call->command = NULL;
        TAILQ_REMOVE(&registry->calls, call, link);
        TAILQ_INSERT_TAIL(&registry->answered, call, link);
    }
    TAILQ_FOREACH(call, &registry->answered, link)
    {
        if (call->verdict == REGISTRY_COUNTED)
            call->verdict = REGISTRY_UNKNOWN;
    }
}

static void forget_told(struct registry *registry, struct entry_list *entries)
{
    struct registry_entry *next;

    for (struct registry_entry *entry = TAILQ_FIRST(entries); entry != NULL; entry = next) {
        next = TAILQ_NEXT(entry, link);
        entry->told = 0;
        review(registry, entry);
    }
}

static void go_down(struct registry *registry, const char *why)
{
    registry->lost = false;
    if (registry->state != UP && registry->state != ANNOUNCED)
        return;
    if (registry->state == UP)
        log_event_limited(LOG_LEVEL_WARNING, "sessions not shared", "node=%s: %s", registry->node,
                          why);
    registry->state = DOWN;
    cancel_beat(registry);
    give_up_calls(registry);
    forget_told(registry, &registry->queue);
    forget_told(registry, &registry->settled);
    uv_timer_stop(&registry->deadline);
    uv_timer_start(&registry->timer, on_timer, LOOK_EACH_MS, LOOK_EACH_MS);
    post(registry); /* who has asked is still to be answered */
}

/* The node is announced, refreshed or removed, or that has failed. */
static void end_beat(struct registry *registry)
{
    registry->beat_answered = false;
    if (registry->state == RETIRING) {
        registry->state = RETIRED;
    } else if (!registry->beat_good) {
        go_down(registry, "Redis has lost this node");
    } else if (registry->state == ANNOUNCED) {
        come_up(registry);
    }
}

static void on_timer(uv_timer_t *timer)
{
    struct registry *registry = timer->data;
    uint64_t connection = redis_link_connection(registry->env->redis);

    if (registry->state == DOWN) {
        /* Not in haste: if Redis refuses it once, it will again. */
        if (connection != 0 && now_ms(registry) - registry->announced_ms >= beat_ms(registry))
            announce(registry);
    } else if (registry->state == UP) {
        if (connection != registry->connection) /* a Redis that was restarted has old counts */
            go_down(registry, "the connection was lost");
        else if (registry->beat == NULL && !send_beat(registry, false))
            go_down(registry, "Redis takes no commands");
        tell(registry);
    }
}

bool registry_retire(struct registry *registry, void (*on_retired)(void *owner), void *owner)
{
    bool was_up = registry->state == UP;

    cancel_beat(registry);
    uv_timer_stop(&registry->timer);
    registry->state = RETIRED;
    if (was_up)
        registry->beat = send_removal(registry, on_beat);
    if (registry->beat == NULL)
        return false;
    registry->state = RETIRING;
    registry->on_retired = on_retired;
    registry->owner = owner;
    uv_timer_start(&registry->deadline, on_deadline, answer_ms(registry), 0);
    return true;
}

/* The last thing that it does: the owner may close it. */
static void tell_retired(struct registry *registry)
{
    void (*on_retired)(void *owner) = registry->on_retired;

    registry->on_retired = NULL;
    on_retired(registry->owner);
}

static void settle(struct turn_task *task)
{
    struct registry *registry = (struct registry *)((char *)task - offsetof(struct registry, task));
    struct registry_call *call;

    if (registry->lost)
        go_down(registry, "a call was lost or refused");
    if (registry->beat_answered)
        end_beat(registry);
    while ((call = TAILQ_FIRST(&registry->answered)) != NULL) {
        TAILQ_REMOVE(&registry->answered, call, link);
        finish(registry, call);
    }
    tell(registry);
    if (registry->state == RETIRED && registry->on_retired != NULL)
        tell_retired(registry);
}
