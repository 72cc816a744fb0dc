/*
 * A real slapd for unit tests: plain, TLS and ldapi, with users who are treated in all ways, and a
 * configuration that asks it.
 */
#ifndef IMAPMUX_TESTS_SLAPD_FIXTURE_H
#define IMAPMUX_TESTS_SLAPD_FIXTURE_H

#include "tests/unit/auth_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/wait.h>

static struct {
    char folder[64], plain_uri[64], tls_uri[64], local_uri[128], ca_file[128], other_ca_file[128];
    uint16_t plain_port, tls_port;
    pid_t pid;
} slapd;

static char name_ldap[] = "ldap", base[] = "dc=example", filter[] = "(uid=%{user})";
static char admin_dn[] = "cn=admin,dc=example", admin_password[] = "adminpw";

/* The service account is the root; others may not even see that there are users. */
static const char conf_text[] =
    "include /etc/ldap/schema/core.schema\n"
    "include /etc/ldap/schema/cosine.schema\n"
    "include /etc/ldap/schema/inetorgperson.schema\n"
    "attributetype (1.3.6.1.4.1.4203.666.1 NAME 'mailNetwork' SUP name)\n"
    "attributetype (1.3.6.1.4.1.4203.666.2 NAME 'mailShard' SUP name)\n"
    "attributetype (1.3.6.1.4.1.4203.666.3 NAME ('mailLogin' 'mailAlias') SUP name)\n"
    "attributetype (1.3.6.1.4.1.4203.666.4 NAME 'mailState' SUP name)\n"
    "objectclass (1.3.6.1.4.1.4203.666.5 NAME 'mailUser' SUP top AUXILIARY\n"
    "  MAY (mailNetwork $ mailShard $ mailLogin $ mailState))\n"
    "modulepath /usr/lib/ldap\n"
    "moduleload back_mdb\n"
    "moduleload ppolicy\n"
    "pidfile %1$s/pid\n"
    "TLSCACertificateFile %1$s/ca.pem\n"
    "TLSCertificateFile %1$s/server.pem\n"
    "TLSCertificateKeyFile %1$s/server.key\n"
    "TLSVerifyClient allow\n"
    "authz-regexp ^gidNumber=.*cn=peercred,cn=external,cn=auth$ cn=admin,dc=example\n"
    "authz-regexp ^cn=imapmux$ cn=admin,dc=example\n"
    "access to attrs=userPassword by anonymous auth by * none\n"
    "access to * by * none\n"
    "database mdb\n"
    "maxsize 16777216\n"
    "suffix dc=example\n"
    "rootdn cn=admin,dc=example\n"
    "rootpw adminpw\n"
    "directory %1$s\n"
    "overlay ppolicy\n"
    "ppolicy_use_lockout\n";

#define PERSON(uid, more)                                                                          \
    "dn: uid=" uid ",ou=people,dc=example\nobjectClass: inetOrgPerson\nobjectClass: mailUser\n"    \
    "uid: " uid "\ncn: a\nsn: a\nuserPassword: secret\n" more "\n"
#define POLICY(cn, more)                                                                           \
    "dn: cn=" cn ",dc=example\nobjectClass: device\nobjectClass: pwdPolicy\ncn: " cn "\n"          \
    "pwdAttribute: userPassword\n" more "\n"
#define UNDER(cn) "pwdPolicySubentry: cn=" cn ",dc=example\npwdChangedTime: 20200101000000Z\n"

static const char people[] =
    "dn: dc=example\nobjectClass: domain\ndc: example\n\n"
    "dn: ou=people,dc=example\nobjectClass: organizationalUnit\nou: people\n\n"
    "dn: ou=more,dc=example\nobjectClass: organizationalUnit\nou: more\n\n" PERSON(
        "ann", "mailShard: blue\nmailLogin: ann.a\ngivenName: Ann-1\nmailState: Active\n")
        PERSON("near", "mailNetwork: 192.0.2.0/24, 2001:db8::/32\nmailNetwork: 127.0.0.1\n")
            PERSON("far", "mailNetwork: 192.0.2.0/24\n") PERSON(
                "lost", "mailNetwork: 127.0.0.1\nmailNetwork: here\n")
                PERSON("two", "mailShard: blue\nmailShard: green\n") PERSON(
                    "long",
                    "mailShard: 0123456789012345678901234567890123456789012345678901234567890123\n")
                    PERSON("odd", "mailShard:: YgkI\n") /* "b", a tab, a backspace */
    PERSON("off", "mailState: Active\nmailState: disabled\n") PERSON(
        "twin",
        "") "dn: uid=twin,ou=more,dc=example\nobjectClass: inetOrgPerson\nuid: twin\ncn: a\nsn: a\n"
            "userPassword: secret\n\n"
            "dn: uid=a*\\,b,ou=people,dc=example\nobjectClass: inetOrgPerson\nuid: a*,b\ncn: "
            "a\nsn: a\n"
            "userPassword: secret\n\n" POLICY("short", "pwdMaxAge: 3600\n")
                POLICY("grace", "pwdMaxAge: 3600\npwdGraceAuthNLimit: 7\n")
                    POLICY("warn", "pwdMaxAge: 2147483647\npwdExpireWarning: 2147483646\n")
                        POLICY("must", "pwdMustChange: TRUE\n") POLICY("lock", "pwdLockout: TRUE\n")
                            PERSON("expired", UNDER("short")) PERSON("grace", UNDER("grace"))
                                PERSON("warned", UNDER("warn"))
                                    PERSON("reset", UNDER("must") "pwdReset: TRUE\n") PERSON(
                                        "locked",
                                        UNDER("lock") "pwdAccountLockedTime: 000001010000Z\n");

/* Two authorities; from the first, a certificate for 127.0.0.1, and one for us. */
static const char make_certificates[] =
    "cd $FOLDER && exec 2>/dev/null && for c in ca other; do "
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$c "
    "-keyout $c.key -out $c.pem || exit 1; done && "
    "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost "
    "-keyout server.key -out server.csr && "
    "printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\\n' > ext && "
    "openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
    "-extfile ext -out server.pem && "
    "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=imapmux "
    "-keyout client.key -out client.csr && "
    "openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
    "-out client.pem";

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

/*
 * Below the ports that the kernel gives to outgoing connections, so that none takes it meanwhile.
 */
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
    char uris[320], conf[128];

    snprintf(uris, sizeof uris, "%s %s %s", slapd.plain_uri, slapd.tls_uri, slapd.local_uri);
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
static inline void slapd_freeze(void)
{
    int status;

    assert_int_equal(kill(slapd.pid, SIGSTOP), 0);
    assert_int_equal(waitpid(slapd.pid, &status, WUNTRACED), slapd.pid);
    assert_true(WIFSTOPPED(status));
}

static inline void slapd_thaw(void)
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
    char text[4096];

    (void)state;
    signal(SIGPIPE, SIG_IGN);
    snprintf(slapd.folder, sizeof slapd.folder, "/tmp/imapmux-slapd.XXXXXX");
    assert_non_null(mkdtemp(slapd.folder));
    setenv("FOLDER", slapd.folder, 1);
    slapd.plain_port = free_port();
    slapd.tls_port = free_port();
    snprintf(slapd.plain_uri, sizeof slapd.plain_uri, "ldap://127.0.0.1:%u", slapd.plain_port);
    snprintf(slapd.tls_uri, sizeof slapd.tls_uri, "ldaps://127.0.0.1:%u", slapd.tls_port);
    snprintf(slapd.local_uri, sizeof slapd.local_uri, "ldapi://%%2Ftmp%%2F%s%%2Fldapi",
             slapd.folder + strlen("/tmp/"));
    snprintf(slapd.ca_file, sizeof slapd.ca_file, "%s/ca.pem", slapd.folder);
    snprintf(slapd.other_ca_file, sizeof slapd.other_ca_file, "%s/other.pem", slapd.folder);
    shell(make_certificates);
    snprintf(text, sizeof text, conf_text, slapd.folder);
    write_text("slapd.conf", text);
    write_text("people.ldif", people);
    shell("cd $FOLDER && /usr/sbin/slapadd -q -f slapd.conf -l people.ldif");
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

#endif
