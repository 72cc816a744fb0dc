/* Owns a listening socket, and the pause it makes when descriptors run out. */
#include "proxy/net/listener.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/conn.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <unistd.h>

enum {
    ACCEPTS_PER_TURN = 64,  /* then the loop turns: sessions that exist come first */
    SHORTAGE_PAUSE_MS = 100 /* clients wait in the kernel's queue meanwhile */
};

struct listener {
    const struct conf_listener *conf;
    listener_accept_fn *on_accept;
    void *owner;
    uv_poll_t poll;
    uv_timer_t pause;
    int fd;
    int handles_open;
    bool is_short; /* of descriptors, and has said so */
};

static void on_poll(uv_poll_t *poll, int status, int events);

int listener_bind(const char *address, struct err *err)
{
    union address where;

    if (!address_parse(address, &where)) {
        err_set(err, ERR_CONFIG, "listener: \"%s\" is no address", address);
        return -1;
    }
    int fd = socket(where.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0 &&
        (where.any.sa_family != AF_INET6 ||
         setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0) &&
        bind(fd, &where.any, address_size(&where)) == 0)
        return fd;
    err_set(err, ERR_UNAVAILABLE, "cannot listen on %s: %s", address, strerrordesc_np(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

bool listener_listen(int fd, int backlog, const struct conf_tcp *tcp)
{
    conn_set_options(fd, tcp);
    return listen(fd, backlog) == 0;
}

struct listener *listener_open(const struct env *env, int fd, const struct conf_listener *conf,
                               listener_accept_fn *on_accept, void *owner)
{
    struct listener *listener = mem_new(sizeof *listener);

    if (listener == NULL || uv_poll_init(env->loop, &listener->poll, fd) != 0) {
        mem_free(listener);
        close(fd);
        return NULL;
    }
    listener->conf = conf;
    listener->on_accept = on_accept;
    listener->owner = owner;
    listener->fd = fd;
    listener->handles_open = 2;
    listener->poll.data = listener;
    uv_timer_init(env->loop, &listener->pause);
    listener->pause.data = listener;
    return listener;
}

void listener_start(struct listener *listener)
{
    uv_poll_start(&listener->poll, UV_READABLE, on_poll);
}

static void handle_closed(uv_handle_t *handle)
{
    struct listener *listener = handle->data;

    if (--listener->handles_open == 0)
        mem_free(listener);
}

void listener_close(struct listener **listener)
{
    struct listener *l = *listener;

    *listener = NULL;
    if (l == NULL)
        return;
    uv_close((uv_handle_t *)&l->poll, handle_closed);
    uv_close((uv_handle_t *)&l->pause, handle_closed);
    close(l->fd);
}

static void on_pause_over(uv_timer_t *timer)
{
    struct listener *listener = timer->data;

    uv_poll_start(&listener->poll, UV_READABLE, on_poll);
}

static void pause_for_shortage(struct listener *listener)
{
    if (!listener->is_short)
        log_event_limited(LOG_LEVEL_ERROR, "accept failed", "%s; new clients wait",
                          strerrordesc_np(errno));
    listener->is_short = true;
    uv_poll_stop(&listener->poll);
    uv_timer_start(&listener->pause, on_pause_over, SHORTAGE_PAUSE_MS, 0);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct listener *listener = poll->data;

    (void)status;
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        union address peer = {0};
        socklen_t size = sizeof peer;
        int fd = accept4(listener->fd, &peer.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            listener->is_short = false;
            listener->on_accept(listener->owner, fd, &peer, listener->conf);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            pause_for_shortage(listener);
            return;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } /* else this one client is gone already */
    }
}
