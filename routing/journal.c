/* Owns the journal's file. It is only ever appended to, or emptied. */
#include "routing/journal.h"

#include "proxy/base/hash.h"
#include "routing/disk.h"
#include "routing/words.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

enum { LINE_MAX_OCTETS = JOURNAL_USER_MAX + 64 };

struct journal {
    char path[PATH_MAX];
    int fd;
    size_t len; /* of whole lines */
    uint64_t number;
};

struct moved {
    UT_hash_handle hh;
    char user[];
};

struct line {
    uint64_t number, epoch;
    char user[JOURNAL_USER_MAX + 1];
};

static bool fail(const struct journal *journal, struct err *err)
{
    return err_set(err, ERR_UNAVAILABLE, "%s: %s", journal->path, strerrordesc_np(errno));
}

static bool take_line(struct span *rest, struct line *line_out)
{
    return words_take_number(rest, '\t', &line_out->number) &&
           words_take_name(rest, '\t', 1, JOURNAL_USER_MAX, line_out->user) &&
           words_take_number(rest, '\n', &line_out->epoch);
}

/* --- life --- */

/* What makes no sense stays: journal_read will meet it. */
static void find_end(struct journal *journal, struct span text)
{
    struct line line;

    while (text.len > 0 && text.ptr[text.len - 1] != '\n')
        text.len--;
    journal->len = text.len;
    while (text.len > 0 && take_line(&text, &line))
        if (line.number > journal->number)
            journal->number = line.number;
}

static bool open_file(struct journal *journal, struct err *err)
{
    size_t len;
    char *text;

    journal->fd = open(journal->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (journal->fd < 0 || !disk_sync_folder_of(journal->path))
        return fail(journal, err);
    text = disk_load(journal->fd, &len);
    if (text == NULL)
        return fail(journal, err);
    find_end(journal, (struct span){text, len});
    mem_free(text);
    return ftruncate(journal->fd, (off_t)journal->len) == 0 || fail(journal, err);
}

struct journal *journal_open(const char *path, uint64_t number, struct err *err)
{
    struct journal *journal = mem_new(sizeof *journal);

    if (journal == NULL) {
        err_set(err, ERR_UNAVAILABLE, "%s: no memory", path);
        return NULL;
    }
    journal->fd = -1;
    journal->number = number;
    if ((size_t)snprintf(journal->path, sizeof journal->path, "%s", path) >= sizeof journal->path)
        err_set(err, ERR_UNAVAILABLE, "%.200s: too long", path);
    else if (open_file(journal, err))
        return journal;
    journal_close(&journal);
    return NULL;
}

void journal_close(struct journal **journal)
{
    struct journal *j = *journal;

    *journal = NULL;
    if (j == NULL)
        return;
    if (j->fd >= 0)
        close(j->fd);
    mem_free(j);
}

/* --- writing --- */

uint64_t journal_number(const struct journal *journal)
{
    return journal->number;
}

bool journal_append(struct journal *journal, const char *user, uint64_t epoch, struct err *err)
{
    char line[LINE_MAX_OCTETS];
    size_t len;

    if (!words_is_name(span_of(user), 1, JOURNAL_USER_MAX))
        return true;
    len = (size_t)snprintf(line, sizeof line, "%" PRIu64 "\t%s\t%" PRIu64 "\n", journal->number + 1,
                           user, epoch);
    errno = ENOSPC; /* of a short write */
    if (pwrite(journal->fd, line, len, (off_t)journal->len) != (ssize_t)len ||
        fdatasync(journal->fd) != 0) {
        fail(journal, err);
        if (ftruncate(journal->fd, (off_t)journal->len) != 0)
            return false; /* the next line is written over it */
        return false;
    }
    journal->len += len;
    journal->number++;
    return true;
}

void journal_clear(struct journal *journal, uint64_t number)
{
    if (number == journal->number && ftruncate(journal->fd, 0) == 0)
        journal->len = 0;
}

/* --- reading --- */

static bool add_moved(struct moved **moved, const char *user)
{
    size_t len = strlen(user);
    struct moved *entry;

    if (moved_has(*moved, user))
        return true;
    entry = mem_new(sizeof *entry + len + 1);
    if (entry == NULL)
        return false;
    memcpy(entry->user, user, len);
    HASH_ADD_STR(*moved, user, entry);
    if (entry->hh.tbl != NULL)
        return true;
    mem_free(entry);
    return false;
}

bool journal_read(const struct journal *journal, uint64_t number, struct moved **moved_out,
                  struct err *err)
{
    size_t len = 0;
    char *text = disk_load(journal->fd, &len);
    struct span rest = {text, len};
    struct line line;
    bool good = text != NULL;

    *moved_out = NULL;
    while (good && rest.len > 0)
        good =
            take_line(&rest, &line) && (line.number <= number || add_moved(moved_out, line.user));
    mem_free(text);
    if (!good)
        moved_free(moved_out);
    return good || err_set(err, ERR_CONFIG, "%s: unreadable", journal->path);
}

bool moved_has(const struct moved *moved, const char *user)
{
    const struct moved *entry;

    HASH_FIND_STR(moved, user, entry);
    return entry != NULL;
}

void moved_free(struct moved **moved)
{
    struct moved *entry, *next;

    HASH_ITER(hh, *moved, entry, next)
    {
        HASH_DEL(*moved, entry);
        mem_free(entry);
    }
}
