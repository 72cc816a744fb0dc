/* The source `ldap` against a real slapd that we start, stop, freeze and restart. */
#include "tests/unit/auth_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/wait.h>

static struct {
    char folder[64], plain_uri[64], tls_uri[64], ca_file[128], other_ca_file[128];
    uint16_t plain_port, tls_port;
    pid_t pid;
} slapd;

static char name_ldap[] = "ldap", base[] = "dc=example", filter[] = "(uid=%{user})";
static char admin_dn[] = "cn=admin,dc=example", admin_password[] = "adminpw";
static char dn_template[] = "uid=%{user},ou=people,dc=example";
static char dead_uri[] = "ldap://127.0.0.1:1";

static const char conf_text[] = "include /etc/ldap/schema/core.schema\n"
                                "include /etc/ldap/schema/cosine.schema\n"
                                "include /etc/ldap/schema/inetorgperson.schema\n"
                                "modulepath /usr/lib/ldap\n"
                                "moduleload back_mdb\n"
                                "pidfile %1$s/pid\n"
                                "TLSCertificateFile %1$s/server.pem\n"
                                "TLSCertificateKeyFile %1$s/server.key\n"
                                "database mdb\n"
                                "maxsize 16777216\n"
                                "suffix dc=example\n"
                                "rootdn cn=admin,dc=example\n"
                                "rootpw adminpw\n"
                                "directory %1$s\n";

static const char people[] =
    "dn: dc=example\nobjectClass: domain\ndc: example\n\n"
    "dn: ou=people,dc=example\nobjectClass: organizationalUnit\nou: people\n\n"
    "dn: ou=more,dc=example\nobjectClass: organizationalUnit\nou: more\n\n"
    "dn: uid=ann,ou=people,dc=example\nobjectClass: inetOrgPerson\nuid: ann\ncn: a\nsn: a\n"
    "userPassword: secret\n\n"
    "dn: uid=twin,ou=people,dc=example\nobjectClass: inetOrgPerson\nuid: twin\ncn: a\nsn: a\n"
    "userPassword: secret\n\n"
    "dn: uid=twin,ou=more,dc=example\nobjectClass: inetOrgPerson\nuid: twin\ncn: a\nsn: a\n"
    "userPassword: secret\n\n"
    "dn: uid=a*\\,b,ou=people,dc=example\nobjectClass: inetOrgPerson\nuid: a*,b\ncn: a\nsn: a\n"
    "userPassword: secret\n";

/* Two authorities, and a certificate for 127.0.0.1 from the first. */
static const char make_certificates[] =
    "cd $FOLDER && exec 2>/dev/null && for c in ca other; do "
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$c "
    "-keyout $c.key -out $c.pem || exit 1; done && "
    "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost "
    "-keyout server.key -out server.csr && "
    "printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\\n' > ext && "
    "openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
    "-extfile ext -out server.pem";

static void write_text(const char *name, const char *text)
{
    char path[128];

    snprintf(path, sizeof path, "%s/%s", slapd.folder, name);

    FILE *file = fopen(path, "w");

    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

/* $FOLDER is ours. */
static void shell(const char *command)
{
    assert_int_equal(system(command), 0);
}

static int socket_to(uint16_t port, int (*verb)(int, const struct sockaddr *, socklen_t))
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (verb(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    close(fd);
    return -1;
}

/* Below the ports that the kernel gives to outgoing connections, so that none takes it meanwhile. */
static uint16_t free_port(void)
{
    static unsigned seed;

    if (seed == 0)
        seed = (unsigned)getpid() ^ (unsigned)time(NULL);
    for (;;) {
        uint16_t port = (uint16_t)(10000 + rand_r(&seed) % 22000);
        int fd = socket_to(port, bind);

        if (fd >= 0) {
            close(fd);
            return port;
        }
    }
}

static void wait_for_port(uint16_t port)
{
    for (unsigned tries = 0; tries < 2000; tries++) {
        int fd = socket_to(port, connect);

        if (fd >= 0) {
            close(fd);
            return;
        }
        usleep(5000);
    }
    fail_msg("slapd does not listen");
}

static void slapd_start(void)
{
    char uris[160], conf[128];

    snprintf(uris, sizeof uris, "%s %s", slapd.plain_uri, slapd.tls_uri);
    snprintf(conf, sizeof conf, "%s/slapd.conf", slapd.folder);
    slapd.pid = fork();
    if (slapd.pid == 0) {
        int null = open("/dev/null", O_RDWR);

        dup2(null, 2);
        execl("/usr/sbin/slapd", "slapd", "-h", uris, "-f", conf, "-d", "0", (char *)NULL);
        _exit(127);
    }
    wait_for_port(slapd.plain_port);
    wait_for_port(slapd.tls_port);
}

/* Returns when it is frozen: a signal alone takes effect some time later. */
static void slapd_freeze(void)
{
    int status;

    assert_int_equal(kill(slapd.pid, SIGSTOP), 0);
    assert_int_equal(waitpid(slapd.pid, &status, WUNTRACED), slapd.pid);
    assert_true(WIFSTOPPED(status));
}

static void slapd_thaw(void)
{
    assert_int_equal(kill(slapd.pid, SIGCONT), 0);
}

static void slapd_stop(void)
{
    slapd_thaw(); /* a test that failed may have left it frozen */
    assert_int_equal(kill(slapd.pid, SIGTERM), 0);
    assert_int_equal(waitpid(slapd.pid, NULL, 0), slapd.pid);
}

static int start_all(void **state)
{
    char text[1024];

    (void)state;
    signal(SIGPIPE, SIG_IGN);
    snprintf(slapd.folder, sizeof slapd.folder, "/tmp/test_ldap.XXXXXX");
    assert_non_null(mkdtemp(slapd.folder));
    setenv("FOLDER", slapd.folder, 1);
    slapd.plain_port = free_port();
    slapd.tls_port = free_port();
    snprintf(slapd.plain_uri, sizeof slapd.plain_uri, "ldap://127.0.0.1:%u", slapd.plain_port);
    snprintf(slapd.tls_uri, sizeof slapd.tls_uri, "ldaps://127.0.0.1:%u", slapd.tls_port);
    snprintf(slapd.ca_file, sizeof slapd.ca_file, "%s/ca.pem", slapd.folder);
    snprintf(slapd.other_ca_file, sizeof slapd.other_ca_file, "%s/other.pem", slapd.folder);
    shell(make_certificates);
    snprintf(text, sizeof text, conf_text, slapd.folder);
    write_text("slapd.conf", text);
    write_text("people.ldif", people);
    shell("cd $FOLDER && /usr/sbin/slapadd -f slapd.conf -l people.ldif");
    slapd_start();
    return 0;
}

static int stop_all(void **state)
{
    (void)state;
    slapd_stop();
    shell("rm -r $FOLDER");
    return 0;
}

static char *uris[2];

static void setup(struct fixture *f)
{
    fixture_init(f);
    fixture_source(f, name_ldap);
    uris[0] = slapd.plain_uri;
    f->conf.ldap.uri = (struct conf_words){uris, 1};
    f->conf.ldap.base = base;
    f->conf.ldap.scope = LDAP_SEARCH_SUBTREE;
    f->conf.ldap.filter = filter;
    f->conf.ldap.bind_dn = admin_dn;
    f->conf.ldap.bind_password = (struct secret){admin_password, strlen(admin_password)};
    f->conf.ldap.verify = true;
}

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
