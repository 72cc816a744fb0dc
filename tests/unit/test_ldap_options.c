/* What a real slapd knows of users beside their passwords, and as whom it is asked. */
#include "tests/unit/slapd_fixture.h"

/* Read by the sanitizer: libldap 2.5 with GnuTLS never frees the key of a client certificate. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libgnutls\nleak:libtasn1\n";
}

static char dn_template[] = "uid=%{user},ou=people,dc=example";
static char network_attribute[] = "mailNetwork", shard_attribute[] = "mailShard",
            login_attribute[] = "mailLogin", name_attribute[] = "givenName",
            alias_attribute[] = "mailAlias", supertype[] = "name";
static char state_active[] = "mailstate=active", state_disabled[] = "mailState=Disabled",
            shard_blue[] = "mailShard=blue";

/* By search and by template. */
static void setup_way(struct fixture *f, bool by_template)
{
    setup(f);
    if (by_template)
        f->conf.ldap.dn_template = dn_template;
}

static void wish_for_all(struct fixture *f)
{
    f->conf.ldap.user_attribute = name_attribute;
    f->conf.ldap.backend_user_attribute = login_attribute;
    f->conf.ldap.shard_attribute = shard_attribute;
    f->conf.ldap.networks_attribute = network_attribute;
    f->conf.username.lowercase = true;
}

static enum err_kind look_up(struct fixture *f, struct login *login, const char *user,
                             const char *password)
{
    login_start_as(f, login, user, password, "");
    login_wait(f, login);
    return login->err.kind;
}

static enum err_kind known(struct fixture *f, const char *user)
{
    struct login login;

    return look_up(f, &login, user, NULL);
}

static void attributes_become_facts(void **state)
{
    (void)state;
    for (unsigned way = 0; way < 4; way++) {
        const char *password = way < 2 ? "secret" : NULL;
        struct fixture f;
        struct login login;

        setup_way(&f, way % 2 == 1);
        wish_for_all(&f);
        fixture_open(&f);
        assert_int_equal(look_up(&f, &login, "ann", password), ERR_NONE);
        assert_string_equal(login.user, "ann-1");
        assert_string_equal(login.backend_user, "ann.a");
        assert_string_equal(login.shard, "blue");
        assert_int_equal(look_up(&f, &login, "twin", password),
                         way % 2 == 1 ? ERR_NONE : ERR_INTERNAL);
        assert_string_equal(login.shard, "");
        assert_int_equal(look_up(&f, &login, "nobody", password), ERR_CREDENTIALS);
        fixture_release(&f);
    }
}

/* With the right password and without one; a wrong password is told first. */
static void unusable_values_refuse(void **state)
{
    static const char *const users[] = {"two", "long", "odd"};

    (void)state;
    for (unsigned way = 0; way < 2; way++) {
        struct fixture f;

        setup_way(&f, way == 1);
        f.conf.ldap.shard_attribute = shard_attribute;
        fixture_open(&f);
        for (size_t i = 0; i < 3; i++) {
            assert_int_equal(login_result(&f, users[i], "secret"), ERR_INTERNAL);
            assert_int_equal(login_result(&f, users[i], "wrong"), ERR_CREDENTIALS);
            assert_int_equal(known(&f, users[i]), ERR_INTERNAL);
        }
        fixture_release(&f);
    }
}

/* An attribute that comes by another name might be overlooked: an alias, a subtype. */
static void other_names_refuse(void **state)
{
    char *const names[] = {alias_attribute, supertype};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct fixture f;

        setup(&f);
        f.conf.ldap.networks_attribute = names[i];
        fixture_open(&f);
        assert_int_equal(login_result(&f, "ann", "secret"), ERR_INTERNAL);
        fixture_release(&f);
    }
}

static void networks(void **state)
{
    struct fixture f;
    struct login login;
    static union address elsewhere; /* still there for later tests if this one fails */

    (void)state;
    setup(&f);
    f.conf.ldap.networks_attribute = network_attribute;
    fixture_open(&f);
    for (unsigned i = 0; i < 3; i++) {
        static const char *const hosts[] = {"127.0.0.1", "198.51.100.1", "2001:db8::5"};
        static const enum err_kind expected[3][4] = {
            /* ann, near, far, lost */
            {ERR_NONE, ERR_NONE, ERR_CREDENTIALS, ERR_CREDENTIALS},
            {ERR_NONE, ERR_CREDENTIALS, ERR_CREDENTIALS, ERR_CREDENTIALS},
            {ERR_NONE, ERR_NONE, ERR_CREDENTIALS, ERR_CREDENTIALS},
        };
        static const char *const users[] = {"ann", "near", "far", "lost"};

        assert_true(address_of(hosts[i], 0, &elsewhere));
        login_from = &elsewhere;
        for (size_t j = 0; j < 4; j++)
            assert_int_equal(look_up(&f, &login, users[j], "secret"), expected[i][j]);
    }
    login_from = &login_address;
    fixture_release(&f);
}

static void rules(void **state)
{
    char *allow[] = {state_active, shard_blue}, *refuse[] = {state_disabled};

    (void)state;
    for (unsigned way = 0; way < 2; way++) {
        struct fixture f;

        setup_way(&f, way == 1);
        f.conf.ldap.allow_if = (struct conf_words){allow, 2};
        f.conf.ldap.refuse_if = (struct conf_words){refuse, 1};
        fixture_open(&f);
        assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
        assert_int_equal(login_result(&f, "off", "secret"), ERR_ADMIN);
        assert_int_equal(login_result(&f, "off", "wrong"), ERR_CREDENTIALS);
        assert_int_equal(login_result(&f, "near", "secret"), ERR_ADMIN);
        assert_int_equal(login_result(&f, "two", "secret"), ERR_NONE); /* by the second rule */
        assert_int_equal(known(&f, "ann"), ERR_NONE);
        assert_int_equal(known(&f, "off"), ERR_ADMIN);
        fixture_release(&f);
    }
}

/* Only what is needed: how many operations each way takes. */
static void operations_are_counted(void **state)
{
    (void)state;
    for (unsigned way = 0; way < 4; way++) {
        static const unsigned searches[4] = {1, 1, 0, 1};
        struct fixture f;

        setup_way(&f, way >= 2);
        if (way % 2 == 1)
            f.conf.ldap.shard_attribute = shard_attribute;
        fixture_open(&f);
        assert_int_equal(login_result(&f, "ann", "secret"), ERR_NONE);
        assert_int_equal(f.counters.auth_ldap_searches, searches[way]);
        assert_int_equal(f.counters.auth_ldap_binds, 1);
        assert_int_equal(login_result(&f, "ann", "wrong"), ERR_CREDENTIALS);
        assert_int_equal(f.counters.auth_ldap_searches, way < 2 ? 2 : searches[way]);
        assert_int_equal(f.counters.auth_ldap_binds, 2);
        assert_int_equal(known(&f, "ann"), ERR_NONE);
        assert_int_equal(f.counters.auth_ldap_binds, 2);
        fixture_release(&f);
    }
}

static void base_with_variables(void **state)
{
    static char varying_base[] = "ou=%{domain},dc=example", by_name[] = "(uid=%{username})",
                letters[] = "abcdefghijklmnopqrstuvwxyz@";
    struct fixture f;

    (void)state;
    setup(&f);
    f.conf.ldap.base = varying_base;
    f.conf.ldap.filter = by_name;
    f.conf.username.allowed = letters;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann@people", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "twin@more", "secret"), ERR_NONE);
    assert_int_equal(login_result(&f, "ann@more", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "ann@nowhere", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "ann@people,dc=example", "secret"), ERR_CREDENTIALS);
    fixture_release(&f);
}

/* Unknown users cost as many binds as wrong passwords, whoever stands in for them. */
static void unknown_users_cost_a_bind(void **state)
{
    static char decoy[] = "uid=twin,ou=more,dc=example", missing[] = "uid=nobody,dc=example";
    char *const decoys[] = {no_text, decoy, missing};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct fixture f;

        setup(&f);
        f.conf.ldap.decoy_dn = decoys[i];
        fixture_open(&f);
        assert_int_equal(login_result(&f, "ann", "wrong"), ERR_CREDENTIALS);
        assert_int_equal(f.counters.auth_ldap_binds, 1);
        /* the decoy's own password helps nobody */
        assert_int_equal(login_result(&f, "nobody", "secret"), ERR_CREDENTIALS);
        assert_int_equal(f.counters.auth_ldap_binds, 2);
        assert_int_equal(f.counters.auth_ldap_searches, 2);
        assert_int_equal(known(&f, "nobody"), ERR_CREDENTIALS);
        assert_int_equal(f.counters.auth_ldap_binds, 2);
        fixture_release(&f);
    }
}

static void password_policy(void **state)
{
    static const struct {
        const char *user;
        enum err_kind kind;
    } cases[] = {
        {"expired", ERR_EXPIRED}, {"reset", ERR_EXPIRED}, {"locked", ERR_ADMIN},
        {"grace", ERR_NONE},      {"warned", ERR_NONE},
    };

    (void)state;
    for (unsigned way = 0; way < 2; way++) {
        struct fixture f;

        setup_way(&f, way == 1);
        fixture_open(&f);
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            enum err_kind if_wrong = cases[i].kind == ERR_ADMIN ? ERR_ADMIN : ERR_CREDENTIALS;

            assert_int_equal(login_result(&f, cases[i].user, "secret"), cases[i].kind);
            assert_int_equal(login_result(&f, cases[i].user, "wrong"), if_wrong);
        }
        fixture_release(&f);
    }
}

/* Then the directory says no more than yes and no. */
static void password_policy_is_not_asked_for(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    f.conf.ldap.password_policy = false;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "expired", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "locked", "secret"), ERR_CREDENTIALS);
    assert_int_equal(login_result(&f, "reset", "secret"), ERR_NONE);
    fixture_release(&f);
}

static char certificate[128], key[128];

/* Without an account nothing is seen, not even the base. */
static void as_nobody(struct fixture *f)
{
    setup(f);
    f->conf.ldap.bind_dn = no_text;
    f->conf.ldap.bind_password = (struct secret){NULL, 0};
    f->conf.ldap.ca_file = slapd.ca_file;
    snprintf(certificate, sizeof certificate, "%s/client.pem", slapd.folder);
    snprintf(key, sizeof key, "%s/client.key", slapd.folder);
}

static void account_by_external(void **state)
{
    (void)state;
    for (unsigned way = 0; way < 6; way++) {
        bool external = way < 3;
        struct fixture f;

        as_nobody(&f);
        f.conf.ldap.sasl_external = external;
        uris[0] = way % 3 == 0 ? slapd.local_uri : way % 3 == 1 ? slapd.tls_uri : slapd.plain_uri;
        f.conf.ldap.start_tls = true; /* on ldap:// only */
        f.conf.ldap.client_certificate = certificate;
        f.conf.ldap.client_key = key;
        fixture_open(&f);
        assert_int_equal(login_result(&f, "ann", "secret"), external ? ERR_NONE : ERR_INTERNAL);
        assert_int_equal(login_result(&f, "ann", "wrong"),
                         external ? ERR_CREDENTIALS : ERR_INTERNAL);
        fixture_release(&f);
    }
}

static void external_without_certificate(void **state)
{
    struct fixture f;

    (void)state;
    as_nobody(&f);
    f.conf.ldap.sasl_external = true;
    uris[0] = slapd.tls_uri;
    fixture_open(&f);
    assert_int_equal(login_result(&f, "ann", "secret"), ERR_UNAVAILABLE);
    fixture_release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attributes_become_facts),
        cmocka_unit_test(unusable_values_refuse),
        cmocka_unit_test(other_names_refuse),
        cmocka_unit_test(networks),
        cmocka_unit_test(rules),
        cmocka_unit_test(operations_are_counted),
        cmocka_unit_test(base_with_variables),
        cmocka_unit_test(unknown_users_cost_a_bind),
        cmocka_unit_test(password_policy),
        cmocka_unit_test(password_policy_is_not_asked_for),
        cmocka_unit_test(account_by_external),
        cmocka_unit_test(external_without_certificate),
    };

    return cmocka_run_group_tests(tests, start_all, stop_all);
}
