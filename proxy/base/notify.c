/* Owns the messages to the service manager. */
#include "proxy/base/notify.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

enum { TEXT_MAX = 512 };

static _Atomic bool has_left;

static void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void tell(const char *format, ...)
{
    char text[TEXT_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!atomic_load(&has_left))
        (void)sd_notify(0, text);
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
