/* Owns which password files are in use. */
#include "auth/passwd/shared.h"

#include "proxy/base/mem.h"

#include <string.h>
#include <utlist.h>

static struct passwd_shared *all;
static uv_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void close_shared(struct passwd_shared *shared)
{
    hasher_close(&shared->hasher);
    passwd_file_close(&shared->file);
    mem_free(shared);
}

static struct passwd_shared *open_shared(const char *path, struct err *err)
{
    size_t path_len = strlen(path);
    struct passwd_shared *shared = mem_new(sizeof *shared + path_len + 1);

    if (shared == NULL) {
        err_set(err, ERR_INTERNAL, "passwd: no memory");
        return NULL;
    }
    memcpy(shared->path, path, path_len);
    shared->users = 1;
    shared->file = passwd_file_open(shared->path, err);
    if (shared->file != NULL)
        shared->hasher = hasher_open(err);
    if (shared->hasher != NULL)
        return shared;
    close_shared(shared);
    return NULL;
}

static struct passwd_shared *find(const char *path)
{
    struct passwd_shared *shared;

    LL_FOREACH(all, shared)
    if (strcmp(shared->path, path) == 0)
        return shared;
    return NULL;
}

/* NULL: nobody has joined before. */
static struct passwd_shared *join_others(const char *path)
{
    uv_mutex_lock(&lock);

    struct passwd_shared *shared = find(path);

    if (shared != NULL)
        shared->users++;
    uv_mutex_unlock(&lock);
    return shared;
}

/* Who comes first reads without the lock: a disk may take as long as it likes. */
struct passwd_shared *passwd_shared_join(const char *path, struct err *err)
{
    struct passwd_shared *shared = join_others(path);

    if (shared != NULL)
        return shared;
    shared = open_shared(path, err);
    if (shared == NULL)
        return NULL;
    uv_mutex_lock(&lock);
    LL_PREPEND(all, shared);
    uv_mutex_unlock(&lock);
    return shared;
}

void passwd_shared_leave(struct passwd_shared **shared)
{
    struct passwd_shared *s = *shared;

    *shared = NULL;
    if (s == NULL)
        return;
    uv_mutex_lock(&lock);
    bool was_last = --s->users == 0;
    if (was_last)
        LL_DELETE(all, s);
    uv_mutex_unlock(&lock);
    if (was_last)
        close_shared(s);
}
