/*
 * Owns a stream socket, its poll handle, its TLS state and the bytes that the socket has not taken
 * yet.
 *
 * A connection is connecting, then open; shaking hands lies between, or comes later with STARTTLS.
 * Its memory goes in the close callback of its poll handle.
 */
#include "proxy/net/conn.h"

#include "proxy/base/buf.h"
#include "proxy/base/mem.h"
#include "proxy/net/tls_socket.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum conn_state { CONNECTING, HANDSHAKE, OPEN, BROKEN };

struct conn {
    const struct env *env;
    const struct conn_events *events;
    void *owner;
    void (*on_detached)(void *owner);
    struct tls_socket socket;
    const char *failure;
    struct buf queue;
    struct turn_task again; /* plaintext is left inside OpenSSL while the socket may stay silent */
    uv_poll_t poll;
    int watched; /* what the poll handle waits for now */
    int8_t late; /* CONN_EOF or CONN_BROKEN, met behind bytes that went first: for the next read */
    uint8_t state;
    bool read_on;
    bool end_wanted;        /* see conn_want_end */
    bool write_blocks_read; /* OpenSSL must write before it can read on */
    bool read_blocks_write; /* OpenSSL must read before it can write on */
    bool finish_when_drained, finished;
    bool write_failed;
};

static void on_poll(uv_poll_t *poll, int status, int events);
static void read_again(struct turn_task *task);
static void watch(struct conn *c);
static void step_handshake(struct conn *c);
static void flush_queue(struct conn *c);

/* --- opening and closing --- */

enum { KEEP_ALIVE_PROBES = 4 };

/* Failures do not matter: they mean that it is no TCP socket. */
void conn_set_options(int fd, const struct conf_tcp *conf)
{
    int idle_s = (int)(conf->keep_alive / 1000), user_timeout_ms = (int)conf->user_timeout;
    int interval_s = idle_s / KEEP_ALIVE_PROBES;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, interval_s > 0 ? &interval_s : &(int){1},
               sizeof(int));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &(int){KEEP_ALIVE_PROBES}, sizeof(int));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof user_timeout_ms);
}

static struct conn *conn_new(const struct env *env, int fd, const struct conn_events *events,
                             void *owner)
{
    struct conn *c = mem_new(sizeof *c);

    if (c == NULL || uv_poll_init(env->loop, &c->poll, fd) != 0) {
        mem_free(c);
        close(fd);
        return NULL;
    }
    c->env = env;
    c->events = events;
    c->owner = owner;
    c->socket.fd = fd;
    c->state = OPEN;
    c->again.run = read_again;
    c->poll.data = c;
    buf_init(&c->queue, CONN_QUEUE_MAX);
    return c;
}

struct conn *conn_open(const struct env *env, int fd, const struct conn_events *events, void *owner)
{
    struct conn *c = conn_new(env, fd, events, owner);

    if (c != NULL) {
        c->read_on = true;
        watch(c);
    }
    return c;
}

/* The port is chosen at connect: so ports are used again for other destinations. */
static bool bind_source(int fd, const union address *from)
{
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    return bind(fd, &from->any, address_size(from)) == 0;
}

struct conn *conn_connect(const struct env *env, const union address *to, const union address *from,
                          const struct conn_events *events, void *owner, struct err *err)
{
    int fd = socket(to->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bool scarce = fd < 0 && (errno == EMFILE || errno == ENFILE);
    struct conn *c = fd < 0 ? NULL : conn_new(env, fd, events, owner);

    if (c == NULL) {
        err_set(err, scarce ? ERR_LIMIT : ERR_UNAVAILABLE, "no socket: %s", strerrordesc_np(errno));
        return NULL;
    }
    conn_set_options(fd, &env->conf->tcp);
    c->read_on = true;
    c->state = CONNECTING;
    if (from != NULL && !bind_source(fd, from)) {
        err_set(err, ERR_UNAVAILABLE, "source_address: %s", strerrordesc_np(errno));
        conn_close(&c);
        return NULL;
    }
    if (connect(fd, &to->any, address_size(to)) != 0 && errno != EINPROGRESS) {
        err_set(err, ERR_UNAVAILABLE, "connect: %s", strerrordesc_np(errno));
        conn_close(&c);
        return NULL;
    }
    watch(c);
    return c;
}

static void handle_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

void conn_close(struct conn **conn)
{
    struct conn *c = *conn;

    *conn = NULL;
    if (c == NULL)
        return;
    turn_cancel(c->env->turn, &c->again);
    if (c->socket.tls != NULL) {
        if (c->state == OPEN && !c->finished) {
            ERR_clear_error();
            SSL_shutdown(c->socket.tls); /* says close_notify if the socket takes it now */
        }
        SSL_free(c->socket.tls);
    }
    buf_release(&c->queue);
    uv_close((uv_handle_t *)&c->poll, handle_closed);
    close(c->socket.fd);
}

void conn_set_owner(struct conn *conn, const struct conn_events *events, void *owner)
{
    conn->events = events;
    conn->owner = owner;
}

/* --- waiting for readiness --- */

static int wanted(const struct conn *c)
{
    int events = 0;

    if (c->state == CONNECTING)
        return UV_WRITABLE;
    if (c->state == BROKEN)
        return 0;
    if (c->state == HANDSHAKE)
        return SSL_want_write(c->socket.tls) ? UV_WRITABLE : UV_READABLE;
    if (c->read_on)
        events |= c->write_blocks_read ? UV_WRITABLE : UV_READABLE;
    else if (c->end_wanted)
        events |= UV_DISCONNECT;
    if (buf_len(&c->queue) > 0)
        events |= c->read_blocks_write ? UV_READABLE : UV_WRITABLE;
    return events;
}

static void watch_exactly(struct conn *c)
{
    int events = wanted(c);

    if (events == c->watched)
        return;
    c->watched = events;
    if (events == 0)
        uv_poll_stop(&c->poll);
    else
        uv_poll_start(&c->poll, events, on_poll); /* fails only on a closing handle */
}

/*
 * Waits at least for what is wanted. Each change costs system calls, and who stops reading mostly
 * goes on soon, before anything has come: so that is told to the poll handle only when something
 * comes that nobody wants. A socket is always writable, so of that it is told at once.
 */
static void watch(struct conn *c)
{
    int covered = c->watched | (c->watched & UV_READABLE ? UV_DISCONNECT : 0);
    int events = wanted(c);

    if ((events & ~covered) != 0 || (c->watched & ~events & UV_WRITABLE) != 0)
        watch_exactly(c);
}

/*
 * Nothing can be written any more. What the peer has sent before is still worth reading (a store
 * says BYE before it goes), so the owner is led to the read that meets the failure.
 */
static void fail_write(struct conn *c, const char *failure)
{
    c->write_failed = true;
    if (c->failure == NULL)
        c->failure = failure;
    buf_release(&c->queue);
    turn_post(c->env->turn, &c->again);
    watch(c);
}

static void fail(struct conn *c, const char *failure)
{
    c->state = BROKEN;
    if (c->failure == NULL)
        c->failure = failure;
    watch(c);
}

/* Calls the owner, who may close the connection: the last thing a caller does. */
static void tell_broken(struct conn *c)
{
    c->events->on_broken(c->owner);
}

static void step_connect(struct conn *c)
{
    int error = 0;
    socklen_t size = sizeof error;

    if (getsockopt(c->socket.fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
        error = errno;
    if (error != 0) {
        fail(c, strerrordesc_np(error));
        tell_broken(c);
        return;
    }
    c->state = OPEN;
    watch(c);
    c->events->on_open(c->owner);
}

/* The peer has ended its stream, or reset the connection, while nobody reads. */
static void hear_end(struct conn *c, bool reset)
{
    c->end_wanted = false;
    if (!reset) {
        watch(c);
        c->events->on_readable(c->owner);
        return;
    }
    fail(c, "reset by peer");
    tell_broken(c);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct conn *c = poll->data;

    if (status <
        0) /* an error on the socket; libuv has stopped the handle: reading tells what it is */
        c->watched = 0;
    if (c->state == CONNECTING) {
        step_connect(c);
        return;
    }
    if (c->state == HANDSHAKE) {
        step_handshake(c);
        return;
    }
    if (buf_len(&c->queue) > 0 &&
        (status < 0 || (events & (c->read_blocks_write ? UV_READABLE : UV_WRITABLE)))) {
        flush_queue(c);
        if (buf_len(&c->queue) == 0 && !c->write_failed) {
            watch(c);
            c->events->on_drained(
                c->owner); /* one event per call: a readable socket reports again */
            return;
        }
    }
    if (c->end_wanted && !c->read_on && (status < 0 || (events & UV_DISCONNECT))) {
        hear_end(c, status < 0);
        return;
    }
    if (c->read_on &&
        (status < 0 || (events & (c->write_blocks_read ? UV_WRITABLE : UV_READABLE)))) {
        watch(c);
        c->events->on_readable(c->owner);
    } else {
        watch_exactly(c);
    }
}

static void read_again(struct turn_task *task)
{
    struct conn *c = (struct conn *)((char *)task - offsetof(struct conn, again));

    if (c->read_on && c->state == OPEN)
        c->events->on_readable(c->owner);
    else if (c->write_failed)
        tell_broken(c);
}

void conn_want_end(struct conn *conn)
{
    assert(!conn->read_on);
    conn->end_wanted = true;
    watch(conn);
}

/* The socket may stay silent about it. */
static bool hides_something(const struct conn *c)
{
    return c->socket.tls != NULL && (c->late != 0 || SSL_has_pending(c->socket.tls));
}

void conn_want_read(struct conn *conn, bool on)
{
    conn->end_wanted = false;
    if (conn->read_on == on)
        return;
    conn->read_on = on;
    if (on && conn->state == OPEN && (conn->write_failed || hides_something(conn)))
        turn_post(conn->env->turn, &conn->again);
    watch(conn);
}

/* --- TLS --- */

/* Names the failure of an OpenSSL call: its own reason, else the system's. */
static const char *tls_failure(const SSL *tls)
{
    /* Of a bad signature the first error says no more than that. */
    bool unverified = ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_CERTIFICATE_VERIFY_FAILED;
    unsigned long code = ERR_get_error();
    long verify = SSL_get_verify_result(tls);

    if (verify != X509_V_OK && unverified)
        return X509_verify_cert_error_string(verify);
    const char *reason = code == 0 ? NULL : ERR_reason_error_string(code);
    if (reason != NULL)
        return reason;
    return errno == 0 ? "peer closed during TLS" : strerrordesc_np(errno);
}

static bool start_tls(struct conn *c, SSL_CTX *context)
{
    assert(c->socket.tls == NULL && c->state == OPEN && buf_len(&c->queue) == 0);
    ERR_clear_error();
    if (!tls_socket_start(&c->socket, context))
        return false;
    c->state = HANDSHAKE;
    return true;
}

bool conn_start_tls_server(struct conn *conn, SSL_CTX *context)
{
    if (!start_tls(conn, context))
        return false;
    SSL_set_accept_state(conn->socket.tls);
    watch(conn);
    return true;
}

bool conn_start_tls_client(struct conn *conn, SSL_CTX *context, const char *server_name,
                           struct tls_memory *memory)
{
    unsigned char numeric[sizeof(struct in6_addr)];

    if (!start_tls(conn, context))
        return false;
    SSL_set_connect_state(conn->socket.tls);
    X509_VERIFY_PARAM *param = SSL_get0_param(conn->socket.tls);
    bool is_numeric = inet_pton(AF_INET, server_name, numeric) == 1 ||
                      inet_pton(AF_INET6, server_name, numeric) == 1;
    bool named = is_numeric ? X509_VERIFY_PARAM_set1_ip_asc(param, server_name) == 1
                            : SSL_set_tlsext_host_name(conn->socket.tls, server_name) == 1 &&
                                  SSL_set1_host(conn->socket.tls, server_name) == 1;
    if (!named)
        return false;
    tls_memory_use(memory, conn->socket.tls);
    /* The client speaks first. */
    conn->watched = UV_WRITABLE;
    uv_poll_start(&conn->poll, UV_WRITABLE, on_poll);
    return true;
}

static void step_handshake(struct conn *c)
{
    ERR_clear_error();
    errno = 0;
    int result = SSL_do_handshake(c->socket.tls);

    if (result != 1) {
        int why = SSL_get_error(c->socket.tls, result);

        if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) {
            watch(c);
            return;
        }
        fail(c, tls_failure(c->socket.tls));
        tell_broken(c);
        return;
    }
    c->state = OPEN;
    if (c->read_on && SSL_has_pending(c->socket.tls)) /* data came with the last flight */
        turn_post(c->env->turn, &c->again);
    watch(c);
    c->events->on_open(c->owner);
}

void conn_end_secrecy(struct conn *conn)
{
    if (conn->socket.tls != NULL)
        SSL_clear_options(conn->socket.tls, SSL_OP_CLEANSE_PLAINTEXT);
}

SSL *conn_tls(const struct conn *conn)
{
    return conn->socket.tls;
}

/* --- reading --- */

static ssize_t read_plain(struct conn *c, char *bytes, size_t size)
{
    ssize_t count;

    do
        count = recv(c->socket.fd, bytes, size, 0);
    while (count < 0 && errno == EINTR);
    if (count > 0)
        return count;
    if (count == 0)
        return CONN_EOF;
    if (errno == EAGAIN || errno == EWOULDBLOCK)
        return CONN_AGAIN;
    fail(c, strerrordesc_np(errno));
    return CONN_BROKEN;
}

/* What an SSL_read without data means. */
static ssize_t read_verdict(struct conn *c)
{
    switch (SSL_get_error(c->socket.tls, 0)) {
    case SSL_ERROR_WANT_READ:
        return CONN_AGAIN;
    case SSL_ERROR_WANT_WRITE:
        c->write_blocks_read = true;
        watch(c);
        return CONN_AGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return CONN_EOF;
    default:
        /* A peer that closes TCP without close_notify: IMAP has its own end, LOGOUT and BYE. */
        if (ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
            return CONN_EOF;
        if (c->failure == NULL)
            c->failure = tls_failure(c->socket.tls);
        return CONN_BROKEN;
    }
}

static ssize_t read_tls(struct conn *c, char *bytes, size_t size)
{
    size_t total = 0;

    c->write_blocks_read = false;
    if (c->late == CONN_BROKEN)
        fail(c, c->failure);
    if (c->late != 0)
        return c->late;
    do {
        size_t count = 0;

        ERR_clear_error();
        errno = 0;
        if (SSL_read_ex(c->socket.tls, bytes + total, size - total, &count) != 1) {
            ssize_t verdict = read_verdict(c);

            /* Bytes before an end or a failure go first; the next call hears of it. */
            if (total > 0 && verdict < 0) {
                c->late = (int8_t)verdict;
                turn_post(c->env->turn, &c->again);
            } else if (verdict == CONN_BROKEN) {
                fail(c, c->failure);
            }
            return total > 0 ? (ssize_t)total : verdict;
        }
        total += count;
    } while (total < size && SSL_has_pending(c->socket.tls));
    if (SSL_has_pending(c->socket.tls))
        turn_post(c->env->turn, &c->again);
    return (ssize_t)total;
}

ssize_t conn_read(struct conn *conn, char *bytes, size_t size)
{
    assert(size > 0);
    if (conn->state == BROKEN)
        return CONN_BROKEN;
    ssize_t count =
        conn->socket.tls != NULL ? read_tls(conn, bytes, size) : read_plain(conn, bytes, size);
    if (conn->write_failed && count == CONN_AGAIN)
        return CONN_BROKEN;
    if (conn->write_failed && count > 0)
        turn_post(conn->env->turn, &conn->again);
    return count;
}

/* --- writing --- */

/*
 * Of so many bytes the second record is the last one, and not full: it may as well go in one
 * segment with the first. Full ones are better sent one by one, for then the peer works meanwhile.
 */
static bool has_short_rest(size_t len)
{
    return len > SSL3_RT_MAX_PLAIN_LENGTH && len < 2 * SSL3_RT_MAX_PLAIN_LENGTH;
}

/* Writes what the socket takes now; false when the connection is broken. */
static bool write_some(struct conn *c, struct span bytes, size_t *written_out)
{
    size_t total = 0;

    while (total < bytes.len) {
        size_t count = 0;

        errno = 0;
        if (c->socket.tls != NULL) {
            ERR_clear_error();
            c->socket.more = has_short_rest(bytes.len - total);
            int done = SSL_write_ex(c->socket.tls, bytes.ptr + total, bytes.len - total, &count);
            c->socket.more = false; /* OpenSSL has words of its own: alerts, new keys */
            if (done != 1) {
                int why = SSL_get_error(c->socket.tls, 0);

                c->read_blocks_write = why == SSL_ERROR_WANT_READ;
                if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
                    break;
                fail_write(c, tls_failure(c->socket.tls));
                return false;
            }
            c->read_blocks_write = false;
        } else {
            ssize_t sent = send(c->socket.fd, bytes.ptr + total, bytes.len - total, MSG_NOSIGNAL);

            if (sent < 0 && errno == EINTR)
                continue;
            if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
                break;
            if (sent < 0) {
                fail_write(c, strerrordesc_np(errno));
                return false;
            }
            count = (size_t)sent;
        }
        total += count;
    }
    *written_out = total;
    return true;
}

static void finish_now(struct conn *c)
{
    c->finish_when_drained = false;
    if (c->finished)
        return;
    c->finished = true;
    if (c->socket.tls != NULL) {
        ERR_clear_error();
        SSL_shutdown(c->socket.tls);
    }
    shutdown(c->socket.fd, SHUT_WR); /* not connected any more: reading tells */
}

static void flush_queue(struct conn *c)
{
    size_t written = 0;

    if (!write_some(c, buf_span(&c->queue), &written))
        return;
    buf_consume(&c->queue, written);
    if (buf_len(&c->queue) == 0 && c->finish_when_drained)
        finish_now(c);
}

bool conn_write(struct conn *conn, struct span bytes)
{
    size_t written = 0;

    if (conn->state == BROKEN || conn->write_failed || conn->finished)
        return false;
    if (bytes.len == 0)
        return true;
    if (buf_len(&conn->queue) == 0 && !write_some(conn, bytes, &written))
        return false;
    if (!buf_append(&conn->queue, span_after(bytes, written))) {
        fail_write(conn, "output queue is full");
        return false;
    }
    watch(conn);
    return true;
}

void conn_hurry(struct conn *conn)
{
    setsockopt(conn->socket.fd, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
}

size_t conn_queued(const struct conn *conn)
{
    return buf_len(&conn->queue);
}

size_t conn_unacknowledged(const struct conn *conn)
{
    int in_kernel = 0;

    if (ioctl(conn->socket.fd, SIOCOUTQ, &in_kernel) != 0 || in_kernel < 0)
        in_kernel = 0; /* no TCP socket */
    return buf_len(&conn->queue) + (size_t)in_kernel;
}

void conn_finish(struct conn *conn)
{
    if (conn->state == BROKEN || conn->write_failed)
        return;
    if (buf_len(&conn->queue) == 0)
        finish_now(conn);
    else
        conn->finish_when_drained = true;
}

/* --- hand-over --- */

static void handle_detached(uv_handle_t *handle)
{
    struct conn *c = handle->data;

    c->env = NULL;
    c->on_detached(c->owner);
}

void conn_detach(struct conn *conn, void (*on_detached)(void *owner))
{
    assert(conn->state == OPEN);
    turn_cancel(conn->env->turn, &conn->again);
    conn->on_detached = on_detached;
    conn->watched = 0;
    conn->read_on = false;
    uv_close((uv_handle_t *)&conn->poll, handle_detached);
}

bool conn_attach(struct conn **conn, const struct env *env)
{
    struct conn *c = *conn;

    c->env = env;
    if (uv_poll_init(env->loop, &c->poll, c->socket.fd) != 0) {
        *conn = NULL;
        SSL_free(c->socket.tls);
        buf_release(&c->queue);
        close(c->socket.fd);
        mem_free(c);
        return false;
    }
    c->poll.data = c;
    watch(c);
    return true;
}

/* --- telling --- */

const char *conn_failure(const struct conn *conn)
{
    return conn->failure == NULL ? "closed by peer" : conn->failure;
}

int conn_fd(const struct conn *conn)
{
    return conn->socket.fd;
}
