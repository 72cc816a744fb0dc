/* A temporary folder with the files that a proxy.conf names, for tests of reading one. */
#ifndef IMAPMUX_TESTS_CONF_FOLDER_H
#define IMAPMUX_TESTS_CONF_FOLDER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];

/* Good until the call after the next one. */
static const char *path_of(const char *name)
{
    static char path[2][128];
    static int turn;

    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static void put(const char *name, const char *text)
{
    FILE *file = fopen(path_of(name), "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/imapmux-conf.XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    put("users", "");
    put("routes", "");
    return 0;
}

static int remove_folder(void **state)
{
    static const char *const names[] = {"users", "routes", "proxy.conf", "more.conf", "secret"};

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unlink(path_of(names[i]));
    return rmdir(folder);
}

#endif
