/* The file of the socket of administration, and what those who connect to it may do. */
#ifndef IMAPMUX_ADMIN_ADMIN_SOCKET_H
#define IMAPMUX_ADMIN_ADMIN_SOCKET_H

#include "proxy/base/conf.h"
#include "proxy/ctl/command.h"

#include <sys/socket.h>
#include <sys/types.h>

/* A plain value. */
struct admin_socket {
    int fd; /* listens; the caller closes it */
    const struct conf_admin *conf;
    dev_t device; /* of the file, to know it again */
    ino_t inode;
    gid_t operators, readers; /* if conf->group, conf->readers are set */
};

/*
 * Listens at conf->socket with the mode and group that are set. A socket that is there is replaced
 * if nobody listens on it. False with *err set, and nothing left.
 */
bool admin_socket_open(struct admin_socket *socket_out, const struct conf_admin *conf,
                       struct err *err);

/* Removes the file, if it is still the one that was made. */
void admin_socket_remove(const struct admin_socket *socket);

/*
 * Who is at the other end of this connection, and what may they do? Without conf->readers all whom
 * the file's mode has let in may do everything. With it, only root, the process's own user and
 * conf->group may; members of conf->readers may look; others nothing.
 */
enum ctl_level admin_socket_level(const struct admin_socket *socket, int fd,
                                  struct ucred *peer_out);

#endif
