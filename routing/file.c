/*
 * The source `file`: conf->route.file, read once for a configuration into a hash table that its
 * routers have in common. A line is
 *     name shard [backend_user]        # the name as it is after normalisation; compared octet by octet
 * with blanks or tabs between. The name * is the route of everybody who has no line. Empty lines,
 * and what follows a word that begins with #, are comments.
 */
#include "routing/route.h"

#include "proxy/base/hash.h"
#include "proxy/base/line.h"
#include "proxy/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <utlist.h>
#include <uv.h>

enum { LINE_MAX_BYTES = 1024, WORDS_MAX = 3 };

struct entry {
    UT_hash_handle hh;
    unsigned line;
    const char *shard;  /* the title in the configuration, which outlives us */
    char *backend_user; /* behind the name in `text`; "" when it is the user's name */
    char text[];        /* name NUL backend_user NUL */
};

struct file {
    const struct conf *conf; /* which it was read for: its users hold it */
    struct entry *entries;   /* by name; never changed once it is in the list */
    size_t user_count;       /* routers */
    struct file *next;
};

static struct file *all_files;
static uv_mutex_t all_files_lock = PTHREAD_MUTEX_INITIALIZER;

/* Where the reader stands, for its messages. */
struct place {
    const struct env *env;
    const char *path;
    unsigned line;
};

static bool read_lines(struct file *file, FILE *stream, struct place *place, struct err *err);
static bool take_line(struct file *file, char *line, const struct place *place, struct err *err);
static bool add_entry(struct file *file, char *words[WORDS_MAX], const struct place *place,
                      struct err *err);
static struct entry *entry_find(struct file *file, const char *name);
static struct file *read_file(const struct env *env, struct err *err);
static void free_file(struct file *file);

/* NULL: nobody has opened it for this configuration. */
static struct file *join_others(const struct conf *conf)
{
    struct file *file;

    uv_mutex_lock(&all_files_lock);
    LL_SEARCH_SCALAR(all_files, file, conf, conf);
    if (file != NULL)
        file->user_count++;
    uv_mutex_unlock(&all_files_lock);
    return file;
}

/*
 * Who comes first, before others know of the configuration, reads it; and without the lock, for
 * which loops wait that close a router.
 */
static void *file_open(const struct env *env, const struct router_view *view, struct err *err)
{
    struct file *file = join_others(env->conf);

    (void)view;
    if (file != NULL)
        return file;
    file = read_file(env, err);
    if (file == NULL)
        return NULL;
    file->user_count = 1;
    uv_mutex_lock(&all_files_lock);
    LL_PREPEND(all_files, file);
    uv_mutex_unlock(&all_files_lock);
    return file;
}

static struct file *read_file(const struct env *env, struct err *err)
{
    struct place place = {.env = env, .path = env->conf->route.file};
    struct file *file = NULL;
    FILE *stream;
    bool ok = false;

    if (place.path == NULL || place.path[0] == '\0') {
        err_set(err, ERR_CONFIG, "route: the source file needs the setting \"file\"");
        return NULL;
    }
    stream = fopen(place.path, "re");
    if (stream == NULL) {
        err_set(err, ERR_CONFIG, "%s: %s", place.path, strerror(errno));
        return NULL;
    }
    file = mem_new(sizeof *file);
    if (file == NULL) {
        err_set(err, ERR_INTERNAL, "%s: no memory", place.path);
    } else {
        file->conf = env->conf;
        ok = read_lines(file, stream, &place, err);
    }
    fclose(stream);
    if (ok)
        return file;
    free_file(file);
    return NULL;
}

static bool read_lines(struct file *file, FILE *stream, struct place *place, struct err *err)
{
    char line[LINE_MAX_BYTES];
    enum line_result result;

    while ((result = line_read(stream, line, sizeof line)) != LINE_END) {
        place->line++;
        if (result == LINE_BAD)
            return err_set(err, ERR_CONFIG, "%s:%u: line too long or with a NUL, at most %d octets",
                           place->path, place->line, LINE_MAX_BYTES - 1);
        if (!take_line(file, line, place, err))
            return false;
    }
    if (ferror(stream))
        return err_set(err, ERR_CONFIG, "%s: %s", place->path, strerror(errno));
    return true;
}

/* Cuts the line into words in place. */
static bool take_line(struct file *file, char *line, const struct place *place, struct err *err)
{
    static const char blanks[] = " \t\r\n";
    char *words[WORDS_MAX] = {NULL};
    size_t count = 0;
    char *at = line;

    for (;;) {
        at += strspn(at, blanks);
        if (*at == '\0' || *at == '#')
            break;
        if (count == WORDS_MAX)
            return err_set(err, ERR_CONFIG, "%s:%u: more than name, shard and backend user",
                           place->path, place->line);
        words[count++] = at;
        at += strcspn(at, blanks);
        if (*at != '\0')
            *at++ = '\0';
    }
    if (count == 0)
        return true;
    if (count == 1)
        return err_set(err, ERR_CONFIG, "%s:%u: no shard for %s", place->path, place->line,
                       words[0]);
    return add_entry(file, words, place, err);
}

static bool add_entry(struct file *file, char *words[WORDS_MAX], const struct place *place,
                      struct err *err)
{
    const struct conf_shard *shard = conf_find_shard(place->env->conf, words[1]);
    const char *backend_user = words[2] == NULL ? "" : words[2];
    size_t name_len = strlen(words[0]);
    size_t backend_len = strlen(backend_user);
    const struct entry *same = entry_find(file, words[0]);
    struct entry *entry;

    if (shard == NULL)
        return err_set(err, ERR_CONFIG, "%s:%u: there is no shard \"%s\"", place->path, place->line,
                       words[1]);
    if (strlen(shard->title) > SHARD_NAME_MAX)
        return err_set(err, ERR_CONFIG, "%s:%u: the shard's name is longer than %d octets",
                       place->path, place->line, SHARD_NAME_MAX);
    if (backend_len > BACKEND_USER_MAX)
        return err_set(err, ERR_CONFIG, "%s:%u: the backend user is longer than %d octets",
                       place->path, place->line, BACKEND_USER_MAX);
    if (same != NULL)
        return err_set(err, ERR_CONFIG, "%s:%u: %s already stands in line %u", place->path,
                       place->line, words[0], same->line);
    entry = mem_new(sizeof *entry + name_len + backend_len + 2);
    if (entry == NULL)
        return err_set(err, ERR_INTERNAL, "%s: no memory", place->path);
    entry->line = place->line;
    entry->shard = shard->title;
    entry->backend_user = entry->text + name_len + 1;
    memcpy(entry->text, words[0], name_len);
    memcpy(entry->backend_user, backend_user, backend_len);
    HASH_ADD_KEYPTR(hh, file->entries, entry->text, name_len, entry);
    if (entry->hh.tbl != NULL)
        return true;
    mem_free(entry);
    return err_set(err, ERR_INTERNAL, "%s: no memory", place->path);
}

static struct entry *entry_find(struct file *file, const char *name)
{
    struct entry *entry;

    HASH_FIND(hh, file->entries, name, strlen(name), entry);
    return entry;
}

static void file_find(void *state, struct route_request *request)
{
    struct file *file = state;
    struct route route = {.state = ROUTE_ACTIVE};
    struct entry *entry = entry_find(file, request->user);

    if (entry == NULL)
        entry = entry_find(file, "*");
    if (entry == NULL) {
        route_source_answer(request, ROUTE_UNKNOWN_USER, NULL, NULL);
        return;
    }
    memcpy(route.shard, entry->shard, strlen(entry->shard) + 1); /* lengths: see add_entry */
    memcpy(route.backend_user, entry->backend_user, strlen(entry->backend_user) + 1);
    route_source_answer(request, ROUTE_FOUND, &route, NULL);
}

/* The answer came inside `find`: there is never anything to take back. */
static void file_cancel(void *state, struct route_request *request)
{
    (void)state;
    (void)request;
}

static void file_close(void *state)
{
    struct file *file = state;

    uv_mutex_lock(&all_files_lock);
    if (--file->user_count == 0)
        LL_DELETE(all_files, file);
    else
        file = NULL;
    uv_mutex_unlock(&all_files_lock);
    free_file(file);
}

static void free_file(struct file *file)
{
    struct entry *entry, *next;

    if (file == NULL)
        return;
    HASH_ITER(hh, file->entries, entry, next)
    {
        HASH_DEL(file->entries, entry);
        mem_free(entry);
    }
    mem_free(file);
}

const struct route_source route_source_file = {
    .name = "file",
    .open = file_open,
    .find = file_find,
    .cancel = file_cancel,
    .close = file_close,
};
