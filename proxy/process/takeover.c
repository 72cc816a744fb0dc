/* Owns the connection over which a process gives its place to this one. */
#include "proxy/process/takeover.h"

#include "proxy/base/buf.h"
#include "proxy/base/mem.h"
#include "proxy/ctl/command.h"
#include "proxy/ctl/exchange.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    PATIENCE_MS = 30000,
    END_MS = 1000,
    READ_SIZE = 4096,
    DESCRIPTORS_MAX = 253 /* of one message, by Linux */
};

struct takeover {
    int fd;
    const char *socket;
    char id[64];
};

/* --- the connection --- */

static bool fail(const struct takeover *takeover, struct err *err, const char *why)
{
    return err_set(err, ERR_UNAVAILABLE, "cannot take over from the process at %s: %s",
                   takeover->socket, why);
}

static bool connect_and_ask(struct takeover *takeover, struct err *err)
{
    static const char request[] =
        "{\"command\":\"handover\",\"arguments\":{\"step\":\"begin\",\"protocol\":"
        "\"" TAKEOVER_PROTOCOL "\"}}\n";
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(takeover->socket) >= sizeof address.sun_path)
        return fail(takeover, err, "the path is too long");
    memcpy(address.sun_path, takeover->socket, strlen(takeover->socket));
    takeover->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (takeover->fd < 0 ||
        connect(takeover->fd, (const struct sockaddr *)&address, sizeof address) != 0 ||
        send(takeover->fd, request, sizeof request - 1, MSG_NOSIGNAL) != sizeof request - 1)
        return fail(takeover, err, strerrordesc_np(errno));
    return true;
}

/* All descriptors of a message are taken over, or closed. */
static bool take_descriptors(struct msghdr *message, struct inherited *inherited, struct err *err)
{
    bool good = true;

    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header != NULL;
         header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(int) <= header->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int fd;

            memcpy(&fd, CMSG_DATA(header) + at, sizeof fd);
            if (good)
                good = inherited_add(inherited, fd, err);
            else
                close(fd);
        }
    }
    if (good && (message->msg_flags & MSG_CTRUNC) != 0)
        good = err_set(err, ERR_INTERNAL, "not all listening sockets could be taken: descriptors");
    return good;
}

/* Reads what is there. False with *err set. */
static bool read_more(const struct takeover *takeover, struct buf *input,
                      struct inherited *inherited, struct err *err)
{
    union {
        char bytes[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
        struct cmsghdr header; /* for its alignment */
    } control;
    char *room = buf_reserve(input, READ_SIZE);
    struct iovec text = {room, READ_SIZE};
    struct msghdr message = {.msg_iov = &text,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct pollfd state = {.fd = takeover->fd, .events = POLLIN};

    if (room == NULL || poll(&state, 1, PATIENCE_MS) <= 0)
        return fail(takeover, err, room == NULL ? "no memory" : "it does not answer");
    ssize_t count = recvmsg(takeover->fd, &message, MSG_CMSG_CLOEXEC);
    if (count > 0 && !take_descriptors(&message, inherited, err))
        return false;
    if (count <= 0)
        return fail(takeover, err, "the connection has ended without an answer");
    buf_commit(input, (size_t)count);
    return true;
}

/* What the last item tells: true, it is complete. False without *err: more must come. */
static bool take_line(struct takeover *takeover, struct span line, struct err *err)
{
    json_t *json = json_loadb(line.ptr, line.len, 0, NULL);
    const char *error = json_string_value(json_object_get(json, "error")),
               *id = json_string_value(json_object_get(json_object_get(json, "item"), "id"));

    if (error != NULL)
        fail(takeover, err, error);
    else if (json_object_get(json, "item") == NULL)
        fail(takeover, err, "the answer makes no sense");
    else if (id != NULL)
        snprintf(takeover->id, sizeof takeover->id, "%s", id);
    json_decref(json);
    return id != NULL && err->kind == ERR_NONE;
}

static bool receive(struct takeover *takeover, struct inherited *inherited, struct err *err)
{
    struct buf input;
    bool complete = false;

    buf_init(&input, BUF_CEILING_MAX);
    while (!complete && err->kind == ERR_NONE && read_more(takeover, &input, inherited, err)) {
        for (const char *end; !complete && err->kind == ERR_NONE;) {
            struct span all = buf_span(&input);

            if ((end = memchr(all.ptr, '\n', all.len)) == NULL)
                break;
            struct span line = {all.ptr, (size_t)(end - all.ptr)};
            complete = take_line(takeover, line, err);
            buf_consume(&input, line.len + 1);
        }
    }
    buf_release(&input);
    return complete;
}

/* --- the steps --- */

struct takeover *takeover_begin(const char *socket, struct inherited *inherited_out,
                                struct err *err)
{
    struct takeover *takeover = mem_new(sizeof *takeover);

    *inherited_out = (struct inherited){.from = "the process before", .may_grow = true};
    if (takeover == NULL) {
        err_set(err, ERR_INTERNAL, "no memory to take over");
        return NULL;
    }
    takeover->socket = socket;
    takeover->fd = -1;
    if (!connect_and_ask(takeover, err) || !receive(takeover, inherited_out, err))
        takeover_close(&takeover);
    return takeover;
}

const char *takeover_id(const struct takeover *takeover)
{
    return takeover->id;
}

/* An answer that is lost, or cannot be asked for, is no matter if there is nobody any more. */
static bool has_ended(const struct takeover *takeover, const struct answer *answer)
{
    struct pollfd state = {.fd = takeover->fd, .events = POLLIN};
    char byte;

    return (answer->kind == ANSWER_LOST || answer->kind == ANSWER_NO_CONNECTION) &&
           poll(&state, 1, END_MS) > 0 && recv(takeover->fd, &byte, 1, MSG_PEEK) <= 0;
}

/* Takes over the reference. */
static bool ask(struct takeover *takeover, json_t *arguments, struct err *err)
{
    const struct exchange request = {.socket = takeover->socket,
                                     .command = "handover",
                                     .arguments = arguments,
                                     .limit_ms = PATIENCE_MS};
    struct answer answer;

    exchange(&request, &answer);
    bool done = answer.kind == ANSWER_DONE || has_ended(takeover, &answer) ||
                fail(takeover, err, answer.why);
    answer_release(&answer);
    json_decref(arguments);
    return done;
}

bool takeover_release(struct takeover *takeover, struct err *err)
{
    return ask(takeover, json_pack("{s:s}", "step", "release"), err);
}

bool takeover_finish(struct takeover *takeover, bool beside, struct err *err)
{
    json_t *arguments = json_pack("{s:s}", "step", "finish");

    if (beside)
        json_object_set_new(arguments, "beside", json_string(CTL_SET));
    return ask(takeover, arguments, err);
}

void takeover_close(struct takeover **takeover)
{
    struct takeover *t = *takeover;

    *takeover = NULL;
    if (t == NULL)
        return;
    if (t->fd >= 0)
        close(t->fd);
    mem_free(t);
}
