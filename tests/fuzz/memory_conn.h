/*
 * A connection whose other end is the fuzz target: it takes the place of net/conn.c when a target
 * that includes this (once) is linked. Events come only when the target asks for them, as they come
 * only from the loop.
 */
#ifndef IMAPMUX_TESTS_FUZZ_MEMORY_CONN_H
#define IMAPMUX_TESTS_FUZZ_MEMORY_CONN_H

#include "proxy/net/conn.h"

#include "proxy/base/buf.h"
#include "proxy/base/mem.h"

#include <assert.h>

struct conn {
    const struct conn_events *events;
    void *owner;
    struct conn **alias; /* the target's own pointer to it, nulled when it is closed */
    struct buf *written; /* the target's */
    struct span to_read; /* borrowed */
    SSL *tls;            /* only to be asked whether it is there */
    bool opening;        /* connecting, or in a handshake: on_open is due */
    bool ended;          /* the other end sends no more than `to_read` */
    bool silent;         /* reading is off */
};

/* An SSL that nobody shakes hands with. */
static inline SSL *memory_conn_tls(void)
{
    static SSL *tls;

    if (tls == NULL)
        tls = SSL_new(SSL_CTX_new(TLS_client_method()));
    assert(tls != NULL);
    return tls;
}

static inline void memory_conn_open(struct conn **alias, struct buf *written)
{
    assert(*alias == NULL);
    *alias = mem_new(sizeof **alias);
    assert(*alias != NULL);
    (*alias)->alias = alias;
    (*alias)->written = written;
}

bool conn_write(struct conn *conn, struct span bytes)
{
    bool fits = buf_append(conn->written, bytes);

    assert(fits);
    return fits;
}

SSL *conn_tls(const struct conn *conn)
{
    return conn->tls;
}

void conn_close(struct conn **conn)
{
    struct conn *closed = *conn;

    *conn = NULL;
    if (closed != NULL)
        *closed->alias = NULL;
    mem_free(closed);
}

#endif
