/*
 * A disk that a test can hold, for a program that is started with this library in LD_PRELOAD: to
 * open the file whose last name is HELD_OPEN waits for as long as there is one beside it of that
 * name and ".held"; ".waits" is made meanwhile.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int is_wanted(const char *path)
{
    const char *name = getenv("HELD_OPEN"), *slash = strrchr(path, '/');

    return name != NULL && slash != NULL && strcmp(slash + 1, name) == 0;
}

int open64(const char *path, int flags, ...)
{
    char held[4096], waits[4096];
    mode_t mode = 0;
    va_list more;

    va_start(more, flags);
    if ((flags & O_CREAT) != 0)
        mode = va_arg(more, mode_t);
    va_end(more);
    snprintf(held, sizeof held, "%s.held", path);
    snprintf(waits, sizeof waits, "%s.waits", path);
    while (is_wanted(path) && access(held, F_OK) == 0) {
        close(openat(AT_FDCWD, waits, O_WRONLY | O_CREAT, 0600));
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
    }
    return openat(AT_FDCWD, path, flags, mode);
}
