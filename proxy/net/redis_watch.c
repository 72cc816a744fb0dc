/*
 * Owns the poll handle under a hiredis context, and what of its input is taken.
 *
 * hiredis' own adapter is not used: it ignores poll errors (a refused connection is one) and loses
 * its memory when uv_poll_init fails. Nor are its subscriptions: it aborts on a reply that does not
 * look like one of theirs.
 */
#include "proxy/net/redis_watch.h"

#include "proxy/base/mem.h"

#include <sys/socket.h>

/* hiredis itself makes room for whatever is announced. */
enum { REPLY_ELEMENTS_MAX = 8192, REPLY_BYTES_MAX = 1024 * 1024 };

/* Memory of its own, for it lives until its close callback. */
struct redis_watch {
    uv_poll_t poll;
    const struct redis_watch_handlers *handlers;
    void *owner;
    redisAsyncContext *context;          /* NULL once it is gone */
    redisReplyObjectFunctions functions; /* hiredis' own, but for arrays */
    struct err why;                      /* we end it; ERR_NONE: hiredis does */
    int events;
    bool takes_any;
};

static void bound_replies(struct redis_watch *watch);
static void *create_array(const redisReadTask *task, int elements);
static void context_gone(void *data);
static void end(struct redis_watch *watch, const char *why);
static bool speaks_unasked(const struct redis_watch *watch);
static void read_any(struct redis_watch *watch);
static void on_readable(struct redis_watch *watch);
static void on_poll(uv_poll_t *poll, int status, int events);
static void want(struct redis_watch *watch, int events);
static void want_read(void *data);
static void want_no_read(void *data);
static void want_write(void *data);
static void want_no_write(void *data);
static void watch_closed(uv_handle_t *handle);

struct redis_watch *redis_watch_open(uv_loop_t *loop, redisAsyncContext *context,
                                     const struct redis_watch_handlers *handlers, void *owner,
                                     struct err *err)
{
    struct redis_watch *watch = mem_new(sizeof *watch);
    int status = watch == NULL ? UV_ENOMEM : uv_poll_init(loop, &watch->poll, context->c.fd);

    if (status != 0) {
        err_set(err, ERR_UNAVAILABLE, "%s", uv_strerror(status));
        mem_free(watch);
        redisAsyncFree(context);
        return NULL;
    }
    watch->poll.data = watch;
    watch->handlers = handlers;
    watch->owner = owner;
    watch->context = context;
    bound_replies(watch);
    context->ev.data = watch;
    context->ev.addRead = want_read;
    context->ev.delRead = want_no_read;
    context->ev.addWrite = want_write;
    context->ev.delWrite = want_no_write;
    context->ev.cleanup = context_gone;
    return watch;
}

redisAsyncContext *redis_watch_context(const struct redis_watch *watch)
{
    return watch->context;
}

void redis_watch_take_any(struct redis_watch *watch)
{
    watch->takes_any = true;
}

bool redis_watch_request(struct redis_watch *watch, int argc, const char **argv,
                         const size_t *argv_len)
{
    if (redisAppendCommandArgv(&watch->context->c, argc, argv, argv_len) != REDIS_OK)
        return false;
    want_write(watch);
    return true;
}

void redis_watch_end(struct redis_watch *watch, const struct err *why)
{
    watch->why = *why;
    redisAsyncFree(watch->context);
}

static void end(struct redis_watch *watch, const char *why)
{
    struct err err;

    err_set(&err, ERR_UNAVAILABLE, "%s", why);
    redis_watch_end(watch, &err);
}

static void bound_replies(struct redis_watch *watch)
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

/* hiredis' cleanup hook. */
static void context_gone(void *data)
{
    struct redis_watch *watch = data;
    redisAsyncContext *context = watch->context;
    bool refused = watch->why.kind == ERR_NONE && (context->c.flags & REDIS_CONNECTED) == 0;

    if (watch->why.kind == ERR_NONE)
        err_set(&watch->why, ERR_UNAVAILABLE, "%s",
                context->err != 0 ? context->errstr : "connection closed");
    watch->context = NULL;
    uv_close((uv_handle_t *)&watch->poll,
             watch_closed); /* stops it, before hiredis closes the socket */
    watch->handlers->on_gone(watch->owner, &watch->why, refused);
}

/*
 * A reply too many would be taken for the next user's, and hiredis aborts on one when it waits for
 * none. So whatever comes while nothing is asked, or behind the last reply (redis_has_leftover),
 * ends the connection.
 */
static bool speaks_unasked(const struct redis_watch *watch)
{
    const redisAsyncContext *context = watch->context;
    char octet;

    return context->replies.head == NULL && recv(context->c.fd, &octet, 1, MSG_PEEK) > 0;
}

bool redis_has_leftover(const redisAsyncContext *context)
{
    return context->replies.head == NULL && context->c.reader->pos < context->c.reader->len;
}

/* By hiredis' blocking calls, which do not block here. Each reply may end the watch. */
static void read_any(struct redis_watch *watch)
{
    redisContext *context = &watch->context->c;
    int status = redisBufferRead(context);

    while (status == REDIS_OK && watch->context != NULL) {
        void *reply = NULL;

        status = redisGetReply(context, &reply);
        if (status != REDIS_OK || reply == NULL)
            break;
        watch->handlers->on_reply(watch->owner, reply);
        freeReplyObject(reply);
    }
    if (status != REDIS_OK)
        end(watch, context->errstr);
}

static void on_readable(struct redis_watch *watch)
{
    if (watch->takes_any)
        read_any(watch);
    else if (speaks_unasked(watch))
        end(watch, "a reply that nobody asked for");
    else
        redisAsyncHandleRead(watch->context);
    if (watch->context != NULL && watch->context->c.reader->len > REPLY_BYTES_MAX)
        end(watch, "a reply is too long");
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct redis_watch *watch = poll->data;

    if (status < 0)
        events = UV_READABLE | UV_WRITABLE; /* hiredis asks the socket what is wrong */
    if ((events & UV_READABLE) != 0)
        on_readable(watch);
    if (watch->context != NULL && (events & UV_WRITABLE) != 0)
        redisAsyncHandleWrite(watch->context);
    if (status < 0 && watch->context != NULL)
        redisAsyncFree(watch->context); /* it found nothing, but libuv watches no longer */
}

static void want(struct redis_watch *watch, int events)
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
    struct redis_watch *watch = data;

    want(watch, watch->events | UV_READABLE);
}

static void want_no_read(void *data)
{
    struct redis_watch *watch = data;

    want(watch, watch->events & ~UV_READABLE);
}

static void want_write(void *data)
{
    struct redis_watch *watch = data;

    want(watch, watch->events | UV_WRITABLE);
}

static void want_no_write(void *data)
{
    struct redis_watch *watch = data;

    want(watch, watch->events & ~UV_WRITABLE);
}

static void watch_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}
