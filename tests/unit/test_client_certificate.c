/*
 * Whose certificate it is, after a handshake in memory with a client that has one. What a
 * certificate says is written as "CN=ann|UID=ann|email:ann@example.org|upn:ann@example.org"; "^0"
 * stands for a NUL.
 */
#include "proxy/net/client_certificate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
/* after its friends */
#include <cmocka.h>

#include <openssl/pem.h>
#include <openssl/x509v3.h>

enum { DAY = 24 * 60 * 60, PATIENCE_SECONDS = 20 };

struct authority {
    EVP_PKEY *key;
    X509 *certificate;
    char file[64];
};

static struct authority ours, other;
static EVP_PKEY *user_key; /* of all users: making one takes longest */
static long next_serial = 100;
static char no_text[] = "";

/* --- certificates --- */

static void write_pem(char file_out[64], int (*write)(FILE *file, const void *object),
                      const void *object)
{
    int fd;
    FILE *file;

    snprintf(file_out, 64, "/tmp/imapmux-pem-XXXXXX");
    fd = mkstemp(file_out);
    assert_true(fd >= 0);
    file = fdopen(fd, "w");
    assert_non_null(file);
    assert_int_equal(write(file, object), 1);
    assert_int_equal(fclose(file), 0);
}

static int write_certificate(FILE *file, const void *object)
{
    return PEM_write_X509(file, object);
}

static int write_crl(FILE *file, const void *object)
{
    return PEM_write_X509_CRL(file, object);
}

static X509 *new_certificate(EVP_PKEY *key, long ends_in)
{
    X509 *certificate = X509_new();

    assert_non_null(certificate);
    assert_int_equal(X509_set_version(certificate, X509_VERSION_3), 1);
    assert_int_equal(ASN1_INTEGER_set(X509_get_serialNumber(certificate), next_serial++), 1);
    assert_non_null(X509_gmtime_adj(X509_getm_notBefore(certificate), -DAY));
    assert_non_null(X509_gmtime_adj(X509_getm_notAfter(certificate), ends_in));
    assert_int_equal(X509_set_pubkey(certificate, key), 1);
    return certificate;
}

static void add_subject(X509 *certificate, int nid, int type, const char *bytes, size_t len)
{
    assert_int_equal(X509_NAME_add_entry_by_NID(X509_get_subject_name(certificate), nid, type,
                                                (const unsigned char *)bytes, (int)len, -1, 0),
                     1);
}

static void add_extension(X509 *certificate, int nid, const char *value)
{
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

    assert_non_null(extension);
    assert_int_equal(X509_add_ext(certificate, extension, -1), 1);
    X509_EXTENSION_free(extension);
}

static void open_authority(struct authority *authority, const char *name)
{
    authority->key = EVP_EC_gen("P-256");
    authority->certificate = new_certificate(authority->key, 30 * DAY);
    add_subject(authority->certificate, NID_commonName, V_ASN1_UTF8STRING, name, strlen(name));
    add_extension(authority->certificate, NID_basic_constraints, "critical,CA:TRUE");
    assert_int_equal(
        X509_set_issuer_name(authority->certificate, X509_get_subject_name(authority->certificate)),
        1);
    assert_true(X509_sign(authority->certificate, authority->key, EVP_sha256()) > 0);
    write_pem(authority->file, write_certificate, authority->certificate);
}

static void close_authority(struct authority *authority)
{
    EVP_PKEY_free(authority->key);
    X509_free(authority->certificate);
    unlink(authority->file);
}

static void sign(X509 *certificate, const struct authority *authority)
{
    assert_int_equal(
        X509_set_issuer_name(certificate, X509_get_subject_name(authority->certificate)), 1);
    assert_true(X509_sign(certificate, authority->key, EVP_sha256()) > 0);
}

static ASN1_STRING *text_of_type(int type, const char *bytes, size_t len)
{
    ASN1_STRING *text = ASN1_STRING_type_new(type);

    assert_non_null(text);
    assert_int_equal(ASN1_STRING_set(text, bytes, (int)len), 1);
    return text;
}

static GENERAL_NAME *other_name(const char *id, int type, const char *bytes, size_t len)
{
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_TYPE *value = ASN1_TYPE_new();

    ASN1_TYPE_set(value, type, text_of_type(type, bytes, len));
    assert_int_equal(GENERAL_NAME_set0_othername(name, OBJ_txt2obj(id, 1), value), 1);
    return name;
}

static GENERAL_NAME *plain_name(int kind, const char *bytes, size_t len)
{
    GENERAL_NAME *name = GENERAL_NAME_new();

    GENERAL_NAME_set0_value(name, kind, text_of_type(V_ASN1_IA5STRING, bytes, len));
    return name;
}

static void add_word(X509 *certificate, GENERAL_NAMES *names, const char *kind, const char *bytes,
                     size_t len)
{
    static const char upn[] = "1.3.6.1.4.1.311.20.2.3", kerberos[] = "1.3.6.1.5.2.2";

    if (strcmp(kind, "CN=") == 0)
        add_subject(certificate, NID_commonName, V_ASN1_UTF8STRING, bytes, len);
    else if (strcmp(kind, "CN16") == 0) /* BMPString */
        add_subject(certificate, NID_commonName, V_ASN1_BMPSTRING, bytes, len);
    else if (strcmp(kind, "CNT61") == 0)
        add_subject(certificate, NID_commonName, V_ASN1_T61STRING, bytes, len);
    else if (strcmp(kind, "UID=") == 0)
        add_subject(certificate, NID_userId, V_ASN1_UTF8STRING, bytes, len);
    else if (strcmp(kind, "O=") == 0)
        add_subject(certificate, NID_organizationName, V_ASN1_UTF8STRING, bytes, len);
    else if (strcmp(kind, "E=") == 0)
        add_subject(certificate, NID_pkcs9_emailAddress, V_ASN1_IA5STRING, bytes, len);
    else if (strcmp(kind, "email:") == 0)
        sk_GENERAL_NAME_push(names, plain_name(GEN_EMAIL, bytes, len));
    else if (strcmp(kind, "dns:") == 0)
        sk_GENERAL_NAME_push(names, plain_name(GEN_DNS, bytes, len));
    else if (strcmp(kind, "upn:") == 0)
        sk_GENERAL_NAME_push(names, other_name(upn, V_ASN1_UTF8STRING, bytes, len));
    else if (strcmp(kind, "upn-ia5:") == 0)
        sk_GENERAL_NAME_push(names, other_name(upn, V_ASN1_IA5STRING, bytes, len));
    else if (strcmp(kind, "krb:") == 0)
        sk_GENERAL_NAME_push(names, other_name(kerberos, V_ASN1_UTF8STRING, bytes, len));
    else
        fail_msg("what is \"%s\"?", kind);
}

static void add_words(X509 *certificate, const char *words)
{
    GENERAL_NAMES *names = GENERAL_NAMES_new();

    while (*words != '\0') {
        size_t kind_len = strcspn(words, "=:~") + (words[strcspn(words, "=:~")] != '~'), len = 0;
        char kind[16], bytes[1024];

        snprintf(kind, sizeof kind, "%.*s", (int)kind_len, words);
        for (words += strcspn(words, "=:~") + 1; *words != '|' && *words != '\0'; words++) {
            bool nul = words[0] == '^' && words[1] == '0';

            bytes[len++] = nul ? '\0' : *words;
            words += nul;
        }
        words += *words == '|';
        add_word(certificate, names, kind, bytes, len);
    }
    if (sk_GENERAL_NAME_num(names) > 0)
        assert_int_equal(
            X509_add1_ext_i2d(certificate, NID_subject_alt_name, names, 0, X509V3_ADD_APPEND), 1);
    GENERAL_NAMES_free(names);
}

static X509 *user_certificate(const char *words, const struct authority *authority, long ends_in)
{
    X509 *certificate = new_certificate(user_key, ends_in);

    add_words(certificate, words);
    sign(certificate, authority);
    return certificate;
}

/* --- handshakes --- */

struct bench {
    struct conf_tls conf;
    struct err err;
    SSL_CTX *server_context, *client_context;
    SSL *server, *client;
};

static int take_all(int good, X509_STORE_CTX *context)
{
    (void)good;
    (void)context;
    return 1;
}

/* The server's part, but for the certificates that it asks for. */
static void bench_init(struct bench *b, char *ca_file, char *crl_file)
{
    *b = (struct bench){.conf = {.client_ca_file = ca_file, .client_crl_file = crl_file}};
    b->server_context = SSL_CTX_new(TLS_server_method());
    assert_int_equal(SSL_CTX_use_certificate(b->server_context, ours.certificate), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(b->server_context, ours.key), 1);
}

static void bench_release(struct bench *b)
{
    SSL_free(b->server);
    SSL_free(b->client);
    SSL_CTX_free(b->server_context);
    SSL_CTX_free(b->client_context);
}

/* False when it fails; `certificate` may be NULL, and is released. */
static bool shake_hands(struct bench *b, X509 *certificate)
{
    BIO *server_end, *client_end;
    int server_done = 0, client_done = 0;

    b->client_context = SSL_CTX_new(TLS_client_method());
    b->client = SSL_new(b->client_context);
    b->server = SSL_new(b->server_context);
    if (certificate != NULL) {
        assert_int_equal(SSL_use_certificate(b->client, certificate), 1);
        assert_int_equal(SSL_use_PrivateKey(b->client, user_key), 1);
        X509_free(certificate);
    }
    assert_int_equal(BIO_new_bio_pair(&server_end, 0, &client_end, 0), 1);
    SSL_set_bio(b->server, server_end, server_end);
    SSL_set_bio(b->client, client_end, client_end);
    SSL_set_accept_state(b->server);
    SSL_set_connect_state(b->client);
    for (int turns = 0; turns < 10 && (server_done != 1 || client_done != 1); turns++) {
        client_done = SSL_do_handshake(b->client);
        server_done = SSL_do_handshake(b->server);
    }
    return server_done == 1 && client_done == 1;
}

static void handshake(struct bench *b, X509 *certificate, bool good)
{
    assert_true(client_certificate_ask(b->server_context, &b->conf, &b->err));
    assert_int_equal(shake_hands(b, certificate), good);
}

/* --- tests --- */

static void whose_it_is(void **state)
{
    static const struct {
        enum conf_client_user field;
        const char *words, *user; /* NULL: nobody's */
    } cases[] = {
        {CLIENT_USER_CN, "CN=ann", "ann"},
        {CLIENT_USER_CN, "O=Example|CN=Ann B. <x>|UID=bob|email:c@example.org", "Ann B. <x>"},
        {CLIENT_USER_CN, "CN=\xc3\xa4", "\xc3\xa4"},
        {CLIENT_USER_CN, "CN16~^0a^0n", "an"},
        {CLIENT_USER_CN, "CNT61~\xe4", "\xc3\xa4"},
        {CLIENT_USER_CN, "O=Example", NULL},
        {CLIENT_USER_CN, "UID=ann|email:ann@example.org", NULL},
        {CLIENT_USER_CN, "CN=ann|CN=bob", NULL},
        {CLIENT_USER_CN, "CN=ann|O=Example|CN=ann", NULL},
        {CLIENT_USER_CN, "CN=", NULL},
        {CLIENT_USER_CN, "CN=^0", NULL},
        {CLIENT_USER_CN, "CN=ann^0", NULL},
        {CLIENT_USER_CN, "CN=ann^0.example.org", NULL},
        {CLIENT_USER_CN, "CN=^0ann", NULL},
        {CLIENT_USER_CN, "CN16~^0a^0^0", NULL},
        {CLIENT_USER_CN, "CN=123456789012345", "123456789012345"},
        {CLIENT_USER_CN, "CN=1234567890123456", NULL}, /* longer than there is room for */
        {CLIENT_USER_UID, "UID=ann|CN=bob", "ann"},
        {CLIENT_USER_UID, "CN=ann", NULL},
        {CLIENT_USER_UID, "UID=ann|UID=bob", NULL},
        {CLIENT_USER_EMAIL, "CN=x|email:ann@example.org", "ann@example.org"},
        {CLIENT_USER_EMAIL, "dns:x|email:ann@example.org|upn:b@example.org", "ann@example.org"},
        {CLIENT_USER_EMAIL, "email:ann@example.org|email:b@example.org", NULL},
        {CLIENT_USER_EMAIL, "email:ann^0@example.org", NULL},
        {CLIENT_USER_EMAIL, "email:", NULL},
        {CLIENT_USER_EMAIL, "E=ann@example.org|CN=ann", NULL}, /* the subject's is another one */
        {CLIENT_USER_EMAIL, "upn:ann@example.org|dns:ann@example.org", NULL},
        {CLIENT_USER_UPN, "upn:ann@example.org", "ann@example.org"},
        {CLIENT_USER_UPN, "krb:x|email:b@example.org|upn:ann@example.org", "ann@example.org"},
        {CLIENT_USER_UPN, "upn:ann@example.org|upn:ann@example.org", NULL},
        {CLIENT_USER_UPN, "upn:ann@^0.org", NULL},
        {CLIENT_USER_UPN, "upn-ia5:ann@example.org", NULL},
        {CLIENT_USER_UPN, "krb:ann@example.org|email:ann@example.org", NULL},
        {CLIENT_USER_UPN, "CN=ann", NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char user[16] = "as before";
        struct bench b;

        bench_init(&b, ours.file, no_text);
        b.conf.client_user = (int)cases[i].field;
        handshake(&b, user_certificate(cases[i].words, &ours, DAY), true);
        if (client_certificate_user(b.server, &b.conf, user, sizeof user)) {
            if (cases[i].user == NULL || strcmp(user, cases[i].user) != 0)
                fail_msg("case %zu: %s", i, user);
        } else if (cases[i].user != NULL) {
            fail_msg("case %zu: nobody", i);
        } else {
            assert_string_equal(user, "as before");
        }
        bench_release(&b);
    }
}

static void two_lists_of_names_are_none(void **state)
{
    X509 *certificate = new_certificate(user_key, DAY);
    char user[32];
    struct bench b;

    (void)state;
    add_words(certificate, "email:ann@example.org");
    add_words(certificate, "email:bob@example.org");
    sign(certificate, &ours);
    bench_init(&b, ours.file, no_text);
    b.conf.client_user = CLIENT_USER_EMAIL;
    if (client_certificate_ask(b.server_context, &b.conf, &b.err) && shake_hands(&b, certificate))
        assert_false(client_certificate_user(b.server, &b.conf, user, sizeof user));
    bench_release(&b);
}

static void without_certificate_it_is_nobody(void **state)
{
    char user[16];
    struct bench b;

    (void)state;
    bench_init(&b, ours.file, no_text);
    handshake(&b, NULL, true);
    assert_false(client_certificate_user(b.server, &b.conf, user, sizeof user));
    assert_false(client_certificate_user(NULL, &b.conf, user, sizeof user));
    bench_release(&b);
}

/* Without the setting clients are not asked, and what they send all the same means nothing. */
static void only_if_it_is_wanted(void **state)
{
    char user[16];
    struct bench b;

    (void)state;
    bench_init(&b, no_text, no_text);
    handshake(&b, user_certificate("CN=ann", &ours, DAY), true);
    assert_null(SSL_get0_peer_certificate(b.server));
    assert_false(client_certificate_user(b.server, &b.conf, user, sizeof user));
    bench_release(&b);

    bench_init(&b, no_text, no_text);
    SSL_CTX_set_verify(b.server_context, SSL_VERIFY_PEER, NULL);
    assert_int_equal(SSL_CTX_load_verify_file(b.server_context, ours.file), 1);
    handshake(&b, user_certificate("CN=ann", &ours, DAY), true);
    assert_non_null(SSL_get0_peer_certificate(b.server));
    assert_false(client_certificate_user(b.server, &b.conf, user, sizeof user));
    bench_release(&b);
}

static X509 *server_only(void)
{
    X509 *certificate = new_certificate(user_key, DAY);

    add_words(certificate, "CN=ann");
    add_extension(certificate, NID_ext_key_usage, "serverAuth");
    sign(certificate, &ours);
    return certificate;
}

static void bad_ones_end_the_handshake(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        struct bench b;

        bench_init(&b, ours.file, no_text);
        handshake(&b,
                  kind == 0   ? user_certificate("CN=ann", &other, DAY)
                  : kind == 1 ? user_certificate("CN=ann", &ours, -1)
                              : server_only(),
                  false);
        bench_release(&b);
    }
}

/* Whatever lets a handshake go on: what is not verified is nobody's. */
static void what_is_not_verified_is_nobodys(void **state)
{
    char user[16];
    struct bench b;

    (void)state;
    bench_init(&b, ours.file, no_text);
    assert_true(client_certificate_ask(b.server_context, &b.conf, &b.err));
    SSL_CTX_set_verify(b.server_context, SSL_VERIFY_PEER, take_all);
    assert_true(shake_hands(&b, user_certificate("CN=ann", &other, DAY)));
    assert_non_null(SSL_get0_peer_certificate(b.server));
    assert_false(client_certificate_user(b.server, &b.conf, user, sizeof user));
    bench_release(&b);
}

/* As in a connection that resumes another one, whose handshake was in time. */
static void one_that_has_expired_since_is_nobodys(void **state)
{
    time_t give_up = time(NULL) + PATIENCE_SECONDS;
    char user[16];
    struct bench b;

    (void)state;
    bench_init(&b, ours.file, no_text);
    handshake(&b, user_certificate("CN=ann", &ours, 2), true);
    assert_true(client_certificate_user(b.server, &b.conf, user, sizeof user));
    while (client_certificate_user(b.server, &b.conf, user, sizeof user) && time(NULL) < give_up)
        usleep(10000);
    assert_true(time(NULL) < give_up);
    bench_release(&b);
}

/* A revocation list of `authority`, that ends within so many seconds and has this certificate. */
static void make_crl(char file_out[64], const struct authority *authority, long ends_in,
                     const X509 *revoked)
{
    X509_CRL *crl = X509_CRL_new();
    ASN1_TIME *time = X509_gmtime_adj(NULL, -DAY);

    assert_int_equal(X509_CRL_set_version(crl, X509_CRL_VERSION_2), 1);
    assert_int_equal(X509_CRL_set_issuer_name(crl, X509_get_subject_name(authority->certificate)),
                     1);
    assert_int_equal(X509_CRL_set1_lastUpdate(crl, time), 1);
    if (revoked != NULL) {
        X509_REVOKED *entry = X509_REVOKED_new();

        assert_int_equal(X509_REVOKED_set_serialNumber(
                             entry, (ASN1_INTEGER *)(uintptr_t)X509_get0_serialNumber(revoked)),
                         1);
        assert_int_equal(X509_REVOKED_set_revocationDate(entry, time), 1);
        assert_int_equal(X509_CRL_add0_revoked(crl, entry), 1);
    }
    assert_non_null(X509_gmtime_adj(time, ends_in));
    assert_int_equal(X509_CRL_set1_nextUpdate(crl, time), 1);
    assert_true(X509_CRL_sign(crl, authority->key, EVP_sha256()) > 0);
    write_pem(file_out, write_crl, crl);
    ASN1_TIME_free(time);
    X509_CRL_free(crl);
}

static void revocation_lists(void **state)
{
    static const struct {
        bool listed, of_other;
        long ends_in;
        bool good;
    } cases[] = {
        {false, false, DAY, true},
        {true, false, DAY, false},
        {false, true, DAY, false}, /* there is none of this authority */
        {false, false, -1, false}, /* nobody knows what has been revoked since */
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        X509 *certificate = user_certificate("CN=ann", &ours, DAY);
        char file[64], user[16];
        struct bench b;

        make_crl(file, cases[i].of_other ? &other : &ours, cases[i].ends_in,
                 cases[i].listed ? certificate : NULL);
        bench_init(&b, ours.file, file);
        handshake(&b, certificate, cases[i].good);
        if (cases[i].good)
            assert_true(client_certificate_user(b.server, &b.conf, user, sizeof user));
        bench_release(&b);
        unlink(file);
    }
}

static void bad_files_are_refused(void **state)
{
    static char missing[] = "/nonexistent/ca.pem", empty[] = "/dev/null";
    struct {
        char *ca_file, *crl_file;
        const char *named;
    } cases[] = {
        {missing, no_text, "client_ca_file /nonexistent"},
        {empty, no_text, "client_ca_file /dev/null"},
        {ours.file, missing, "client_crl_file /nonexistent"},
        {ours.file, empty, "client_crl_file /dev/null"},
        {ours.file, ours.file, "client_crl_file /tmp"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b;

        bench_init(&b, cases[i].ca_file, cases[i].crl_file);
        assert_false(client_certificate_ask(b.server_context, &b.conf, &b.err));
        assert_int_equal(b.err.kind, ERR_CONFIG);
        if (strstr(b.err.text, cases[i].named) == NULL)
            fail_msg("case %zu: %s", i, b.err.text);
        bench_release(&b);
    }
}

static int set_up(void **state)
{
    (void)state;
    user_key = EVP_EC_gen("P-256");
    open_authority(&ours, "ours");
    open_authority(&other, "other");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    EVP_PKEY_free(user_key);
    close_authority(&ours);
    close_authority(&other);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whose_it_is),
        cmocka_unit_test(two_lists_of_names_are_none),
        cmocka_unit_test(without_certificate_it_is_nobody),
        cmocka_unit_test(only_if_it_is_wanted),
        cmocka_unit_test(bad_ones_end_the_handshake),
        cmocka_unit_test(what_is_not_verified_is_nobodys),
        cmocka_unit_test(one_that_has_expired_since_is_nobodys),
        cmocka_unit_test(revocation_lists),
        cmocka_unit_test(bad_files_are_refused),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
