/*
 * A disk that a test can hold, for a program that is started with this library in LD_PRELOAD: fsync waits for as long as
 * the file named by HELD_FSYNC is there.
 */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int fsync(int fd)
{
    const char *path = getenv("HELD_FSYNC");

    while (path != NULL && access(path, F_OK) == 0)
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
    return (int)syscall(SYS_fsync, fd);
}
