/* Names made uniform. */
#include "auth/username.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after its friends */
#include <cmocka.h>

static char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@+='";
static char no_domain[] = "", default_domain[] = "example.org";
static char map_old[] = "old.example=new.example", map_strip[] = "example.com=", map_bad[] = "x";
static char *map[] = {map_bad, map_old, map_strip};

static struct conf_username make_conf(void)
{
    return (struct conf_username){.lowercase = true,
                                  .default_domain = no_domain,
                                  .domain_map = {map, 3},
                                  .allowed = allowed,
                                  .max_length = 128};
}

static void check(const struct conf_username *conf, const char *raw, const char *expected)
{
    size_t len = strlen(raw);
    char *exact = malloc(len + 1); /* so that the sanitizer sees a read behind the end */
    char name[USERNAME_MAX + 1];

    assert_non_null(exact);
    memcpy(exact, raw, len);
    exact = realloc(exact, len == 0 ? 1 : len);

    bool ok = username_normalise(conf, (struct span){exact, len}, name);

    free(exact);
    if (ok != (expected != NULL))
        print_message("\"%s\"\n", raw);
    assert_int_equal(ok, expected != NULL);
    if (ok)
        assert_string_equal(name, expected);
}

static void case_and_domains(void **state)
{
    struct conf_username conf = make_conf();

    (void)state;
    check(&conf, "ann", "ann");
    check(&conf, "Ann@Old.Example", "ann@new.example");
    check(&conf, "ann@example.com", "ann");
    check(&conf, "a@b@example.com", "a@b");
    check(&conf, "ann@other", "ann@other");
    check(&conf, "@example.com", NULL);
    check(&conf, "@other", NULL);
    check(&conf, "ann@", NULL);
    conf.default_domain = default_domain;
    check(&conf, "ann", "ann@example.org");
    check(&conf, "ann@example.com", "ann@example.org");
    check(&conf, "ann@other", "ann@other");
    conf.lowercase = false;
    check(&conf, "Ann@OLD.example", "Ann@new.example");
}

static void characters(void **state)
{
    struct conf_username conf = make_conf();
    char name[USERNAME_MAX + 1];

    (void)state;
    check(&conf, "", NULL);
    check(&conf, "a b", NULL);
    check(&conf, "a*)(uid=*", NULL);
    check(&conf, "a\n", NULL);
    check(&conf, "b\xc3\xa4r", NULL);
    assert_false(username_normalise(&conf, (struct span){"an\0n", 4}, name));
    conf.utf8 = true;
    check(&conf, "b\xc3\xa4r", "b\xc3\xa4r");
    check(&conf, "\xf0\x9f\x99\x82", "\xf0\x9f\x99\x82");
    check(&conf, "\xc3", NULL);
    check(&conf, "\xc0\xaf", NULL);
    check(&conf, "\xe0\x80\xaf", NULL);
    check(&conf, "\xed\xa0\x80", NULL);
    check(&conf, "\xf4\x90\x80\x80", NULL);
    check(&conf, "\xf0\x80\x80\x80", NULL);
    check(&conf, "\xe2\x82", NULL);
    check(&conf, "\xe2(\xac", NULL);
    check(&conf, "\x80", NULL);
}

static void lengths(void **state)
{
    struct conf_username conf = make_conf();
    char long_name[300];

    (void)state;
    memset(long_name, 'a', sizeof long_name);
    long_name[128] = '\0';
    check(&conf, long_name, long_name);
    long_name[128] = 'a';
    long_name[129] = '\0';
    check(&conf, long_name, NULL);
    conf.max_length = 255;
    long_name[129] = 'a';
    long_name[255] = '\0';
    check(&conf, long_name, long_name);
    long_name[255] = 'a';
    long_name[256] = '\0';
    check(&conf, long_name, NULL);

    conf.default_domain = default_domain;
    for (size_t len = 240; len <= 255; len++) {
        memset(long_name, 'a', len);
        long_name[len] = '\0';

        char name[USERNAME_MAX + 1];
        bool fits = len + 1 + strlen(default_domain) <= 255;

        assert_int_equal(username_normalise(&conf, span_of(long_name), name), fits);
        if (fits)
            assert_int_equal(strlen(name), len + 12);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(case_and_domains),
        cmocka_unit_test(characters),
        cmocka_unit_test(lengths),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
