/*
 * A server on the test's own loop that says what it is told, for what a real Redis will not say.
 */
#ifndef IMAPMUX_TESTS_REDIS_PEER_H
#define IMAPMUX_TESTS_REDIS_PEER_H

#include "proxy/base/mem.h"

#include <arpa/inet.h>
#include <string.h>
#include <uv.h>

/* What is said when `to` is read; without a reply, the peer hangs up. */
struct peer_answer {
    const char *to, *reply;
};

struct peer_server {
    const struct peer_answer *answers; /* the last one has no `to` */
    uv_tcp_t listener;
    int port;
    unsigned connections, asked;
    struct peer *last; /* the newest connection */
};

struct peer {
    uv_tcp_t tcp;
    struct peer_server *server;
    char bytes[4096];
};

static inline void peer_closed(uv_handle_t *handle)
{
    struct peer *peer = handle->data;

    if (peer->server->last == peer)
        peer->server->last = NULL;
    mem_free(peer);
}

static inline void peer_alloc(uv_handle_t *handle, size_t size, uv_buf_t *out)
{
    struct peer *peer = handle->data;

    (void)size;
    *out = uv_buf_init(peer->bytes, sizeof peer->bytes - 1);
}

static inline void peer_say(struct peer *peer, const char *text)
{
    uv_buf_t out = uv_buf_init((char *)text, (unsigned)strlen(text));

    assert_int_equal(uv_try_write((uv_stream_t *)&peer->tcp, &out, 1), strlen(text));
}

static inline void peer_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *in)
{
    struct peer *peer = stream->data;

    (void)in;
    if (count < 0) {
        uv_close((uv_handle_t *)stream, peer_closed);
        return;
    }
    peer->bytes[count] = '\0';
    for (const struct peer_answer *answer = peer->server->answers; answer->to != NULL; answer++) {
        if (strstr(peer->bytes, answer->to) == NULL)
            continue;
        peer->server->asked++;
        if (answer->reply == NULL) {
            uv_close((uv_handle_t *)stream, peer_closed);
            return;
        }
        peer_say(peer, answer->reply);
    }
}

static inline void peer_connection(uv_stream_t *stream, int status)
{
    struct peer_server *server = stream->data;
    struct peer *peer = mem_new(sizeof *peer);

    assert_int_equal(status, 0);
    assert_non_null(peer);
    uv_tcp_init(stream->loop, &peer->tcp);
    peer->tcp.data = peer;
    peer->server = server;
    server->connections++;
    server->last = peer;
    assert_int_equal(uv_accept(stream, (uv_stream_t *)&peer->tcp), 0);
    uv_read_start((uv_stream_t *)&peer->tcp, peer_alloc, peer_read);
}

static inline void peer_server_open(struct peer_server *server, uv_loop_t *loop,
                                    const struct peer_answer *answers)
{
    struct sockaddr_in any;
    int len = sizeof any;

    memset(server, 0, sizeof *server);
    server->answers = answers;
    uv_ip4_addr("127.0.0.1", 0, &any);
    uv_tcp_init(loop, &server->listener);
    server->listener.data = server;
    assert_int_equal(uv_tcp_bind(&server->listener, (struct sockaddr *)&any, 0), 0);
    uv_tcp_getsockname(&server->listener, (struct sockaddr *)&any, &len);
    assert_int_equal(uv_listen((uv_stream_t *)&server->listener, 8, peer_connection), 0);
    server->port = ntohs(any.sin_port);
}

static inline void peer_server_close(struct peer_server *server)
{
    uv_close((uv_handle_t *)&server->listener, NULL);
    if (server->last != NULL && !uv_is_closing((uv_handle_t *)&server->last->tcp))
        uv_close((uv_handle_t *)&server->last->tcp, peer_closed);
}

#endif
