/*
 * Owns the latest good version of a password file, and the thread that looks after it. A file is
 * read when it has rested between two looks, so that what an editor has half written is left alone.
 */
#include "auth/passwd/file.h"

#include "proxy/base/file_version.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/rand.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

enum { LOOK_EVERY_S = 1, NS_PER_S = 1000000000 };

struct passwd_file {
    const char *path;
    struct passwd_key key;
    uv_mutex_t lock; /* guards the two members below */
    struct passwd_table *table;
    bool stopping;
    uv_cond_t stop;
    uv_thread_t thread;

    /* The thread's. */
    struct file_version seen, read; /* at the last look; when it was read */
    int open_error;                 /* already told */
};

static bool read_first(struct passwd_file *file, struct err *err);
static int open_path(const char *path);
static void look_after(void *argument);
static bool pause_or_stop(struct passwd_file *file);
static void look(struct passwd_file *file);
static void read_again(struct passwd_file *file, int fd);

struct passwd_file *passwd_file_open(const char *path, struct err *err)
{
    struct passwd_file *file = mem_new(sizeof *file);

    if (file == NULL || uv_mutex_init(&file->lock) != 0) {
        mem_free(file);
        err_set(err, ERR_INTERNAL, "passwd: no memory");
        return NULL;
    }
    file->path = path;
    if (read_first(file, err)) {
        if (uv_cond_init(&file->stop) == 0) {
            if (uv_thread_create(&file->thread, look_after, file) == 0)
                return file;
            uv_cond_destroy(&file->stop);
        }
        err_set(err, ERR_INTERNAL, "passwd: cannot start a thread");
    }
    passwd_table_close(&file->table);
    uv_mutex_destroy(&file->lock);
    mem_free(file);
    return NULL;
}

bool passwd_file_check(const char *path, struct err *err)
{
    struct passwd_file file = {.path = path};
    bool good = read_first(&file, err);

    passwd_table_close(&file.table);
    return good;
}

static bool read_first(struct passwd_file *file, struct err *err)
{
    int fd = open_path(file->path);

    if (fd < 0)
        return err_set(err, ERR_CONFIG, "%s: %s", file->path, strerrordesc_np(errno));
    file->read = file_version_of_open(fd);
    if (RAND_bytes(file->key.octets, PASSWD_KEY_SIZE) != 1)
        err_set(err, ERR_INTERNAL, "%s: it cannot be read", file->path);
    else
        file->table = passwd_table_read(fd, file->path, &file->key, err);
    /* Another change within the same tick of the file system's clock would not show. */
    if (time(NULL) - file->read.changed.tv_sec <= 1)
        file->read = (struct file_version){0};
    close(fd);
    return file->table != NULL;
}

/* To open is also what makes NFS ask its server. */
static int open_path(const char *path)
{
    return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

/* --- the thread --- */

static void look_after(void *argument)
{
    while (pause_or_stop(argument))
        look(argument);
}

/* False when it is over. */
static bool pause_or_stop(struct passwd_file *file)
{
    uint64_t now = uv_hrtime(), until = now + (uint64_t)LOOK_EVERY_S * NS_PER_S;

    uv_mutex_lock(&file->lock);
    for (; !file->stopping && now < until; now = uv_hrtime())
        uv_cond_timedwait(&file->stop, &file->lock, until - now);

    bool stopping = file->stopping;

    uv_mutex_unlock(&file->lock);
    return !stopping;
}

static void look(struct passwd_file *file)
{
    int fd = open_path(file->path), error = fd < 0 ? errno : 0;

    if (error != 0 && error != file->open_error)
        log_event(error == ENOENT ? LOG_LEVEL_WARNING : LOG_LEVEL_ERROR, "passwd not read",
                  "%s: %s; the users read before stay", file->path, strerrordesc_np(error));
    file->open_error = error;
    if (fd < 0)
        return;

    struct file_version now = file_version_of_open(fd);
    bool at_rest = file_version_same(&now, &file->seen);

    file->seen = now;
    if (at_rest && !file_version_same(&now, &file->read))
        read_again(file, fd);
    close(fd);
}

static void read_again(struct passwd_file *file, int fd)
{
    struct err err = {0};
    struct passwd_table *table = passwd_table_read(fd, file->path, &file->key, &err);
    struct file_version after = file_version_of_open(fd);

    if (!file_version_same(&after, &file->seen)) { /* it was written meanwhile */
        passwd_table_close(&table);
        return;
    }
    if (err.kind != ERR_INTERNAL) /* else once more, until it can be read */
        file->read = after;
    if (table == NULL) {
        log_event(LOG_LEVEL_ERROR, "passwd not read", "%s; the users read before stay", err.text);
        return;
    }
    log_event(LOG_LEVEL_INFO, "passwd read", "%s: %zu users", file->path,
              passwd_table_count(table));
    uv_mutex_lock(&file->lock);

    struct passwd_table *old = file->table;

    file->table = table;
    uv_mutex_unlock(&file->lock);
    passwd_table_close(&old);
}

/* --- any thread --- */

bool passwd_file_find(struct passwd_file *file, const char *user,
                      char hash_out[PASSWD_LINE_MAX + 1], bool *known_out)
{
    uv_mutex_lock(&file->lock);

    const char *hash = passwd_table_find(file->table, user, known_out);

    if (hash != NULL)
        memcpy(hash_out, hash, strlen(hash) + 1);
    uv_mutex_unlock(&file->lock);
    return hash != NULL;
}

void passwd_file_close(struct passwd_file **file)
{
    struct passwd_file *f = *file;

    *file = NULL;
    if (f == NULL)
        return;
    uv_mutex_lock(&f->lock);
    f->stopping = true;
    uv_cond_signal(&f->stop);
    uv_mutex_unlock(&f->lock);
    uv_thread_join(&f->thread);
    passwd_table_close(&f->table);
    uv_cond_destroy(&f->stop);
    uv_mutex_destroy(&f->lock);
    mem_free(f);
}
