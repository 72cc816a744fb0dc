/*
 * Owns the connections of administration. Each is in one of three states: it waits for a request;
 * a call is under way (`busy`), and only the end of the connection is listened for; an answer is on
 * its way, and the next request is taken when it has left.
 */
#include "proxy/admin/admin.h"

#include "proxy/admin/admin_socket.h"
#include "proxy/base/buf.h"
#include "proxy/base/json_text.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/conn.h"
#include "proxy/net/listener.h"

#include <assert.h>
#include <poll.h>
#include <stdarg.h>
#include <unistd.h>
#include <utlist.h>

enum {
    CLIENTS_MAX = 64, /* a tool may carry out 32 moves at a time, and others ask, too */
    READERS_MAX = 48, /* with so many here only operators are let in */
    REQUEST_MAX = 64 * 1024,
    READ_SIZE = 4096,
    PATIENCE_MS = 10000 /* to take an answer and send the next request */
};

struct admin_client {
    struct admin *admin;
    struct admin_client *prev, *next;
    struct conn *conn;
    struct buf input;
    struct turn_task go_on;
    uv_timer_t deadline;
    struct ucred peer;
    enum ctl_level level;
    struct admin_call call;
    bool busy;
    bool ended;  /* no request comes any more, or none shall */
    bool failed; /* an answer is lost */
};

struct admin {
    const struct env *env;
    const struct conf *conf; /* of the start: held, for the section admin stays the same */
    admin_handler *const *handlers;
    void *context;
    struct admin_socket socket;
    struct listener *listener;
    struct admin_client *clients;
    size_t count;
};

static void on_accept(void *owner, int fd, const union address *peer,
                      const struct conf_listener *conf);

/* --- life --- */

struct admin *admin_open(const struct env *env, bool beside, admin_handler *const *handlers,
                         void *context, struct err *err)
{
    struct admin *admin = mem_new(sizeof *admin);

    if (admin == NULL) {
        err_set(err, ERR_INTERNAL, "admin: no memory");
        return NULL;
    }
    admin->env = env;
    admin->handlers = handlers;
    admin->context = context;
    admin->conf = conf_hold(env->conf);
    if (!admin_socket_open(&admin->socket, &admin->conf->admin, beside, err)) {
        conf_release(&admin->conf);
        mem_free(admin);
        return NULL;
    }
    admin->listener = listener_open(env, admin->socket.fd, NULL, on_accept, admin);
    if (admin->listener == NULL) {
        err_set(err, ERR_INTERNAL, "admin: no memory");
        admin_close(&admin);
        return NULL;
    }
    listener_start(admin->listener);
    return admin;
}

static void on_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

static void close_client(struct admin_client *client)
{
    struct admin *admin = client->admin;

    DL_DELETE(admin->clients, client);
    admin->count--;
    if (client->busy && client->call.cancel != NULL)
        client->call.cancel(&client->call);
    ctl_request_release(&client->call.request);
    turn_cancel(admin->env->turn, &client->go_on);
    conn_close(&client->conn);
    buf_release(&client->input);
    uv_close((uv_handle_t *)&client->deadline, on_closed);
}

void admin_close(struct admin **admin)
{
    struct admin *a = *admin;

    *admin = NULL;
    if (a == NULL)
        return;
    while (a->clients != NULL)
        close_client(a->clients);
    admin_socket_remove(&a->socket);
    listener_close(&a->listener);
    conf_release(&a->conf);
    mem_free(a);
}

bool admin_give_place(struct admin *admin, pid_t pid, struct err *err)
{
    return admin_socket_give_place(&admin->socket, pid, err);
}

void admin_take_place(struct admin *admin)
{
    if (admin != NULL)
        admin_socket_take_place(&admin->socket);
}

/* --- who connects --- */

static void on_open(void *owner);
static void on_readable(void *owner);
static void on_drained(void *owner);
static void on_broken(void *owner);
static void on_deadline(uv_timer_t *timer);
static void go_on(struct turn_task *task);

static const struct conn_events events = {on_open, on_readable, on_drained, on_broken};

/*
 * Without texts of any length, which may be commands with passwords in them. NULL without memory.
 */
static char *dump_arguments(const struct ctl_request *request)
{
    static const char *const secret[] = {"record", "csv"};
    json_t *shown = json_copy(request->arguments);

    for (size_t i = 0; i < sizeof secret / sizeof *secret; i++)
        if (json_object_get(shown, secret[i]) != NULL)
            json_object_set_new(shown, secret[i], json_string("..."));
    char *text = json_dumps(shown, JSON_COMPACT);
    json_decref(shown);
    return text;
}

/* imapmuxctl says it every few moments as long as it works: nobody has decided anything. */
static bool is_sign_of_life(const struct ctl_command *command)
{
    return command == &ctl_commands[CTL_ID_cutover_look] ||
           command == &ctl_commands[CTL_ID_wave_hold] ||
           command == &ctl_commands[CTL_ID_trace_fetch]; /* `trace` tells who is listened to */
}

/* Whoever changes something, or tries to, is known afterwards. `request` may be NULL. */
static void log_peer(enum conf_log_level level, const char *event, const struct ucred *peer,
                     const struct ctl_request *request)
{
    char *arguments = request == NULL ? NULL : dump_arguments(request);
    struct log_line line;

    log_begin(&line, level, event);
    log_text(&line, "command", request == NULL ? NULL : request->command->name);
    log_text(&line, "arguments", arguments);
    log_number(&line, "uid", peer->uid);
    log_number(&line, "pid", (uint64_t)peer->pid);
    if (request != NULL && is_sign_of_life(request->command))
        log_write_limited(&line, request->command->name);
    else
        log_write(&line);
    mem_free(arguments);
}

/* A word to somebody who is not let in; it fits in any socket. */
static void turn_away(int fd, const char *line)
{
    if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
        log_event(LOG_LEVEL_DEBUG, "refused", "client of administration left first");
    close(fd);
}

static void on_accept(void *owner, int fd, const union address *peer,
                      const struct conf_listener *conf)
{
    struct admin *admin = owner;
    struct ucred who = {0};
    enum ctl_level level = admin_socket_level(&admin->socket, fd, &who);

    (void)peer;
    (void)conf;
    if (level == CTL_NOTHING) {
        log_peer(LOG_LEVEL_WARNING, "admin refused", &who, NULL);
        turn_away(fd, "{\"ok\":false,\"error\":\"you may not do anything here\"}\n");
        return;
    }
    if (admin->count >= (level == CTL_OPERATE ? CLIENTS_MAX : READERS_MAX)) {
        turn_away(fd, "{\"ok\":false,\"error\":\"too many connections\",\"again\":true}\n");
        return;
    }
    struct admin_client *client = mem_new(sizeof *client);
    if (client == NULL) {
        close(fd);
        return;
    }
    client->conn = conn_open(admin->env, fd, &events, client);
    if (client->conn == NULL) {
        mem_free(client);
        return;
    }
    client->admin = admin;
    client->peer = who;
    client->level = level;
    client->go_on.run = go_on;
    buf_init(&client->input, REQUEST_MAX + READ_SIZE);
    uv_timer_init(admin->env->loop, &client->deadline);
    client->deadline.data = client;
    uv_timer_start(&client->deadline, on_deadline, PATIENCE_MS, 0);
    DL_APPEND(admin->clients, client);
    admin->count++;
}

static void on_deadline(uv_timer_t *timer)
{
    close_client(timer->data);
}

/* --- answers --- */

/* Adds the line that this is; false when it is too long, or without memory. */
static bool add_line(struct buf *buf, const json_t *json)
{
    size_t size = json_dumpb(json, NULL, 0, JSON_COMPACT); /* 0: failed */
    char *room = size == 0 ? NULL : buf_reserve(buf, size + 1);

    if (room == NULL || json_dumpb(json, room, size, JSON_COMPACT) != size)
        return false;
    room[size] = '\n';
    buf_commit(buf, size + 1);
    return true;
}

/*
 * If it cannot be written the client is let go, in the next turn, and told no more: else a list
 * with a gap would look complete. Takes over the reference.
 */
static void write_line(struct admin_client *client, json_t *json)
{
    struct buf line;

    buf_init(&line, CONN_QUEUE_MAX);
    if (!client->failed && json != NULL && add_line(&line, json)) {
        conn_write(client->conn, buf_span(&line)); /* a failure is an event */
    } else if (!client->failed) {
        log_event(LOG_LEVEL_WARNING, "admin",
                  "an answer is too long, or there is no memory for it");
        client->failed = true;
        turn_post(client->admin->env->turn, &client->go_on);
    }
    buf_release(&line);
    json_decref(json);
}

/* The next request has its turn when this answer has left. */
static void end_call(struct admin_client *client, json_t *answer)
{
    assert(client->busy);
    write_line(client, answer);
    ctl_request_release(&client->call.request);
    client->busy = false;
    uv_timer_start(&client->deadline, on_deadline, PATIENCE_MS, 0);
    turn_post(client->admin->env->turn, &client->go_on);
}

const char *admin_argument(const struct admin_call *call, const char *name)
{
    return ctl_request_argument(&call->request, name);
}

void admin_item(struct admin_call *call, json_t *item)
{
    assert(call->client->busy);
    write_line(call->client, json_pack("{s:o}", "item", item));
}

bool admin_pass(struct admin_call *call, json_t *item, const int *fds, size_t count)
{
    union {
        char bytes[CMSG_SPACE(ADMIN_PASS_MAX * sizeof(int))];
        struct cmsghdr header; /* for its alignment */
    } control = {0};
    json_t *json = json_pack("{s:o}", "item", item);
    struct buf line;
    struct iovec text = {0};
    struct msghdr message = {.msg_iov = &text,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    bool sent = false;

    assert(call->client->busy && count <= ADMIN_PASS_MAX);
    *header = (struct cmsghdr){.cmsg_len = CMSG_LEN(count * sizeof(int)),
                               .cmsg_level = SOL_SOCKET,
                               .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    buf_init(&line, READ_SIZE);
    if (json != NULL && add_line(&line, json) && admin_queued(call) == 0) {
        struct span bytes = buf_span(&line);

        text = (struct iovec){(void *)bytes.ptr, bytes.len};
        sent = sendmsg(conn_fd(call->client->conn), &message, MSG_NOSIGNAL) == (ssize_t)bytes.len;
    }
    buf_release(&line);
    json_decref(json);
    return sent;
}

pid_t admin_peer(const struct admin_call *call)
{
    return call->client->peer.pid;
}

size_t admin_queued(const struct admin_call *call)
{
    return conn_queued(call->client->conn);
}

void admin_answer(struct admin_call *call, json_t *result)
{
    if (result == NULL)
        admin_refuse(call, "out of memory");
    else
        end_call(call->client, json_pack("{s:b, s:o}", "ok", 1, "result", result));
}

json_t *admin_text(const char *text)
{
    return json_text(text);
}

void admin_fail(struct admin_call *call, const struct err *err)
{
    json_t *answer = json_pack("{s:b, s:o}", "ok", 0, "error", admin_text(err->text));

    if (answer != NULL && err->kind == ERR_UNAVAILABLE)
        json_object_set_new(answer, "again", json_true());
    end_call(call->client, answer);
}

void admin_refuse(struct admin_call *call, const char *format, ...)
{
    struct err err = {.kind = ERR_PEER};
    va_list args;

    va_start(args, format);
    vsnprintf(err.text, sizeof err.text, format, args);
    va_end(args);
    admin_fail(call, &err);
}

/* --- requests --- */

static void handle(struct admin_client *client)
{
    struct admin_call *call = &client->call;
    enum ctl_level level = ctl_request_level(&call->request);

    if (level > client->level) {
        log_peer(LOG_LEVEL_WARNING, "admin refused", &client->peer, &call->request);
        admin_refuse(call, "this is for operators only");
        return;
    }
    log_peer(level > CTL_READ ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, "admin", &client->peer,
             &call->request);
    client->admin->handlers[call->request.command - ctl_commands](call);
}

static void begin(struct admin_client *client, struct span line)
{
    struct admin_call *call = &client->call;
    struct err err = {0};

    *call = (struct admin_call){.context = client->admin->context, .client = client};
    client->busy = true;
    uv_timer_stop(&client->deadline);
    conn_want_read(client->conn, false);
    conn_want_end(client->conn);
    bool ok = ctl_request_read(&call->request, line, &err);
    buf_consume(&client->input, line.len + 1);
    if (ok)
        handle(client);
    else
        admin_refuse(call, "%s", err.text);
}

static void refuse_length(struct admin_client *client)
{
    client->call = (struct admin_call){.client = client};
    client->busy = client->ended = true;
    conn_want_read(client->conn, false);
    buf_release(&client->input);
    admin_refuse(&client->call, "a request has at most %d octets", REQUEST_MAX);
}

/* Takes the next request if it is there, and its turn has come; else waits for it. */
static void go_on(struct turn_task *task)
{
    struct admin_client *client =
        (struct admin_client *)((char *)task - offsetof(struct admin_client, go_on));
    struct span input = buf_span(&client->input);
    const char *end = memchr(input.ptr, '\n', input.len);
    size_t len = end == NULL ? input.len : (size_t)(end - input.ptr);

    if (client->failed) {
        close_client(client);
    } else if (client->busy || conn_queued(client->conn) > 0) {
        return; /* on_drained comes */
    } else if (len > REQUEST_MAX) {
        refuse_length(client);
    } else if (end != NULL) {
        begin(client, (struct span){input.ptr, len});
    } else if (client->ended) {
        close_client(client);
    } else {
        conn_want_read(client->conn, true);
    }
}

/* --- events --- */

static void on_open(void *owner)
{
    (void)owner; /* it was open from the start */
}

/*
 * While a call is under way the client has ended its stream. If it has only said all that it wanted
 * (shutdown(2)), it still waits for answers.
 */
static void hear_end(struct admin_client *client)
{
    struct pollfd state = {.fd = conn_fd(client->conn)};

    if (poll(&state, 1, 0) > 0) /* no event is wanted: it is gone both ways, or broken */
        close_client(client);
}

static void on_readable(void *owner)
{
    struct admin_client *client = owner;
    char bytes[READ_SIZE];

    if (client->busy) {
        hear_end(client);
        return;
    }
    ssize_t count = conn_read(client->conn, bytes, sizeof bytes);
    if (count == CONN_EOF) {
        client->ended = true;
        conn_want_read(client->conn, false);
    }
    if (count == CONN_BROKEN ||
        (count > 0 && !buf_append(&client->input, (struct span){bytes, (size_t)count})))
        close_client(client); /* of its length go_on would have said something */
    else
        go_on(&client->go_on);
}

static void on_drained(void *owner)
{
    struct admin_client *client = owner;

    if (client->busy && client->call.on_drained != NULL)
        client->call.on_drained(&client->call);
    else
        go_on(&client->go_on);
}

static void on_broken(void *owner)
{
    close_client(owner);
}
