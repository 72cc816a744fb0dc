/*
 * Owns a client's socket, its TLS state and ticket, and the place in its list of commands. Every
 * answer is checked: tags, the size that a literal announces, what follows it.
 */
#include "bench/client.h"

#include "bench/wire.h"
#include "proxy/base/mem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { TAG_MAX = 16, SLOW_RECEIVE_BUFFER = 64 * 1024 };

enum phase { CLOSED, CONNECTING, HANDSHAKE, TALKING, ENDING, FINISHED };

struct client {
    struct run *run;
    unsigned number;
    enum phase phase;
    int fd;
    uint32_t watched;
    SSL *tls;
    SSL_SESSION *ticket;
    bool is_ready;        /* has told so */
    enum command command; /* under way */
    unsigned position;    /* in the opening: of what comes next */
    unsigned tag_number;
    char tag[TAG_MAX];
    unsigned bodies;    /* that the answer under way has brought */
    bool inside;        /* the next line goes on behind a literal */
    uint64_t began_ns;  /* this unit */
    uint64_t allowance; /* octets that may be read now, if the run has a rate */
    struct wire_in in;
    struct wire_out out;
};

static void begin_unit(struct client *c);
static void open_connection(struct client *c);

struct client *client_new(struct run *run, unsigned number)
{
    struct client *c = mem_new(sizeof *c);

    if (c == NULL) {
        perror("client");
        exit(1);
    }
    c->run = run;
    c->number = number;
    c->fd = -1;
    return c;
}

static bool connects_for_each_unit(const struct client *c)
{
    return c->run->workload->repeated == NONE;
}

static void close_connection(struct client *c)
{
    if (c->tls != NULL) {
        SSL_shutdown(c->tls); /* without it OpenSSL would take the ticket for spoilt */
        SSL_set_shutdown(c->tls, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_free(c->tls);
        ERR_clear_error();
    }
    if (c->fd >= 0)
        close(c->fd);
    c->tls = NULL;
    c->fd = -1;
    c->phase = CLOSED;
}

void client_free(struct client *client)
{
    close_connection(client);
    SSL_SESSION_free(client->ticket);
    mem_free(client);
}

/* A ready client waits for client_start. */
static void become_ready(struct client *c)
{
    if (!c->is_ready) {
        c->is_ready = true;
        c->run->ready++;
    }
}

static void finish(struct client *c)
{
    close_connection(c);
    c->phase = FINISHED;
    c->run->finished++;
}

static void fail(struct client *c, const char *what, const char *words)
{
    run_error(c->run, what, words);
    close_connection(c);
    if (c->run->going && connects_for_each_unit(c))
        begin_unit(c);
    else
        finish(c);
}

static void watch(struct client *c, uint32_t events)
{
    if (c->watched == events)
        return;
    c->watched = events;
    epoll_ctl(c->run->epoll, EPOLL_CTL_MOD, c->fd,
              &(struct epoll_event){.events = events, .data.ptr = c});
}

/* --- units --- */

void client_prepare(struct client *client)
{
    if (connects_for_each_unit(client) && !client->run->resume)
        become_ready(client);
    else
        open_connection(client);
}

void client_start(struct client *client)
{
    if (client->phase != FINISHED)
        begin_unit(client);
}

static void end_unit(struct client *c)
{
    if (c->run->going) {
        c->run->units_done++;
        begin_unit(c);
    } else {
        become_ready(c);
    }
}

/* --- commands --- */

/* False, after `fail`, if the connection is lost. */
static bool flush(struct client *c)
{
    struct iovec parts[WIRE_PARTS];

    while (wire_out_parts(&c->out, parts) > 0) {
        int sent = c->tls == NULL
                       ? (int)send(c->fd, parts[0].iov_base, parts[0].iov_len, MSG_NOSIGNAL)
                       : SSL_write(c->tls, parts[0].iov_base, (int)parts[0].iov_len);
        bool blocked =
            sent <= 0 && (c->tls == NULL ? errno == EAGAIN
                                         : SSL_get_error(c->tls, sent) == SSL_ERROR_WANT_WRITE);
        if (blocked) {
            watch(c, EPOLLIN | EPOLLOUT);
            return true;
        }
        if (sent <= 0) {
            fail(c, "write", strerror(errno));
            return false;
        }
        c->run->bytes_out += (uint64_t)sent;
        wire_out_sent(&c->out, (size_t)sent);
    }
    watch(c, EPOLLIN);
    return true;
}

static void put_command(struct client *c, enum command command)
{
    struct run *run = c->run;
    unsigned long long size = run->size;

    switch (command) {
    case LOGIN:
        wire_out_text(&c->out, "%s LOGIN user%u %s\r\n", c->tag,
                      run->first_user + (unsigned)(run->connections++ % run->users), run->password);
        break;
    case SELECT:
        wire_out_text(&c->out, "%s SELECT INBOX\r\n", c->tag);
        break;
    case FETCH:
        wire_out_text(&c->out, "%s FETCH 1 BODY[]<0.%llu>\r\n", c->tag, size);
        break;
    case APPEND:
        wire_out_text(&c->out, "%s APPEND INBOX {%llu+}\r\n", c->tag, size);
        wire_out_body(&c->out, size, "\r\n");
        break;
    case NOOP:
        wire_out_text(&c->out, "%s NOOP\r\n", c->tag);
        break;
    case IDLE:
        wire_out_text(&c->out, "%s IDLE\r\n", c->tag);
        break;
    case LOGOUT:
        wire_out_text(&c->out, "%s LOGOUT\r\n", c->tag);
        break;
    case NONE:
    case GREETING:
    case WAKE_UP: /* are only waited for */
        break;
    }
}

static bool give_command(struct client *c, enum command command)
{
    c->command = command;
    c->bodies = 0;
    snprintf(c->tag, sizeof c->tag, "c%u", c->tag_number++);
    put_command(c, command);
    return flush(c);
}

static void begin_unit(struct client *c)
{
    struct run *run = c->run;

    c->began_ns = now_ns();
    if (c->began_ns > run->ends_ns ||
        (run->units_wanted > 0 && run->units_begun == run->units_wanted)) {
        finish(c);
        return;
    }
    run->units_begun++;
    if (connects_for_each_unit(c))
        open_connection(c);
    else
        give_command(c, run->workload->repeated);
}

/* The command under way has been answered with OK. False if the connection is not ours any more. */
static bool go_on(struct client *c)
{
    const struct workload *workload = c->run->workload;

    if (c->run->going && c->command == workload->measured)
        samples_add(&c->run->samples, now_ns() - c->began_ns);
    if (c->position < OPENING_MAX && workload->opening[c->position] != NONE)
        return give_command(c, workload->opening[c->position++]);
    c->command = NONE;
    if (connects_for_each_unit(c))
        c->phase = ENDING;
    else
        end_unit(c);
    return c->phase == TALKING || c->phase == ENDING;
}

/* --- answers --- */

/* True if `line` is "TAG OK ..." */
static bool is_tagged_ok(const struct client *c, const char *line)
{
    size_t length = strlen(c->tag);

    return strncmp(line, c->tag, length) == 0 && strncmp(line + length, " OK ", 4) == 0;
}

static bool refuse(struct client *c, const char *what, const char *line)
{
    fail(c, what, line);
    return false;
}

static bool take_untagged(struct client *c, const char *line)
{
    if (c->in.literal > 0) {
        if (c->command != FETCH || c->in.literal != c->run->size)
            return refuse(c, "literal of another size", line);
        c->bodies++;
        c->inside = true;
    }
    if (c->command == WAKE_UP && strstr(line, " EXISTS") != NULL)
        return go_on(c);
    return true;
}

/* False if the connection is not ours any more: nothing more is to be read from it. */
static bool take_line(struct client *c, const char *line)
{
    bool goes_on_inside = c->inside;

    c->inside = false;
    if (goes_on_inside)
        return strcmp(line, ")") == 0 ? true : refuse(c, "not the end of FETCH", line);
    if (c->command == GREETING)
        return strncmp(line, "* OK ", 5) == 0 ? go_on(c) : refuse(c, "greeting", line);
    if (strncmp(line, "* ", 2) == 0)
        return take_untagged(c, line);
    if (c->command == IDLE && line[0] == '+')
        return go_on(c);
    if (c->command == NONE || c->command == IDLE || !is_tagged_ok(c, line))
        return refuse(c, "answer", line);
    if (c->bodies != (c->command == FETCH))
        return refuse(c, "not one body", line);
    return go_on(c);
}

static void take_end(struct client *c)
{
    if (c->phase != ENDING) {
        fail(c, "connection closed", "");
        return;
    }
    close_connection(c);
    end_unit(c);
}

/* As recv: -1 with EAGAIN if nothing is there. A close without close_notify is an end, too. */
static ssize_t receive(struct client *c, char *space, size_t size)
{
    if (c->tls == NULL)
        return recv(c->fd, space, size, 0);
    errno = 0;
    int count = SSL_read(c->tls, space, (int)size);
    if (count > 0)
        return count;
    int why = SSL_get_error(c->tls, count);
    if (why == SSL_ERROR_WANT_READ)
        errno = EAGAIN;
    return why == SSL_ERROR_WANT_READ || (why == SSL_ERROR_SYSCALL && errno != 0) ? -1 : 0;
}

/* Before it waits: what has been read is acknowledged now, not with the next command. */
static void acknowledge(struct client *c)
{
    if (!c->run->late_acks)
        setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
}

static bool is_slowed(const struct client *c)
{
    return c->run->rate > 0 && c->run->going;
}

static void read_answers(struct client *c)
{
    while (true) {
        size_t size;
        char *line, *space;

        while ((line = wire_in_line(&c->in)) != NULL)
            if (!take_line(c, line))
                return;
        space = wire_in_space(&c->in, &size);
        if (size == 0) {
            fail(c, "line too long", "");
            return;
        }
        if (is_slowed(c) && size > c->allowance)
            size = (size_t)c->allowance;
        if (size == 0) {
            watch(c, 0);
            return;
        }
        ssize_t count = receive(c, space, size);
        if (count < 0 && errno == EAGAIN) {
            acknowledge(c);
            return;
        }
        if (count < 0) {
            fail(c, "read", strerror(errno));
            return;
        }
        if (count == 0) {
            take_end(c);
            return;
        }
        if (is_slowed(c))
            c->allowance -= (uint64_t)count;
        c->run->bytes_in += (uint64_t)count;
        wire_in_filled(&c->in, (size_t)count);
    }
}

void client_allow(struct client *client, uint64_t octets)
{
    client->allowance = octets;
    if (client->phase == TALKING) {
        watch(client, EPOLLIN);
        read_answers(client);
    }
}

/* --- connecting --- */

static int take_ticket(SSL *tls, SSL_SESSION *ticket)
{
    struct client *c = SSL_get_app_data(tls);

    SSL_SESSION_free(c->ticket);
    c->ticket = ticket;
    return 1; /* it is ours now */
}

void client_keep_tickets(SSL_CTX *context)
{
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, take_ticket);
}

static void set_options(struct client *c)
{
    struct sockaddr_in from = {.sin_family = AF_INET};

    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + c->number % c->run->sources);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    if (c->run->rate > 0)
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &(int){SLOW_RECEIVE_BUFFER}, sizeof(int));
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from) != 0)
        perror("bind");
}

static void open_connection(struct client *c)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(c->run->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        perror("socket");
        exit(1);
    }
    c->phase = CONNECTING;
    c->command = GREETING;
    c->position = 0;
    c->inside = false;
    c->in.begin = c->in.end = 0;
    c->in.literal = 0;
    c->out = (struct wire_out){0};
    c->watched = EPOLLOUT;
    set_options(c);
    epoll_ctl(c->run->epoll, EPOLL_CTL_ADD, c->fd,
              &(struct epoll_event){.events = c->watched, .data.ptr = c});
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) != 0 && errno != EINPROGRESS) {
        perror("connect");
        exit(1);
    }
}

static void start_tls(struct client *c)
{
    c->tls = SSL_new(c->run->tls);
    if (c->tls == NULL || SSL_set_fd(c->tls, c->fd) != 1) {
        fprintf(stderr, "no memory for TLS\n");
        exit(1);
    }
    SSL_set_app_data(c->tls, c);
    SSL_set_connect_state(c->tls);
    if (c->run->resume && c->ticket != NULL)
        SSL_set_session(c->tls, c->ticket);
    c->phase = HANDSHAKE;
}

/* False unless the handshake is done. */
static bool shake_hands(struct client *c)
{
    int result = SSL_do_handshake(c->tls);

    if (result == 1) {
        if (c->run->going && SSL_session_reused(c->tls))
            c->run->resumed++;
        c->phase = TALKING;
        watch(c, EPOLLIN);
        return true;
    }
    int why = SSL_get_error(c->tls, result);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) {
        watch(c, why == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
        acknowledge(c);
    } else {
        fail(c, "TLS handshake", ERR_reason_error_string(ERR_get_error()));
    }
    return false;
}

static bool connected(struct client *c)
{
    int error = 0;
    socklen_t size = sizeof error;

    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0)
        return refuse(c, "connect", strerror(error));
    if (c->run->tls != NULL) {
        start_tls(c);
        return true;
    }
    c->phase = TALKING;
    watch(c, EPOLLIN);
    return true;
}

void client_event(struct client *client, uint32_t events)
{
    ERR_clear_error();
    if (client->phase == CONNECTING && !connected(client))
        return;
    if (client->phase == HANDSHAKE && !shake_hands(client))
        return;
    if (client->phase != TALKING && client->phase != ENDING)
        return;
    if ((events & EPOLLOUT) && !flush(client))
        return;
    read_answers(client);
}
