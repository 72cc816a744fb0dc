/* Owns the one BIO method through which all TLS connections reach their sockets. */
#include "proxy/net/tls_socket.h"

#include <errno.h>
#include <sys/socket.h>
#include <uv.h>

static BIO_METHOD *method;
static uv_once_t method_once = UV_ONCE_INIT;

static bool may_retry(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

static int write_some(BIO *bio, const char *bytes, int len)
{
    const struct tls_socket *socket = BIO_get_data(bio);
    /* The greeting follows a ticket. */
    bool more = socket->more || SSL_get_state(socket->tls) == TLS_ST_SW_SESSION_TICKET;
    ssize_t sent = send(socket->fd, bytes, (size_t)len, MSG_NOSIGNAL | (more ? MSG_MORE : 0));

    BIO_clear_retry_flags(bio);
    if (sent < 0 && may_retry())
        BIO_set_retry_write(bio);
    return (int)sent;
}

static int read_some(BIO *bio, char *bytes, int size)
{
    const struct tls_socket *socket = BIO_get_data(bio);
    ssize_t count = recv(socket->fd, bytes, (size_t)size, 0);

    BIO_clear_retry_flags(bio);
    if (count < 0 && may_retry())
        BIO_set_retry_read(bio);
    if (count == 0)
        BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
    return (int)count;
}

static long control(BIO *bio, int command, long number, void *pointer)
{
    (void)number;
    (void)pointer;
    switch (command) {
    case BIO_CTRL_FLUSH:
        return 1; /* nothing is held here */
    case BIO_CTRL_EOF:
        return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
    default:
        return 0;
    }
}

static void make_method(void)
{
    BIO_METHOD *made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "imapmux socket");

    if (made != NULL && BIO_meth_set_write(made, write_some) == 1 &&
        BIO_meth_set_read(made, read_some) == 1 && BIO_meth_set_ctrl(made, control) == 1)
        method = made;
    else
        BIO_meth_free(made);
}

bool tls_socket_start(struct tls_socket *socket, SSL_CTX *context)
{
    BIO *bio;

    uv_once(&method_once, make_method);
    bio = method == NULL ? NULL : BIO_new(method);
    socket->tls = bio == NULL ? NULL : SSL_new(context);
    if (socket->tls == NULL) {
        BIO_free(bio);
        return false;
    }
    BIO_set_data(bio, socket);
    BIO_set_init(bio, 1);
    SSL_set_bio(socket->tls, bio, bio); /* which takes it over */
    return true;
}
