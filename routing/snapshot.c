/*
 * Owns the format of the snapshot, and the lock. A snapshot is
 *     imapmux-snapshot 1 <proxy> <written_ms> <fence_ms> <mark> <routes>
 *     <user> TAB <shard> TAB <backend_user> TAB <epoch> TAB <age_ms>      for each route
 *     sha256 <of all octets before this line>
 */
#include "routing/snapshot.h"

#include "proxy/base/mem.h"
#include "routing/disk.h"
#include "routing/journal.h"
#include "routing/words.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

enum {
    USER_MAX = JOURNAL_USER_MAX, /* who cannot be in the journal is not in the snapshot */
    HEAD_MAX = 256,
    DIGEST_SIZE = 32,
    TAIL_LEN = 7 + 2 * DIGEST_SIZE + 1 /* the last line */
};

static const char magic[] = "imapmux-snapshot", version[] = "1";

struct snapshot {
    char path[PATH_MAX];
    int lock;
    struct journal *journal;

    /* Of the file that was there, until it is read. */
    char *text;
    struct span routes;
    struct snapshot_head head;
    struct err err; /* what is wrong with it */
};

/* A file as it is being written. */
struct output {
    int fd;
    EVP_MD_CTX *digest;
    bool good;
};

static bool fail(const struct snapshot *snapshot, struct err *err)
{
    return err_set(err, ERR_UNAVAILABLE, "%s: %s", snapshot->path, strerrordesc_np(errno));
}

/* --- the format --- */

static void print_tail(const unsigned char digest[DIGEST_SIZE], char tail_out[TAIL_LEN + 1])
{
    snprintf(tail_out, TAIL_LEN + 1, "sha256 ");
    for (size_t i = 0; i < DIGEST_SIZE; i++)
        snprintf(tail_out + 7 + 2 * i, 3, "%02x", digest[i]);
    tail_out[TAIL_LEN - 1] = '\n';
}

static bool has_digest(struct span text, struct span tail)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    char expected[TAIL_LEN + 1];

    if (EVP_Digest(text.ptr, text.len, digest, NULL, EVP_sha256(), NULL) != 1)
        return false;
    print_tail(digest, expected);
    return span_equal(tail, (struct span){expected, TAIL_LEN});
}

static bool take_head(struct span *rest, struct snapshot_head *head_out, uint64_t *count_out)
{
    struct span word;

    return words_take(rest, ' ', &word) && span_equal(word, span_of(magic)) &&
           words_take(rest, ' ', &word) && span_equal(word, span_of(version)) &&
           words_take_name(rest, ' ', 1, SNAPSHOT_PROXY_MAX, head_out->proxy) &&
           words_take_number(rest, ' ', &head_out->written_ms) &&
           words_take_number(rest, ' ', &head_out->fence_ms) &&
           words_take_number(rest, ' ', &head_out->mark) &&
           words_take_number(rest, '\n', count_out);
}

/* Room for the texts of a struct known_route. */
struct texts {
    char user[USER_MAX + 1], shard[SHARD_NAME_MAX + 1], backend_user[BACKEND_USER_MAX + 1];
};

static bool take_route(struct span *rest, struct texts *texts, struct known_route *route_out)
{
    *route_out = (struct known_route){
        .user = texts->user, .shard = texts->shard, .backend_user = texts->backend_user};
    return words_take_name(rest, '\t', 1, USER_MAX, texts->user) &&
           words_take_name(rest, '\t', 1, SHARD_NAME_MAX, texts->shard) &&
           words_take_name(rest, '\t', 0, BACKEND_USER_MAX, texts->backend_user) &&
           words_take_number(rest, '\t', &route_out->epoch) &&
           words_take_number(rest, '\n', &route_out->age_ms);
}

/* Are there so many lines, and is each a route? */
static bool are_routes(struct span rest, uint64_t count)
{
    struct texts texts;
    struct known_route route;

    for (; rest.len > 0; count--)
        if (count == 0 || !take_route(&rest, &texts, &route))
            return false;
    return count == 0;
}

/* --- life --- */

/* False if it is not such a file. */
static bool check(struct snapshot *snapshot, struct span text)
{
    struct snapshot_head head = {0};
    struct span rest, tail;
    uint64_t count;

    if (text.len < TAIL_LEN)
        return false;
    tail = span_after(text, text.len - TAIL_LEN);
    rest = (struct span){text.ptr, text.len - TAIL_LEN};
    if (!has_digest(rest, tail) || !take_head(&rest, &head, &count) || !are_routes(rest, count))
        return false;
    snapshot->head = head;
    snapshot->routes = rest;
    return true;
}

static void load(struct snapshot *snapshot)
{
    int fd = open(snapshot->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe would keep us */
    size_t len = 0;

    if (fd < 0) {
        if (errno != ENOENT)
            fail(snapshot, &snapshot->err);
        return;
    }
    snapshot->text = disk_load(fd, &len);
    if (snapshot->text == NULL)
        fail(snapshot, &snapshot->err);
    else if (!check(snapshot, (struct span){snapshot->text, len}))
        err_set(&snapshot->err, ERR_CONFIG, "%s: no snapshot, or not a whole one", snapshot->path);
    close(fd);
}

static bool open_files(struct snapshot *snapshot, struct err *err)
{
    char lock[PATH_MAX], journal[PATH_MAX];

    errno = ENAMETOOLONG;
    if ((size_t)snprintf(lock, sizeof lock, "%s.lock", snapshot->path) >= sizeof lock ||
        (size_t)snprintf(journal, sizeof journal, "%s.moved", snapshot->path) >= sizeof journal)
        return fail(snapshot, err);
    snapshot->lock = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (snapshot->lock < 0)
        return fail(snapshot, err);
    if (flock(snapshot->lock, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? err_set(err, ERR_BUSY, "%s: another process uses it", snapshot->path)
                   : fail(snapshot, err);
    load(snapshot);
    snapshot->journal = journal_open(journal, snapshot->head.mark, err);
    return snapshot->journal != NULL;
}

struct snapshot *snapshot_open(const char *path, struct err *err)
{
    struct snapshot *snapshot = mem_new(sizeof *snapshot);

    if (snapshot == NULL) {
        err_set(err, ERR_UNAVAILABLE, "%s: no memory", path);
        return NULL;
    }
    snapshot->lock = -1;
    snprintf(snapshot->path, sizeof snapshot->path, "%s", path);
    if (!open_files(snapshot, err))
        snapshot_close(&snapshot);
    return snapshot;
}

void snapshot_close(struct snapshot **snapshot)
{
    struct snapshot *s = *snapshot;

    *snapshot = NULL;
    if (s == NULL)
        return;
    journal_close(&s->journal);
    if (s->lock >= 0)
        close(s->lock);
    mem_free(s->text);
    mem_free(s);
}

/* --- reading --- */

/* Whom the journal does not name; older by the time that has passed since. */
static void give_routes(struct span rest, const struct moved *moved, uint64_t passed_ms,
                        void (*visit)(void *owner, const struct known_route *route), void *owner)
{
    struct texts texts;
    struct known_route route;

    while (rest.len > 0 && take_route(&rest, &texts, &route)) {
        route.age_ms =
            route.age_ms > UINT64_MAX - passed_ms ? UINT64_MAX : route.age_ms + passed_ms;
        if (!moved_has(moved, route.user))
            visit(owner, &route);
    }
}

/* What may be served of a good file. */
static bool serve(const struct snapshot *snapshot, uint64_t now_ms,
                  void (*visit)(void *owner, const struct known_route *route), void *owner,
                  struct err *err)
{
    const struct snapshot_head *head = &snapshot->head;
    struct moved *moved;

    if (now_ms < head->written_ms)
        return err_set(err, ERR_CONFIG, "%s: written in the future: has the clock been set back?",
                       snapshot->path);
    if (!journal_read(snapshot->journal, head->mark, &moved, err))
        return false;
    if (now_ms < head->fence_ms)
        give_routes(snapshot->routes, moved, now_ms - head->written_ms, visit, owner);
    moved_free(&moved);
    return true;
}

bool snapshot_read(struct snapshot *snapshot, uint64_t now_ms, struct snapshot_head *head_out,
                   void (*visit)(void *owner, const struct known_route *route), void *owner,
                   struct err *err)
{
    bool is_there = snapshot->head.proxy[0] != '\0', good;

    *head_out = snapshot->head;
    if (is_there)
        good = serve(snapshot, now_ms, visit, owner, err);
    else
        good = snapshot->err.kind == ERR_NONE ||
               err_set(err, snapshot->err.kind, "%s", snapshot->err.text);
    if (!good || now_ms >= head_out->fence_ms)
        head_out->fence_ms = 0;
    mem_free(snapshot->text);
    snapshot->text = NULL;
    snapshot->routes = (struct span){NULL, 0};
    return good;
}

/* --- writing --- */

uint64_t snapshot_mark(const struct snapshot *snapshot)
{
    return journal_number(snapshot->journal);
}

bool snapshot_add_moved(struct snapshot *snapshot, const char *user, uint64_t epoch,
                        struct err *err)
{
    return journal_append(snapshot->journal, user, epoch, err);
}

void snapshot_add(void *owner, const struct known_route *route)
{
    if (words_is_name(span_of(route->user), 1, USER_MAX))
        buf_printf(owner, "%s\t%s\t%s\t%" PRIu64 "\t%" PRIu64 "\n", route->user, route->shard,
                   route->backend_user, route->epoch, route->age_ms);
}

static uint64_t count_lines(const struct span *parts, size_t count)
{
    uint64_t lines = 0;

    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < parts[i].len; j++)
            lines += parts[i].ptr[j] == '\n';
    return lines;
}

static void say(struct output *out, struct span bytes)
{
    out->good = out->good && EVP_DigestUpdate(out->digest, bytes.ptr, bytes.len) == 1 &&
                disk_write(out->fd, bytes);
}

static void say_tail(struct output *out)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    char tail[TAIL_LEN + 1];

    out->good = out->good && EVP_DigestFinal_ex(out->digest, digest, NULL) == 1;
    if (!out->good)
        return;
    print_tail(digest, tail);
    out->good = disk_write(out->fd, (struct span){tail, TAIL_LEN});
}

bool snapshot_write(const struct snapshot *snapshot, const struct snapshot_head *head,
                    const struct span *parts, size_t count, struct err *err)
{
    struct output out = {.fd = disk_begin(snapshot->path)};
    char line[HEAD_MAX];

    if (out.fd < 0)
        return fail(snapshot, err);
    snprintf(line, sizeof line, "%s %s %s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", magic,
             version, head->proxy, head->written_ms, head->fence_ms, head->mark,
             count_lines(parts, count));
    errno = ENOMEM; /* where OpenSSL fails */
    out.digest = EVP_MD_CTX_new();
    out.good = out.digest != NULL && EVP_DigestInit_ex(out.digest, EVP_sha256(), NULL) == 1;
    say(&out, span_of(line));
    for (size_t i = 0; i < count; i++)
        say(&out, parts[i]);
    say_tail(&out);
    EVP_MD_CTX_free(out.digest);
    return disk_finish(out.fd, snapshot->path, out.good) || fail(snapshot, err);
}

void snapshot_written(struct snapshot *snapshot, const struct snapshot_head *head)
{
    journal_clear(snapshot->journal, head->mark);
}
