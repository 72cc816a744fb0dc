/* Owns the socket's file: how it comes, who gets in by it, and how it goes. */
#include "proxy/admin/admin_socket.h"

#include "proxy/base/mem.h"

#include <errno.h>
#include <grp.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 16 };

/* --- the file --- */

static bool fail(struct err *err, const struct conf_admin *conf, const char *why)
{
    return err_set(err, ERR_UNAVAILABLE, "admin: %s: %s", conf->socket, why);
}

static int new_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    memcpy(address.sun_path, path, strlen(path)); /* conf_check has looked at its length */
    return address;
}

/* Removes a socket that was left behind; false when it is somebody's, or no socket. */
static bool remove_stale(const struct conf_admin *conf, struct err *err)
{
    struct sockaddr_un address = address_of(conf->socket);
    struct stat status;

    if (lstat(conf->socket, &status) != 0)
        return errno == ENOENT || fail(err, conf, strerrordesc_np(errno));
    if (!S_ISSOCK(status.st_mode))
        return fail(err, conf, "there is a file that is no socket");
    int fd = new_socket();
    bool stale = fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof address) != 0 &&
                 errno == ECONNREFUSED;
    if (fd >= 0)
        close(fd);
    if (!stale)
        return fail(err, conf, "another process listens there");
    return unlink(conf->socket) == 0 || fail(err, conf, strerrordesc_np(errno));
}

/* Nobody can connect until it listens, so nobody meets the file before its mode is set. */
static bool make_file(struct admin_socket *socket, struct err *err)
{
    const struct conf_admin *conf = socket->conf;
    struct sockaddr_un address = address_of(conf->socket);
    struct stat status;

    if (!remove_stale(conf, err))
        return false;
    if (bind(socket->fd, (const struct sockaddr *)&address, sizeof address) != 0)
        return fail(err, conf, strerrordesc_np(errno));
    if (lstat(conf->socket, &status) == 0) {
        socket->device = status.st_dev;
        socket->inode = status.st_ino;
    }
    if ((*conf->group != '\0' && chown(conf->socket, (uid_t)-1, socket->operators) != 0) ||
        chmod(conf->socket, (mode_t)strtoul(conf->mode, NULL, 8)) != 0 ||
        listen(socket->fd, BACKLOG) != 0) {
        fail(err, conf, strerrordesc_np(errno));
        admin_socket_remove(socket);
        return false;
    }
    return true;
}

static bool find_group(const char *name, gid_t *gid_out)
{
    const struct group *group = *name == '\0' ? NULL : getgrnam(name);

    if (group != NULL)
        *gid_out = group->gr_gid;
    return *name == '\0' || group != NULL;
}

bool admin_socket_open(struct admin_socket *socket_out, const struct conf_admin *conf,
                       struct err *err)
{
    *socket_out = (struct admin_socket){.fd = -1, .conf = conf};
    if (!find_group(conf->group, &socket_out->operators) ||
        !find_group(conf->readers, &socket_out->readers))
        return fail(err, conf, "a group has gone");
    socket_out->fd = new_socket();
    if (socket_out->fd < 0)
        return fail(err, conf, strerrordesc_np(errno));
    if (make_file(socket_out, err))
        return true;
    close(socket_out->fd);
    return false;
}

void admin_socket_remove(const struct admin_socket *socket)
{
    struct stat status;

    if (lstat(socket->conf->socket, &status) == 0 && status.st_dev == socket->device &&
        status.st_ino == socket->inode)
        unlink(socket->conf->socket);
}

/* --- who comes --- */

static bool is_in_groups(int fd, gid_t wanted)
{
    socklen_t size = 0;
    gid_t *groups;
    bool found = false;

    /* It says how much room it wants; without any groups it succeeds. */
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &size) == 0 || errno != ERANGE)
        return false;
    groups = mem_new(size);
    if (groups != NULL && getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) == 0)
        for (size_t i = 0; i < size / sizeof *groups; i++)
            found = found || groups[i] == wanted;
    mem_free(groups);
    return found;
}

static bool is_member(int fd, const struct ucred *peer, const char *name, gid_t group)
{
    return *name != '\0' && (peer->gid == group || is_in_groups(fd, group));
}

enum ctl_level admin_socket_level(const struct admin_socket *socket, int fd, struct ucred *peer_out)
{
    const struct conf_admin *conf = socket->conf;
    socklen_t size = sizeof *peer_out;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, peer_out, &size) != 0)
        return CTL_NOTHING;
    if (*conf->readers == '\0' || peer_out->uid == 0 || peer_out->uid == geteuid() ||
        is_member(fd, peer_out, conf->group, socket->operators))
        return CTL_OPERATE;
    return is_member(fd, peer_out, conf->readers, socket->readers) ? CTL_READ : CTL_NOTHING;
}
