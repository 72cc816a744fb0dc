/* A password file as a table: what stands in it, and who stands in for a name that does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "auth/passwd/table.h"
#include "proxy/base/span.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MANY = 20000 };

static const struct passwd_key key = {{1, 2, 3}};

static struct passwd_table *read_text(const char *text, size_t len, struct err *err)
{
    int fd = memfd_create("passwd", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, text, len, 0), len);

    struct passwd_table *table = passwd_table_read(fd, "file", &key, err);

    close(fd);
    return table;
}

/* Every third user has a hash of its own kind; one of them all may be left out. */
static struct passwd_table *read_many(unsigned count, unsigned without)
{
    char *text = malloc((size_t)count * 64);
    size_t len = 0;
    struct err err = {0};

    for (unsigned i = 0; i < count; i++)
        if (i != without)
            len +=
                (size_t)sprintf(text + len, "user%u:%s%u\n", i, i % 3 == 0 ? "$1$a$" : "$5$a$", i);

    struct passwd_table *table = read_text(text, len, &err);

    free(text);
    assert_non_null(table);
    return table;
}

static void all_are_found(void **state)
{
    struct passwd_table *table = read_many(MANY, MANY);
    char name[32], hash[32];
    bool known;

    (void)state;
    assert_int_equal(passwd_table_count(table), MANY);
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "user%u", i);
        snprintf(hash, sizeof hash, "%s%u", i % 3 == 0 ? "$1$a$" : "$5$a$", i);
        assert_string_equal(passwd_table_find(table, name, &known), hash);
        assert_true(known);
    }
    passwd_table_close(&table);
    assert_null(table);
}

/*
 * Names that are not there cost what those cost that are: about a third of them the cheaper hash.
 */
static void unknown_names_are_like_known_ones(void **state)
{
    struct passwd_table *table = read_many(MANY, MANY), *fewer = read_many(MANY, 7);
    unsigned cheap = 0, changed = 0;
    char name[32];
    bool known;

    (void)state;
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "nobody%u", i);

        const char *hash = passwd_table_find(table, name, &known);

        assert_false(known);
        cheap += strncmp(hash, "$1$", 3) == 0;
        assert_ptr_equal(passwd_table_find(table, name, &known), hash);
        changed += strcmp(passwd_table_find(fewer, name, &known), hash) != 0;
    }
    assert_in_range(cheap, MANY * 3 / 10, MANY * 4 / 10);
    assert_true(changed < 40); /* one user less matters to hardly any of them */
    assert_non_null(passwd_table_find(fewer, "user7", &known));
    assert_false(known);
    passwd_table_close(&table);
    passwd_table_close(&fewer);
}

static void an_empty_one(void **state)
{
    struct err err = {0};
    struct passwd_table *table = read_text("# nobody\n\n", 10, &err);
    bool known = true;

    (void)state;
    assert_non_null(table);
    assert_null(passwd_table_find(table, "ann", &known));
    assert_false(known);
    passwd_table_close(&table);
}

/* The first line that is wrong is told, whatever is wrong with it and with those behind it. */
static void the_first_bad_line_is_told(void **state)
{
    static const char *const texts[][2] = {
        {"a:$1$a$b\nb:$1$a$b\na:$1$a$b\nb:$1$a$b\n", "file:3: the name stands in an earlier line"},
        {"a:$1$a$b\na:$1$a$b\nb\n", "file:2: the name stands in an earlier line"},
        {"a:$1$a$b\nb\na:$1$a$b\n", "file:2: expected name:hash"},
        {"a:$1$a$b\n\n#\nb:*", "file:4: expected a hash as crypt(5) describes them"},
        {"a:$1$a$b \n", "file:1: the hash holds a colon or white space"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct err err = {0};

        assert_null(read_text(texts[i][0], strlen(texts[i][0]), &err));
        assert_int_equal(err.kind, ERR_CONFIG);
        assert_string_equal(err.text, texts[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_are_found),
        cmocka_unit_test(unknown_names_are_like_known_ones),
        cmocka_unit_test(an_empty_one),
        cmocka_unit_test(the_first_bad_line_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
