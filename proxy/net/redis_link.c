/*
 * Owns the connection to Redis: hiredis' context, the poll handle under it, the commands on their
 * way, and the one timer, whose meaning follows from the state. hiredis ends a context from many
 * places, always through its cleanup hook (context_gone), so that is the only place where we let go
 * of one; every command it still held comes back first, with a NULL reply. Connecting again always
 * starts from the timer, never from inside hiredis or a caller.
 *
 * hiredis' own adapter is not used: it ignores poll errors (a refused connection is one) and loses
 * its memory when uv_poll_init fails.
 */
#include "proxy/net/redis_link.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/resolve.h"

#include <assert.h>
#include <hiredis/async.h>
#include <stdio.h>
#include <sys/queue.h>
#include <sys/socket.h>

enum { RETRY_MIN_MS = 50, ATTEMPT_SPACING_MS = 100 };

/* Ours are replies of a few short fields. hiredis itself makes room for whatever is announced. */
enum { REPLY_ELEMENTS_MAX = 64, REPLY_BYTES_MAX = 64 * 1024 };

enum link_state {
    LINK_DUE,        /* an attempt starts when the timer fires, now */
    LINK_PAUSED,     /* an attempt starts when the timer fires, after the pause */
    LINK_RESOLVING,  /* the timer is the attempt's limit */
    LINK_CONNECTING, /* connect, AUTH, SELECT; the timer is the attempt's limit */
    LINK_READY,      /* the timer watches the oldest command sent */
    LINK_CLOSED,
};

struct redis_command {
    TAILQ_ENTRY(redis_command) entry; /* in waiting or in sent */
    struct redis_link *link;
    redis_reply_fn *on_reply; /* NULL once cancelled or answered */
    void *owner;
    char *bytes; /* as hiredis formatted it; kept for the second try */
    size_t len;
    uint64_t sent_at_ms;
    const struct redis_script *script; /* that it calls; NULL: a command that may be repeated */
    bool sent;                         /* hiredis holds it, and will call on_command_reply */
    bool retried;                      /* was lost once already */
    bool taught;                       /* the server was sent the script */
};

TAILQ_HEAD(command_list, redis_command);

/* The descriptor of one context. Memory of its own, for it lives until its close callback. */
struct watch {
    uv_poll_t poll;
    struct redis_link *link;
    redisAsyncContext *context;          /* NULL once it is gone */
    redisReplyObjectFunctions functions; /* hiredis' own, but for arrays */
    int events;
};

struct redis_link {
    const struct env *env;
    enum link_state state;
    uv_timer_t timer;
    struct watch *watch; /* the connection; NULL without one */

    char host[HOST_MAX]; /* "" for a Unix socket */
    uint16_t port;
    struct resolve_request resolving;
    union address addresses[RESOLVE_ADDRESSES_MAX];
    size_t address_count, addresses_tried;
    size_t address_first; /* where an attempt begins; moves on when one swallows the whole time */

    uint64_t attempted_at_ms;  /* when the last attempt began */
    uint64_t pause_ms;         /* the next pause, before jitter */
    struct err err;            /* why we end the connection; or why it is down */
    uint64_t connection_count; /* so far */

    struct command_list waiting; /* for a connection */
    struct command_list sent;    /* in the order of their replies */
    size_t command_count;
};

static bool read_address(struct redis_link *link, struct err *err);
static bool accepts(struct redis_link *link, struct err *err);
static struct redis_command *command_new(struct redis_link *link, int argc, const char **argv,
                                         const size_t *argv_len);
static bool command_write(struct redis_command *command);
static struct redis_command *command_start(struct redis_command *command, redis_reply_fn *on_reply,
                                           void *owner, struct err *err);
static void on_command_reply(redisAsyncContext *context, void *reply, void *data);
static bool is_unknown_script(const struct redis_command *command, const redisReply *reply);
static void teach(struct redis_command *command);
static void command_lost(struct redis_command *command);
static void command_answer(struct redis_command *command, const redisReply *reply,
                           const struct err *err);
static void command_free(struct redis_command *command);
static void fail_waiting(struct redis_link *link);
static void link_due(struct redis_link *link);
static void link_pause(struct redis_link *link);
static void on_timer(uv_timer_t *timer);
static void attempt_start(struct redis_link *link);
static void attempt_overdue(struct redis_link *link);
static void check_oldest(struct redis_link *link);
static void on_resolved(struct resolve_request *request, const union address *list, size_t count,
                        const struct err *err);
static bool connect_next(struct redis_link *link);
static redisAsyncContext *context_open(struct redis_link *link);
static bool context_adopt(struct redis_link *link, redisAsyncContext *context);
static void bound_replies(struct watch *watch);
static void *create_array(const redisReadTask *task, int elements);
static bool greet(struct redis_link *link, redisAsyncContext *context);
static void on_greeted(redisAsyncContext *context, void *reply, void *data);
static void link_ready(struct redis_link *link);
static void context_gone(void *data);
static void link_failed(struct redis_link *link);
static bool speaks_unasked(redisAsyncContext *context);
static bool has_leftover(const redisAsyncContext *context);
static void on_poll(uv_poll_t *poll, int status, int events);
static void want(struct watch *watch, int events);
static void want_read(void *data);
static void want_no_read(void *data);
static void want_write(void *data);
static void want_no_write(void *data);
static void watch_closed(uv_handle_t *handle);
static void link_closed(uv_handle_t *handle);

static const struct conf_redis *settings(const struct redis_link *link)
{
    return &link->env->conf->redis;
}

struct redis_link *redis_link_open(const struct env *env, struct err *err)
{
    struct redis_link *link = mem_new(sizeof *link);

    if (link == NULL) {
        err_set(err, ERR_INTERNAL, "redis: no memory");
        return NULL;
    }
    link->env = env;
    if (!read_address(link, err)) {
        mem_free(link);
        return NULL;
    }
    TAILQ_INIT(&link->waiting);
    TAILQ_INIT(&link->sent);
    link->resolving.on_answer = on_resolved;
    link->resolving.owner = link;
    link->pause_ms = RETRY_MIN_MS;
    uv_timer_init(env->loop, &link->timer); /* cannot fail */
    link->timer.data = link;
    link_due(link);
    return link;
}

static bool read_address(struct redis_link *link, struct err *err)
{
    const char *address = settings(link)->address;

    if (strncmp(address, "unix:/", 6) == 0)
        return true;
    if (address_split(address, link->host, &link->port))
        return true;
    return err_set(err, ERR_CONFIG, "redis: address \"%s\" is neither host:port nor unix:/path",
                   address);
}

void redis_link_close(struct redis_link **link)
{
    struct redis_link *l = *link;
    struct redis_command *command;

    *link = NULL;
    if (l == NULL)
        return;
    l->state = LINK_CLOSED;
    resolve_cancel(&l->resolving);
    if (l->watch != NULL)
        redisAsyncFree(
            l->watch->context); /* gives all sent commands back, then calls context_gone */
    while ((command = TAILQ_FIRST(&l->waiting)) != NULL)
        command_free(command);
    assert(l->command_count == 0 && l->watch == NULL);
    uv_close((uv_handle_t *)&l->timer, link_closed);
}

static void link_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

struct redis_command *redis_link_send(struct redis_link *link, int argc, const char **argv,
                                      const size_t *argv_len, redis_reply_fn *on_reply, void *owner,
                                      struct err *err)
{
    if (!accepts(link, err))
        return NULL;
    return command_start(command_new(link, argc, argv, argv_len), on_reply, owner, err);
}

struct redis_command *redis_link_call(struct redis_link *link, const struct redis_script *script,
                                      const struct span *arguments, size_t count, size_t key_count,
                                      redis_reply_fn *on_reply, void *owner, struct err *err)
{
    char keys[24];
    const char *argv[3 + REDIS_ARGUMENTS_MAX] = {"EVALSHA", script->sha1, keys};
    size_t argv_len[3 + REDIS_ARGUMENTS_MAX] = {strlen("EVALSHA"), REDIS_SHA1_TEXT};
    struct redis_command *command;

    assert(key_count <= count && count <= REDIS_ARGUMENTS_MAX);
    if (!accepts(link, err))
        return NULL;
    argv_len[2] = (size_t)snprintf(keys, sizeof keys, "%zu", key_count);
    for (size_t i = 0; i < count; i++) {
        argv[3 + i] = arguments[i].ptr;
        argv_len[3 + i] = arguments[i].len;
    }
    command = command_new(link, 3 + (int)count, argv, argv_len);
    if (command != NULL)
        command->script = script;
    return command_start(command, on_reply, owner, err);
}

uint64_t redis_link_connection(const struct redis_link *link)
{
    return link->state == LINK_READY ? link->connection_count : 0;
}

bool redis_key(char key_out[REDIS_KEY_MAX], const struct conf_redis *conf, const char *kind,
               const char *name)
{
    bool has_name = name != NULL;

    return (size_t)snprintf(key_out, REDIS_KEY_MAX, "%s%s%s%s%s", conf->prefix, kind,
                            has_name ? ":{" : "", has_name ? name : "",
                            has_name ? "}" : "") < REDIS_KEY_MAX;
}

/* May a command be taken now? While we pause, the command may end the pause, but not too often. */
static bool accepts(struct redis_link *link, struct err *err)
{
    if (link->command_count >= REDIS_COMMANDS_MAX)
        return err_set(err, ERR_UNAVAILABLE, "redis: %d commands are under way already",
                       REDIS_COMMANDS_MAX);
    if (link->state != LINK_PAUSED)
        return true;
    if (uv_now(link->env->loop) - link->attempted_at_ms < ATTEMPT_SPACING_MS)
        return err_set(err, ERR_UNAVAILABLE, "redis: not connected: %s", link->err.text);
    link_due(link);
    return true;
}

void redis_command_cancel(struct redis_command *command)
{
    command->on_reply = NULL;
    if (!command->sent)
        command_free(command);
}

/* Commands. */

static struct redis_command *command_new(struct redis_link *link, int argc, const char **argv,
                                         const size_t *argv_len)
{
    struct redis_command *command = mem_new(sizeof *command);
    int len;

    if (command == NULL)
        return NULL;
    len = redisFormatCommandArgv(&command->bytes, argc, argv, argv_len);
    if (len < 0) {
        mem_free(command);
        return NULL;
    }
    command->len = (size_t)len;
    command->link = link;
    link->command_count++;
    return command;
}

/* Sends a new command (NULL: there was no memory for it), or keeps it. NULL with *err set. */
static struct redis_command *command_start(struct redis_command *command, redis_reply_fn *on_reply,
                                           void *owner, struct err *err)
{
    if (command == NULL) {
        err_set(err, ERR_INTERNAL, "redis: no memory for a command");
        return NULL;
    }
    command->on_reply = on_reply;
    command->owner = owner;
    if (command->link->state != LINK_READY) {
        TAILQ_INSERT_TAIL(&command->link->waiting, command, entry);
        return command;
    }
    if (command_write(command))
        return command;
    command_free(command);
    err_set(err, ERR_UNAVAILABLE, "redis: the connection takes no command");
    return NULL;
}

/*
 * Without memory for the callback hiredis sends a command all the same and says that all is well;
 * the reply would then be given to the next command, which is another user's.
 */
static bool is_remembered(const redisAsyncContext *context, const struct redis_command *command)
{
    return context->replies.tail != NULL && context->replies.tail->privdata == command;
}

/* Hands a command that is in no list to hiredis; false when that refuses. */
static bool command_write(struct redis_command *command)
{
    struct redis_link *link = command->link;
    const struct env *env = link->env;

    if (redisAsyncFormattedCommand(link->watch->context, on_command_reply, command, command->bytes,
                                   command->len) != REDIS_OK)
        return false;
    if (!is_remembered(link->watch->context, command))
        shutdown(link->watch->context->c.fd, SHUT_RDWR); /* ends it from the loop, as if lost */
    command->sent = true;
    command->sent_at_ms = uv_now(env->loop);
    if (TAILQ_EMPTY(&link->sent))
        uv_timer_start(&link->timer, on_timer, settings(link)->timeout, 0);
    TAILQ_INSERT_TAIL(&link->sent, command, entry);
    counter_add(&env->counters->redis_commands, 1);
    return true;
}

/* From hiredis, once for each command written; NULL when the connection is ending. */
static void on_command_reply(redisAsyncContext *context, void *reply, void *data)
{
    struct redis_command *command = data;
    struct redis_link *link = command->link;
    struct err err;

    TAILQ_REMOVE(&link->sent, command, entry);
    command->sent = false;
    TAILQ_INSERT_TAIL(&link->waiting, command, entry);
    if (reply != NULL && has_leftover(context)) { /* then this one may not be ours either */
        err_set(&link->err, ERR_UNAVAILABLE, "a reply that nobody asked for");
        err_set(&err, ERR_UNAVAILABLE, "redis: %s", link->err.text);
        command_answer(command, NULL, &err);
        redisAsyncFree(context);
    } else if (reply != NULL && is_unknown_script(command, reply)) {
        teach(command);
    } else if (reply != NULL) {
        command_answer(command, reply, NULL);
    } else {
        command_lost(command);
    }
}

static bool is_unknown_script(const struct redis_command *command, const redisReply *reply)
{
    return command->script != NULL && !command->taught && reply->type == REDIS_REPLY_ERROR &&
           strncmp(reply->str, "NOSCRIPT", strlen("NOSCRIPT")) == 0;
}

/* Sends the script, and the call of it once more; what fails is told by the second answer. */
static void teach(struct redis_command *command)
{
    struct redis_link *link = command->link;
    const char *argv[] = {"SCRIPT", "LOAD", command->script->text};
    const size_t argv_len[] = {6, 4, strlen(command->script->text)};
    struct redis_command *load = command_new(link, 3, argv, argv_len);
    struct err err;

    command->taught = true;
    TAILQ_REMOVE(&link->waiting, command, entry);
    if (load != NULL && command_write(load)) {
        if (command_write(command))
            return;
    } else if (load != NULL) {
        command_free(load);
    }
    TAILQ_INSERT_TAIL(&link->waiting, command, entry);
    err_set(&err, ERR_UNAVAILABLE, "redis: the connection takes no command");
    command_answer(command, NULL, &err);
}

/* The connection has ended before the answer. What may be repeated waits for the next one. */
static void command_lost(struct redis_command *command)
{
    struct err err;

    if (command->link->state == LINK_CLOSED || command->on_reply == NULL) {
        command_free(command);
    } else if (command->retried || command->script != NULL) {
        err_set(&err, ERR_UNAVAILABLE, "redis: the connection was lost%s",
                command->retried ? " twice" : "");
        command_answer(command, NULL, &err);
    } else {
        command->retried = true;
    }
}

/* Answers a waiting command and ends it. */
static void command_answer(struct redis_command *command, const redisReply *reply,
                           const struct err *err)
{
    redis_reply_fn *on_reply = command->on_reply;
    void *owner = command->owner;

    if (reply == NULL)
        counter_add(&command->link->env->counters->redis_failures, 1);
    command_free(command);
    if (on_reply != NULL)
        on_reply(owner, reply, err);
}

/* Ends a command that hiredis does not hold. */
static void command_free(struct redis_command *command)
{
    struct redis_link *link = command->link;

    assert(!command->sent);
    if (command->entry.tqe_prev != NULL)
        TAILQ_REMOVE(&link->waiting, command, entry);
    link->command_count--;
    redisFreeCommand(command->bytes);
    mem_free(command);
}

static void fail_waiting(struct redis_link *link)
{
    struct redis_command *command;
    struct err err;

    err_set(&err, ERR_UNAVAILABLE, "redis: not connected: %s", link->err.text);
    while ((command = TAILQ_FIRST(&link->waiting)) != NULL)
        command_answer(command, NULL, &err);
}

/* The timer. */

static void link_due(struct redis_link *link)
{
    link->state = LINK_DUE;
    uv_timer_start(&link->timer, on_timer, 0, 0);
}

/* Between half of the pause and all of it, so that many workers do not come back in step. */
static void link_pause(struct redis_link *link)
{
    uint64_t half = link->pause_ms / 2;
    uint64_t random = 0;

    uv_random(NULL, NULL, &random, sizeof random, 0, NULL); /* without it: no jitter, no harm */
    link->state = LINK_PAUSED;
    uv_timer_start(&link->timer, on_timer, link->pause_ms - half + random % (half + 1), 0);
    link->pause_ms *= 2;
    if (link->pause_ms > settings(link)->retry_max)
        link->pause_ms = settings(link)->retry_max;
}

static void on_timer(uv_timer_t *timer)
{
    struct redis_link *link = timer->data;

    switch (link->state) {
    case LINK_DUE:
    case LINK_PAUSED:
        attempt_start(link);
        break;
    case LINK_RESOLVING:
    case LINK_CONNECTING:
        attempt_overdue(link);
        break;
    case LINK_READY:
        check_oldest(link);
        break;
    case LINK_CLOSED: /* a closed timer does not fire */
        break;
    }
}

/*
 * One limit for every command, so the oldest is the first to miss it; then the connection is sick.
 */
static void check_oldest(struct redis_link *link)
{
    struct redis_command *oldest = TAILQ_FIRST(&link->sent);
    uint64_t limit_ms = settings(link)->timeout;
    uint64_t age_ms;
    redis_reply_fn *on_reply;
    struct err err;

    if (oldest == NULL)
        return;
    age_ms = uv_now(link->env->loop) - oldest->sent_at_ms;
    if (age_ms < limit_ms) {
        uv_timer_start(&link->timer, on_timer, limit_ms - age_ms, 0);
        return;
    }
    err_set(&link->err, ERR_UNAVAILABLE, "no reply within %llu ms", (unsigned long long)limit_ms);
    err_set(&err, ERR_UNAVAILABLE, "redis: %s", link->err.text);
    on_reply = oldest->on_reply;
    oldest->on_reply = NULL; /* hiredis still holds it: answered here, freed in on_command_reply */
    counter_add(&link->env->counters->redis_failures, 1);
    if (on_reply != NULL)
        on_reply(oldest->owner, NULL, &err);
    redisAsyncFree(link->watch->context);
}

/* Connecting. */

static void attempt_start(struct redis_link *link)
{
    link->err = (struct err){0};
    link->attempted_at_ms = uv_now(link->env->loop);
    link->addresses_tried = 0;
    uv_timer_start(&link->timer, on_timer, settings(link)->connect_timeout, 0);
    if (link->host[0] != '\0') {
        link->state = LINK_RESOLVING;
        resolve(link->env, &link->resolving, link->host, link->port);
        return;
    }
    link->state = LINK_CONNECTING;
    link->address_count = 1;
    if (!connect_next(link))
        link_failed(link);
}

static void attempt_overdue(struct redis_link *link)
{
    err_set(&link->err, ERR_UNAVAILABLE, "no connection within %llu ms",
            (unsigned long long)settings(link)->connect_timeout);
    resolve_cancel(&link->resolving);
    link->address_first++;
    if (link->watch != NULL)
        redisAsyncFree(link->watch->context);
    else
        link_failed(link);
}

static void on_resolved(struct resolve_request *request, const union address *list, size_t count,
                        const struct err *err)
{
    struct redis_link *link = request->owner;

    link->state = LINK_CONNECTING;
    link->address_count = count;
    if (count > 0)
        memcpy(link->addresses, list, count * sizeof list[0]);
    else
        link->err = *err;
    if (!connect_next(link))
        link_failed(link);
}

/*
 * Starts connecting to the next address that takes it; false with link->err set when none is left.
 */
static bool connect_next(struct redis_link *link)
{
    while (link->addresses_tried < link->address_count) {
        redisAsyncContext *context = context_open(link);

        link->addresses_tried++;
        if (context == NULL) {
            err_set(&link->err, ERR_UNAVAILABLE, "no memory");
        } else if (context->err != 0) {
            err_set(&link->err, ERR_UNAVAILABLE, "%s", context->errstr);
            redisAsyncFree(context);
        } else if (context_adopt(link, context)) {
            link->err = (struct err){0}; /* of an address before this one */
            return true;
        }
    }
    return false;
}

static redisAsyncContext *context_open(struct redis_link *link)
{
    char host[ADDRESS_TEXT_MAX];

    if (link->host[0] == '\0')
        return redisAsyncConnectUnix(settings(link)->address + strlen("unix:"));
    /* A number: hiredis calls getaddrinfo, which then asks nobody. */
    address_host_text(
        &link->addresses[(link->address_first + link->addresses_tried) % link->address_count],
        host);
    return redisAsyncConnect(host, link->port);
}

/*
 * Puts a poll handle under the context and queues the greeting; false, the context gone and
 * link->err set.
 */
static bool context_adopt(struct redis_link *link, redisAsyncContext *context)
{
    struct watch *watch = mem_new(sizeof *watch);
    int status =
        watch == NULL ? UV_ENOMEM : uv_poll_init(link->env->loop, &watch->poll, context->c.fd);

    if (status != 0) {
        err_set(&link->err, ERR_UNAVAILABLE, "%s", uv_strerror(status));
        mem_free(watch);
        redisAsyncFree(context);
        return false;
    }
    watch->poll.data = watch;
    watch->link = link;
    watch->context = context;
    bound_replies(watch);
    context->data = link;
    context->ev.data = watch;
    context->ev.addRead = want_read;
    context->ev.delRead = want_no_read;
    context->ev.addWrite = want_write;
    context->ev.delWrite = want_no_write;
    if (!greet(link, context)) {
        err_set(&link->err, ERR_UNAVAILABLE, "no memory");
        uv_close((uv_handle_t *)&watch->poll, watch_closed); /* stops it before the socket goes */
        redisAsyncFree(context); /* without the hook: this context was never the link's */
        return false;
    }
    context->ev.cleanup = context_gone;
    link->watch = watch;
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
static bool greet(struct redis_link *link, redisAsyncContext *context)
{
    const struct conf_redis *redis = settings(link);
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
    struct redis_link *link = context->data;
    const redisReply *said = reply;
    const char *name = data;

    if (said == NULL || link->watch == NULL || link->watch->context != context ||
        link->state != LINK_CONNECTING)
        return;
    if (said->type == REDIS_REPLY_STATUS && said->len == 2 && memcmp(said->str, "OK", 2) == 0 &&
        !has_leftover(context)) {
        if (name[0] == 'S')
            link_ready(link);
        return;
    }
    if (said->type == REDIS_REPLY_ERROR)
        err_set(&link->err, ERR_UNAVAILABLE, "%s refused: %.*s", name, (int)said->len, said->str);
    else
        err_set(&link->err, ERR_UNAVAILABLE, "%s: unexpected reply", name);
    redisAsyncFree(context);
}

static void link_ready(struct redis_link *link)
{
    struct redis_command *command;

    link->state = LINK_READY;
    link->connection_count++;
    link->pause_ms = RETRY_MIN_MS;
    uv_timer_stop(&link->timer);
    counter_add(&link->env->counters->redis_connects, 1);
    log_event(LOG_LEVEL_INFO, "redis connected", "address=%s", settings(link)->address);
    while ((command = TAILQ_FIRST(&link->waiting)) != NULL) {
        TAILQ_REMOVE(&link->waiting, command, entry);
        if (command_write(command))
            continue;
        TAILQ_INSERT_HEAD(&link->waiting, command, entry);
        err_set(&link->err, ERR_UNAVAILABLE, "the connection takes no command");
        fail_waiting(link);
        link->err = (struct err){0};
    }
}

/*
 * hiredis' cleanup hook: the context is being freed, its commands have come back. Without link->err
 * it was hiredis that found the fault; then, if it never connected, another address may be better.
 */
static void context_gone(void *data)
{
    struct watch *watch = data;
    struct redis_link *link = watch->link;
    redisAsyncContext *context = watch->context;
    struct redis_command *command;

    while ((command = TAILQ_FIRST(&link->sent)) != NULL) /* what hiredis had not remembered */
        on_command_reply(context, NULL, command);
    watch->context = NULL;
    link->watch = NULL;
    uv_close((uv_handle_t *)&watch->poll,
             watch_closed); /* stops it, before hiredis closes the socket */
    if (link->state == LINK_CLOSED)
        return;
    if (link->err.kind == ERR_NONE) {
        err_set(&link->err, ERR_UNAVAILABLE, "%s",
                context->err != 0 ? context->errstr : "connection closed");
        if ((context->c.flags & REDIS_CONNECTED) == 0 && connect_next(link))
            return;
    }
    link_failed(link);
}

/* No connection. One that was good is made again soon, for the commands that were lost with it. */
static void link_failed(struct redis_link *link)
{
    bool was_ready = link->state == LINK_READY;
    uint64_t since_ms = uv_now(link->env->loop) - link->attempted_at_ms;

    log_event(was_ready ? LOG_LEVEL_WARNING : LOG_LEVEL_ERROR,
              was_ready ? "redis connection lost" : "redis not connected", "address=%s: %s",
              settings(link)->address, link->err.text);
    if (was_ready && since_ms >= ATTEMPT_SPACING_MS)
        link_due(link);
    else
        link_pause(link);
    if (!was_ready)
        fail_waiting(link);
}

/* The descriptor. */

/*
 * A reply too many would be taken for the next user's, and hiredis aborts on one when it waits for
 * none. So whatever comes while nothing is asked, or behind the last reply (has_leftover), ends the
 * connection.
 */
static bool speaks_unasked(redisAsyncContext *context)
{
    char octet;

    return context->replies.head == NULL && recv(context->c.fd, &octet, 1, MSG_PEEK) > 0;
}

static bool has_leftover(const redisAsyncContext *context)
{
    return context->replies.head == NULL && context->c.reader->pos < context->c.reader->len;
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct watch *watch = poll->data;

    if (status < 0)
        events = UV_READABLE | UV_WRITABLE; /* hiredis asks the socket what is wrong */
    if ((events & UV_READABLE) != 0 && speaks_unasked(watch->context)) {
        err_set(&watch->link->err, ERR_UNAVAILABLE, "a reply that nobody asked for");
        redisAsyncFree(watch->context);
        return;
    }
    if ((events & UV_READABLE) != 0)
        redisAsyncHandleRead(watch->context);
    if (watch->context != NULL && watch->context->c.reader->len > REPLY_BYTES_MAX) {
        err_set(&watch->link->err, ERR_UNAVAILABLE, "a reply is too long");
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
