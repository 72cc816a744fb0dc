/* The source `ldap` against a real slapd that we start, stop, freeze and restart. */
#include "tests/unit/slapd_fixture.h"

static char dn_template[] = "uid=%{user},ou=people,dc=example", dead_uri[] = "ldap://127.0.0.1:1";

static void search_and_bind(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "ann", "wrong"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "eve", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "*)(uid=*", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "an*", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "a*,b", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "twin", "secret"), ERR_INTERNAL);
    assert_int_equal(f.counters.auth_ldap_searches, 7);
    assert_int_equal(f.counters.auth_ldap_binds, 6); /* unknown users cost one, too */
    assert_int_equal(f.counters.auth_ldap_connects, 2);
    assert_int_equal(f.counters.ldap_verified, 2);
    assert_int_equal(f.counters.ldap_refused, 1);
    assert_int_equal(f.counters.ldap_unknown, 3);
    assert_int_equal(f.counters.ldap_failed, 1);
    assert_int_equal(f.counters.ldap_open_search, 1);
    assert_int_equal(f.counters.ldap_open_bind, 1);
    assert_int_equal(f.counters.ldap_waiting + f.counters.ldap_in_flight, 0);
    fixture_release(&f);
    assert_int_equal(f.counters.ldap_open_search + f.counters.ldap_open_bind, 0);
}

static void template_bind(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    f.conf.ldap.dn_template = dn_template;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "ann", "wrong"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "eve", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "a*,b", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "twin,ou=more,dc=example", "secret"), ERR_CREDENTIALS);
    assert_int_equal(f.counters.auth_ldap_searches, 0);
    fixture_release(&f);
}

static void assert_refuses_to_open(struct fixture *f)
{
    assert_null(auth_open(&f->env, NULL, &f->open_err));
    assert_int_equal(f->open_err.kind, ERR_CONFIG);
    fixture_release(f);
}

static void bad_settings(void **state)
{
    static char no_base[] = "dc=nowhere", bad_filter[] = "(uid=%{user}", wrong[] = "wrong",
                bad_dn[] = "people,dc=example", bad_template[] = "uid=%{user},people";
    struct fixture f;

    (void)state;
    setup(&f);
    f.conf.ldap.base = no_base;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_INTERNAL);
    fixture_release(&f);
    setup(&f);
    f.conf.ldap.bind_password = (struct secret){wrong, 5};
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_UNAVAILABLE);
    fixture_release(&f);
    setup(&f);
    f.conf.ldap.filter = bad_filter;
    assert_refuses_to_open(&f);
    setup(&f);
    f.conf.ldap.base = bad_dn;
    assert_refuses_to_open(&f);
    setup(&f);
    f.conf.ldap.decoy_dn = bad_dn;
    assert_refuses_to_open(&f);
    setup(&f);
    f.conf.ldap.dn_template = bad_template;
    assert_refuses_to_open(&f);
}

static void many_at_once(void **state)
{
    enum { COUNT = 200 };
    static struct login logins[COUNT];
    struct fixture f;

    (void)state;
    setup(&f);
    f.conf.ldap.search_handles = 2;
    fixture_open(&f);
    for (size_t i = 0; i < COUNT; i++)
        login_start(&f, &logins[i], i % 3 == 2 ? "eve" : "ann", i % 3 == 1 ? "wrong" : "secret");
    for (size_t i = 0; i < COUNT; i++) {
        login_wait(&f, &logins[i]);
        assert_int_equal(logins[i].err.kind, i % 3 == 0 ? ERR_NONE : ERR_CREDENTIALS);
    }
    assert_true(f.counters.auth_ldap_connects <= 6);
    fixture_release(&f);
}

static void queue_is_bounded(void **state)
{
    struct fixture f;
    struct login logins[4];

    (void)state;
    setup(&f);
    f.conf.ldap.max_queue = 3;
    fixture_open(&f);
    for (size_t i = 0; i < 4; i++)
        login_start(&f, &logins[i], "ann", "secret");
    for (size_t i = 0; i < 4; i++) {
        login_wait(&f, &logins[i]);
        assert_int_equal(logins[i].err.kind, i < 3 ? ERR_NONE : ERR_UNAVAILABLE);
    }
    fixture_release(&f);
}

static void stopped_and_started(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    slapd_stop();
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_UNAVAILABLE);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_UNAVAILABLE);
    slapd_start();
    while (login_result(&f, "ann", "secret") != ERR_NONE)
        usleep(5000); /* until the back-off is over */
    fixture_release(&f);
}

/* The loop does not run while slapd restarts, so the login finds connections that look alive. */
static void stale_connections_are_replaced(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    fixture_open(&f);
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
        slapd_stop();
        slapd_start();
    }
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    assert_int_equal(f.counters.auth_ldap_failures, 0);
    fixture_release(&f);
}

static void frozen(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    f.conf.ldap.timeout = 200;
    f.conf.ldap.connect_timeout = 300;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    slapd_freeze();
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_UNAVAILABLE); /* the operation */
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_UNAVAILABLE); /* the service bind */
    assert_int_equal(f.counters.auth_ldap_failures, 2);
    slapd_thaw();
    while (login_result(&f, "ann", "secret") != ERR_NONE)
        usleep(5000);
    fixture_release(&f);
}

/* Cancels at each step: waiting, connecting, searching, binding; and closes with connections under
 * way. */
static void cancelled(void **state)
{
    (void)state;
    for (unsigned step = 0; step < 60; step++) {
        struct fixture f;
        struct login first, second;

        setup(&f);
        f.conf.ldap.bind_handles = 1;
        fixture_open(&f);
        login_start(&f, &first, "ann", "secret");
        login_start(&f, &second, "ann", "secret");
        for (unsigned turn = 0; turn < step && first.answer_count == 0; turn++)
            uv_run(&f.loop, UV_RUN_ONCE);
        if (first.answer_count == 0)
            login_cancel(&first);
        if (step % 2 == 0) {
            login_wait(&f, &second);
            assert_int_equal(second.err.kind, ERR_NONE);
        } else if (second.answer_count == 0) {
            login_cancel(&second);
        }
        fixture_release(&f);
        assert_true(first.answer_count <= 1);
    }
}

static void bind_handle_waits_for_cancelled_bind(void **state)
{
    struct fixture f;
    struct login first, second;

    (void)state;
    setup(&f);
    f.conf.ldap.dn_template = dn_template;
    f.conf.ldap.bind_handles = 1;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    slapd_freeze();
    login_start(&f, &first, "ann", "wrong");
    assert_int_equal(f.counters.auth_ldap_binds, 2);
    login_cancel(&first);
    login_start(&f, &second, "ann", "secret");
    assert_int_equal(f.counters.auth_ldap_binds, 2);
    slapd_thaw();
    login_wait(&f, &second);
    assert_int_equal(second.err.kind, ERR_NONE);
    assert_int_equal(f.counters.auth_ldap_connects, 1);
    assert_int_equal(first.answer_count, 0);
    fixture_release(&f);
}

static void second_uri_is_tried(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    uris[0] = dead_uri;
    uris[1] = slapd.plain_uri;
    f.conf.ldap.uri.count = 2;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
    fixture_release(&f);
}

static void tls(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        bool start_tls = (i & 1) != 0, right_ca = (i & 2) == 0, verify = (i & 4) == 0;
        struct fixture f;

        setup(&f);
        uris[0] = start_tls ? slapd.plain_uri : slapd.tls_uri;
        f.conf.ldap.start_tls = start_tls;
        f.conf.ldap.verify = verify;
        f.conf.ldap.ca_file = right_ca ? slapd.ca_file : slapd.other_ca_file;
        fixture_open(&f);
        assert_int_equal(login_result(&f, "ann", "secret"),
                         right_ca || !verify ? ERR_NONE : ERR_UNAVAILABLE);
        if (right_ca) {
            assert_int_equal(login_result(&f, "ann", "wrong"), ERR_CREDENTIALS);
            slapd_stop();
            slapd_start();
            assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
        }
        fixture_release(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(search_and_bind),
        cmocka_unit_test(template_bind),
        cmocka_unit_test(bad_settings),
        cmocka_unit_test(many_at_once),
        cmocka_unit_test(queue_is_bounded),
        cmocka_unit_test(stopped_and_started),
        cmocka_unit_test(stale_connections_are_replaced),
        cmocka_unit_test(frozen),
        cmocka_unit_test(cancelled),
        cmocka_unit_test(bind_handle_waits_for_cancelled_bind),
        cmocka_unit_test(second_uri_is_tried),
        cmocka_unit_test(tls),
    };

    return cmocka_run_group_tests(tests, start_all, stop_all);
}
