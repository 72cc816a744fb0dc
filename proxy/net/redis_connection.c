/*
 * Owns how a good connection to Redis comes about, and comes about again: an attempt is a course of
 * hops to sentinels, if there are any, and to the server, each within a limit of the one timer,
 * whose meaning follows from the state. It always starts from the timer, never from inside hiredis
 * or a caller; what goes wrong on a hop is known when its watch is gone (on_gone).
 */
#include "proxy/net/redis_connection.h"

#include "proxy/base/log.h"
#include "proxy/net/redis_role.h"
#include "proxy/net/redis_watch.h"
#include "proxy/base/mem.h"
#include "proxy/net/resolve.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum {
    RETRY_MIN_MS = 50,
    RETRY_MAX_BY_SENTINEL_MS = 500, /* while sentinels answer: they may name another master soon */
    ATTEMPT_SPACING_MS = 100,
    HOP_MAX_BY_SENTINEL_MS = 1000 /* likewise, when one of them or the master hangs */
};

enum connection_state {
    CONNECTION_DUE,        /* an attempt starts when the timer fires, now */
    CONNECTION_PAUSED,     /* an attempt starts when the timer fires, after the pause */
    CONNECTION_RESOLVING,  /* the timer is the hop's limit */
    CONNECTION_CONNECTING, /* connecting, and greeting the peer; the timer is the hop's limit */
    CONNECTION_UP,
    CONNECTION_CLOSED,
};

struct redis_connection {
    const struct env *env;
    const struct conf *conf; /* of the start: held, for its settings stay the same */
    const struct redis_connection_handlers *handlers;
    void *owner;
    enum connection_state state;
    uv_timer_t timer;
    struct redis_watch *watch; /* of the hop, or of the good connection; NULL without one */

    /* The peer of this hop: a sentinel, or the server. */
    bool asks_sentinel;
    const char *address; /* its text, of the settings or `master` */
    uint64_t limit_ms;
    char host[HOST_MAX]; /* "" for a Unix socket */
    uint16_t port;
    struct resolve_request resolving;
    union address addresses[RESOLVE_ADDRESSES_MAX];
    size_t address_count, addresses_tried;
    size_t address_first; /* where a hop begins; moves on when one swallows the whole time */

    /* Of sentinels. */
    size_t sentinel;                /* that was asked last */
    size_t sentinel_first;          /* to be asked first: it answered last */
    size_t sentinels_asked;         /* in this attempt */
    bool sentinel_answers;          /* at least one, in this attempt */
    char master[REDIS_ADDRESS_MAX]; /* whom it named; "" while it has not */
    char failed[REDIS_ADDRESS_MAX]; /* the one that could not be had in this attempt */
    char before[REDIS_ADDRESS_MAX]; /* the one that was up last */

    uint64_t attempted_at_ms; /* when the last attempt began */
    uint64_t pause_ms;        /* the next pause, before jitter */
    bool rejected;            /* what was up is of no use */
    struct err err;           /* what went wrong last on this attempt; or why it is down */
};

/* A command that a peer is greeted with, and which reply is a good one. */
struct greeting {
    const char *name;
    bool (*accept)(struct redis_connection *connection, const redisReply *reply);
    const char *otherwise;
};

static bool check_settings(const struct conf_redis *redis, struct err *err);
static void connection_due(struct redis_connection *connection);
static void connection_pause(struct redis_connection *connection);
static void on_timer(uv_timer_t *timer);
static void attempt_start(struct redis_connection *connection);
static void ask_sentinel(struct redis_connection *connection);
static void hop_start(struct redis_connection *connection, const char *address);
static void hop_overdue(struct redis_connection *connection);
static void hop_failed(struct redis_connection *connection);
static void on_resolved(struct resolve_request *request, const union address *list, size_t count,
                        const struct err *err);
static bool connect_next(struct redis_connection *connection);
static redisAsyncContext *context_open(struct redis_connection *connection);
static bool context_adopt(struct redis_connection *connection, redisAsyncContext *context);
static bool greet(struct redis_connection *connection, redisAsyncContext *context);
static void on_greeted(redisAsyncContext *context, void *reply, void *data);
static bool accept_ok(struct redis_connection *connection, const redisReply *reply);
static bool accept_role(struct redis_connection *connection, const redisReply *reply);
static bool accept_master(struct redis_connection *connection, const redisReply *reply);
static void connection_up(struct redis_connection *connection);
static void note_master(struct redis_connection *connection);
static void on_gone(void *owner, const struct err *why, bool refused);
static void follow_sentinel(struct redis_connection *connection);
static void on_reply(void *owner, const redisReply *reply);
static void connection_failed(struct redis_connection *connection);
static void connection_closed(uv_handle_t *handle);

static const struct greeting auth_greeting = {"AUTH", accept_ok, "unexpected reply"};
static const struct greeting select_greeting = {"SELECT", accept_ok, "unexpected reply"};
static const struct greeting role_greeting = {"ROLE", accept_role, "it is not a master"};
static const struct greeting sentinel_greeting = {"SENTINEL", accept_master,
                                                  "it does not know the master"};

static const struct redis_watch_handlers watch_handlers = {on_gone, on_reply};

static const struct conf_redis *settings(const struct redis_connection *connection)
{
    return &connection->conf->redis;
}

struct redis_connection *redis_connection_open(const struct env *env,
                                               const struct redis_connection_handlers *handlers,
                                               void *owner, struct err *err)
{
    struct redis_connection *connection;

    if (!check_settings(&env->conf->redis, err))
        return NULL;
    connection = mem_new(sizeof *connection);
    if (connection == NULL) {
        err_set(err, ERR_INTERNAL, "redis: no memory");
        return NULL;
    }
    connection->env = env;
    connection->conf = conf_hold(env->conf);
    connection->handlers = handlers;
    connection->owner = owner;
    connection->resolving.on_answer = on_resolved;
    connection->resolving.owner = connection;
    connection->pause_ms = RETRY_MIN_MS;
    uv_timer_init(env->loop, &connection->timer); /* cannot fail */
    connection->timer.data = connection;
    connection_due(connection);
    return connection;
}

static bool check_settings(const struct conf_redis *redis, struct err *err)
{
    char host[HOST_MAX];
    uint16_t port;

    for (size_t i = 0; i < redis->sentinels.count; i++)
        if (!address_split(redis->sentinels.items[i], host, &port))
            return err_set(err, ERR_CONFIG, "redis: sentinel \"%s\" is not host:port",
                           redis->sentinels.items[i]);
    if (redis->sentinels.count > 0 || strncmp(redis->address, "unix:/", 6) == 0 ||
        address_split(redis->address, host, &port))
        return true;
    return err_set(err, ERR_CONFIG, "redis: address \"%s\" is neither host:port nor unix:/path",
                   redis->address);
}

void redis_connection_close(struct redis_connection **connection)
{
    struct redis_connection *c = *connection;
    struct err err;

    *connection = NULL;
    if (c == NULL)
        return;
    c->state = CONNECTION_CLOSED;
    resolve_cancel(&c->resolving);
    err_set(&err, ERR_UNAVAILABLE, "closed");
    if (c->watch != NULL)
        redis_watch_end(c->watch, &err); /* calls on_gone */
    assert(c->watch == NULL);
    uv_close((uv_handle_t *)&c->timer, connection_closed);
}

static void connection_closed(uv_handle_t *handle)
{
    struct redis_connection *connection = handle->data;

    conf_release(&connection->conf);
    mem_free(connection);
}

const char *redis_connection_address(const struct redis_connection *connection)
{
    return connection->address;
}

redisAsyncContext *redis_connection_context(const struct redis_connection *connection)
{
    return connection->state == CONNECTION_UP ? redis_watch_context(connection->watch) : NULL;
}

bool redis_connection_want(struct redis_connection *connection, struct err *err)
{
    if (connection->state != CONNECTION_PAUSED)
        return true;
    if (uv_now(connection->env->loop) - connection->attempted_at_ms < ATTEMPT_SPACING_MS)
        return err_set(err, ERR_UNAVAILABLE, "redis: not connected: %s", connection->err.text);
    connection_due(connection);
    return true;
}

bool redis_connection_request(struct redis_connection *connection, int argc, const char **argv,
                              const size_t *argv_len)
{
    return redis_watch_request(connection->watch, argc, argv, argv_len);
}

void redis_connection_drop(struct redis_connection *connection, const struct err *why)
{
    if (connection->state == CONNECTION_UP)
        redis_watch_end(connection->watch, why);
}

void redis_connection_reject(struct redis_connection *connection, const struct err *why)
{
    connection->rejected = true;
    redis_connection_drop(connection, why);
}

/* The timer. */

static void connection_due(struct redis_connection *connection)
{
    connection->state = CONNECTION_DUE;
    uv_timer_start(&connection->timer, on_timer, 0, 0);
}

/* Between half of the pause and all of it, so that many workers do not come back in step. */
static void connection_pause(struct redis_connection *connection)
{
    uint64_t max_ms = settings(connection)->retry_max;
    uint64_t half, random = 0;

    if (connection->sentinel_answers && max_ms > RETRY_MAX_BY_SENTINEL_MS)
        max_ms = RETRY_MAX_BY_SENTINEL_MS;
    if (connection->pause_ms > max_ms)
        connection->pause_ms = max_ms;
    half = connection->pause_ms / 2;
    uv_random(NULL, NULL, &random, sizeof random, 0, NULL); /* without it: no jitter, no harm */
    connection->state = CONNECTION_PAUSED;
    uv_timer_start(&connection->timer, on_timer, connection->pause_ms - half + random % (half + 1),
                   0);
    connection->pause_ms *= 2;
}

static void on_timer(uv_timer_t *timer)
{
    struct redis_connection *connection = timer->data;

    switch (connection->state) {
    case CONNECTION_DUE:
    case CONNECTION_PAUSED:
        attempt_start(connection);
        break;
    case CONNECTION_RESOLVING:
    case CONNECTION_CONNECTING:
        hop_overdue(connection);
        break;
    case CONNECTION_UP:
    case CONNECTION_CLOSED: /* a stopped timer does not fire */
        break;
    }
}

/* The course of an attempt. */

static void attempt_start(struct redis_connection *connection)
{
    connection->attempted_at_ms = uv_now(connection->env->loop);
    connection->rejected = false;
    connection->sentinels_asked = 0;
    connection->sentinel_answers = false;
    connection->failed[0] = '\0';
    if (settings(connection)->sentinels.count > 0)
        ask_sentinel(connection);
    else
        hop_start(connection, settings(connection)->address);
}

static void ask_sentinel(struct redis_connection *connection)
{
    const struct conf_words *sentinels = &settings(connection)->sentinels;

    if (connection->sentinels_asked == 0)
        connection->sentinel = connection->sentinel_first;
    else
        connection->sentinel = (connection->sentinel + 1) % sentinels->count;
    connection->sentinels_asked++;
    connection->asks_sentinel = true;
    connection->master[0] = '\0';
    hop_start(connection, sentinels->items[connection->sentinel]);
}

static void hop_start(struct redis_connection *connection, const char *address)
{
    uint64_t limit_ms = settings(connection)->connect_timeout;

    if (settings(connection)->sentinels.count > 0 && limit_ms > HOP_MAX_BY_SENTINEL_MS)
        limit_ms = HOP_MAX_BY_SENTINEL_MS;
    connection->address = address;
    connection->limit_ms = limit_ms;
    connection->addresses_tried = 0;
    uv_timer_start(&connection->timer, on_timer, limit_ms, 0);
    if (address_split(address, connection->host, &connection->port)) {
        connection->state = CONNECTION_RESOLVING;
        resolve(connection->env, &connection->resolving, connection->host, connection->port);
        return;
    }
    connection->host[0] = '\0';
    connection->state = CONNECTION_CONNECTING;
    connection->address_count = 1;
    if (!connect_next(connection))
        hop_failed(connection);
}

static void hop_overdue(struct redis_connection *connection)
{
    struct err err;

    err_set(&err, ERR_UNAVAILABLE, "no connection within %llu ms",
            (unsigned long long)connection->limit_ms);
    resolve_cancel(&connection->resolving);
    connection->address_first++;
    if (connection->watch != NULL) {
        redis_watch_end(connection->watch, &err);
    } else {
        connection->err = err;
        hop_failed(connection);
    }
}

/* Another sentinel may know better. */
static void hop_failed(struct redis_connection *connection)
{
    if (!connection->asks_sentinel)
        memcpy(connection->failed, connection->master, sizeof connection->failed);
    if (connection->sentinels_asked == settings(connection)->sentinels.count) {
        connection_failed(connection);
        return;
    }
    log_event_limited(LOG_LEVEL_WARNING,
                      connection->asks_sentinel ? "redis sentinel failed" : "redis master failed",
                      "address=%s for %s: %s", connection->address, connection->handlers->purpose,
                      connection->err.text);
    ask_sentinel(connection);
}

static void on_resolved(struct resolve_request *request, const union address *list, size_t count,
                        const struct err *err)
{
    struct redis_connection *connection = request->owner;

    connection->state = CONNECTION_CONNECTING;
    connection->address_count = count;
    if (count > 0)
        memcpy(connection->addresses, list, count * sizeof list[0]);
    else
        connection->err = *err;
    if (!connect_next(connection))
        hop_failed(connection);
}

/* Starts connecting to the next address that takes it; false with ->err set when none is left. */
static bool connect_next(struct redis_connection *connection)
{
    while (connection->addresses_tried < connection->address_count) {
        redisAsyncContext *context = context_open(connection);

        connection->addresses_tried++;
        if (context == NULL) {
            err_set(&connection->err, ERR_UNAVAILABLE, "no memory");
        } else if (context->err != 0) {
            err_set(&connection->err, ERR_UNAVAILABLE, "%s", context->errstr);
            redisAsyncFree(context);
        } else if (context_adopt(connection, context)) {
            return true;
        }
    }
    return false;
}

static redisAsyncContext *context_open(struct redis_connection *connection)
{
    size_t index = connection->address_first + connection->addresses_tried;
    char host[ADDRESS_TEXT_MAX];

    if (connection->host[0] == '\0')
        return redisAsyncConnectUnix(connection->address + strlen("unix:"));
    /* A number: hiredis calls getaddrinfo, which then asks nobody. */
    address_host_text(&connection->addresses[index % connection->address_count], host);
    return redisAsyncConnect(host, connection->port);
}

/* Watches the context and queues the greeting; false, the context gone and ->err set. */
static bool context_adopt(struct redis_connection *connection, redisAsyncContext *context)
{
    struct redis_watch *watch = redis_watch_open(connection->env->loop, context, &watch_handlers,
                                                 connection, &connection->err);
    struct err err;

    if (watch == NULL)
        return false;
    context->data = connection;
    if (greet(connection, context)) {
        connection->watch = watch;
        return true;
    }
    err_set(&err, ERR_UNAVAILABLE, "no memory");
    redis_watch_end(watch, &err);
    connection->err = err;
    return false;
}

/* Greeting. */

/*
 * Without memory for the callback hiredis sends a command all the same and says that all is well;
 * its reply would then be taken for that of another one.
 */
static bool say(redisAsyncContext *context, const struct greeting *greeting, int argc,
                const char **argv, const size_t *argv_len)
{
    return redisAsyncCommandArgv(context, on_greeted, (void *)greeting, argc, argv, argv_len) ==
               REDIS_OK &&
           context->replies.tail != NULL && context->replies.tail->privdata == greeting;
}

static bool say_auth(redisAsyncContext *context, const char *user, const struct secret *password)
{
    bool has_user = user[0] != '\0';
    const char *argv[] = {"AUTH", has_user ? user : password->bytes, password->bytes};
    const size_t argv_len[] = {4, has_user ? strlen(user) : password->len, password->len};

    return password->len == 0 || say(context, &auth_greeting, has_user ? 3 : 2, argv, argv_len);
}

static bool say_words(redisAsyncContext *context, const struct greeting *greeting, const char *word,
                      const char *more)
{
    const char *argv[] = {greeting->name, word, more};
    const size_t argv_len[] = {strlen(greeting->name), word == NULL ? 0 : strlen(word),
                               more == NULL ? 0 : strlen(more)};

    return say(context, greeting, 1 + (word != NULL) + (more != NULL), argv, argv_len);
}

/*
 * Queues AUTH, when there is a password, and SELECT, always: its reply is the proof that the
 * connection is good; or the question to a sentinel. They leave when the connection stands.
 */
static bool greet(struct redis_connection *connection, redisAsyncContext *context)
{
    const struct conf_redis *redis = settings(connection);
    char database[24];

    if (connection->asks_sentinel)
        return say_auth(context, redis->sentinel_user, &redis->sentinel_password) &&
               say_words(context, &sentinel_greeting, "get-master-addr-by-name",
                         redis->sentinel_master);
    snprintf(database, sizeof database, "%lld", (long long)redis->database);
    return say_auth(context, redis->user, &redis->password) &&
           say_words(context, &select_greeting, database, NULL) &&
           (redis->sentinels.count == 0 || say_words(context, &role_greeting, NULL, NULL));
}

/* `data` is the greeting. What is ended here hiredis frees once this has returned. */
static void on_greeted(redisAsyncContext *context, void *reply, void *data)
{
    struct redis_connection *connection = context->data;
    const redisReply *said = reply;
    const struct greeting *greeting = data;
    struct err err = {0};

    if (said == NULL || connection->state != CONNECTION_CONNECTING || connection->watch == NULL ||
        redis_watch_context(connection->watch) != context)
        return;
    if (said->type == REDIS_REPLY_ERROR)
        err_set(&err, ERR_UNAVAILABLE, "%s refused: %s", greeting->name, said->str);
    else if (!greeting->accept(connection, said))
        err_set(&err, ERR_UNAVAILABLE, "%s: %s", greeting->name, greeting->otherwise);
    else if (redis_has_leftover(context))
        err_set(&err, ERR_UNAVAILABLE, "%s: a reply that nobody asked for", greeting->name);
    else if (context->replies.head != NULL)
        return; /* another one follows */
    if (err.kind == ERR_NONE && !connection->asks_sentinel) {
        connection_up(connection);
        return;
    }
    if (err.kind != ERR_NONE)
        connection->master[0] = '\0'; /* of a sentinel that says more than that */
    redis_watch_end(connection->watch, &err);
}

static bool accept_ok(struct redis_connection *connection, const redisReply *reply)
{
    (void)connection;
    return reply->type == REDIS_REPLY_STATUS && strcmp(reply->str, "OK") == 0;
}

static bool accept_role(struct redis_connection *connection, const redisReply *reply)
{
    (void)connection;
    return redis_role_is_master(reply);
}

static bool accept_master(struct redis_connection *connection, const redisReply *reply)
{
    return redis_role_read_address(reply, connection->master);
}

static void connection_up(struct redis_connection *connection)
{
    connection->state = CONNECTION_UP;
    uv_timer_stop(&connection->timer);
    counter_add(&connection->env->counters->redis_connects, 1);
    log_event_limited(LOG_LEVEL_INFO, "redis connected", "address=%s for %s", connection->address,
                      connection->handlers->purpose);
    if (settings(connection)->sentinels.count > 0)
        note_master(connection);
    if (connection->handlers->on_reply != NULL)
        redis_watch_take_any(connection->watch);
    connection->handlers->on_up(connection->owner);
}

static void note_master(struct redis_connection *connection)
{
    bool is_other = strcmp(connection->before, connection->master) != 0;

    if (is_other && connection->before[0] != '\0') {
        counter_add(&connection->env->counters->redis_switches, 1);
        log_event(LOG_LEVEL_WARNING, "redis master changed", "from=%s to=%s for %s",
                  connection->before, connection->master, connection->handlers->purpose);
    }
    memcpy(connection->before, connection->master, sizeof connection->before);
}

/* The end of a hop that came so far as a context, or of the good connection. */
static void on_gone(void *owner, const struct err *why, bool refused)
{
    struct redis_connection *connection = owner;

    if (connection->watch == NULL) /* not even a greeting was queued: context_adopt tells */
        return;
    connection->watch = NULL;
    if (connection->state == CONNECTION_CLOSED)
        return;
    if (connection->asks_sentinel && connection->master[0] != '\0') {
        follow_sentinel(connection);
        return;
    }
    connection->err = *why;
    if (connection->state == CONNECTION_UP)
        connection_failed(connection);
    else if (!refused || !connect_next(connection))
        hop_failed(connection);
}

static void follow_sentinel(struct redis_connection *connection)
{
    connection->asks_sentinel = false;
    connection->sentinel_answers = true;
    connection->sentinel_first = connection->sentinel;
    connection->address = connection->master;
    if (strcmp(connection->master, connection->failed) == 0)
        hop_failed(connection);
    else
        hop_start(connection, connection->master);
}

/* Replies are taken by handlers that have a function for them. */
static void on_reply(void *owner, const redisReply *reply)
{
    struct redis_connection *connection = owner;

    connection->handlers->on_reply(connection->owner, reply);
}

/*
 * None there. One that was good is made again soon, for the commands that were lost with it; and
 * one that was rejected, too, but for the same server again the pause grows.
 */
static void connection_failed(struct redis_connection *connection)
{
    bool was_up = connection->state == CONNECTION_UP;
    uint64_t since_ms = uv_now(connection->env->loop) - connection->attempted_at_ms;

    log_event_limited(was_up ? LOG_LEVEL_WARNING : LOG_LEVEL_ERROR,
                      was_up ? "redis connection lost" : "redis not connected",
                      "address=%s for %s: %s", connection->address, connection->handlers->purpose,
                      connection->err.text);
    if (was_up && !connection->rejected)
        connection->pause_ms = RETRY_MIN_MS;
    if (was_up && since_ms >= ATTEMPT_SPACING_MS)
        connection_due(connection);
    else
        connection_pause(connection);
    connection->handlers->on_down(connection->owner, was_up, &connection->err);
}
