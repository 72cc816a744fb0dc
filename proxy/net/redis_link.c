/*
 * Owns the commands on their way to Redis: those that wait for a connection, those that hiredis
 * holds, in the order of their replies, and the timer that watches the oldest of these. Whatever
 * ends the connection (redis_connection.c), hiredis gives every command back first, with a NULL
 * reply.
 */
#include "proxy/net/redis_link.h"

#include "proxy/base/mem.h"
#include "proxy/net/redis_connection.h"
#include "proxy/net/redis_role.h"
#include "proxy/net/redis_watch.h"

#include <assert.h>
#include <stdio.h>
#include <sys/queue.h>
#include <sys/socket.h>

struct redis_command {
    TAILQ_ENTRY(redis_command) entry; /* in waiting or in sent */
    struct redis_link *link;
    redis_reply_fn *on_reply; /* NULL once cancelled or answered */
    void *owner;
    char *bytes; /* as hiredis formatted it; kept for the second try */
    size_t len;
    uint64_t sent_at_ms;
    struct redis_script script; /* that it calls; without a text: it may be repeated */
    bool sent;                  /* hiredis holds it, and will call on_command_reply */
    bool retried;               /* was lost once already */
    bool taught;                /* the server was sent the script */
};

TAILQ_HEAD(command_list, redis_command);

struct redis_link {
    const struct env *env;
    struct redis_connection *connection; /* NULL once the link is closed */
    uint64_t connection_count;           /* so far */
    uv_timer_t timer;                    /* runs while a command is sent */
    struct command_list waiting;         /* for a connection */
    struct command_list sent;            /* in the order of their replies */
    size_t command_count;
};

static bool accepts(struct redis_link *link, struct err *err);
static struct redis_command *command_new(struct redis_link *link, int argc, const char **argv,
                                         const size_t *argv_len);
static bool command_write(struct redis_command *command);
static struct redis_command *command_start(struct redis_command *command, redis_reply_fn *on_reply,
                                           void *owner, struct err *err);
static void take_back(struct redis_command *command);
static void on_command_reply(redisAsyncContext *context, void *reply, void *data);
static bool is_unknown_script(const struct redis_command *command, const redisReply *reply);
static void teach(struct redis_command *command);
static void command_lost(struct redis_command *command);
static void lose_sent(struct redis_link *link);
static void command_refused(struct redis_command *command, const redisReply *reply);
static void command_answer(struct redis_command *command, const redisReply *reply,
                           const struct err *err);
static void command_free(struct redis_command *command);
static void fail_waiting(struct redis_link *link, const char *why, const char *detail);
static void check_oldest(uv_timer_t *timer);
static void on_up(void *owner);
static void on_down(void *owner, bool was_up, const struct err *err);
static void link_closed(uv_handle_t *handle);

static const struct redis_connection_handlers connection_handlers = {
    .purpose = "commands",
    .on_up = on_up,
    .on_down = on_down,
};

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
    TAILQ_INIT(&link->waiting);
    TAILQ_INIT(&link->sent);
    link->connection = redis_connection_open(env, &connection_handlers, link, err);
    if (link->connection == NULL) {
        mem_free(link);
        return NULL;
    }
    uv_timer_init(env->loop, &link->timer); /* cannot fail */
    link->timer.data = link;
    return link;
}

void redis_link_close(struct redis_link **link)
{
    struct redis_link *l = *link;
    struct redis_command *command;

    *link = NULL;
    if (l == NULL)
        return;
    redis_connection_close(&l->connection);
    lose_sent(l);
    while ((command = TAILQ_FIRST(&l->waiting)) != NULL)
        command_free(command);
    assert(l->command_count == 0);
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
        command->script = *script;
    return command_start(command, on_reply, owner, err);
}

uint64_t redis_link_connection(const struct redis_link *link)
{
    return redis_connection_context(link->connection) != NULL ? link->connection_count : 0;
}

void redis_link_reject(struct redis_link *link, const char *why)
{
    struct err err;

    err_set(&err, ERR_UNAVAILABLE, "%s", why);
    redis_connection_reject(link->connection, &err);
}

const char *redis_link_address(const struct redis_link *link)
{
    return redis_connection_context(link->connection) == NULL
               ? NULL
               : redis_connection_address(link->connection);
}

bool redis_key(char key_out[REDIS_KEY_MAX], const struct conf_redis *conf, const char *kind,
               const char *name)
{
    bool has_name = name != NULL;

    return (size_t)snprintf(key_out, REDIS_KEY_MAX, "%s%s%s%s%s", conf->prefix, kind,
                            has_name ? ":{" : "", has_name ? name : "",
                            has_name ? "}" : "") < REDIS_KEY_MAX;
}

/* May a command be taken now? */
static bool accepts(struct redis_link *link, struct err *err)
{
    if (link->command_count >= REDIS_COMMANDS_MAX)
        return err_set(err, ERR_UNAVAILABLE, "redis: %d commands are under way already",
                       REDIS_COMMANDS_MAX);
    return redis_connection_want(link->connection, err);
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
    if (redis_connection_context(command->link->connection) == NULL) {
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
    redisAsyncContext *context = redis_connection_context(link->connection);

    if (redisAsyncFormattedCommand(context, on_command_reply, command, command->bytes,
                                   command->len) != REDIS_OK)
        return false;
    if (!is_remembered(context, command))
        shutdown(context->c.fd, SHUT_RDWR); /* ends it from the loop, as if lost */
    command->sent = true;
    command->sent_at_ms = uv_now(env->loop);
    if (TAILQ_EMPTY(&link->sent))
        uv_timer_start(&link->timer, check_oldest, settings(link)->timeout, 0);
    TAILQ_INSERT_TAIL(&link->sent, command, entry);
    counter_add(&env->counters->redis_commands, 1);
    return true;
}

static void take_back(struct redis_command *command)
{
    TAILQ_REMOVE(&command->link->sent, command, entry);
    command->sent = false;
    TAILQ_INSERT_TAIL(&command->link->waiting, command, entry);
}

/* From hiredis, once for each command written; NULL when the connection is ending. */
static void on_command_reply(redisAsyncContext *context, void *reply, void *data)
{
    struct redis_command *command = data;
    struct redis_link *link = command->link;
    struct err why, err;

    take_back(command);
    if (reply != NULL && redis_has_leftover(context)) { /* then this one may not be ours either */
        err_set(&why, ERR_UNAVAILABLE, "a reply that nobody asked for");
        err_set(&err, ERR_UNAVAILABLE, "redis: %s", why.text);
        command_answer(command, NULL, &err);
        redis_connection_drop(link->connection, &why);
    } else if (reply != NULL && redis_role_refuses(reply)) {
        command_refused(command, reply);
    } else if (reply != NULL && is_unknown_script(command, reply)) {
        teach(command);
    } else if (reply != NULL) {
        histogram_add(&link->env->counters->redis_seconds,
                      uv_now(link->env->loop) - command->sent_at_ms);
        command_answer(command, reply, NULL);
    } else {
        command_lost(command);
    }
}

static bool is_unknown_script(const struct redis_command *command, const redisReply *reply)
{
    return command->script.text != NULL && !command->taught && reply->type == REDIS_REPLY_ERROR &&
           strncmp(reply->str, "NOSCRIPT", strlen("NOSCRIPT")) == 0;
}

/* Sends the script, and the call of it once more; what fails is told by the second answer. */
static void teach(struct redis_command *command)
{
    struct redis_link *link = command->link;
    const char *argv[] = {"SCRIPT", "LOAD", command->script.text};
    const size_t argv_len[] = {6, 4, strlen(command->script.text)};
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

    if (command->link->connection == NULL || command->on_reply == NULL) {
        command_free(command);
    } else if (command->retried || command->script.text != NULL) {
        err_set(&err, ERR_UNAVAILABLE, "redis: the connection was lost%s",
                command->retried ? " twice" : "");
        command_answer(command, NULL, &err);
    } else {
        command->retried = true;
    }
}

/* What hiredis had not remembered: it has given back the others. */
static void lose_sent(struct redis_link *link)
{
    struct redis_command *command;

    while ((command = TAILQ_FIRST(&link->sent)) != NULL) {
        take_back(command);
        command_lost(command);
    }
}

/* By the wrong server, which has not done it, script or not: the next one may. */
static void command_refused(struct redis_command *command, const redisReply *reply)
{
    struct redis_link *link = command->link;
    struct err why, err;

    err_set(&why, ERR_UNAVAILABLE, "%s", reply->str);
    err_set(&err, ERR_UNAVAILABLE, "redis: %s", why.text);
    if (command->on_reply == NULL) {
        command_free(command);
    } else if (command->retried) {
        command_answer(command, NULL, &err);
    } else {
        command->retried = true;
        command->taught = false;
    }
    redis_connection_reject(link->connection, &why);
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

static void fail_waiting(struct redis_link *link, const char *why, const char *detail)
{
    struct redis_command *command;
    struct err err;

    err_set(&err, ERR_UNAVAILABLE, "redis: %s%s", why, detail);
    while ((command = TAILQ_FIRST(&link->waiting)) != NULL)
        command_answer(command, NULL, &err);
}

/*
 * One limit for every command, so the oldest is the first to miss it; then the connection is sick.
 */
static void check_oldest(uv_timer_t *timer)
{
    struct redis_link *link = timer->data;
    struct redis_command *oldest = TAILQ_FIRST(&link->sent);
    uint64_t limit_ms = settings(link)->timeout;
    uint64_t age_ms;
    redis_reply_fn *on_reply;
    struct err why, err;

    if (oldest == NULL)
        return;
    age_ms = uv_now(link->env->loop) - oldest->sent_at_ms;
    if (age_ms < limit_ms) {
        uv_timer_start(&link->timer, check_oldest, limit_ms - age_ms, 0);
        return;
    }
    err_set(&why, ERR_UNAVAILABLE, "no reply within %llu ms", (unsigned long long)limit_ms);
    err_set(&err, ERR_UNAVAILABLE, "redis: %s", why.text);
    on_reply = oldest->on_reply;
    oldest->on_reply = NULL; /* hiredis still holds it: answered here, freed in on_command_reply */
    counter_add(&link->env->counters->redis_failures, 1);
    if (on_reply != NULL)
        on_reply(oldest->owner, NULL, &err);
    redis_connection_drop(link->connection, &why);
}

/* The connection. */

static void on_up(void *owner)
{
    struct redis_link *link = owner;
    struct redis_command *command;

    link->connection_count++;
    while ((command = TAILQ_FIRST(&link->waiting)) != NULL) {
        TAILQ_REMOVE(&link->waiting, command, entry);
        if (command_write(command))
            continue;
        TAILQ_INSERT_HEAD(&link->waiting, command, entry);
        fail_waiting(link, "the connection takes no command", "");
    }
}

/* After a good one another is being made already, and what may be repeated waits for it. */
static void on_down(void *owner, bool was_up, const struct err *err)
{
    struct redis_link *link = owner;

    lose_sent(link);
    if (!was_up)
        fail_waiting(link, "not connected: ", err->text);
}
