/* Owns one exchange with imapmux: the connection, the lines of the answer, the time. */
#include "proxy/ctl/exchange.h"

#include "proxy/base/buf.h"
#include "proxy/base/mem.h"
#include "proxy/base/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { READ_SIZE = 64 * 1024, CONNECT_SECONDS = 10, PAUSE_MS = 200 };

/* --- what an answer is --- */

/* Cut, it still ends with a whole character. */
static void set(struct answer *answer, enum answer_kind kind, const char *why)
{
    size_t len = strlen(why);

    if (len >= sizeof answer->why) {
        len = sizeof answer->why - 1;
        while (len > 0 && ((unsigned char)why[len] & 0xc0) == 0x80)
            len--;
    }
    memcpy(answer->why, why, len);
    answer->why[len] = '\0';
    answer->kind = kind;
}

void answer_release(struct answer *answer)
{
    json_decref(answer->items);
    json_decref(answer->result);
    *answer = (struct answer){0};
}

const char *answer_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text == NULL ? "" : text;
}

/* --- the connection --- */

/* What to look at; "" where the system's word says it all. */
static const char *advice(int failure)
{
    switch (failure) {
    case ENOENT:
        return ": imapmux does not run, or its setting admin.socket names another path, which -s "
               "takes";
    case ECONNREFUSED:
        return ": nobody listens there; does imapmux run?";
    case EACCES:
        return ": who may connect is told by mode, group and readers of section admin";
    default:
        return "";
    }
}

static int connect_to(const char *path, struct answer *answer)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const struct timeval limit = {.tv_sec = CONNECT_SECONDS}; /* holds for connect(2), too */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char why[sizeof answer->why];

    errno = ENAMETOOLONG;
    if (fd >= 0 && strlen(path) < sizeof address.sun_path) {
        memcpy(address.sun_path, path, strlen(path));
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
            return fd;
    }
    snprintf(why, sizeof why, "%s: %s%s", path, strerrordesc_np(errno), advice(errno));
    set(answer, ANSWER_NO_CONNECTION, why);
    if (fd >= 0)
        close(fd);
    return -1;
}

static long peer_of(int fd)
{
    struct ucred peer = {0};
    socklen_t size = sizeof peer;

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? (long)peer.pid : 0;
}

/* Who is turned away may be so before all is written; the answer tells, and the result does not. */
static void send_request(const struct exchange *exchange, int fd)
{
    json_t *json =
        json_pack("{s:s, s:O}", "command", exchange->command, "arguments", exchange->arguments);
    char *line = json == NULL ? NULL : json_dumps(json, JSON_COMPACT);
    size_t len = line == NULL ? 0 : strlen(line), sent = 0;

    if (line != NULL)
        line[len++] = '\n'; /* in the place of the NUL */
    while (sent < len) {
        ssize_t count = send(fd, line + sent, len - sent, MSG_NOSIGNAL);

        if (count <= 0)
            break;
        sent += (size_t)count;
    }
    mem_free(line);
    json_decref(json);
}

/* --- the answer --- */

static void take_item(const struct exchange *exchange, struct answer *answer, json_t *item)
{
    if (exchange->on_item != NULL)
        exchange->on_item(exchange->owner, item);
    else
        json_array_append(answer->items, item);
}

/* Takes one line. True: another one follows. */
static bool take_line(const struct exchange *exchange, struct span line, struct answer *answer)
{
    json_t *json = json_loadb(line.ptr, line.len, 0, NULL), *item = json_object_get(json, "item"),
           *ok = json_object_get(json, "ok");
    const char *error = json_string_value(json_object_get(json, "error"));

    if (item != NULL) {
        take_item(exchange, answer, item);
    } else if (json_is_true(ok)) {
        answer->kind = ANSWER_DONE;
        answer->result = json_incref(json_object_get(json, "result"));
    } else if (error != NULL) {
        set(answer, json_is_true(json_object_get(json, "again")) ? ANSWER_AGAIN : ANSWER_REFUSED,
            error);
    } else {
        set(answer, ANSWER_LOST, "the answer makes no sense");
    }
    json_decref(json);
    return item != NULL;
}

/* Takes the lines that are whole. True: more must come. */
static bool take_lines(const struct exchange *exchange, struct buf *input, struct answer *answer)
{
    for (const char *end;;) {
        struct span all = buf_span(input);

        if ((end = memchr(all.ptr, '\n', all.len)) == NULL)
            return true;
        struct span line = {all.ptr, (size_t)(end - all.ptr)};
        if (!take_line(exchange, line, answer))
            return false;
        buf_consume(input, line.len + 1);
    }
}

/* Reads what is there. False: there will be no more, and no answer. */
static bool read_more(int fd, struct buf *input, struct answer *answer)
{
    char *room = buf_reserve(input, READ_SIZE);
    ssize_t count = room == NULL ? 0 : recv(fd, room, READ_SIZE, MSG_DONTWAIT);

    if (count > 0)
        buf_commit(input, (size_t)count);
    else if (count == 0 || (errno != EAGAIN && errno != EINTR))
        set(answer, ANSWER_LOST, "the connection has ended without an answer");
    return answer->kind != ANSWER_LOST;
}

static bool go_on(const struct exchange *exchange, struct answer *answer)
{
    if (exchange->on_wait == NULL || exchange->on_wait(exchange->owner))
        return true;
    set(answer, ANSWER_STOPPED, "it was given up");
    return false;
}

/* Has imapmux been silent since `since` for too long? */
static bool is_late(const struct exchange *exchange, uint64_t since, struct answer *answer)
{
    char why[sizeof answer->why];

    if (exchange->limit_ms == 0 || clock_ms() - since < exchange->limit_ms)
        return false;
    snprintf(why, sizeof why, "there was no answer within %g s: imapmux is very busy, or hangs",
             (double)exchange->limit_ms / 1000);
    set(answer, ANSWER_LATE, why);
    return true;
}

static void receive(const struct exchange *exchange, int fd, struct answer *answer)
{
    struct pollfd state = {.fd = fd, .events = POLLIN};
    uint64_t heard = clock_ms();
    struct buf input;
    bool more = true;

    buf_init(&input, BUF_CEILING_MAX);
    while (more && go_on(exchange, answer)) {
        if (poll(&state, 1, EXCHANGE_WAIT_MS) > 0) { /* else nothing yet, or a signal */
            heard = clock_ms();
            more = read_more(fd, &input, answer) && take_lines(exchange, &input, answer);
        } else {
            more = !is_late(exchange, heard, answer);
        }
    }
    buf_release(&input);
}

int exchange_connect(const char *socket, struct answer *answer_out)
{
    *answer_out = (struct answer){.items = json_array()};
    return connect_to(socket, answer_out);
}

void exchange_over(int fd, const struct exchange *exchange, struct answer *answer_out)
{
    *answer_out = (struct answer){.items = json_array()};
    answer_out->pid = peer_of(fd);
    send_request(exchange, fd);
    receive(exchange, fd, answer_out);
}

static void attempt(const struct exchange *exchange, struct answer *answer_out)
{
    int fd = exchange_connect(exchange->socket, answer_out);

    if (fd < 0)
        return;
    answer_release(answer_out);
    exchange_over(fd, exchange, answer_out);
    close(fd);
}

void exchange(const struct exchange *exchange, struct answer *answer_out)
{
    attempt(exchange, answer_out); /* which may have taken long until it failed */
    uint64_t end = clock_ms() + exchange->patience_ms;

    while ((answer_out->kind == ANSWER_NO_CONNECTION || answer_out->kind == ANSWER_AGAIN ||
            answer_out->kind == ANSWER_LOST || answer_out->kind == ANSWER_LATE) &&
           clock_ms() < end && go_on(exchange, answer_out)) {
        if (exchange->on_again != NULL)
            exchange->on_again(exchange->owner, answer_out->why);
        clock_sleep(PAUSE_MS);
        answer_release(answer_out);
        attempt(exchange, answer_out);
    }
}
