/*
 * One non-blocking stream socket, plain or TLS, on one loop. It is readiness-driven: the owner is
 * told that bytes may be there and reads them into its own buffer, so that an idle connection holds
 * none. Writing never blocks; what the socket did not take is queued, and the owner stops producing
 * until it has drained.
 *
 * Calls never call back from inside: events come from the loop. After conn_close returns no event
 * comes any more. An event may close the connection; whoever calls upwards touches it no more
 * afterwards.
 */
#ifndef IMAPMUX_NET_CONN_H
#define IMAPMUX_NET_CONN_H

#include "proxy/base/address.h"
#include "proxy/base/env.h"
#include "proxy/base/span.h"
#include "proxy/net/tls.h"

#include <openssl/ssl.h>
#include <sys/types.h>

struct conn;

/*
 * All members are set. conn_failure tells why `on_broken` has come. It is the last event, unless
 * reading was off and is switched on again: what has come before is still there to be read.
 */
struct conn_events {
    void (*on_open)(void *owner); /* connected (conn_connect), or TLS is up (conn_start_tls) */
    void (*on_readable)(
        void *owner); /* conn_read may have something: bytes, the end, or a failure */
    void (*on_drained)(void *owner); /* everything queued has been written */
    void (*on_broken)(void *owner);
};

/*
 * Sends at once, and probes and gives up silent peers as configured. A connection that is accepted
 * has what its listening socket has.
 */
void conn_set_options(int fd, const struct conf_tcp *conf);

/*
 * Takes over a connected socket, also when it fails (NULL: out of memory or descriptors; the socket
 * is closed).
 */
struct conn *conn_open(const struct env *env, int fd, const struct conn_events *events,
                       void *owner);

/*
 * Starts to connect, from the address `from` unless that is NULL; on_open or on_broken follows.
 * NULL when not even a socket could be had, with *err set: ERR_LIMIT when descriptors have run out.
 */
struct conn *conn_connect(const struct env *env, const union address *to, const union address *from,
                          const struct conn_events *events, void *owner, struct err *err);

/* Closes at once; queued bytes are lost. Nulls the pointer; harmless on NULL. */
void conn_close(struct conn **conn);

/* Lets another owner hear the events from now on. */
void conn_set_owner(struct conn *conn, const struct conn_events *events, void *owner);

/*
 * Starts TLS on a connection whose queue is empty: as the server, or as the client of
 * `server_name`, which is sent as SNI and, where the context verifies, checked (a name or a numeric
 * address). A client resumes what `memory` remembers, and has what it learns remembered there; the
 * memory is borrowed until conn_close. on_open follows, or on_broken. False without memory.
 */
bool conn_start_tls_server(struct conn *conn, SSL_CTX *context);
bool conn_start_tls_client(struct conn *conn, SSL_CTX *context, const char *server_name,
                           struct tls_memory *memory);

/* The TLS state, borrowed; NULL on a plain connection. */
SSL *conn_tls(const struct conn *conn);

/*
 * Reads up to `size` bytes. Returns their count; CONN_AGAIN when there are none yet; CONN_EOF when
 * the peer sends no more; CONN_BROKEN on a failure. A buffer of 16 KiB or more never leaves
 * plaintext behind inside OpenSSL for long: the next on_readable comes by itself.
 */
enum { CONN_AGAIN = 0, CONN_EOF = -1, CONN_BROKEN = -2 };
ssize_t conn_read(struct conn *conn, char *bytes, size_t size);

/*
 * No password is to come any more: OpenSSL need not wipe what it has decrypted and handed over, as
 * it does after conn_start_tls_server.
 */
void conn_end_secrecy(struct conn *conn);

/* Reading is on after conn_open. Off, no on_readable comes. */
void conn_want_read(struct conn *conn, bool on);

/*
 * Until the next conn_want_read, while reading is off: on_readable comes once if the peer has ended
 * its stream, whatever bytes may lie before that end, and on_broken if the connection is reset.
 */
void conn_want_end(struct conn *conn);

/*
 * Writes, or queues what the socket does not take. False when nothing can be written any more (or
 * CONN_QUEUE_MAX would be passed); the owner may ignore that, for an event follows: on_readable,
 * whose conn_read gives what the peer has still sent and then the failure, or on_broken while
 * reading is off.
 */
enum { CONN_QUEUE_MAX = 1 << 20 };
bool conn_write(struct conn *conn, struct span bytes);

/*
 * Acknowledges what has come at once: for a peer that holds its second answer back until its first
 * one is acknowledged (Nagle).
 */
void conn_hurry(struct conn *conn);

/* Bytes that wait for the socket. */
size_t conn_queued(const struct conn *conn);

/* These, and those that the kernel has and the peer has not acknowledged. */
size_t conn_unacknowledged(const struct conn *conn);

/*
 * Sends the end of the stream (TLS close_notify and FIN) once the queue is empty. Reading goes on.
 */
void conn_finish(struct conn *conn);

/*
 * Hand-over to another loop: conn_detach takes the connection off its loop and calls `on_detached`
 * when the last handle is closed; from then on it belongs to no thread, and conn_attach continues
 * it on another loop, with reading off. When that loop cannot take it, conn_attach closes and nulls
 * it and returns false. Only after on_open, and not while closing.
 */
void conn_detach(struct conn *conn, void (*on_detached)(void *owner));
bool conn_attach(struct conn **conn, const struct env *env);

/* A constant phrase for the log: why the connection broke. */
const char *conn_failure(const struct conn *conn);

int conn_fd(const struct conn *conn);

#endif
