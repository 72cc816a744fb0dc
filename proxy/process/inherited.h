/* Listening sockets that this process has from another one, until a set of listeners takes them. */
#ifndef IMAPMUX_PROCESS_INHERITED_H
#define IMAPMUX_PROCESS_INHERITED_H

#include "proxy/base/address.h"
#include "proxy/base/err.h"

enum { INHERITED_MAX = 4096 };

struct inherited {
    int *fds; /* -1: taken */
    size_t count;
    const char *from; /* for messages */
    bool must_fit;    /* one that nobody takes is an error */
    bool may_grow;    /* further sockets may be bound to the same address */
};

/*
 * Takes over a listening TCP socket. False with *err set, and the socket closed: it is none, or one
 * of both IPv4 and IPv6.
 */
bool inherited_add(struct inherited *inherited, int fd, struct err *err);

/* The sockets that systemd has passed to this process, and no other. False with *err set. */
bool inherited_from_systemd(struct inherited *inherited, struct err *err);

/* The next one that is bound to this address; the caller has it. -1: there is none any more. */
int inherited_take(struct inherited *inherited, const union address *address);

/* False with *err set if a socket that must fit was not taken. */
bool inherited_check(const struct inherited *inherited, struct err *err);

/* Closes what was not taken. */
void inherited_release(struct inherited *inherited);

#endif
