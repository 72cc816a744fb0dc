/* Owns how clients' certificates are asked for, and where in one the user's name stands. */
#include "proxy/net/client_certificate.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

static bool load_revocations(SSL_CTX *context, const char *file)
{
    X509_STORE *store = SSL_CTX_get_cert_store(context);
    X509_LOOKUP *lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());

    return lookup != NULL && X509_load_crl_file(lookup, file, X509_FILETYPE_PEM) > 0 &&
           X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL) == 1;
}

bool client_certificate_ask(SSL_CTX *context, const struct conf_tls *conf, struct err *err)
{
    const char *file = conf->client_ca_file;
    STACK_OF(X509_NAME) *names = NULL;

    if (file[0] == '\0')
        return true;
    names = SSL_load_client_CA_file(file);
    if (names == NULL || SSL_CTX_load_verify_file(context, file) != 1) {
        sk_X509_NAME_pop_free(names, X509_NAME_free);
        ERR_clear_error();
        return err_set(err, ERR_CONFIG, "tls: client_ca_file %s holds no certificate", file);
    }
    SSL_CTX_set_client_CA_list(context, names);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_CLIENT_ONCE, NULL);
    if (conf->client_crl_file[0] == '\0' || load_revocations(context, conf->client_crl_file))
        return true;
    ERR_clear_error();
    return err_set(err, ERR_CONFIG, "tls: client_crl_file %s holds no revocation list",
                   conf->client_crl_file);
}

static bool add_file(EVP_MD_CTX *digest, const char *path)
{
    char octets[4096];
    FILE *file = fopen(path, "re");
    size_t count;
    bool good = file != NULL;

    while (good && (count = fread(octets, 1, sizeof octets, file)) > 0)
        good = EVP_DigestUpdate(digest, octets, count) == 1;
    if (file != NULL)
        fclose(file);
    return good;
}

bool client_certificate_bind_sessions(SSL_CTX *context, const struct conf_tls *conf)
{
    unsigned char id[EVP_MAX_MD_SIZE] = "imapmux";
    unsigned len = sizeof "imapmux" - 1;
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    bool good = digest != NULL && EVP_DigestInit_ex(digest, EVP_sha256(), NULL) == 1 &&
                EVP_DigestUpdate(digest, id, len) == 1;

    if (conf->client_ca_file[0] != '\0')
        good = good && add_file(digest, conf->client_ca_file);
    if (conf->client_crl_file[0] != '\0')
        good = good && add_file(digest, conf->client_crl_file);
    good = good && EVP_DigestFinal_ex(digest, id, &len) == 1 &&
           SSL_CTX_set_session_id_context(context, id, len) == 1;
    EVP_MD_CTX_free(digest);
    return good;
}

/* Copies the text as UTF-8; it must be one that cannot be taken for another. */
static bool copy_text(const ASN1_STRING *text, char *out, size_t size)
{
    unsigned char *utf8 = NULL;
    int len = text == NULL ? -1 : ASN1_STRING_to_UTF8(&utf8, text);
    bool fits = len > 0 && (size_t)len < size && memchr(utf8, '\0', (size_t)len) == NULL;

    if (fits) {
        memcpy(out, utf8, (size_t)len);
        out[len] = '\0';
    }
    OPENSSL_free(utf8);
    return fits;
}

static bool subject_field(const X509 *certificate, int nid, char *out, size_t size)
{
    const X509_NAME *subject = X509_get_subject_name(certificate);
    int at = X509_NAME_get_index_by_NID(subject, nid, -1);

    if (at < 0 || X509_NAME_get_index_by_NID(subject, nid, at) >= 0)
        return false;
    return copy_text(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)), out, size);
}

/* The text of an alternative name, if it is an address for mail, or of a Microsoft account. */
static const ASN1_STRING *text_of(const GENERAL_NAME *name, enum conf_client_user field)
{
    if (field == CLIENT_USER_EMAIL)
        return name->type == GEN_EMAIL ? name->d.rfc822Name : NULL;
    if (name->type == GEN_OTHERNAME && OBJ_obj2nid(name->d.otherName->type_id) == NID_ms_upn &&
        name->d.otherName->value->type == V_ASN1_UTF8STRING)
        return name->d.otherName->value->value.utf8string;
    return NULL;
}

static bool alternative_name(const X509 *certificate, enum conf_client_user field, char *out,
                             size_t size)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    const ASN1_STRING *found = NULL;
    int count = 0;

    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const ASN1_STRING *text = text_of(sk_GENERAL_NAME_value(names, i), field);

        found = text == NULL ? found : text;
        count += text != NULL;
    }
    bool copied = count == 1 && copy_text(found, out, size);
    GENERAL_NAMES_free(names);
    return copied;
}

bool client_certificate_user(const SSL *client, const struct conf_tls *conf, char *user_out,
                             size_t size)
{
    const X509 *certificate = NULL;

    if (client != NULL && conf->client_ca_file[0] != '\0' &&
        SSL_get_verify_result(client) == X509_V_OK)
        certificate = SSL_get0_peer_certificate(client);
    /* A connection that resumes another one has the verdict of that one's handshake. */
    if (certificate == NULL || X509_cmp_current_time(X509_get0_notAfter(certificate)) <= 0)
        return false;
    switch ((enum conf_client_user)conf->client_user) {
    case CLIENT_USER_CN:
        return subject_field(certificate, NID_commonName, user_out, size);
    case CLIENT_USER_UID:
        return subject_field(certificate, NID_userId, user_out, size);
    default:
        return alternative_name(certificate, (enum conf_client_user)conf->client_user, user_out,
                                size);
    }
}
