/* The source `passwd`: hashes of all kinds, its line of waiting logins, and a file that changes. */
#include "tests/unit/auth_fixture.h"

#include "auth/username.h"

#include <crypt.h>

static char name_passwd[] = "passwd", name_ldap[] = "ldap", dead_uri[] = "ldap://127.0.0.1:1";
static char *dead_uris[] = {dead_uri};
static char base[] = "dc=example", filter[] = "(uid=%{user})";
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

/* Made by mkpasswd and `openssl passwd` of "Grüße, 1 Wort". */
static void hashes_of_all_kinds(void **state)
{
    static const char file[] =
        "yescrypt:$y$j9T$KjqhytaW4X0zRgeYpSgOb/$wN4WY7RWZKbI/ki1BRmuD.aCxLU7eLo3RPZz.gIpvj3\n"
        "gost:$gy$j9T$i1KvpctqqBF4MTeroFLYo.$yFrkEgAfzjpMIPZol32b0bqubwP/vH1WNenV0szKb40\n"
        "scrypt:$7$CU..../....uL/c5.6x36CUcU3b1lkCM0$9LkeLL9qj1bEz4b3JjZDNUJ8RdzRJNIkQthu0eOMKQ1\n"
        "bcrypt:$2b$05$mMtfx.VhCQFJdb3yibztKOIf5uanKI/sHnvobGxfIL0Tl6cCCyiM6\n"
        "sha512:$6$G75YJVva7ts.inqb$JX6oDJcnrhdseL2easCPPKlcyS8ufSEokZMUzjLQ65et42//Voe/"
        "FdWSGnTIZk9J2UdnRM9OwWOiD.zDRU153.\n"
        "sha256:$5$klPaa9m3vBclXiBg$13FEzlhT1j.BlyT0QDTlMNIVKd8Ko8zQY/XFQtl12o.\n"
        "openssl6:$6$SGYopSctvAzvrswJ$IEu21YB/07GunmeDdBVpQhbM958caPuXxXcCpw2u14JdyTKoICJ05H37k47"
        "dPakuGH.dlwhi1Zu6NSdHmGo77.\n"
        "openssl5:$5$VdnsfOlNsRRbVljU$yN5pxxcNf1mQfKlrWXUTY8bGYeN4UkGkf.wSDnsQJZA\n"
        "openssl1:$1$m4CYpXEm$7JHx22qT6/A64SDNlz8so0\n"
        "sunmd5:$md5,rounds=63896$x052zDoi$$bBlOP3Tyu9t9S4mpbjK8v.\n";
    static const char *const users[] = {"yescrypt", "gost",     "scrypt",   "bcrypt",   "sha512",
                                        "sha256",   "openssl6", "openssl5", "openssl1", "sunmd5"};
    struct fixture f;

    (void)state;
    setup(&f);
    write_file(file, sizeof file - 1);
    fixture_open(&f);
    for (size_t i = 0; i < sizeof users / sizeof users[0]; i++) {
        print_message("%s\n", users[i]);
        assert_int_equal(login_result(&f, users[i], "Grüße, 1 Wort"), ERR_NONE);
        assert_int_equal(login_result(&f, users[i], "Grüße, 1 wort"), ERR_CREDENTIALS);
    }
    fixture_release(&f);
}

/* A hash that takes a while, for as many logins as there are. */
static void setup_slow(struct fixture *f)
{
    char text[200];
    int len = snprintf(text, sizeof text, "ann:$5$rounds=200000$abcdefgh$%043d", 0);

    setup(f);
    write_file(text, (size_t)len);
}

/* As the configuration says that is in force; one before it let more of them wait. */
static void too_many_are_refused(void **state)
{
    enum { LOGINS = 200, WAITING = 3 };
    struct fixture f, before;
    struct login logins[LOGINS];
    unsigned refused = 0, decided = 0;

    (void)state;
    setup_slow(&before);
    before.conf.passwd.max_queue = LOGINS;
    fixture_open(&before);
    setup_slow(&f);
    f.conf.passwd.max_queue = WAITING;
    fixture_open(&f);
    fixture_release(&before);
    for (size_t i = 0; i < LOGINS; i++)
        login_start(&f, &logins[i], "ann", "wrong");
    for (size_t i = 0; i < LOGINS; i++) {
        login_wait(&f, &logins[i]);
        refused += strcmp(logins[i].err.text, "passwd: 3 logins wait already") == 0;
        decided += logins[i].err.kind == ERR_CREDENTIALS;
    }
    assert_true(refused > 0 && decided >= WAITING);
    assert_int_equal(refused + decided, LOGINS);
    assert_int_equal(login_result(&f, "ann", "wrong"), ERR_CREDENTIALS);
    fixture_release(&f);
}

/* Who is cancelled while it waits gives its place to others. */
static void cancelled_ones_leave_the_line(void **state)
{
    enum { LOGINS = 100 };
    struct fixture f;
    struct login logins[LOGINS];

    (void)state;
    setup_slow(&f);
    f.conf.passwd.max_queue = LOGINS;
    fixture_open(&f);
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < LOGINS; i++)
            login_start(&f, &logins[i], "ann", "wrong");
        for (size_t i = 0; i < LOGINS; i++)
            login_cancel(&logins[i]);
    }
    assert_int_equal(login_result(&f, "ann", "wrong"), ERR_CREDENTIALS);
    fixture_release(&f);
}

static void note_turn(uv_work_t *work, int status)
{
    const struct login *last = work->data;

    assert_int_equal(status, 0);
    assert_int_equal(last->answer_count, 0);
    work->data = NULL;
}

static void do_nothing(uv_work_t *work)
{
    (void)work;
}

/* What others have for libuv's threads is done while logins wait. */
static void a_flood_keeps_nobody_else_waiting(void **state)
{
    enum { LOGINS = 100 };
    struct fixture f;
    struct login logins[LOGINS];
    uv_work_t other = {.data = &logins[LOGINS - 1]};

    (void)state;
    setup_slow(&f);
    fixture_open(&f);
    for (size_t i = 0; i < LOGINS; i++)
        login_start(&f, &logins[i], "ann", "wrong");
    assert_int_equal(uv_queue_work(&f.loop, &other, do_nothing, note_turn), 0);
    while (other.data != NULL)
        uv_run(&f.loop, UV_RUN_ONCE);
    for (size_t i = 0; i < LOGINS; i++)
        login_cancel(&logins[i]);
    fixture_release(&f);
}

static void write_new(const char *text)
{
    char new_path[sizeof path + 4];
    FILE *file;

    snprintf(new_path, sizeof new_path, "%s.new", path);
    file = fopen(new_path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(rename(new_path, path), 0);
}

/* Two workers, logins without a pause, and a file that is replaced meanwhile. */
static void a_changed_file_counts(void **state)
{
    struct fixture f, other;
    struct login logins[8];
    char text[200];
    bool has_changed = false;

    (void)state;
    setup(&f);
    setup(&other);
    fixture_open(&f);
    fixture_open(&other);
    snprintf(text, sizeof text, "eve:%s\n", ann_hash);
    write_new(text);
    while (!has_changed) {
        for (size_t i = 0; i < 8; i++)
            login_start(&f, &logins[i], "eve", "secret");
        for (size_t i = 0; i < 8; i++) {
            login_wait(&f, &logins[i]);
            has_changed = logins[i].err.kind == ERR_NONE;
            assert_true(has_changed || logins[i].err.kind == ERR_CREDENTIALS);
        }
    }
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&other, "eve", "secret"), ERR_NONE); /* they share it */
    assert_int_equal(login_result(&other, "ann", "secret"), ERR_CREDENTIALS);
    fixture_release(&f);
    assert_int_equal(login_result(&other, "eve", "secret"), ERR_NONE);
    fixture_release(&other);
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
    f.conf.ldap.base = base;
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
    f.conf.ldap.base = base;
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
        cmocka_unit_test(hashes_of_all_kinds),
        cmocka_unit_test(too_many_are_refused),
        cmocka_unit_test(cancelled_ones_leave_the_line),
        cmocka_unit_test(a_flood_keeps_nobody_else_waiting),
        cmocka_unit_test(a_changed_file_counts),
        cmocka_unit_test(cancelled_and_closed_at_work),
        cmocka_unit_test(dead_directory_behind),
        cmocka_unit_test(dead_directory_before),
        cmocka_unit_test(bad_lines),
    };

    return cmocka_run_group_tests(tests, make_file, remove_file);
}
