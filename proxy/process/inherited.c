/* Owns sockets that were bound by another process: what they are, and to whom they fit. */
#include "proxy/process/inherited.h"

#include "proxy/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

static bool refuse(const struct inherited *inherited, int fd, const char *why, struct err *err)
{
    union address address = {0};
    socklen_t size = sizeof address;
    char text[ADDRESS_TEXT_MAX] = "a socket without an address";

    if (getsockname(fd, &address.any, &size) == 0 &&
        (address.any.sa_family == AF_INET || address.any.sa_family == AF_INET6))
        address_text(&address, text);
    return err_set(err, ERR_CONFIG, "listener: the socket from %s, %s, %s", inherited->from, text,
                   why);
}

static int option_of(int fd, int level, int name)
{
    int value = 0;
    socklen_t size = sizeof value;

    return getsockopt(fd, level, name, &value, &size) == 0 ? value : -1;
}

static bool check_socket(const struct inherited *inherited, int fd, struct err *err)
{
    int family = option_of(fd, SOL_SOCKET, SO_DOMAIN);

    if ((family != AF_INET && family != AF_INET6) ||
        option_of(fd, SOL_SOCKET, SO_TYPE) != SOCK_STREAM ||
        option_of(fd, SOL_SOCKET, SO_ACCEPTCONN) != 1)
        return refuse(inherited, fd, "does not listen for TCP", err);
    if (family == AF_INET6 && option_of(fd, IPPROTO_IPV6, IPV6_V6ONLY) != 1)
        return refuse(inherited, fd,
                      "is also one of IPv4: it must be IPv6 only (BindIPv6Only=ipv6-only)", err);
    return true;
}

bool inherited_add(struct inherited *inherited, int fd, struct err *err)
{
    int *fds;

    if (!check_socket(inherited, fd, err)) {
        close(fd);
        return false;
    }
    fds = inherited->count < INHERITED_MAX
              ? mem_resize(inherited->fds, (inherited->count + 1) * sizeof *fds)
              : NULL;
    if (fds != NULL)
        inherited->fds = fds;
    if (fds == NULL || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || fcntl(fd, F_SETFL, O_NONBLOCK) != 0) {
        close(fd);
        return err_set(err, ERR_INTERNAL, "listener: too many sockets, or no memory for them");
    }
    fds[inherited->count++] = fd;
    return true;
}

bool inherited_from_systemd(struct inherited *inherited, struct err *err)
{
    int count = sd_listen_fds(1); /* and nobody else is to take them for his */

    *inherited = (struct inherited){.from = "systemd", .must_fit = true};
    if (count < 0)
        return err_set(err, ERR_CONFIG, "LISTEN_FDS: %s", strerrordesc_np(-count));
    for (int i = 0; i < count; i++)
        if (!inherited_add(inherited, SD_LISTEN_FDS_START + i, err))
            return false;
    return true;
}

/* Without what else the structs have: flow labels, the padding. */
static bool is_bound_to(int fd, const union address *wanted)
{
    union address own = {0};
    socklen_t size = sizeof own;
    char text[ADDRESS_TEXT_MAX], wanted_text[ADDRESS_TEXT_MAX];

    if (fd < 0 || getsockname(fd, &own.any, &size) != 0)
        return false;
    address_text(&own, text);
    address_text(wanted, wanted_text);
    return strcmp(text, wanted_text) == 0;
}

int inherited_take(struct inherited *inherited, const union address *address)
{
    for (size_t i = 0; i < inherited->count; i++) {
        int fd = inherited->fds[i];

        if (!is_bound_to(fd, address))
            continue;
        inherited->fds[i] = -1;
        return fd;
    }
    return -1;
}

bool inherited_check(const struct inherited *inherited, struct err *err)
{
    for (size_t i = 0; inherited->must_fit && i < inherited->count; i++)
        if (inherited->fds[i] >= 0)
            return refuse(inherited, inherited->fds[i], "is no address of any listener section",
                          err);
    return true;
}

void inherited_release(struct inherited *inherited)
{
    for (size_t i = 0; i < inherited->count; i++)
        if (inherited->fds[i] >= 0)
            close(inherited->fds[i]);
    mem_free(inherited->fds);
    inherited->fds = NULL;
    inherited->count = 0;
}
