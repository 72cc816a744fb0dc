/*
 * The source `redis` with a server that may say anything. Two users are looked up at once. With a
 * first octet below 0x80 the server speaks its protocol, and the input is the values of the two
 * hashes, a line each, cut as the octet says: what must come of them is told by a slow, obvious
 * reader. Else it is all that the server says. An answer that makes no sense is never a route.
 */
#include <assert.h>

#include "proxy/base/buf.h"
#include "proxy/base/log.h"
#include "proxy/net/redis_link.h"
#include "routing/route.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { INPUT_MAX = 4096, FIELD_COUNT = 5, TURNS_MAX = 64 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char blue[] = "blue", redis[] = "redis", none[] = "", prefix[] = "t:";
static char *sources[] = {redis};
static char path[64], url[80];
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
    snprintf(path, sizeof path, "/dev/shm/imapmux-fuzz-redis-%ld", (long)getpid());
    snprintf(url, sizeof url, "unix:%s", path);
    memcpy(name.sun_path, path, sizeof path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    unlink(path);
    if (bind(listener, (struct sockaddr *)&name, sizeof name) != 0 || listen(listener, 8) != 0)
        abort();
    atexit(remove_socket);
    return 0;
}

/* --- the log, which would hide all else --- */

void log_begin(struct log_line *line, enum conf_log_level level, const char *event)
{
    (void)line;
    (void)level;
    (void)event;
}

void log_text(struct log_line *line, const char *key, const char *value)
{
    (void)line;
    (void)key;
    (void)value;
}

void log_err(struct log_line *line, const struct err *err)
{
    (void)line;
    (void)err;
}

void log_write(struct log_line *line)
{
    (void)line;
}

void log_write_limited(struct log_line *line, const char *about)
{
    (void)line;
    (void)about;
}

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

/* --- what must come of it --- */

struct look_up {
    struct route_request request;
    bool answered;
    enum err_kind kind;
    struct route route;
};

static void on_answer(struct route_request *request, const struct route *route,
                      const struct err *err)
{
    struct look_up *look_up = request->owner;

    assert(!look_up->answered && (err->kind != ERR_NONE || route != NULL));
    look_up->answered = true;
    look_up->kind = err->kind;
    if (route != NULL)
        look_up->route = *route;
}

/* An answer, whatever the server has said. */
static void check_sense(const struct look_up *look_up)
{
    const char *user = look_up->route.backend_user;

    if (!look_up->answered || look_up->kind != ERR_NONE)
        return;
    assert(strcmp(look_up->route.shard, blue) == 0 && look_up->route.state == ROUTE_ACTIVE);
    assert(user[0] != '\0');
    for (; *user != '\0'; user++)
        assert((unsigned char)*user >= ' ' && *user != 0x7f);
}

static bool is_number(struct span text)
{
    size_t zeros = 0;

    while (zeros + 1 < text.len && text.ptr[zeros] == '0')
        zeros++;
    for (size_t i = 0; i < text.len; i++)
        if (text.ptr[i] < '0' || text.ptr[i] > '9')
            return false;
    text = span_after(text, zeros);
    return text.len == 20 ? memcmp(text.ptr, "18446744073709551615", 20) <= 0
                          : text.len > 0 && text.len < 20;
}

static bool is_printable(struct span text, size_t max)
{
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] < ' ' || text.ptr[i] == 0x7f)
            return false;
    return text.len <= max;
}

/* By the fields in the order of the command; a NULL ptr is one that is not there. */
static enum err_kind expected_kind(const struct span fields[FIELD_COUNT])
{
    struct span shard = fields[0], state = fields[1], target = fields[2], backend_user = fields[3],
                epoch = fields[4];
    bool disabled = state.ptr != NULL && span_equal(state, span_of("disabled"));
    bool moving = state.ptr != NULL &&
                  (span_equal(state, span_of("moving")) || span_equal(state, span_of("committed")));
    bool active = state.ptr == NULL || span_equal(state, span_of("active"));

    if ((!disabled && !moving && !active) || (epoch.ptr != NULL && !is_number(epoch)) ||
        !is_printable(backend_user, BACKEND_USER_MAX) || !is_printable(target, SHARD_NAME_MAX))
        return ERR_UNAVAILABLE;
    if (shard.ptr == NULL)
        return moving ? ERR_UNAVAILABLE : ERR_ADMIN; /* unknown, or disabled */
    if (shard.len == 0 || !is_printable(shard, SHARD_NAME_MAX))
        return ERR_UNAVAILABLE;
    if (disabled)
        return ERR_ADMIN;
    return moving || !span_equal(shard, span_of(blue)) ? ERR_UNAVAILABLE : ERR_NONE;
}

/* --- the server --- */

static const char commands[] = "*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n";

/* A line of the input: "-" is a value that is not there. */
static struct span take_value(struct span *rest)
{
    const char *end = rest->len == 0 ? NULL : memchr(rest->ptr, '\n', rest->len);
    struct span value = {rest->ptr, end == NULL ? rest->len : (size_t)(end - rest->ptr)};

    *rest = span_after(*rest, end == NULL ? value.len : value.len + 1);
    return span_equal(value, span_of("-")) ? (struct span){NULL, 0} : value;
}

static void say_hash(struct buf *out, struct span *rest, struct span fields_out[FIELD_COUNT])
{
    assert(buf_append_text(out, "*5\r\n"));
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        struct span value = fields_out[i] = take_value(rest);

        if (value.ptr == NULL)
            assert(buf_append_text(out, "$-1\r\n"));
        else
            assert(buf_printf(out, "$%zu\r\n", value.len) && buf_append(out, value) &&
                   buf_append_text(out, "\r\n"));
    }
}

struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    struct conf_shard shard;
    struct conf conf;
    struct env env;
    struct router *router;
    struct look_up ann, bob;
    int server; /* the accepted socket, or -1 */
};

static void run(struct bench *bench)
{
    for (int i = 0; i < 4; i++)
        uv_run(&bench->loop, UV_RUN_NOWAIT);
}

static void look_up(struct bench *bench, struct look_up *look_up, const char *user)
{
    look_up->request = (struct route_request){.user = user,
                                              .told_shard = "",
                                              .told_backend_user = "",
                                              .on_answer = on_answer,
                                              .owner = look_up};
    router_find(bench->router, &look_up->request);
}

static void bench_open(struct bench *bench)
{
    struct err err = {0};

    memset(bench, 0, sizeof *bench);
    uv_loop_init(&bench->loop);
    turn_init(&bench->turn, &bench->loop);
    bench->shard.title = blue;
    bench->conf = (struct conf){
        .shards = &bench->shard,
        .shard_count = 1,
        .shard_titles = {&bench->shard.title, 1},
        .route = {.sources = {sources, 1}, .timeout = 60000},
        .redis = {.address = url,
                  .user = none,
                  .prefix = prefix,
                  .connect_timeout = 60000,
                  .timeout = 60000,
                  .retry_max = 60000},
    };
    bench->env = (struct env){.loop = &bench->loop,
                              .turn = &bench->turn,
                              .conf = &bench->conf,
                              .counters = &bench->counters};
    bench->env.redis = redis_link_open(&bench->env, &err);
    assert(bench->env.redis != NULL);
    bench->router = router_open(&bench->env, &(struct router_view){0}, &err);
    assert(bench->router != NULL);
    look_up(bench, &bench->ann, "ann");
    look_up(bench, &bench->bob, "bob");
    run(bench);
    bench->server = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    assert(bench->server >= 0);
}

static void bench_close(struct bench *bench)
{
    close(bench->server);
    router_cancel(&bench->ann.request);
    router_cancel(&bench->bob.request);
    router_close(&bench->router);
    redis_link_close(&bench->env.redis);
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

        if (send(bench->server, text.ptr, len, MSG_NOSIGNAL) != (ssize_t)len)
            return;
        run(bench);
        text = span_after(text, len);
    }
}

static void check_commands(struct bench *bench)
{
    char heard[1024] = "";
    ssize_t len = recv(bench->server, heard, sizeof heard - 1, 0);

    assert(len > 0 && strncmp(heard, commands, sizeof commands - 1) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bench bench;
    struct span ann[FIELD_COUNT], bob[FIELD_COUNT];

    if (size < 1 || size > INPUT_MAX)
        return 0;
    bench_open(&bench);

    struct span rest = {(const char *)data + 1, size - 1};
    size_t step = 1 + (data[0] & 0x7f) * 16u;

    if (data[0] < 0x80) {
        struct buf out;

        buf_init(&out, 4 * INPUT_MAX);
        assert(buf_append_text(&out, "+OK\r\n"));
        say(&bench, buf_span(&out), step);
        check_commands(&bench);
        buf_release(&out);
        say_hash(&out, &rest, ann);
        say_hash(&out, &rest, bob);
        say(&bench, buf_span(&out), step);
        buf_release(&out);
        assert(bench.ann.answered && bench.ann.kind == expected_kind(ann));
        assert(bench.bob.answered && bench.bob.kind == expected_kind(bob));
    } else {
        say(&bench, rest, step);
    }
    check_sense(&bench.ann);
    check_sense(&bench.bob);
    bench_close(&bench);
    return 0;
}
