/* A listening socket on one loop. */
#ifndef IMAPMUX_NET_LISTENER_H
#define IMAPMUX_NET_LISTENER_H

#include "proxy/base/address.h"
#include "proxy/base/env.h"

/*
 * Binds to an address that other sockets of the same user may have, too (SO_REUSEPORT); the kernel
 * gives it no client before listener_listen. The descriptor, or -1 with *err set.
 */
int listener_bind(const char *address, struct err *err);

/* Listens, or changes how it does. False: see errno. */
bool listener_listen(int fd, int backlog, const struct conf_tcp *tcp);

struct listener;

/* Each accepted, non-blocking descriptor belongs to the callee. */
typedef void listener_accept_fn(void *owner, int fd, const union address *peer,
                                const struct conf_listener *conf);

/* Takes over the descriptor, also on failure (NULL). Accepts nobody before listener_start. */
struct listener *listener_open(const struct env *env, int fd, const struct conf_listener *conf,
                               listener_accept_fn *on_accept, void *owner);

void listener_start(struct listener *listener);

/* Stops accepting; memory goes in the last close callback. Nulls the pointer. */
void listener_close(struct listener **listener);

#endif
