/* A file of this process alone, in memory, for what is read by its name. */
#ifndef IMAPMUX_TESTS_FUZZ_SCRATCH_FILE_H
#define IMAPMUX_TESTS_FUZZ_SCRATCH_FILE_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char scratch_file_path[] = "/dev/shm/imapmux-fuzz-XXXXXX";

static void scratch_file_remove(void)
{
    unlink(scratch_file_path);
}

/* The file's name; its content is what was written last. */
static const char *scratch_file_write(const void *bytes, size_t len)
{
    static int fd = -1;

    if (fd < 0) {
        fd = mkstemp(scratch_file_path);
        atexit(scratch_file_remove);
    }
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, bytes, len, 0) != (ssize_t)len)
        abort();
    return scratch_file_path;
}

#endif
