/* The file of the socket of administration, and what those who connect to it may do. */
#ifndef IMAPMUX_ADMIN_ADMIN_SOCKET_H
#define IMAPMUX_ADMIN_ADMIN_SOCKET_H

#include "proxy/base/conf.h"
#include "proxy/ctl/command.h"

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

enum { ADMIN_PATH_MAX = sizeof((struct sockaddr_un){0}.sun_path) };

/* A plain value. */
struct admin_socket {
    int fd; /* listens; the caller closes it */
    const struct conf_admin *conf;
    char path[ADMIN_PATH_MAX];
    dev_t device; /* of the file, to know it again */
    ino_t inode;
    gid_t operators, readers; /* if conf->group, conf->readers are set */
};

/*
 * Listens at conf->socket with the mode and group that are set, or `beside` it, at conf->socket
 * with the process's number behind. A socket that is there is replaced if nobody listens on it, and
 * those of dead processes beside it are removed. False with *err set, and nothing left.
 */
bool admin_socket_open(struct admin_socket *socket_out, const struct conf_admin *conf, bool beside,
                       struct err *err);

/*
 * In one instant the socket of the process `pid`, beside this one, takes its place, and this one
 * goes beside that. False with *err set, and all is as it was.
 */
bool admin_socket_give_place(struct admin_socket *socket, pid_t pid, struct err *err);

/* The socket of another process beside which it was has given it its place, or that one is dead. */
void admin_socket_take_place(struct admin_socket *socket);

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
