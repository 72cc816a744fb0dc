/*
 * A password file against a slow, obvious reader of the same lines: it is taken or refused alike,
 * and a refusal names the first line that is bad.
 */
#include <assert.h>
#include <crypt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "auth/passwd/table.h"
#include "auth/username.h"
#include "proxy/base/span.h"

enum { FILE_MAX = 4096, LINES_MAX = FILE_MAX / 2 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct names {
    struct {
        struct span name, hash;
    } all[LINES_MAX];
    size_t count;
};

static bool is_new(struct names *names, struct span name, struct span hash)
{
    for (size_t i = 0; i < names->count; i++)
        if (span_equal(names->all[i].name, name))
            return false;
    names->all[names->count].name = name;
    names->all[names->count++].hash = hash;
    return true;
}

static bool is_hash(struct span text)
{
    char hash[PASSWD_LINE_MAX + 1];

    memcpy(hash, text.ptr, text.len);
    hash[text.len] = '\0';

    int salt = crypt_checksalt(hash);

    return strpbrk(hash, ": \t\r") == NULL && salt != CRYPT_SALT_INVALID &&
           salt != CRYPT_SALT_METHOD_DISABLED;
}

static bool is_good(struct names *names, struct span line)
{
    if (line.len > PASSWD_LINE_MAX || memchr(line.ptr, '\0', line.len) != NULL)
        return false;
    if (line.len == 0 || line.ptr[0] == '#')
        return true;

    const char *colon = memchr(line.ptr, ':', line.len);
    struct span name = {line.ptr, colon == NULL ? 0 : (size_t)(colon - line.ptr)};

    struct span hash = colon == NULL ? name : span_after(line, name.len + 1);

    return name.len > 0 && name.len <= USERNAME_MAX && is_hash(hash) && is_new(names, name, hash);
}

/* The number of the first bad line; 0 if all are good. */
static unsigned first_bad_line(struct names *names, struct span text)
{
    names->count = 0;
    for (unsigned number = 1; text.len > 0; number++) {
        const char *end = memchr(text.ptr, '\n', text.len);
        size_t len = end == NULL ? text.len : (size_t)(end - text.ptr);

        if (!is_good(names, (struct span){text.ptr, len}))
            return number;
        text = span_after(text, end == NULL ? len : len + 1);
    }
    return 0;
}

static void check_users(const struct passwd_table *table, const struct names *names)
{
    char name[USERNAME_MAX + 1];
    bool known;

    assert(passwd_table_count(table) == names->count);
    for (size_t i = 0; i < names->count; i++) {
        struct span wanted = names->all[i].name;

        memcpy(name, wanted.ptr, wanted.len);
        name[wanted.len] = '\0';
        assert(span_equal(span_of(passwd_table_find(table, name, &known)), names->all[i].hash));
        assert(known);
        name[wanted.len - 1] ^= 1; /* a neighbour, most likely of nobody */
        if (name[wanted.len - 1] != '\0')
            assert(passwd_table_find(table, name, &known) != NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct passwd_key key = {{7}};
    static struct names names;
    struct err err = {0};
    char expected[64];

    if (size > FILE_MAX)
        return 0;

    int fd = memfd_create("passwd", MFD_CLOEXEC);

    if (fd < 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        abort();

    unsigned bad = first_bad_line(&names, (struct span){(const char *)data, size});
    struct passwd_table *table = passwd_table_read(fd, "file", &key, &err);

    close(fd);
    assert((table != NULL) == (bad == 0));
    snprintf(expected, sizeof expected, "file:%u: ", bad);
    assert(bad == 0 || (err.kind == ERR_CONFIG && strstr(err.text, expected) == err.text));
    if (table != NULL)
        check_users(table, &names);
    passwd_table_close(&table);
    return 0;
}
