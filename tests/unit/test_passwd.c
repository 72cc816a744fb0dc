/* The password file, with hashes made here. */
#include "tests/unit/auth_fixture.h"

#include "auth/username.h"

#include <crypt.h>

static char name_passwd[] = "passwd", name_ldap[] = "ldap", dead_uri[] = "ldap://127.0.0.1:1";
static char *dead_uris[] = {dead_uri};
static char filter[] = "(uid=%{user})";
static char path[] = "/tmp/test_passwd.XXXXXX";
static char ann_hash[CRYPT_OUTPUT_SIZE];

static int make_file(void **state)
{
    int fd = mkstemp(path);
    struct crypt_data data = {0};

    (void)state;
    if (fd < 0)
        return -1;
    close(fd);
    snprintf(ann_hash, sizeof ann_hash, "%s",
             crypt_rn("secret", "$5$rounds=1000$abcdefgh", &data, (int)sizeof data));
    return 0;
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

static void write_file(const char *text, size_t len)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

static void setup(struct fixture *f)
{
    char text[400];
    int len = snprintf(text, sizeof text, "# people\n\nann:%s\nbob@example:%s", ann_hash, ann_hash);

    write_file(text, (size_t)len);
    fixture_init(f);
    fixture_source(f, name_passwd);
    f->conf.passwd.file = path;
}

static void passwords(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "bob@example", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "ann", "Secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "eve", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "an", "secret"), ERR_CREDENTIALS);
    fixture_release(&f);
}

static void odd_passwords(void **state)
{
    struct fixture f;
    struct login login = {0};
    char long_one[2000];

    (void)state;
    setup(&f);
    fixture_open(&f);
    memset(long_one, 'x', sizeof long_one - 1);
    long_one[sizeof long_one - 1] = '\0';
    assert_int_equal(login_result(&f, "ann", long_one), ERR_CREDENTIALS);
    assert_true(secret_set(&login.password, (struct span){"secret\0more", 11}));
    login.request = (struct auth_request){.user = "ann",
                                          .login_as = "",
                                          .secret = &login.password,
                                          .address = &login_address,
                                          .on_answer = login_answered,
                                          .owner = &login};
    auth_verify(f.auth, &login.request);
    login_wait(&f, &login);
    assert_int_equal(login.err.kind, ERR_CREDENTIALS);
    fixture_release(&f);
}

static void cancelled_and_closed_at_work(void **state)
{
    struct fixture f;
    struct login logins[20];

    (void)state;
    setup(&f);
    fixture_open(&f);
    for (size_t i = 0; i < 20; i++)
        login_start(&f, &logins[i], i % 2 == 0 ? "ann" : "eve", "secret");
    login_wait(&f, &logins[0]);
    for (size_t i = 0; i < 20; i++)
        if (logins[i].answer_count == 0)
            login_cancel(&logins[i]);
    fixture_release(&f);
}

static void dead_directory_behind(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    fixture_source(&f, name_ldap);
    f.conf.ldap.uri = (struct conf_words){dead_uris, 1};
    f.conf.ldap.filter = filter;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "ann", "wrong"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "eve", "secret"), ERR_UNAVAILABLE);
    assert_int_equal(login_result(&f, "eve", "secret"), ERR_UNAVAILABLE);
    fixture_release(&f);
}

static void dead_directory_before(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    f.source_names[0] = name_ldap;
    fixture_source(&f, name_passwd);
    f.conf.ldap.uri = (struct conf_words){dead_uris, 1};
    f.conf.ldap.filter = filter;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "eve", "secret"), ERR_UNAVAILABLE);
    fixture_release(&f);
}

static void bad_lines(void **state)
{
    static const struct {
        const char *text;
        size_t len;
    } bad[] = {
#define LINE(text) {text, sizeof text - 1}
        LINE("ann"),
        LINE(":$5$abcdefgh$x"),
        LINE("ann:"),
        LINE("ann:plain text"),
        LINE("ann:*"),
        LINE("ann:$9$x$y"),
        LINE("ann:$5$a$b\r"),
        LINE("ann:$5$a$b:1:2"),
        LINE("an\0n:$5$a$b\n"),
        LINE("ann:$5$a$b\nann:$5$a$b"),
        LINE(" "),
#undef LINE
    };
    struct fixture f;

    (void)state;
    setup(&f);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_file(bad[i].text, bad[i].len);
        f.open_err = (struct err){0};
        f.auth = auth_open(&f.env, NULL, &f.open_err);
        if (f.auth != NULL)
            fail_msg("\"%s\" was taken", bad[i].text);
        assert_int_equal(f.open_err.kind, ERR_CONFIG);
        assert_non_null(strstr(f.open_err.text, i == 9 ? ":2: " : ":1: "));
    }
    f.conf.passwd.file = name_ldap; /* no such file */
    assert_null(auth_open(&f.env, NULL, &f.open_err));
    fixture_release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passwords),
        cmocka_unit_test(odd_passwords),
        cmocka_unit_test(cancelled_and_closed_at_work),
        cmocka_unit_test(dead_directory_behind),
        cmocka_unit_test(dead_directory_before),
        cmocka_unit_test(bad_lines),
    };

    return cmocka_run_group_tests(tests, make_file, remove_file);
}
