/* Owns the SSL_CTXs of the process: one per certificate for clients, one per shard for stores. */
#include "proxy/net/tls.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/readers.h"
#include "proxy/net/client_certificate.h"
#include "proxy/net/private_key.h"
#include "proxy/net/tickets.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct tls {
    _Atomic size_t holders;
    const struct conf *conf;        /* held */
    struct tls_files *files;        /* as they were before they were read */
    struct ticket_keys ticket_keys; /* of a file, until they are in force */
    struct served *served;          /* NULL without any certificate */
    SSL_CTX **shards;               /* by shard id; NULL where its tls is none */
};

/*
 * The contexts for clients, by certificate. Belongs to the first one, by which every handshake
 * begins, and goes with it: a handshake keeps what it needs, whatever becomes of struct tls.
 */
struct served {
    struct readers readers;
    size_t count;
    SSL_CTX *contexts[];
};

/* For TLS 1.3. All are strong; the first costs least, in the handshake and after it. */
static const char ciphersuites[] =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
static const unsigned char alpn_imap[] = "\x04imap";

/* For err_set: OpenSSL's own reason. */
static const char *reason(void)
{
    const char *text = ERR_reason_error_string(ERR_peek_last_error());

    ERR_clear_error();
    return text == NULL ? "unknown TLS error" : text;
}

static int choose_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                       const unsigned char *offered, unsigned offered_len, void *unused)
{
    unsigned char *chosen;

    (void)ssl;
    (void)unused;
    /* A client of another protocol that was led here must not go on: refuse, do not ignore. */
    if (SSL_select_next_proto(&chosen, out_len, alpn_imap, sizeof alpn_imap - 1, offered,
                              offered_len) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static int choose_certificate(SSL *ssl, int *alert, void *argument)
{
    struct served *served = argument;
    const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    size_t i = 0;

    (void)alert;
    if (name == NULL)
        return SSL_TLSEXT_ERR_NOACK;
    while (i < served->count &&
           X509_check_host(SSL_CTX_get0_certificate(served->contexts[i]), name, 0, 0, NULL) != 1)
        i++;
    if (i < served->count) /* else the first one serves */
        SSL_set_SSL_CTX(ssl, served->contexts[i]);
    readers_mark(&served->readers);
    return SSL_TLSEXT_ERR_OK;
}

static void set_common(SSL_CTX *context)
{
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_read_ahead(context, 1); /* a record's header and body in one system call */
}

static bool set_tickets(SSL_CTX *context, const struct conf_tls *conf)
{
    uint64_t lifetime_ms = conf->session_lifetime;

    SSL_CTX_set_session_cache_mode(context,
                                   SSL_SESS_CACHE_OFF); /* tickets only: the server keeps nothing */
    SSL_CTX_set_timeout(context, (long)(lifetime_ms / 1000));
    /* Each connection has one of its own: a client that opens several at once uses the last. */
    SSL_CTX_set_num_tickets(context, lifetime_ms == 0 ? 0 : 1);
    if (lifetime_ms == 0)
        SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
    return tickets_serve(context) && client_certificate_bind_sessions(context, conf);
}

/* Clients that want to know, and are not told, ask the authority: no reason to serve nobody. */
static void staple(SSL_CTX *context, const struct conf_certificate *certificate)
{
    struct err err = {0};

    if (certificate->ocsp_file[0] != '\0' && !ocsp_staple(context, certificate->ocsp_file, &err))
        log_event(LOG_LEVEL_WARNING, "OCSP response not served", "%s: %s", certificate->ocsp_file,
                  err.text);
}

static bool use_key(SSL_CTX *context, const char *path)
{
    EVP_PKEY *key = private_key_read(path);
    bool used = key != NULL && SSL_CTX_use_PrivateKey(context, key) == 1;

    EVP_PKEY_free(key);
    return used;
}

/* What is the same for all certificates. False with *err set. */
static bool set_up_server(SSL_CTX *context, const struct conf_tls *conf, struct err *err)
{
    int version = conf->min_version == TLS_MIN_1_3 ? TLS1_3_VERSION : TLS1_2_VERSION;

    set_common(context);
    SSL_CTX_set_options(context, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA |
                                     SSL_OP_CLEANSE_PLAINTEXT);
    SSL_CTX_set_alpn_select_cb(context, choose_alpn, NULL);
    if (SSL_CTX_set_min_proto_version(context, version) != 1 || !set_tickets(context, conf) ||
        SSL_CTX_set_ciphersuites(context, ciphersuites) != 1)
        return err_set(err, ERR_INTERNAL, "tls: %s", reason());
    if (SSL_CTX_set_cipher_list(context, conf->ciphers) != 1)
        err_set(err, ERR_CONFIG, "tls: ciphers \"%s\": %s", conf->ciphers, reason());
    else if (SSL_CTX_set1_groups_list(context, conf->groups) != 1)
        err_set(err, ERR_CONFIG, "tls: groups \"%s\": expected names as in X25519:P-256: %s",
                conf->groups, reason());
    else if (client_certificate_ask(context, conf, err))
        return true;
    return conf_blame(conf, err);
}

static bool load_certificate(SSL_CTX *context, const struct conf_certificate *certificate,
                             struct err *err)
{
    const char *key = certificate->key[0] == '\0' ? certificate->chain : certificate->key;

    if (SSL_CTX_use_certificate_chain_file(context, certificate->chain) != 1)
        err_set(err, ERR_CONFIG, "certificate \"%s\": chain %s: expected certificates in PEM: %s",
                certificate->title, certificate->chain, reason());
    else if (!use_key(context, key))
        err_set(err, ERR_CONFIG, "certificate \"%s\": key %s: expected its private key in PEM: %s",
                certificate->title, key, reason());
    else
        return true;
    return conf_blame(certificate, err);
}

static SSL_CTX *server_context(const struct conf_tls *conf,
                               const struct conf_certificate *certificate, struct err *err)
{
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());

    if (context == NULL)
        err_set(err, ERR_INTERNAL, "no memory for TLS");
    else if (set_up_server(context, conf, err) && load_certificate(context, certificate, err)) {
        staple(context, certificate);
        return context;
    }
    SSL_CTX_free(context);
    return NULL;
}

/* --- clients --- */

static void free_served(void *first, void *pointer, CRYPTO_EX_DATA *data, int index, long number,
                        void *argument)
{
    struct served *served = pointer;

    (void)first, (void)data, (void)index, (void)number, (void)argument;
    if (served == NULL)
        return;
    readers_look(&served->readers);
    for (size_t i = 1; i < served->count; i++)
        SSL_CTX_free(served->contexts[i]);
    mem_free(served);
}

static int served_index;

static void make_served_index(void)
{
    served_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, free_served);
}

/* Gives the list to its first context. */
static bool attach(struct served *served, SSL_CTX *first)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, make_served_index);
    if (served_index < 0 || SSL_CTX_set_ex_data(first, served_index, served) != 1)
        return false;
    SSL_CTX_set_tlsext_servername_callback(first, choose_certificate);
    SSL_CTX_set_tlsext_servername_arg(first, served);
    served->contexts[served->count++] = first;
    return true;
}

static bool open_first(struct tls *tls, struct served *served, struct err *err)
{
    SSL_CTX *first = server_context(&tls->conf->tls, &tls->conf->certificates[0], err);

    if (first != NULL && served != NULL && attach(served, first)) {
        tls->served = served;
        return true;
    }
    mem_free(served);
    SSL_CTX_free(first);
    return first != NULL && err_set(err, ERR_INTERNAL, "no memory for TLS");
}

static bool open_servers(struct tls *tls, struct err *err)
{
    const struct conf *conf = tls->conf;
    size_t count = conf->certificate_count;
    struct served *served;

    if (count == 0)
        return true;
    served = mem_new(sizeof *served + count * sizeof(SSL_CTX *));
    if (!open_first(tls, served, err))
        return false;
    for (size_t i = 1; i < count; i++) {
        SSL_CTX *context = server_context(&conf->tls, &conf->certificates[i], err);

        if (context == NULL)
            return false;
        served->contexts[served->count++] = context;
    }
    return true;
}

/* --- stores --- */

/* OpenSSL hands a new session over: it is kept, in place of the one before. */
static int remember(SSL *client, SSL_SESSION *session)
{
    struct tls_memory *memory = SSL_get_app_data(client);

    if (memory == NULL)
        return 0;
    tls_memory_release(memory);
    memory->session = session;
    memory->context = SSL_get_SSL_CTX(client);
    SSL_CTX_up_ref(memory->context);
    return 1;
}

void tls_memory_use(struct tls_memory *memory, SSL *client)
{
    SSL_set_app_data(client, memory);
    if (memory->session != NULL && memory->context == SSL_get_SSL_CTX(client))
        SSL_set_session(client, memory->session); /* if it cannot, the handshake is a full one */
}

void tls_memory_release(struct tls_memory *memory)
{
    SSL_SESSION_free(memory->session);
    SSL_CTX_free(memory->context);
    *memory = (struct tls_memory){0};
}

static SSL_CTX *shard_context(const struct conf_shard *shard, struct err *err)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());

    if (context == NULL) {
        err_set(err, ERR_INTERNAL, "no memory for TLS");
        return NULL;
    }
    set_common(context);
    SSL_CTX_set_verify(context, shard->tls_verify ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, remember);
    bool own_ca = shard->tls_ca_file[0] != '\0';
    if (SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) == 1 &&
        (own_ca ? SSL_CTX_load_verify_file(context, shard->tls_ca_file)
                : SSL_CTX_set_default_verify_paths(context)) == 1)
        return context;
    err_set(err, ERR_CONFIG, "shard \"%s\": tls_ca_file %s: %s", shard->title, shard->tls_ca_file,
            reason());
    conf_blame(shard, err);
    SSL_CTX_free(context);
    return NULL;
}

static bool open_shards(struct tls *tls, struct err *err)
{
    const struct conf *conf = tls->conf;

    tls->shards = mem_array(conf->shard_titles.count + 1, sizeof *tls->shards);
    if (tls->shards == NULL)
        return err_set(err, ERR_INTERNAL, "no memory for TLS");
    for (size_t i = 0; i < conf->shard_count; i++) {
        const struct conf_shard *shard = &conf->shards[i];

        if (shard->tls == TLS_NONE)
            continue;
        tls->shards[shard->id] = shard_context(shard, err);
        if (tls->shards[shard->id] == NULL)
            return false;
    }
    return true;
}

/* --- what a certificate says --- */

/* One that cannot be read has passed. */
static int64_t unix_time(const ASN1_TIME *time)
{
    struct tm parts;

    return ASN1_TIME_to_tm(time, &parts) == 1 ? timegm(&parts) : 0;
}

static void take_dates(struct tls_certificate *out, const X509 *certificate)
{
    out->not_before = unix_time(X509_get0_notBefore(certificate));
    out->not_after = unix_time(X509_get0_notAfter(certificate));
}

/* Cut when it is longer than any host name. */
static void copy_name(const ASN1_STRING *text, char *out, size_t size)
{
    snprintf(out, size, "%.*s", ASN1_STRING_length(text),
             (const char *)ASN1_STRING_get0_data(text));
}

static void name_of(const X509 *certificate, char *out, size_t size)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    const X509_NAME *subject = X509_get_subject_name(certificate);
    int common = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);

    for (int i = 0; i < sk_GENERAL_NAME_num(names) && out[0] == '\0'; i++)
        if (sk_GENERAL_NAME_value(names, i)->type == GEN_DNS)
            copy_name(sk_GENERAL_NAME_value(names, i)->d.dNSName, out, size);
    if (out[0] == '\0' && common >= 0)
        copy_name(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, common)), out, size);
    GENERAL_NAMES_free(names);
}

/* --- the whole --- */

static bool open_ticket_keys(struct tls *tls, struct err *err)
{
    const struct conf_tls *conf = &tls->conf->tls;

    return conf->ticket_keys != TICKET_KEYS_FILE ||
           ticket_keys_read(conf->ticket_keys_file, &tls->ticket_keys, err);
}

const struct tls *tls_open(const struct conf *conf, struct err *err)
{
    struct tls *tls = mem_new(sizeof *tls);
    const struct tls *opened = tls;

    if (tls == NULL) {
        err_set(err, ERR_INTERNAL, "no memory for TLS");
        return NULL;
    }
    tls->holders = 1;
    tls->conf = conf_hold(conf);
    tls->files = tls_files_look(conf);
    if (tls->files == NULL)
        err_set(err, ERR_INTERNAL, "no memory for TLS");
    if (tls->files == NULL || !open_ticket_keys(tls, err) || !open_servers(tls, err) ||
        !open_shards(tls, err))
        tls_release(&opened);
    return opened;
}

const struct tls *tls_hold(const struct tls *tls)
{
    atomic_fetch_add(&((struct tls *)tls)->holders, 1);
    return tls;
}

void tls_release(const struct tls **tls)
{
    struct tls *t = (struct tls *)*tls;

    *tls = NULL;
    if (t == NULL || atomic_fetch_sub(&t->holders, 1) > 1)
        return;
    SSL_CTX *first = tls_server_context(t);

    if (first != NULL)
        readers_mark(&t->served->readers);
    SSL_CTX_free(first);
    for (size_t i = 0; t->shards != NULL && i < t->conf->shard_titles.count; i++)
        SSL_CTX_free(t->shards[i]);
    mem_free(t->shards);
    tls_files_free(&t->files);
    ticket_keys_release(&t->ticket_keys);
    conf_release(&t->conf);
    mem_free(t);
}

const struct conf *tls_configuration(const struct tls *tls)
{
    return tls->conf;
}

const struct tls_files *tls_made_of(const struct tls *tls)
{
    return tls->files;
}

void tls_use_ticket_keys(const struct tls *tls)
{
    struct tls *t = (struct tls *)tls;

    if (t->ticket_keys.count > 0)
        tickets_use(&t->ticket_keys);
}

SSL_CTX *tls_server_context(const struct tls *tls)
{
    return tls->served == NULL ? NULL : tls->served->contexts[0];
}

size_t tls_certificate_count(const struct tls *tls)
{
    return tls->served == NULL ? 0 : tls->served->count;
}

void tls_certificate(const struct tls *tls, size_t index, struct tls_certificate *out)
{
    const struct conf_certificate *conf = &tls->conf->certificates[index];
    SSL_CTX *context = tls->served->contexts[index];
    const X509 *leaf = SSL_CTX_get0_certificate(context);
    STACK_OF(X509) *chain = NULL;

    *out = (struct tls_certificate){.title = conf->title,
                                    .file = conf->chain,
                                    .ocsp = ocsp_dates(context),
                                    .ocsp_file = conf->ocsp_file};
    take_dates(out, leaf);
    name_of(leaf, out->name, sizeof out->name);
    SSL_CTX_get0_chain_certs(context, &chain);
    for (int i = 0; i < sk_X509_num(chain); i++)
        if (unix_time(X509_get0_notAfter(sk_X509_value(chain, i))) < out->not_after)
            take_dates(out, sk_X509_value(chain, i));
}

int64_t tls_not_after(const struct tls *tls)
{
    int64_t first = 0;

    for (size_t i = 0; i < tls_certificate_count(tls); i++) {
        struct tls_certificate certificate;

        tls_certificate(tls, i, &certificate);
        if (i == 0 || certificate.not_after < first)
            first = certificate.not_after;
    }
    return first;
}

SSL_CTX *tls_shard_context(const struct tls *tls, const struct conf_shard *shard)
{
    return shard->id < tls->conf->shard_titles.count ? tls->shards[shard->id] : NULL;
}
