/*
 * A subscription at a server that may say anything, in pieces as the first octet says; and the same
 * as replies of which is asked who the master is. Up, messages and down come in their order, no
 * message is longer than what was said, and a name of a master is always one that can be connected.
 */
#include <assert.h>

#include "proxy/base/log.h"
#include "proxy/net/redis_events.h"
#include "proxy/net/redis_role.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { INPUT_MAX = 4096 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const channels[] = {"e", "e:me"};
static char none[] = "", path[64], url[80];
static int listener;

static void remove_socket(void)
{
    unlink(path);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};

    (void)argc;
    (void)argv;
    snprintf(path, sizeof path, "/dev/shm/imapmux-fuzz-redis-events-%ld", (long)getpid());
    snprintf(url, sizeof url, "unix:%s", path);
    memcpy(name.sun_path, path, sizeof path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    unlink(path);
    if (bind(listener, (struct sockaddr *)&name, sizeof name) != 0 || listen(listener, 8) != 0)
        abort();
    atexit(remove_socket);
    return 0;
}

/* The log, which would hide all else. */
void log_event_limited(enum conf_log_level level, const char *event, const char *format, ...)
{
    (void)level;
    (void)event;
    (void)format;
}

void log_event(enum conf_log_level level, const char *event, const char *format, ...)
{
    (void)level;
    (void)event;
    (void)format;
}

struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    struct conf conf;
    struct env env;
    struct redis_events *events;
    unsigned ups, downs;
    size_t said;
    int server; /* the accepted socket */
};

static void on_up(void *owner)
{
    struct bench *bench = owner;

    assert(bench->ups == bench->downs);
    bench->ups++;
}

static void on_message(void *owner, const char *channel, struct span message)
{
    struct bench *bench = owner;

    assert(bench->ups == bench->downs + 1);
    assert(strlen(channel) + message.len <= bench->said);
    if (message.len == 1)
        redis_events_restart(bench->events, "a message of one octet");
    if (message.len == 2)
        redis_events_close(&bench->events);
}

static void on_down(void *owner)
{
    struct bench *bench = owner;

    bench->downs++;
    assert(bench->ups == bench->downs);
}

static const struct redis_events_handlers handlers = {on_up, on_message, on_down};

static void run(struct bench *bench)
{
    for (int i = 0; i < 4; i++)
        uv_run(&bench->loop, UV_RUN_NOWAIT);
}

static void bench_open(struct bench *bench)
{
    struct err err = {0};

    memset(bench, 0, sizeof *bench);
    uv_loop_init(&bench->loop);
    turn_init(&bench->turn, &bench->loop);
    bench->conf.redis = (struct conf_redis){.address = url,
                                            .user = none,
                                            .connect_timeout = 60000,
                                            .timeout = 60000,
                                            .retry_max = 60000};
    bench->env = (struct env){.loop = &bench->loop,
                              .turn = &bench->turn,
                              .conf = &bench->conf,
                              .counters = &bench->counters};
    bench->events = redis_events_open(&bench->env, channels, 2, &handlers, bench, &err);
    assert(bench->events != NULL);
    run(bench);
    bench->server = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    assert(bench->server >= 0);
}

static void bench_close(struct bench *bench)
{
    close(bench->server);
    run(bench);
    redis_events_close(&bench->events);
    turn_release(&bench->turn);
    uv_run(&bench->loop, UV_RUN_DEFAULT);
    assert(uv_loop_close(&bench->loop) == 0);
    while ((bench->server = accept4(listener, NULL, NULL, 0)) >= 0)
        close(bench->server); /* an attempt to connect again */
}

/* In pieces, between which the loop turns; what nobody takes any more is lost. */
static void say(struct bench *bench, struct span text, size_t step)
{
    while (text.len > 0) {
        size_t len = step < text.len ? step : text.len;

        bench->said += len;
        if (send(bench->server, text.ptr, len, MSG_NOSIGNAL) != (ssize_t)len)
            return;
        run(bench);
        text = span_after(text, len);
    }
}

/* hiredis itself makes room for whatever is announced. */
static void *create_array(const redisReadTask *task, int elements)
{
    const redisReplyObjectFunctions *usual = task->privdata;

    return elements <= INPUT_MAX ? usual->createArray(task, elements) : NULL;
}

static void check_roles(struct span text)
{
    redisReader *reader = redisReaderCreate();
    redisReplyObjectFunctions functions = *reader->fn;
    char address[REDIS_ADDRESS_MAX], host[HOST_MAX];
    void *reply = NULL;
    uint16_t port;

    functions.createArray = create_array;
    reader->privdata = reader->fn;
    reader->fn = &functions;
    redisReaderFeed(reader, text.ptr, text.len);
    while (redisReaderGetReply(reader, &reply) == REDIS_OK && reply != NULL) {
        if (redis_role_read_address(reply, address))
            assert(address_split(address, host, &port) && host[0] != '\0');
        assert(!redis_role_is_master(reply) || !redis_role_refuses(reply));
        freeReplyObject(reply);
    }
    redisReaderFree(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char both[] = "*3\r\n$9\r\nsubscribe\r\n$1\r\ne\r\n:1\r\n"
                               "*3\r\n$9\r\nsubscribe\r\n$4\r\ne:me\r\n:2\r\n";
    static struct bench bench;

    if (size < 1 || size > INPUT_MAX)
        return 0;
    bench_open(&bench);

    struct span rest = {(const char *)data + 1, size - 1};

    if ((data[0] & 0x80) != 0) {
        say(&bench, span_of("+OK\r\n"), INPUT_MAX);
        say(&bench, span_of(both), (data[0] & 0x40) != 0 ? 1 : sizeof both);
        assert(bench.ups == 1);
    }
    say(&bench, rest, 1 + (data[0] & 0x3f) * 16u);
    bench_close(&bench);
    check_roles(rest);
    return 0;
}
