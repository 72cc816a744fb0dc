/*
 * The listening sockets of the process, on the control thread. An address has one socket for each
 * worker (SO_REUSEPORT), so that the kernel spreads the clients; or as many as were inherited, from
 * a process before this one or from systemd. Workers accept from duplicates.
 *
 * A client waits in the queue of one socket, and is reset when that closes. So a socket that is
 * there is kept as long as its address is wanted, and a new one does not listen before somebody is
 * about to accept from it.
 */
#ifndef IMAPMUX_PROCESS_LISTENERS_H
#define IMAPMUX_PROCESS_LISTENERS_H

#include "proxy/base/address.h"
#include "proxy/base/conf.h"

struct inherited;
struct listeners;

/*
 * Binds what `conf` wants and was not inherited, and does not listen yet. What is taken from
 * `inherited` (which may be NULL) is taken over. NULL with *err set.
 */
struct listeners *listeners_open(const struct conf *conf, size_t worker_count,
                                 struct inherited *inherited, struct err *err);

/*
 * The set for another configuration: an address that is in both has the same sockets in both. Each
 * set is closed by itself, so a reload is committed by the close of the old one, or discarded by
 * that of the new one.
 */
struct listeners *listeners_prepare(const struct listeners *old, const struct conf *conf,
                                    struct err *err);

/*
 * All listen, with the backlog that is set: the last step that can fail, right before workers
 * accept. False with *err set.
 */
bool listeners_listen(struct listeners *listeners, struct err *err);

/*
 * Visits the sockets that a worker is to accept from, borrowed; each has a worker, and each worker
 * has one for each address. Stops when `visit` returns false, and returns that. Any thread.
 */
bool listeners_each(const struct listeners *listeners, size_t worker,
                    bool (*visit)(void *owner, int fd, const struct conf_listener *conf),
                    void *owner);

/* All of them, with the text of their address. */
void listeners_all(const struct listeners *listeners,
                   void (*visit)(void *owner, int fd, const char *address), void *owner);

/*
 * Workers that were given duplicates close these by themselves: only with the last one the kernel
 * stops to take clients. Nulls the pointer; harmless on NULL.
 */
void listeners_close(struct listeners **listeners);

#endif
