/*
 * Has a file changed since it was looked at? By what the system knows of it, without reading it.
 */
#ifndef IMAPMUX_BASE_FILE_VERSION_H
#define IMAPMUX_BASE_FILE_VERSION_H

#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

/*
 * What changes when a file does: editors and copies may keep any of these, but not all. All zero:
 * there is none.
 */
struct file_version {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec modified, changed;
};

/* One stat. */
struct file_version file_version_of(const char *path);
struct file_version file_version_of_open(int fd);

bool file_version_same(const struct file_version *a, const struct file_version *b);

#endif
