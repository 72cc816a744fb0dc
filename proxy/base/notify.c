/* Owns the messages to the service manager. */
#include "proxy/base/notify.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

enum { TEXT_MAX = 512 };

static _Atomic bool has_left;

/* As sd_notify(3), which waits for a manager that reads nothing any more. */
static void send_text(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    size_t len = path == NULL ? 0 : strlen(path);
    struct sockaddr_un manager = {.sun_family = AF_UNIX};

    if (len < 2 || len > sizeof manager.sun_path)
        return;
    memcpy(manager.sun_path, path, len);
    if (*path == '@') /* of Linux' abstract names, which are in no file system */
        manager.sun_path[0] = '\0';

    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    (void)sendto(fd, text, strlen(text), MSG_NOSIGNAL, (const struct sockaddr *)&manager,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
    close(fd);
}

static void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void tell(const char *format, ...)
{
    char text[TEXT_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!atomic_load(&has_left))
        send_text(text);
}

void notify_leave(void)
{
    atomic_store(&has_left, true);
}

void notify_ready(void)
{
    tell("READY=1\nMAINPID=%ld", (long)getpid());
}

void notify_reloading(void)
{
    tell("RELOADING=1");
}

/* The manager's own limit may be shorter than what sessions are given to end. */
void notify_stopping(uint64_t within_ms)
{
    tell("STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64, within_ms * 1000);
}

void notify_status(const char *format, ...)
{
    char text[TEXT_MAX / 2];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    tell("STATUS=%s", text);
}

uint64_t notify_watchdog_ms(void)
{
    uint64_t us = 0;

    return sd_watchdog_enabled(0, &us) > 0 ? us / 1000 : 0;
}

void notify_alive(void)
{
    tell("WATCHDOG=1");
}
