/*
 * Owns the record of this process in Redis, its beats, and the fence. A beat counts from when it
 * was sent, and only once as many replicas have it as redis.replicas says: else an old master that
 * nobody follows any more would confirm beats that the new one has never seen, while moves there go
 * on without us.
 */
#include "proxy/fleet/membership.h"

#include "proxy/base/clock.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/redis_link.h"

#include <inttypes.h>
#include <stdio.h>

enum {
    LOOK_EACH_MS = 200, /* is a beat due, or Redis back? */
    LEAVE_MAX_MS = 1000,
    LET_GO_MAX_MS = 10000,
    PREDECESSOR_MAX = 64,
    NUMBER_MAX = 24
};

enum step { IDLE, BEATING, WAITING /* for replicas */, LEAVING, LEFT };
enum fence { NO_FENCE, FAR, NEAR, PASSED /* and somebody may still be there */ };

struct membership {
    const struct env *env;
    const char *id;
    char predecessor[PREDECESSOR_MAX]; /* "": none */
    bool predecessor_lives;
    struct freshness *freshness;
    const struct membership_events *events;
    void *owner;
    struct redis_script script;
    char host[64];

    enum step step;
    struct redis_command *command; /* of the step */
    bool answered, good;           /* noted for the next turn */
    bool ends_moves;               /* has begun to: the next beat goes on with that */
    /*
     * Since when the record, or the predecessor's, is there without a gap: by the last answer, and
     * as it was last confirmed. 0: since before our time. A gap is to be noticed even if the beat
     * that has ended it was never confirmed.
     */
    long long since, known_since;
    uint64_t sent_ms;      /* the last beat, or when it should have been; of clock_ms */
    uint64_t promised_ms;  /* by it: how long users are served without Redis */
    uint64_t confirmed_ms; /* when the last one was sent that was confirmed */
    uint64_t connection;   /* of the link, that has answered the beat */
    uint64_t token;        /* of the record; 0: it is to be another one */
    uint64_t sent_over;    /* the connection of the last beat; 0: there was none yet */
    bool confirmed, ever_confirmed, complained;

    enum fence fence;
    uint64_t fence_ms;
    uv_timer_t look, fence_timer;
    unsigned handles_open;
    struct turn_task task;
    void (*on_left)(void *owner);
};

/*
 * KEYS: proxies, moving, beats.
 * ARGV: id, host, pid, fence_ms, sessions, version, socket, the prefix of all keys, the id of the
 * predecessor, or "", redis.replicas, 1 if enough replicas have our beat before this one, 1 if the
 * predecessor lives, the token.
 * Writes the record, takes away those that have lapsed, and ends moves that nobody looks after any
 * more. A user's hash that is not as it should be must not stop the beats of all.
 *
 * With replicas a move is ended in two steps, and the second must know that replicas have the
 * first (`over`, the number of a beat): else a master that nobody follows any more would let those
 * go on who have consented, while the move goes on at its successor.
 */
static const char script_text[] =
    "local time = redis.call('TIME')\n"
    "local now = time[1] * 1000 + math.floor(time[2] / 1000)\n"
    "local lapsed, healed, begun = 0, 0, 0\n"
    "local replicas, number = tonumber(ARGV[10]), redis.call('INCR', KEYS[3])\n"
    "local settled = 0\n"
    "if ARGV[11] == '1' then\n"
    "  local good, record = pcall(cjson.decode, redis.call('HGET', KEYS[1], ARGV[1]))\n"
    "  if good then settled = tonumber(record.beat) or 0 end\n"
    "end\n"
    "local function lives(text)\n"
    "  local record = cjson.decode(text)\n"
    "  return record.seen_ms + record.fence_ms >= now\n"
    "end\n"
    "local function heal(user)\n"
    "  local key = ARGV[8] .. 'user:{' .. user .. '}'\n"
    "  local route = redis.call('HMGET', key, 'state', 'until', 'target', 'move', 'shard', "
    "'over')\n"
    "  local moves = route[1] == 'moving' or route[1] == 'committed'\n"
    "  local over = tonumber(route[6] or nil)\n"
    "  if moves and not over and (tonumber(route[2] or 0) or 0) >= now then return end\n"
    "  if moves and replicas > 0 and not over then\n"
    "    redis.call('HSET', key, 'over', number)\n"
    "    begun = begun + 1\n"
    "    return\n"
    "  end\n"
    "  if moves and replicas > 0 and over > settled then return end\n"
    "  if not moves then\n"
    "    redis.call('HDEL', KEYS[2], user)\n"
    "    return\n"
    "  end\n"
    "  local epoch = redis.call('HINCRBY', key, 'epoch', 1)\n"
    "  redis.call('HDEL', KEYS[2], user)\n"
    "  if route[1] == 'committed' then\n"
    "    redis.call('HSET', key, 'shard', route[3], 'moved_by', route[4], 'moved_from', route[5])\n"
    "  end\n"
    "  redis.call('HSET', key, 'state', 'active')\n"
    "  redis.call('HDEL', key, 'target', 'move', 'until', 'over')\n"
    "  redis.call('PUBLISH', ARGV[8] .. 'events',\n"
    "    cjson.encode({event = 'route', user = user, epoch = epoch, state = 'active'}))\n"
    "  healed = healed + 1\n"
    "end\n"
    "local good, own = pcall(cjson.decode, redis.call('HGET', KEYS[1], ARGV[1]))\n"
    "good = good and type(own) == 'table'\n"
    "local since = good and tonumber(own.since) or now\n"
    "local before = redis.call(ARGV[12] == '1' and 'HEXISTS' or 'HDEL', KEYS[1], ARGV[9])\n"
    "if before == 1 and not good then since = 0 end\n"
    "redis.call('HSET', KEYS[1], ARGV[1], cjson.encode({host = ARGV[2], pid = tonumber(ARGV[3]),\n"
    "  seen_ms = now, fence_ms = tonumber(ARGV[4]), sessions = tonumber(ARGV[5]),\n"
    "  version = ARGV[6], socket = ARGV[7], beat = number,\n"
    "  since = since, token = ARGV[13]}))\n"
    "local all = redis.call('HGETALL', KEYS[1])\n"
    "for i = 1, #all, 2 do\n"
    "  local good, alive = pcall(lives, all[i + 1])\n"
    "  if not (good and alive) then lapsed = lapsed + redis.call('HDEL', KEYS[1], all[i]) end\n"
    "end\n"
    "for _, user in ipairs(redis.call('HKEYS', KEYS[2])) do pcall(heal, user) end\n"
    "return {since, #all / 2 - lapsed, lapsed, healed, begun}\n";

enum { REPLY_SINCE, REPLY_PROXIES, REPLY_LAPSED, REPLY_HEALED, REPLY_BEGUN, REPLY_COUNT };

static void on_look(uv_timer_t *timer);
static void on_fence(uv_timer_t *timer);
static void settle(struct turn_task *task);
static void beat(struct membership *m);

static const struct conf_redis *settings(const struct membership *m)
{
    return &m->env->conf->redis;
}

/* How long users are served without Redis; 0: it is not asked for routes. */
static uint64_t keep_ms(const struct membership *m)
{
    return conf_routes_by_redis(m->env->conf) ? m->env->conf->route.keep_while_down : 0;
}

/* Before the fence sessions are let go over this time. */
static uint64_t let_go_ms(const struct membership *m)
{
    uint64_t tenth = keep_ms(m) / 10;

    return tenth < LET_GO_MAX_MS ? tenth : LET_GO_MAX_MS;
}

/* --- life --- */

struct membership *membership_open(const struct env *env, const char *id,
                                   const struct predecessor *predecessor,
                                   struct freshness *freshness,
                                   const struct membership_events *events, void *owner,
                                   struct err *err)
{
    struct membership *m = mem_new(sizeof *m);
    size_t host_size = sizeof m->host;

    if (m == NULL)
        err_set(err, ERR_INTERNAL, "fleet: no memory");
    if (m == NULL || !redis_script_init(&m->script, script_text, err)) {
        mem_free(m);
        return NULL;
    }
    m->env = env;
    m->id = id;
    snprintf(m->predecessor, sizeof m->predecessor, "%s", predecessor->id);
    m->predecessor_lives = predecessor->lives;
    m->freshness = freshness;
    m->events = events;
    m->owner = owner;
    m->task.run = settle;
    if (uv_os_gethostname(m->host, &host_size) != 0)
        m->host[0] = '\0';
    uv_timer_init(env->loop, &m->look);
    uv_timer_init(env->loop, &m->fence_timer);
    m->look.data = m->fence_timer.data = m;
    m->handles_open = 2;
    uv_timer_start(&m->look, on_look, LOOK_EACH_MS, LOOK_EACH_MS);
    beat(m); /* waits for the first connection */
    return m;
}

bool membership_is_confirmed(const struct membership *membership)
{
    return membership->confirmed;
}

static void cancel_command(struct membership *m)
{
    if (m->command != NULL)
        redis_command_cancel(m->command);
    m->command = NULL;
    m->answered = false;
}

static void handle_closed(uv_handle_t *handle)
{
    struct membership *m = handle->data;

    if (--m->handles_open == 0)
        mem_free(m);
}

void membership_close(struct membership **membership)
{
    struct membership *m = *membership;

    *membership = NULL;
    if (m == NULL)
        return;
    cancel_command(m);
    turn_cancel(m->env->turn, &m->task);
    uv_close((uv_handle_t *)&m->look, handle_closed);
    uv_close((uv_handle_t *)&m->fence_timer, handle_closed);
}

/* --- the fence --- */

static void arm_fence(struct membership *m, uint64_t at_ms)
{
    uint64_t now = clock_ms();

    uv_update_time(m->env->loop); /* the turn may have begun long ago */
    uv_timer_start(&m->fence_timer, on_fence, at_ms > now ? at_ms - now : 0, 0);
}

/*
 * New logins end where sessions begin to be let go: else those who are let go would be back at
 * once, only to be cut off.
 */
static void set_fence(struct membership *m, uint64_t fence_ms)
{
    m->fence_ms = fence_ms;
    m->fence = FAR;
    atomic_store(&m->freshness->fence_ms, fence_ms - let_go_ms(m));
    atomic_store(&m->freshness->serve_until_ms, fence_ms);
    arm_fence(m, fence_ms - let_go_ms(m));
}

/* The beat that was sent then is confirmed. */
static void move_fence(struct membership *m)
{
    if (keep_ms(m) == 0 || m->fence == PASSED)
        return;
    set_fence(m, m->confirmed_ms + m->promised_ms);
}

void membership_inherit(struct membership *m, uint64_t fence_ms)
{
    if (!m->ever_confirmed && keep_ms(m) > 0 && fence_ms > clock_ms() + let_go_ms(m))
        set_fence(m, fence_ms);
}

uint64_t membership_fence_ms(const struct membership *m)
{
    return m->fence_ms;
}

static void on_fence(uv_timer_t *timer)
{
    struct membership *m = timer->data;
    uint64_t now = clock_ms();

    if (now < m->fence_ms && m->fence == FAR) {
        m->fence = NEAR;
        log_event(LOG_LEVEL_ERROR, "fence near",
                  "Redis has not confirmed this proxy: sessions are let go within %" PRIu64 " ms",
                  m->fence_ms - now);
        arm_fence(m, m->fence_ms);
        m->events->let_go(m->owner, m->fence_ms - now);
    } else if (now < m->fence_ms) {
        arm_fence(m, m->fence_ms);
    } else {
        m->fence = PASSED;
        counter_add(&m->env->counters->fleet_fences, 1);
        log_event(LOG_LEVEL_ERROR, "fence passed",
                  "Redis has not confirmed this proxy in time: its users may have been moved, so "
                  "all sessions are cut off");
        m->events->cut_off(m->owner);
    }
}

void membership_is_cut_off(struct membership *membership)
{
    membership->fence = NO_FENCE;
}

/* --- beats --- */

/* From hiredis: only noted. */
static void note(struct membership *m, bool good)
{
    m->command = NULL;
    m->good = good;
    m->answered = true;
    m->connection = redis_link_connection(m->env->redis);
    turn_post(m->env->turn, &m->task);
}

static bool is_beat_reply(const redisReply *reply)
{
    bool good = reply != NULL && reply->type == REDIS_REPLY_ARRAY && reply->elements == REPLY_COUNT;

    for (size_t i = 0; good && i < REPLY_COUNT; i++)
        good = reply->element[i]->type == REDIS_REPLY_INTEGER && reply->element[i]->integer >= 0;
    return good;
}

static void log_refusal(const redisReply *reply)
{
    if (reply != NULL && reply->type == REDIS_REPLY_ERROR)
        log_event_limited(LOG_LEVEL_ERROR, "beat refused", "%.*s", (int)reply->len, reply->str);
}

/* A beat that one server refuses is sent to the next: the first may have had this token, too. */
static void take_token(struct membership *m)
{
    atomic_store(&m->freshness->token_before, m->token);
    atomic_fetch_add(&m->freshness->beats, 1);
    if (m->sent_over != 0 && m->sent_over != redis_link_connection(m->env->redis))
        m->token = 0;
}

static void on_beat(void *owner, const redisReply *reply, const struct err *err)
{
    struct membership *m = owner;
    bool good = is_beat_reply(reply);

    (void)err; /* the link has logged it */
    log_refusal(reply);
    if (good) {
        take_token(m);
        m->since = reply->element[REPLY_SINCE]->integer;
        m->ends_moves = reply->element[REPLY_BEGUN]->integer != 0;
        atomic_store(&m->env->counters->fleet_proxies,
                     (uint64_t)reply->element[REPLY_PROXIES]->integer);
        counter_add(&m->env->counters->fleet_lapsed,
                    (uint64_t)reply->element[REPLY_LAPSED]->integer);
        counter_add(&m->env->counters->fleet_healed,
                    (uint64_t)reply->element[REPLY_HEALED]->integer);
    }
    note(m, good);
}

/*
 * Another connection may lead to another server, of which workers must be able to tell whether
 * theirs is the same. Until it has answered the one before it counts, too.
 */
static void renew_token(struct membership *m)
{
    if (uv_random(NULL, NULL, &m->token, sizeof m->token, 0, NULL) != 0)
        m->token = uv_hrtime();
    m->token |= 1; /* 0 is none */
    atomic_store(&m->freshness->token, m->token);
}

/* False when it cannot be sent. */
static bool send_beat(struct membership *m)
{
    char proxies[REDIS_KEY_MAX], moving[REDIS_KEY_MAX], beats[REDIS_KEY_MAX];
    char numbers[4][NUMBER_MAX], token[NUMBER_MAX];
    bool settled = m->confirmed && redis_link_connection(m->env->redis) == m->connection;
    /* Once we are known ourselves, one that lives says nothing of a gap in our own record. */
    bool counts = !m->predecessor_lives || !m->ever_confirmed;
    struct err err;

    if (!redis_key(proxies, settings(m), "proxies", NULL) ||
        !redis_key(moving, settings(m), "moving", NULL) ||
        !redis_key(beats, settings(m), "beats", NULL))
        return false;
    snprintf(numbers[0], NUMBER_MAX, "%ld", (long)uv_os_getpid());
    m->promised_ms = keep_ms(m); /* by the time of the answer it may be another one */
    snprintf(numbers[1], NUMBER_MAX, "%" PRIu64, m->promised_ms + settings(m)->node_expiry);
    snprintf(numbers[2], NUMBER_MAX, "%zu", m->events->count_sessions(m->owner));
    snprintf(numbers[3], NUMBER_MAX, "%" PRId64, settings(m)->replicas);
    m->sent_over = redis_link_connection(m->env->redis);
    if (m->token == 0 || m->sent_over == 0 || m->sent_over != m->connection)
        renew_token(m);
    snprintf(token, NUMBER_MAX, "%016" PRIx64, m->token);

    const struct span arguments[] = {span_of(proxies),
                                     span_of(moving),
                                     span_of(beats),
                                     span_of(m->id),
                                     span_of(m->host),
                                     span_of(numbers[0]),
                                     span_of(numbers[1]),
                                     span_of(numbers[2]),
                                     span_of(IMAPMUX_VERSION),
                                     span_of(m->env->conf->admin.socket),
                                     span_of(settings(m)->prefix),
                                     span_of(counts ? m->predecessor : ""),
                                     span_of(numbers[3]),
                                     span_of(settled ? "1" : "0"),
                                     span_of(m->predecessor_lives ? "1" : "0"),
                                     span_of(token)};

    m->command = redis_link_call(m->env->redis, &m->script, arguments,
                                 sizeof arguments / sizeof *arguments, 3, on_beat, m, &err);
    return m->command != NULL;
}

static void beat(struct membership *m)
{
    m->sent_ms = clock_ms();
    if (send_beat(m))
        m->step = BEATING;
}

/* An answer over another connection than the beat's does not know what the beat has written. */
static void on_replicas(void *owner, const redisReply *reply, const struct err *err)
{
    struct membership *m = owner;
    uint64_t connection = m->connection;

    (void)err;
    note(m, reply != NULL && reply->type == REDIS_REPLY_INTEGER &&
                reply->integer >= settings(m)->replicas &&
                redis_link_connection(m->env->redis) == connection);
}

static bool send_wait(struct membership *m)
{
    char count[NUMBER_MAX], timeout[NUMBER_MAX];
    const char *words[] = {"WAIT", count, timeout};
    struct err err;

    snprintf(count, sizeof count, "%lld", (long long)settings(m)->replicas);
    snprintf(timeout, sizeof timeout, "%" PRIu64, settings(m)->timeout / 2);
    if (redis_link_connection(m->env->redis) != m->connection)
        return false;
    m->command = redis_link_send(m->env->redis, 3, words,
                                 (size_t[]){strlen("WAIT"), strlen(count), strlen(timeout)},
                                 on_replicas, m, &err);
    return m->command != NULL;
}

static void confirm(struct membership *m)
{
    bool was_there = m->since == m->known_since;
    bool forgotten = m->fence != NO_FENCE && !was_there;

    m->step = IDLE;
    counter_add(&m->env->counters->fleet_beats_confirmed, 1);
    if (!m->confirmed)
        log_event_limited(LOG_LEVEL_INFO, "proxy known", "id=%s", m->id);
    m->confirmed = m->ever_confirmed = true;
    m->complained = false;
    m->confirmed_ms = m->sent_ms;
    m->known_since = m->since;
    if (!was_there)
        atomic_store(&m->freshness->known_since_ms, clock_ms());
    move_fence(m);
    m->events->on_beat(m->owner);
    if (forgotten) {
        log_event(LOG_LEVEL_ERROR, "proxy forgotten",
                  "id=%s: others have taken this process for dead, or Redis has lost it", m->id);
        m->events->on_forgotten(m->owner);
    }
}

static void fail(struct membership *m, const char *why)
{
    m->step = IDLE;
    m->confirmed = false;
    counter_add(&m->env->counters->fleet_beats_failed, 1);
    if (!m->complained)
        log_event_limited(LOG_LEVEL_WARNING, "proxy not confirmed", "id=%s: %s", m->id, why);
    m->complained = true;
    m->events->on_beat(m->owner);
}

/* What hiredis has told is acted upon. */
static void settle(struct turn_task *task)
{
    struct membership *m = (struct membership *)((char *)task - offsetof(struct membership, task));
    enum step step = m->step;

    if (!m->answered)
        return;
    m->answered = false;
    if (step == LEAVING) {
        m->step = LEFT;
        m->on_left(m->owner); /* may close */
    } else if (!m->good) {
        fail(m, step == WAITING ? "too few replicas have its beat" : "Redis does not answer");
    } else if (step == BEATING && settings(m)->replicas > 0) {
        m->step = WAITING;
        if (!send_wait(m))
            fail(m, "the connection was lost");
    } else {
        confirm(m);
    }
}

static bool is_due(const struct membership *m)
{
    return (m->confirmed && m->ends_moves) ||
           clock_ms() - m->sent_ms >= settings(m)->node_expiry / 3;
}

/* Beats are due in time, and at once over a new connection. */
static void on_look(uv_timer_t *timer)
{
    struct membership *m = timer->data;
    uint64_t connection = redis_link_connection(m->env->redis);

    if (m->step == LEAVING) {
        cancel_command(m);
        m->answered = true;
        turn_post(m->env->turn, &m->task);
    } else if (m->step != IDLE) {
        return;
    } else if (connection != 0 && (connection != m->connection || is_due(m))) {
        beat(m);
    } else if (connection == 0 && is_due(m)) {
        m->sent_ms = clock_ms();
        fail(m, "there is no connection to Redis");
    }
}

static void on_gone(void *owner, const redisReply *reply, const struct err *err)
{
    (void)err;
    note(owner, reply != NULL);
}

bool membership_can_leave(const struct membership *m)
{
    return redis_link_connection(m->env->redis) != 0;
}

bool membership_leave(struct membership *m, void (*on_left)(void *owner))
{
    char proxies[REDIS_KEY_MAX];
    const char *words[] = {"HDEL", proxies, m->id};
    uint64_t limit_ms = settings(m)->timeout < LEAVE_MAX_MS ? settings(m)->timeout : LEAVE_MAX_MS;
    struct err err;

    cancel_command(m);
    uv_timer_stop(&m->fence_timer);
    m->step = LEFT;
    if (!membership_can_leave(m) || !redis_key(proxies, settings(m), "proxies", NULL))
        return false;
    m->command = redis_link_send(m->env->redis, 3, words,
                                 (size_t[]){strlen("HDEL"), strlen(proxies), strlen(m->id)},
                                 on_gone, m, &err);
    if (m->command == NULL)
        return false;
    m->step = LEAVING;
    m->on_left = on_left;
    uv_timer_start(&m->look, on_look, limit_ms, 0);
    return true;
}
