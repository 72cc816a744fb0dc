/*
 * A wall clock that a test can move, for a program that is started with this library in LD_PRELOAD: the file named by
 * MOVED_CLOCK holds by how many seconds, as a 64-bit integer. Monotonic clocks are as they are.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t *offset;

__attribute__((constructor)) static void open_offset(void)
{
    const char *path = getenv("MOVED_CLOCK");
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);

    if (map == MAP_FAILED)
        abort();
    offset = map;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *time_out)
{
    int result = (int)syscall(SYS_clock_gettime, id, time_out);

    if (result == 0 && offset != NULL && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        time_out->tv_sec += __atomic_load_n(offset, __ATOMIC_RELAXED);
    return result;
}

time_t time(time_t *time_out)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (time_out != NULL)
        *time_out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict time_out, void *restrict zone)
{
    struct timespec now;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *time_out = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
    return 0;
}
