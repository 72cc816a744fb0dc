/* Owns the socket's file: how it comes, who gets in by it, and how it goes. */
#include "proxy/admin/admin_socket.h"

#include "proxy/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BACKLOG = 16 };

/* --- the file --- */

static bool fail(struct err *err, const char *path, const char *why)
{
    return err_set(err, ERR_UNAVAILABLE, "admin: %s: %s", path, why);
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

/* A socket that nobody listens on. */
static bool is_stale(const char *path)
{
    struct sockaddr_un address = address_of(path);
    int fd = new_socket();
    bool stale = fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof address) != 0 &&
                 errno == ECONNREFUSED;

    if (fd >= 0)
        close(fd);
    return stale;
}

/* Removes a socket that was left behind; false when it is somebody's, or no socket. */
static bool remove_stale(const char *path, struct err *err)
{
    struct stat status;

    if (lstat(path, &status) != 0)
        return errno == ENOENT || fail(err, path, strerrordesc_np(errno));
    if (!S_ISSOCK(status.st_mode))
        return fail(err, path, "there is a file that is no socket");
    if (!is_stale(path))
        return fail(err, path, "another process listens there");
    return unlink(path) == 0 || fail(err, path, strerrordesc_np(errno));
}

static void path_beside(const struct conf_admin *conf, pid_t pid, char path_out[ADMIN_PATH_MAX])
{
    snprintf(path_out, ADMIN_PATH_MAX, "%s.%ld", conf->socket, (long)pid);
}

/* What processes have left behind that gave their place to others, and did not end in order. */
static void remove_others(const struct conf_admin *conf)
{
    char pattern[ADMIN_PATH_MAX + 8];
    glob_t found;

    snprintf(pattern, sizeof pattern, "%s.[0-9]*", conf->socket);
    if (glob(pattern, GLOB_NOSORT, NULL, &found) != 0)
        return;
    for (size_t i = 0; i < found.gl_pathc; i++)
        if (strlen(found.gl_pathv[i]) < ADMIN_PATH_MAX)
            remove_stale(found.gl_pathv[i], NULL);
    globfree(&found);
}

/* Nobody can connect until it listens, so nobody meets the file before its mode is set. */
static bool make_file(struct admin_socket *socket, struct err *err)
{
    const struct conf_admin *conf = socket->conf;
    struct sockaddr_un address = address_of(socket->path);
    struct stat status;

    if (!remove_stale(socket->path, err))
        return false;
    if (bind(socket->fd, (const struct sockaddr *)&address, sizeof address) != 0)
        return fail(err, socket->path, strerrordesc_np(errno));
    if (lstat(socket->path, &status) == 0) {
        socket->device = status.st_dev;
        socket->inode = status.st_ino;
    }
    if ((*conf->group != '\0' && chown(socket->path, (uid_t)-1, socket->operators) != 0) ||
        chmod(socket->path, (mode_t)strtoul(conf->mode, NULL, 8)) != 0 ||
        listen(socket->fd, BACKLOG) != 0) {
        fail(err, socket->path, strerrordesc_np(errno));
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

bool admin_socket_open(struct admin_socket *socket_out, const struct conf_admin *conf, bool beside,
                       struct err *err)
{
    *socket_out = (struct admin_socket){.fd = -1, .conf = conf};
    if (beside)
        path_beside(conf, getpid(), socket_out->path);
    else
        snprintf(socket_out->path, ADMIN_PATH_MAX, "%s", conf->socket);
    if (!find_group(conf->group, &socket_out->operators) ||
        !find_group(conf->readers, &socket_out->readers))
        return fail(err, socket_out->path, "a group has gone");
    socket_out->fd = new_socket();
    if (socket_out->fd < 0)
        return fail(err, socket_out->path, strerrordesc_np(errno));
    remove_others(conf);
    if (make_file(socket_out, err))
        return true;
    close(socket_out->fd);
    return false;
}

bool admin_socket_give_place(struct admin_socket *socket, pid_t pid, struct err *err)
{
    char theirs[ADMIN_PATH_MAX], own[ADMIN_PATH_MAX];

    path_beside(socket->conf, pid, theirs);
    path_beside(socket->conf, getpid(), own);
    if (renameat2(AT_FDCWD, theirs, AT_FDCWD, socket->path, RENAME_EXCHANGE) != 0)
        return fail(err, theirs, strerrordesc_np(errno));
    if (rename(theirs, own) != 0) /* then it is found by the other number */
        snprintf(own, sizeof own, "%s", theirs);
    memcpy(socket->path, own, sizeof own);
    return true;
}

static bool is_own_file(const struct admin_socket *socket)
{
    struct stat status;

    return lstat(socket->path, &status) == 0 && status.st_dev == socket->device &&
           status.st_ino == socket->inode;
}

void admin_socket_take_place(struct admin_socket *socket)
{
    const char *place = socket->conf->socket;

    if (is_own_file(socket) && rename(socket->path, place) != 0)
        return; /* it is found beside, then */
    snprintf(socket->path, ADMIN_PATH_MAX, "%s", place);
}

void admin_socket_remove(const struct admin_socket *socket)
{
    if (is_own_file(socket))
        unlink(socket->path);
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
