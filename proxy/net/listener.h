/*
 * A listening socket on one worker's loop. Every worker binds its own to the same address
 * (SO_REUSEPORT), so that the kernel spreads the clients.
 */
#ifndef IMAPMUX_NET_LISTENER_H
#define IMAPMUX_NET_LISTENER_H

#include "proxy/base/address.h"
#include "proxy/base/env.h"

/* Binds and listens; the descriptor, or -1 with *err set. */
int listener_bind(const char *address, int backlog, const struct conf_tcp *tcp, struct err *err);

struct listener;

/* Each accepted, non-blocking descriptor belongs to the callee. */
typedef void listener_accept_fn(void *owner, int fd, const union address *peer,
                                const struct conf_listener *conf);

/* Takes over the descriptor, also on failure (NULL). */
struct listener *listener_open(const struct env *env, int fd, const struct conf_listener *conf,
                               listener_accept_fn *on_accept, void *owner);

/* Stops listening; memory goes in the last close callback. Nulls the pointer. */
void listener_close(struct listener **listener);

#endif
