/*
 * Owns the connection to Redis: hiredis' context, the poll handle under it, and the one timer,
 * whose meaning follows from the state. hiredis ends a context from many places, always through its
 * cleanup hook (context_gone), so that is the only place where we let go of one; every command it
 * still held comes back first, with a NULL reply. Connecting again always starts from the timer,
 * never from inside hiredis or a caller.
 *
 * hiredis' own adapter is not used: it ignores poll errors (a refused connection is one) and loses
 * its memory when uv_poll_init fails. Nor are its subscriptions: it aborts on a reply that does not
 * look like one of theirs.
 */
#include "proxy/net/redis_connection.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/resolve.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { RETRY_MIN_MS = 50, ATTEMPT_SPACING_MS = 100 };

/* hiredis itself makes room for whatever is announced. */
enum { REPLY_ELEMENTS_MAX = 8192, REPLY_BYTES_MAX = 1024 * 1024 };

enum connection_state {
    CONNECTION_DUE,        /* an attempt starts when the timer fires, now */
    CONNECTION_PAUSED,     /* an attempt starts when the timer fires, after the pause */
    CONNECTION_RESOLVING,  /* the timer is the attempt's limit */
    CONNECTION_CONNECTING, /* connect, AUTH, SELECT; the timer is the attempt's limit */
    CONNECTION_UP,
    CONNECTION_CLOSED,
};

/* The descriptor of one context. Memory of its own, for it lives until its close callback. */
struct watch {
    uv_poll_t poll;
    struct redis_connection *connection;
    redisAsyncContext *context;          /* NULL once it is gone */
    redisReplyObjectFunctions functions; /* hiredis' own, but for arrays */
    int events;
};

struct redis_connection {
    const struct env *env;
    const struct redis_connection_handlers *handlers;
    void *owner;
    enum connection_state state;
    uv_timer_t timer;
    struct watch *watch; /* NULL without a context */

    char host[HOST_MAX]; /* "" for a Unix socket */
    uint16_t port;
    struct resolve_request resolving;
    union address addresses[RESOLVE_ADDRESSES_MAX];
    size_t address_count, addresses_tried;
    size_t address_first; /* where an attempt begins; moves on when one swallows the whole time */

    uint64_t attempted_at_ms; /* when the last attempt began */
    uint64_t pause_ms;        /* the next pause, before jitter */
    struct err err;           /* why we end the connection; or why it is down */
};

static bool read_address(struct redis_connection *connection, struct err *err);
static void connection_due(struct redis_connection *connection);
static void connection_pause(struct redis_connection *connection);
static void on_timer(uv_timer_t *timer);
static void attempt_start(struct redis_connection *connection);
static void attempt_overdue(struct redis_connection *connection);
static void on_resolved(struct resolve_request *request, const union address *list, size_t count,
                        const struct err *err);
static bool connect_next(struct redis_connection *connection);
static redisAsyncContext *context_open(struct redis_connection *connection);
static bool context_adopt(struct redis_connection *connection, redisAsyncContext *context);
static void bound_replies(struct watch *watch);
static void *create_array(const redisReadTask *task, int elements);
static bool greet(struct redis_connection *connection, redisAsyncContext *context);
static void on_greeted(redisAsyncContext *context, void *reply, void *data);
static void connection_up(struct redis_connection *connection);
static void context_gone(void *data);
static void connection_failed(struct redis_connection *connection);
static bool speaks_unasked(const struct watch *watch);
static bool takes_any_reply(const struct watch *watch);
static void read_replies(struct watch *watch);
static void on_poll(uv_poll_t *poll, int status, int events);
static void want(struct watch *watch, int events);
static void want_read(void *data);
static void want_no_read(void *data);
static void want_write(void *data);
static void want_no_write(void *data);
static void watch_closed(uv_handle_t *handle);
static void connection_closed(uv_handle_t *handle);

static const struct conf_redis *settings(const struct redis_connection *connection)
{
    return &connection->env->conf->redis;
}

struct redis_connection *redis_connection_open(const struct env *env,
                                               const struct redis_connection_handlers *handlers,
                                               void *owner, struct err *err)
{
    struct redis_connection *connection = mem_new(sizeof *connection);

    if (connection == NULL) {
        err_set(err, ERR_INTERNAL, "redis: no memory");
        return NULL;
    }
    connection->env = env;
    if (!read_address(connection, err)) {
        mem_free(connection);
        return NULL;
    }
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

static bool read_address(struct redis_connection *connection, struct err *err)
{
    const char *address = settings(connection)->address;

    if (strncmp(address, "unix:/", 6) == 0)
        return true;
    if (address_split(address, connection->host, &connection->port))
        return true;
    return err_set(err, ERR_CONFIG, "redis: address \"%s\" is neither host:port nor unix:/path",
                   address);
}

void redis_connection_close(struct redis_connection **connection)
{
    struct redis_connection *c = *connection;

    *connection = NULL;
    if (c == NULL)
        return;
    c->state = CONNECTION_CLOSED;
    resolve_cancel(&c->resolving);
    if (c->watch != NULL)
        redisAsyncFree(c->watch->context); /* calls context_gone */
    assert(c->watch == NULL);
    uv_close((uv_handle_t *)&c->timer, connection_closed);
}

static void connection_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

redisAsyncContext *redis_connection_context(const struct redis_connection *connection)
{
    return connection->state == CONNECTION_UP ? connection->watch->context : NULL;
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
    struct watch *watch = connection->watch;

    assert(takes_any_reply(watch));
    if (redisAppendCommandArgv(&watch->context->c, argc, argv, argv_len) != REDIS_OK)
        return false;
    want_write(watch);
    return true;
}

void redis_connection_drop(struct redis_connection *connection, const struct err *why)
{
    if (connection->state != CONNECTION_UP)
        return;
    connection->err = *why;
    redisAsyncFree(connection->watch->context);
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
    uint64_t half = connection->pause_ms / 2;
    uint64_t random = 0;

    uv_random(NULL, NULL, &random, sizeof random, 0, NULL); /* without it: no jitter, no harm */
    connection->state = CONNECTION_PAUSED;
    uv_timer_start(&connection->timer, on_timer, connection->pause_ms - half + random % (half + 1),
                   0);
    connection->pause_ms *= 2;
    if (connection->pause_ms > settings(connection)->retry_max)
        connection->pause_ms = settings(connection)->retry_max;
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
        attempt_overdue(connection);
        break;
    case CONNECTION_UP:
    case CONNECTION_CLOSED: /* a stopped timer does not fire */
        break;
    }
}

/* Connecting. */

static void attempt_start(struct redis_connection *connection)
{
    connection->err = (struct err){0};
    connection->attempted_at_ms = uv_now(connection->env->loop);
    connection->addresses_tried = 0;
    uv_timer_start(&connection->timer, on_timer, settings(connection)->connect_timeout, 0);
    if (connection->host[0] != '\0') {
        connection->state = CONNECTION_RESOLVING;
        resolve(connection->env, &connection->resolving, connection->host, connection->port);
        return;
    }
    connection->state = CONNECTION_CONNECTING;
    connection->address_count = 1;
    if (!connect_next(connection))
        connection_failed(connection);
}

static void attempt_overdue(struct redis_connection *connection)
{
    err_set(&connection->err, ERR_UNAVAILABLE, "no connection within %llu ms",
            (unsigned long long)settings(connection)->connect_timeout);
    resolve_cancel(&connection->resolving);
    connection->address_first++;
    if (connection->watch != NULL)
        redisAsyncFree(connection->watch->context);
    else
        connection_failed(connection);
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
        connection_failed(connection);
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
            connection->err = (struct err){0}; /* of an address before this one */
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
        return redisAsyncConnectUnix(settings(connection)->address + strlen("unix:"));
    /* A number: hiredis calls getaddrinfo, which then asks nobody. */
    address_host_text(&connection->addresses[index % connection->address_count], host);
    return redisAsyncConnect(host, connection->port);
}

/*
 * Puts a poll handle under the context and queues the greeting; false, the context gone and ->err
 * set.
 */
static bool context_adopt(struct redis_connection *connection, redisAsyncContext *context)
{
    struct watch *watch = mem_new(sizeof *watch);
    int status = watch == NULL ? UV_ENOMEM
                               : uv_poll_init(connection->env->loop, &watch->poll, context->c.fd);

    if (status != 0) {
        err_set(&connection->err, ERR_UNAVAILABLE, "%s", uv_strerror(status));
        mem_free(watch);
        redisAsyncFree(context);
        return false;
    }
    watch->poll.data = watch;
    watch->connection = connection;
    watch->context = context;
    bound_replies(watch);
    context->data = connection;
    context->ev.data = watch;
    context->ev.addRead = want_read;
    context->ev.delRead = want_no_read;
    context->ev.addWrite = want_write;
    context->ev.delWrite = want_no_write;
    if (!greet(connection, context)) {
        err_set(&connection->err, ERR_UNAVAILABLE, "no memory");
        uv_close((uv_handle_t *)&watch->poll, watch_closed); /* stops it before the socket goes */
        redisAsyncFree(context); /* without the hook: this context was never the connection's */
        return false;
    }
    context->ev.cleanup = context_gone;
    connection->watch = watch;
    return true;
}

static void bound_replies(struct watch *watch)
{
    redisReader *reader = watch->context->c.reader;

    watch->functions = *reader->fn;
    watch->functions.createArray = create_array;
    reader->privdata = reader->fn; /* every task has it */
    reader->fn = &watch->functions;
}

/* NULL ends the connection. */
static void *create_array(const redisReadTask *task, int elements)
{
    const redisReplyObjectFunctions *usual = task->privdata;

    return elements <= REPLY_ELEMENTS_MAX ? usual->createArray(task, elements) : NULL;
}

/*
 * Queues AUTH, when there is a password, and SELECT, always: its reply is the proof that the
 * connection is good. They leave when the connection stands.
 */
static bool greet(struct redis_connection *connection, redisAsyncContext *context)
{
    const struct conf_redis *redis = settings(connection);
    bool has_user = redis->user[0] != '\0';
    char database[24];
    const char *auth[] = {"AUTH", has_user ? redis->user : redis->password.bytes,
                          redis->password.bytes};
    const size_t auth_len[] = {4, has_user ? strlen(redis->user) : redis->password.len,
                               redis->password.len};
    const char *choose[] = {"SELECT", database};
    size_t choose_len[] = {6, 0};

    snprintf(database, sizeof database, "%lld", (long long)redis->database);
    choose_len[1] = strlen(database);
    if (redis->password.len > 0 &&
        redisAsyncCommandArgv(context, on_greeted, (void *)auth[0], has_user ? 3 : 2, auth,
                              auth_len) != REDIS_OK)
        return false;
    return redisAsyncCommandArgv(context, on_greeted, (void *)choose[0], 2, choose, choose_len) ==
           REDIS_OK;
}

/*
 * `data` is the command's name. After a refusal hiredis frees the context, once this has returned.
 */
static void on_greeted(redisAsyncContext *context, void *reply, void *data)
{
    struct redis_connection *connection = context->data;
    const redisReply *said = reply;
    const char *name = data;

    if (said == NULL || connection->watch == NULL || connection->watch->context != context ||
        connection->state != CONNECTION_CONNECTING)
        return;
    if (said->type == REDIS_REPLY_STATUS && said->len == 2 && memcmp(said->str, "OK", 2) == 0 &&
        !redis_has_leftover(context)) {
        if (name[0] == 'S')
            connection_up(connection);
        return;
    }
    if (said->type == REDIS_REPLY_ERROR)
        err_set(&connection->err, ERR_UNAVAILABLE, "%s refused: %.*s", name, (int)said->len,
                said->str);
    else
        err_set(&connection->err, ERR_UNAVAILABLE, "%s: unexpected reply", name);
    redisAsyncFree(context);
}

static void connection_up(struct redis_connection *connection)
{
    connection->state = CONNECTION_UP;
    connection->pause_ms = RETRY_MIN_MS;
    uv_timer_stop(&connection->timer);
    counter_add(&connection->env->counters->redis_connects, 1);
    log_event(LOG_LEVEL_INFO, "redis connected", "address=%s for %s", settings(connection)->address,
              connection->handlers->purpose);
    connection->handlers->on_up(connection->owner);
}

/*
 * hiredis' cleanup hook: the context is being freed, its commands have come back. Without ->err it
 * was hiredis that found the fault; then, if it never connected, another address may be better.
 */
static void context_gone(void *data)
{
    struct watch *watch = data;
    struct redis_connection *connection = watch->connection;
    redisAsyncContext *context = watch->context;

    watch->context = NULL;
    connection->watch = NULL;
    uv_close((uv_handle_t *)&watch->poll,
             watch_closed); /* stops it, before hiredis closes the socket */
    if (connection->state == CONNECTION_CLOSED)
        return;
    if (connection->err.kind == ERR_NONE) {
        err_set(&connection->err, ERR_UNAVAILABLE, "%s",
                context->err != 0 ? context->errstr : "connection closed");
        if ((context->c.flags & REDIS_CONNECTED) == 0 && connect_next(connection))
            return;
    }
    connection_failed(connection);
}

/* None there. One that was good is made again soon, for the commands that were lost with it. */
static void connection_failed(struct redis_connection *connection)
{
    bool was_up = connection->state == CONNECTION_UP;
    uint64_t since_ms = uv_now(connection->env->loop) - connection->attempted_at_ms;

    log_event(was_up ? LOG_LEVEL_WARNING : LOG_LEVEL_ERROR,
              was_up ? "redis connection lost" : "redis not connected", "address=%s for %s: %s",
              settings(connection)->address, connection->handlers->purpose, connection->err.text);
    if (was_up && since_ms >= ATTEMPT_SPACING_MS)
        connection_due(connection);
    else
        connection_pause(connection);
    connection->handlers->on_down(connection->owner, was_up, &connection->err);
}

/* The descriptor. */

/*
 * A reply too many would be taken for the next user's, and hiredis aborts on one when it waits for
 * none. So whatever comes while nothing is asked, or behind the last reply (redis_has_leftover),
 * ends the connection.
 */
static bool speaks_unasked(const struct watch *watch)
{
    const redisAsyncContext *context = watch->context;
    char octet;

    return context->replies.head == NULL && !takes_any_reply(watch) &&
           recv(context->c.fd, &octet, 1, MSG_PEEK) > 0;
}

bool redis_has_leftover(const redisAsyncContext *context)
{
    return context->replies.head == NULL && context->c.reader->pos < context->c.reader->len;
}

static bool takes_any_reply(const struct watch *watch)
{
    return watch->connection->state == CONNECTION_UP &&
           watch->connection->handlers->on_reply != NULL;
}

/* By hiredis' blocking calls, that do not block here; any of these may end the connection. */
static void read_replies(struct watch *watch)
{
    struct redis_connection *connection = watch->connection;
    redisContext *context = &watch->context->c;
    int status = redisBufferRead(context);

    while (status == REDIS_OK && watch->context != NULL) {
        void *reply = NULL;

        status = redisGetReply(context, &reply);
        if (status != REDIS_OK || reply == NULL)
            break;
        connection->handlers->on_reply(connection->owner, reply);
        freeReplyObject(reply);
    }
    if (status == REDIS_OK)
        return;
    err_set(&connection->err, ERR_UNAVAILABLE, "%s", context->errstr);
    redisAsyncFree(watch->context);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct watch *watch = poll->data;

    if (status < 0)
        events = UV_READABLE | UV_WRITABLE; /* hiredis asks the socket what is wrong */
    if ((events & UV_READABLE) != 0 && speaks_unasked(watch)) {
        err_set(&watch->connection->err, ERR_UNAVAILABLE, "a reply that nobody asked for");
        redisAsyncFree(watch->context);
        return;
    }
    if ((events & UV_READABLE) != 0 && takes_any_reply(watch))
        read_replies(watch);
    else if ((events & UV_READABLE) != 0)
        redisAsyncHandleRead(watch->context);
    if (watch->context != NULL && watch->context->c.reader->len > REPLY_BYTES_MAX) {
        err_set(&watch->connection->err, ERR_UNAVAILABLE, "a reply is too long");
        redisAsyncFree(watch->context);
        return;
    }
    if (watch->context != NULL && (events & UV_WRITABLE) != 0)
        redisAsyncHandleWrite(watch->context);
    if (status < 0 && watch->context != NULL)
        redisAsyncFree(watch->context); /* it found nothing, but libuv watches no longer */
}

static void want(struct watch *watch, int events)
{
    if (events == watch->events)
        return;
    watch->events = events;
    if (events != 0)
        uv_poll_start(&watch->poll, events, on_poll);
    else
        uv_poll_stop(&watch->poll);
}

static void want_read(void *data)
{
    struct watch *watch = data;

    want(watch, watch->events | UV_READABLE);
}

static void want_no_read(void *data)
{
    struct watch *watch = data;

    want(watch, watch->events & ~UV_READABLE);
}

static void want_write(void *data)
{
    struct watch *watch = data;

    want(watch, watch->events | UV_WRITABLE);
}

static void want_no_write(void *data)
{
    struct watch *watch = data;

    want(watch, watch->events & ~UV_WRITABLE);
}

static void watch_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}
