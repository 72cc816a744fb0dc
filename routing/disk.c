/* Owns the order of writes, syncs and renames. */
#include "routing/disk.h"

#include "proxy/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

char *disk_load(int fd, size_t *len_out)
{
    struct stat status;
    size_t len = 0;
    ssize_t count = 1;
    char *text = NULL;

    if (fstat(fd, &status) != 0)
        return NULL;
    errno = !S_ISREG(status.st_mode) ? EINVAL : status.st_size > DISK_FILE_MAX ? EFBIG : ENOMEM;
    if (S_ISREG(status.st_mode) && status.st_size <= DISK_FILE_MAX)
        text = mem_new((size_t)status.st_size + 1);
    while (text != NULL && len < (size_t)status.st_size && count != 0) {
        count = pread(fd, text + len, (size_t)status.st_size - len, (off_t)len);
        if (count >= 0) {
            len += (size_t)count; /* 0: it has become shorter */
        } else if (errno != EINTR) {
            mem_free(text);
            text = NULL;
        }
    }
    *len_out = len;
    return text;
}

bool disk_write(int fd, struct span bytes)
{
    while (bytes.len > 0) {
        ssize_t count = write(fd, bytes.ptr, bytes.len);

        if (count < 0 && errno != EINTR)
            return false;
        if (count > 0)
            bytes = span_after(bytes, (size_t)count);
    }
    return true;
}

bool disk_sync_folder_of(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int len = slash == NULL ? 0 : (int)(slash - path) + 1, fd;
    bool synced;

    snprintf(folder, sizeof folder, "%.*s.", len, path);
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    synced = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0)
        close(fd);
    return synced;
}

static bool name_new(const char *path, char name_out[PATH_MAX])
{
    errno = ENAMETOOLONG;
    return (size_t)snprintf(name_out, PATH_MAX, "%s.new", path) < PATH_MAX;
}

int disk_begin(const char *path)
{
    char name[PATH_MAX];

    if (!name_new(path, name))
        return -1;
    unlink(name);
    return open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
}

bool disk_finish(int fd, const char *path, bool good)
{
    char name[PATH_MAX];
    int failure;

    good = good && name_new(path, name) && fsync(fd) == 0;
    failure = errno;
    if (close(fd) != 0 && good) {
        failure = errno;
        good = false;
    }
    if (good && rename(name, path) == 0)
        return disk_sync_folder_of(path);
    if (good)
        failure = errno;
    if (name_new(path, name))
        unlink(name);
    errno = failure;
    return false;
}
