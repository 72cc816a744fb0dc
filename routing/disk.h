/* Files that must survive a crash, and a power failure. Failures are in errno. */
#ifndef IMAPMUX_ROUTING_DISK_H
#define IMAPMUX_ROUTING_DISK_H

#include "proxy/base/span.h"

enum { DISK_FILE_MAX = 1 << 30 };

/*
 * All octets of a regular file, in new memory; NULL on failure (ENOMEM, EFBIG, EINVAL for what is
 * no regular file).
 */
char *disk_load(int fd, size_t *len_out);

bool disk_write(int fd, struct span bytes);

/* A file that was made or renamed is there after a power failure only when this has been done. */
bool disk_sync_folder_of(const char *path);

/*
 * A new file, to be written and then put in the place of `path`, at once or not at all. `good` is
 * false to drop it; `fd` is closed in any case. A file that this leaves behind is made anew by the
 * next one.
 */
int disk_begin(const char *path);
bool disk_finish(int fd, const char *path, bool good);

#endif
