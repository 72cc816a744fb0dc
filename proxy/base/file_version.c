/* Owns what tells one version of a file from the next. */
#include "proxy/base/file_version.h"

#include <sys/stat.h>

static struct file_version version(const struct stat *file)
{
    return (struct file_version){file->st_dev, file->st_ino, file->st_size, file->st_mtim,
                                 file->st_ctim};
}

struct file_version file_version_of(const char *path)
{
    struct stat file;

    return stat(path, &file) == 0 ? version(&file) : (struct file_version){0};
}

struct file_version file_version_of_open(int fd)
{
    struct stat file;

    return fstat(fd, &file) == 0 ? version(&file) : (struct file_version){0};
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

bool file_version_same(const struct file_version *a, const struct file_version *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           same_time(a->modified, b->modified) && same_time(a->changed, b->changed);
}
