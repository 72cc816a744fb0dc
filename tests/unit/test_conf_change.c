/* From one configuration to the next: what is told of the difference, and what stays. */
#include "tests/unit/conf_folder.h"

#include "proxy/base/conf_change.h"

#include <string.h>

#define LISTENER "listener l { address = 127.0.0.1:1143 tls = none }\n"
#define FILES    "passwd { file = users }\nroute { file = routes }\n"
#define BLUE     "shard blue { address = store:143 }\n"
#define RED      "shard red { address = other:143 }\n"
#define GREEN    "shard green { address = third:143 }\n"
#define GOOD     LISTENER FILES BLUE

static struct conf *open_first(const char *text)
{
    struct err err = {0};
    struct conf *conf;

    put("proxy.conf", text);
    conf = conf_open(path_of("proxy.conf"), &err);
    if (conf == NULL)
        fail_msg("%s", err.text);
    return conf;
}

static struct conf *open_next(const char *text, const struct conf *running,
                              struct conf_changes *changes)
{
    struct err err = {0};
    struct conf *conf;

    put("proxy.conf", text);
    conf = conf_reopen(path_of("proxy.conf"), running, changes, &err);
    if (conf == NULL)
        fail_msg("%s", err.text);
    return conf;
}

/* With "; " between. */
static void expect_words(const struct conf_words *words, const char *expected)
{
    char all[512] = "";
    size_t len = 0;

    for (size_t i = 0; i < words->count; i++)
        len += (size_t)snprintf(all + len, sizeof all - len, "%s%s", i > 0 ? "; " : "",
                                words->items[i]);
    assert_string_equal(all, expected);
}

static void expect_change(const char *before, const char *after, const char *changed,
                          const char *needs_restart)
{
    struct conf *first = open_first(before);
    struct conf_changes changes;
    struct conf *next = open_next(after, first, &changes);

    expect_words(&changes.changed, changed);
    expect_words(&changes.needs_restart, needs_restart);
    conf_changes_release(&changes);
    conf_close(&next);
    conf_close(&first);
}

static void changes_are_told_by_name(void **state)
{
    (void)state;
    expect_change(GOOD, GOOD, "", "");
    expect_change(GOOD, "# a comment\n" GOOD "login { }\n", "", "");
    expect_change(GOOD, GOOD "log { level = debug }\nlogin { timeout = 2m }\n",
                  "log level; login timeout", "");
    expect_change(GOOD, GOOD RED, "shard \"red\" (new)", "");
    expect_change(GOOD RED, GOOD, "shard \"red\" (removed)", "");
    expect_change(GOOD, LISTENER FILES "shard blue { address = store:993 weight = 7 }\n",
                  "shard \"blue\" address; shard \"blue\" weight", "");
    expect_change(GOOD "throttle { trusted = {\"10.0.0.0/8\"} }\n",
                  GOOD "throttle { trusted = {\"10.0.0.0/8\", \"::1/128\"} }\n", "throttle trusted",
                  "");
}

/* Which certificate comes first matters; the same text twice is no change. */
static void order_is_a_change(void **state)
{
    (void)state;
    expect_change(GOOD RED, LISTENER FILES RED BLUE, "shard (order)", "");
    expect_change(LISTENER FILES BLUE RED GREEN, LISTENER FILES BLUE GREEN,
                  "shard \"red\" (removed)", "");
    expect_change(GOOD, LISTENER FILES RED BLUE, "shard \"red\" (new)", "");
}

static void secrets_are_not_told(void **state)
{
    (void)state;
#define MASTER(password)                                                                           \
    LISTENER FILES "shard blue { address = store:143 login = master_authzid master_user = m "      \
                   "master_password = " password " }\n"
    expect_change(MASTER("one"), MASTER("one"), "", "");
    expect_change(MASTER("one"), MASTER("two"), "shard \"blue\" master_password", "");
}

static void what_needs_a_new_process_keeps_its_value(void **state)
{
    struct conf *first = open_first(GOOD "process { workers = 2 }\nredis { password = old }\n");
    struct conf *next = NULL;
    struct conf_changes changes;

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct conf *before = next == NULL ? first : next;

        next =
            open_next(GOOD "process { workers = 3 stop_timeout = 1m }\nredis { password = new }\n",
                      before, &changes);
        expect_words(&changes.changed, i == 0 ? "process stop_timeout" : "");
        expect_words(&changes.needs_restart, "process workers; redis password");
        assert_int_equal(next->process.workers, 2);
        assert_int_equal(next->process.stop_timeout, 60000);
        assert_true(span_is(secret_span(&next->redis.password), "old"));
        conf_changes_release(&changes);
        conf_close(&before);
    }
    conf_close(&next);
}

/* What a process is to others cannot change while it runs. */
static void redis_as_a_source_needs_a_new_process(void **state)
{
    static const char with[] = LISTENER BLUE "passwd { file = users }\n"
                                             "route { sources = {redis, file} file = routes }\n";
    (void)state;
    expect_change(GOOD, with, "", "route sources");
    expect_change(with, GOOD, "", "route sources");
    expect_change(GOOD,
                  LISTENER BLUE
                  "passwd { file = users }\n"
                  "route { sources = {file, default} file = routes default_shard = blue }\n",
                  "route sources; route default_shard", "");
}

static void a_good_file_may_not_fit_what_stays(void **state)
{
    struct conf *first = open_first(LISTENER BLUE "passwd { file = users }\n"
                                                  "route { sources = {redis} }\n"
                                                  "redis { node_expiry = 10m }\n");
    struct conf_changes changes;
    struct err err = {0};

    (void)state;
    put("proxy.conf", LISTENER BLUE "passwd { file = users }\n"
                                    "route { sources = {redis} keep_while_down = 1m }\n"
                                    "redis { node_expiry = 15s }\n");
    assert_null(conf_reopen(path_of("proxy.conf"), first, &changes, &err));
    assert_int_equal(err.kind, ERR_CONFIG);
    assert_non_null(strstr(err.text, "keep_while_down"));
    conf_changes_release(&changes);
    conf_close(&first);
}

static void a_shard_keeps_its_id(void **state)
{
    struct conf *first = open_first(LISTENER FILES BLUE RED), *second, *third;
    struct conf_changes changes;

    (void)state;
    assert_int_equal(conf_find_shard(first, "red")->id, 1);
    second = open_next(LISTENER FILES GREEN RED, first, &changes);
    conf_changes_release(&changes);
    assert_int_equal(conf_find_shard(second, "red")->id, 1);
    assert_int_equal(conf_find_shard(second, "green")->id, 2);
    assert_null(conf_shard_of(second, 0));
    assert_string_equal(second->shard_titles.items[0], "blue");
    third = open_next(LISTENER FILES BLUE GREEN, second, &changes);
    conf_changes_release(&changes);
    assert_int_equal(conf_find_shard(third, "blue")->id, 0);
    assert_ptr_equal(conf_shard_of(third, 2), conf_find_shard(third, "green"));
    assert_int_equal(third->shard_titles.count, 3);
    conf_close(&third);
    conf_close(&second);
    conf_close(&first);
}

static void another_content_is_a_change(void **state)
{
    struct conf *first = open_first(GOOD), *next;
    struct conf_changes changes;

    (void)state;
    put("routes", "ann blue\n");
    put("users", "ann:x\n"); /* which is looked at all the time, anyway */
    next = open_next(GOOD, first, &changes);
    expect_words(&changes.changed, "route file (its content)");
    assert_true(conf_same_auth(first, next));
    conf_changes_release(&changes);
    conf_close(&next);
    conf_close(&first);
    put("routes", "");
}

static void passwords_are_verified_in_the_same_way(void **state)
{
    static const struct {
        const char *more;
        bool same;
    } cases[] = {
        {"", true},
        {"login { timeout = 2m }\n", true},
        {"throttle { delay = 2s }\n", true}, /* unless it is shared */
        {"auth { timeout = 9s }\n", false},
        {"auth_cache { ttl = 1h }\n", false},
        {"username { lowercase = no }\n", false},
        {"ldap { ca_file = users }\n", false},
        {"oauth { leeway = 2m }\n", false},
    };
    struct conf *first = open_first(GOOD);

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct conf_changes changes;
        char text[1024];

        snprintf(text, sizeof text, "%s%s", GOOD, cases[i].more);
        struct conf *next = open_next(text, first, &changes);

        if (conf_same_auth(first, next) != cases[i].same)
            fail_msg("%s", cases[i].more);
        conf_changes_release(&changes);
        conf_close(&next);
    }
    conf_close(&first);
}

static void it_goes_with_its_last_holder(void **state)
{
    struct conf *conf = open_first(GOOD);
    const struct conf *other = conf_hold(conf);

    (void)state;
    conf_close(&conf);
    assert_null(conf);
    assert_string_equal(other->shards[0].title, "blue");
    conf_release(&other);
    assert_null(other);
    conf_release(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_are_told_by_name),
        cmocka_unit_test(order_is_a_change),
        cmocka_unit_test(secrets_are_not_told),
        cmocka_unit_test(what_needs_a_new_process_keeps_its_value),
        cmocka_unit_test(redis_as_a_source_needs_a_new_process),
        cmocka_unit_test(a_good_file_may_not_fit_what_stays),
        cmocka_unit_test(a_shard_keeps_its_id),
        cmocka_unit_test(another_content_is_a_change),
        cmocka_unit_test(passwords_are_verified_in_the_same_way),
        cmocka_unit_test(it_goes_with_its_last_holder),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
