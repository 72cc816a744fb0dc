/*
 * Owns the text of a password file and an index of it, in the order of a keyed hash of the names.
 * Whoever comes next in that order stands in for a name that is not there: nobody can tell who that
 * is, and it changes only if somebody comes between.
 */
#include "auth/passwd/table.h"

#include "auth/username.h"
#include "proxy/base/hash.h"
#include "proxy/base/secret.h"

#include <crypt.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct entry {
    const char *name; /* in the text; its hash stands behind it */
    uint32_t place;
    unsigned line;
};

struct passwd_table {
    struct passwd_key key;
    char *text; /* lines and names end in a NUL */
    size_t text_len;
    struct entry *entries;
    size_t count;
};

static bool read_text(struct passwd_table *table, int fd, const char *path, struct err *err);
static bool read_lines(struct passwd_table *table, const char *path, struct err *err);
static const char *read_line(struct passwd_table *table, char *line, size_t len, unsigned number);
static uint32_t place_of(const struct passwd_key *key, const char *name, size_t len);
static unsigned sort(struct passwd_table *table);
static int compare(const void *left, const void *right);

struct passwd_table *passwd_table_read(int fd, const char *path, const struct passwd_key *key,
                                       struct err *err)
{
    struct passwd_table *table = mem_new(sizeof *table);

    if (table == NULL) {
        err_set(err, ERR_INTERNAL, "%s: no memory", path);
        return NULL;
    }
    table->key = *key;
    if (!read_text(table, fd, path, err) || !read_lines(table, path, err))
        passwd_table_close(&table);
    return table;
}

/* All of the file, with a newline at its end. */
static bool read_text(struct passwd_table *table, int fd, const char *path, struct err *err)
{
    struct stat file;

    if (fstat(fd, &file) != 0)
        return err_set(err, ERR_INTERNAL, "%s: %s", path, strerrordesc_np(errno));

    size_t size = (size_t)file.st_size;
    ssize_t count = 1;

    table->text = mem_new(size + 1);
    if (table->text == NULL)
        return err_set(err, ERR_INTERNAL, "%s: no memory", path);
    while (count != 0 && table->text_len < size) {
        count = read(fd, table->text + table->text_len, size - table->text_len);
        if (count < 0 && errno != EINTR)
            return err_set(err, ERR_INTERNAL, "%s: %s", path, strerrordesc_np(errno));
        if (count > 0)
            table->text_len += (size_t)count;
    }
    if (table->text_len > 0 && table->text[table->text_len - 1] != '\n')
        table->text[table->text_len++] = '\n';
    return true;
}

static bool read_lines(struct passwd_table *table, const char *path, struct err *err)
{
    char *end = table->text + table->text_len, *newline;
    const char *complaint = NULL;
    size_t line_count = 0;
    unsigned number = 0;

    for (const char *at = table->text; at < end; at++)
        line_count += *at == '\n';
    table->entries = mem_array(line_count + 1, sizeof *table->entries);
    if (table->entries == NULL)
        return err_set(err, ERR_INTERNAL, "%s: no memory", path);
    for (char *line = table->text; line < end && complaint == NULL; line = newline + 1) {
        newline = memchr(line, '\n', (size_t)(end - line));
        *newline = '\0';
        complaint = read_line(table, line, (size_t)(newline - line), ++number);
    }

    unsigned twice = sort(table);

    if (twice != 0)
        return err_set(err, ERR_CONFIG, "%s:%u: the name stands in an earlier line", path, twice);
    return complaint == NULL || err_set(err, ERR_CONFIG, "%s:%u: %s", path, number, complaint);
}

/* Adds the line to the table; says what is wrong with it, or NULL. */
static const char *read_line(struct passwd_table *table, char *line, size_t len, unsigned number)
{
    if (len > PASSWD_LINE_MAX || memchr(line, '\0', len) != NULL)
        return "the line is too long, or holds a NUL";
    if (len == 0 || line[0] == '#')
        return NULL;

    char *colon = memchr(line, ':', len);

    if (colon == NULL || colon == line)
        return "expected name:hash";
    if (colon - line > USERNAME_MAX)
        return "the name is too long";
    if (strpbrk(colon + 1, ": \t\r") != NULL)
        return "the hash holds a colon or white space";

    int salt = crypt_checksalt(colon + 1);

    if (salt == CRYPT_SALT_INVALID || salt == CRYPT_SALT_METHOD_DISABLED)
        return "expected a hash as crypt(5) describes them";
    *colon = '\0';
    table->entries[table->count++] =
        (struct entry){line, place_of(&table->key, line, (size_t)(colon - line)), number};
    return NULL;
}

static uint32_t place_of(const struct passwd_key *key, const char *name, size_t len)
{
    unsigned char keyed[PASSWD_KEY_SIZE + USERNAME_MAX];
    uint32_t place;

    memcpy(keyed, key->octets, PASSWD_KEY_SIZE);
    memcpy(keyed + PASSWD_KEY_SIZE, name, len);
    HASH_JEN(keyed, PASSWD_KEY_SIZE + len, place);
    return place;
}

/* Puts the entries in order. The first line with a name that an earlier one has, or 0. */
static unsigned sort(struct passwd_table *table)
{
    unsigned twice = 0;

    qsort(table->entries, table->count, sizeof *table->entries, compare);
    for (size_t i = 1; i < table->count; i++) {
        const struct entry *entry = &table->entries[i];

        if (strcmp(entry->name, entry[-1].name) == 0 && (twice == 0 || entry->line < twice))
            twice = entry->line;
    }
    return twice;
}

static int compare(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    int names = a->place != b->place ? 0 : strcmp(a->name, b->name);

    if (a->place != b->place)
        return a->place < b->place ? -1 : 1;
    return names != 0 ? names : a->line < b->line ? -1 : 1;
}

void passwd_table_close(struct passwd_table **table)
{
    struct passwd_table *t = *table;

    *table = NULL;
    if (t == NULL)
        return;
    if (t->text != NULL)
        secret_wipe(t->text, t->text_len);
    mem_free(t->text);
    mem_free(t->entries);
    mem_free(t);
}

size_t passwd_table_count(const struct passwd_table *table)
{
    return table->count;
}

const char *passwd_table_find(const struct passwd_table *table, const char *user, bool *known_out)
{
    struct entry wanted = {.name = user, .place = place_of(&table->key, user, strlen(user))};
    size_t first = 0, end = table->count;

    *known_out = false;
    if (table->count == 0)
        return NULL;
    while (first < end) {
        size_t middle = first + (end - first) / 2;

        if (compare(&table->entries[middle], &wanted) < 0)
            first = middle + 1;
        else
            end = middle;
    }

    const struct entry *entry = &table->entries[first == table->count ? 0 : first];

    *known_out = strcmp(entry->name, user) == 0;
    return entry->name + strlen(entry->name) + 1;
}
