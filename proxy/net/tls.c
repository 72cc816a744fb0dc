/* Owns the SSL_CTXs of the process: one per certificate for clients, one per shard for stores. */
#include "proxy/net/tls.h"

#include "proxy/base/mem.h"
#include "proxy/net/client_certificate.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>

struct tls {
    const struct conf *conf;
    SSL_CTX **servers; /* by certificate; tickets are the first one's: they come before SNI */
    SSL_CTX **shards;  /* by shard; NULL where its tls is none */
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
    const struct tls *tls = argument;
    const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);

    (void)alert;
    for (size_t i = 0; name != NULL && i < tls->conf->certificate_count; i++) {
        if (X509_check_host(SSL_CTX_get0_certificate(tls->servers[i]), name, 0, 0, NULL) == 1) {
            SSL_set_SSL_CTX(ssl, tls->servers[i]);
            return SSL_TLSEXT_ERR_OK;
        }
    }
    return name == NULL ? SSL_TLSEXT_ERR_NOACK
                        : SSL_TLSEXT_ERR_OK; /* the first certificate serves */
}

static void set_common(SSL_CTX *context)
{
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_read_ahead(context, 1); /* a record's header and body in one system call */
}

static bool set_tickets(SSL_CTX *context, uint64_t lifetime_ms)
{
    static const unsigned char session_id_context[] = "imapmux";

    SSL_CTX_set_session_cache_mode(context,
                                   SSL_SESS_CACHE_OFF); /* tickets only: the server keeps nothing */
    SSL_CTX_set_timeout(context, (long)(lifetime_ms / 1000));
    /* Each connection has one of its own: a client that opens several at once uses the last. */
    SSL_CTX_set_num_tickets(context, lifetime_ms == 0 ? 0 : 1);
    if (lifetime_ms == 0)
        SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
    return SSL_CTX_set_session_id_context(context, session_id_context,
                                          sizeof session_id_context - 1) == 1;
}

static SSL_CTX *server_context(struct tls *tls, const struct conf_certificate *certificate,
                               struct err *err)
{
    const struct conf_tls *conf = &tls->conf->tls;
    const char *key = certificate->key[0] == '\0' ? certificate->chain : certificate->key;
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());

    if (context == NULL) {
        err_set(err, ERR_INTERNAL, "no memory for TLS");
        return NULL;
    }
    set_common(context);
    SSL_CTX_set_options(context, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA |
                                     SSL_OP_CLEANSE_PLAINTEXT);
    SSL_CTX_set_alpn_select_cb(context, choose_alpn, NULL);
    SSL_CTX_set_tlsext_servername_callback(context, choose_certificate);
    SSL_CTX_set_tlsext_servername_arg(context, tls);
    int version = conf->min_version == TLS_MIN_1_3 ? TLS1_3_VERSION : TLS1_2_VERSION;
    if (SSL_CTX_set_min_proto_version(context, version) != 1 ||
        !set_tickets(context, conf->session_lifetime))
        err_set(err, ERR_INTERNAL, "tls: %s", reason());
    else if (SSL_CTX_set_ciphersuites(context, ciphersuites) != 1)
        err_set(err, ERR_INTERNAL, "tls: %s", reason());
    else if (SSL_CTX_set_cipher_list(context, conf->ciphers) != 1)
        err_set(err, ERR_CONFIG, "tls: ciphers \"%s\": %s", conf->ciphers, reason());
    else if (SSL_CTX_set1_groups_list(context, conf->groups) != 1)
        err_set(err, ERR_CONFIG, "tls: groups \"%s\": %s", conf->groups, reason());
    else if (SSL_CTX_use_certificate_chain_file(context, certificate->chain) != 1)
        err_set(err, ERR_CONFIG, "certificate \"%s\": chain %s: %s", certificate->title,
                certificate->chain, reason());
    else if (SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1)
        err_set(err, ERR_CONFIG, "certificate \"%s\": key %s: %s", certificate->title, key,
                reason());
    else if (client_certificate_ask(context, conf, err))
        return context;
    SSL_CTX_free(context);
    return NULL;
}

/* OpenSSL hands a new session over: it is kept, in place of the one before. */
static int remember(SSL *client, SSL_SESSION *session)
{
    struct tls_memory *memory = SSL_get_app_data(client);

    if (memory == NULL)
        return 0;
    SSL_SESSION_free(memory->session);
    memory->session = session;
    return 1;
}

void tls_memory_use(struct tls_memory *memory, SSL *client)
{
    SSL_set_app_data(client, memory);
    if (memory->session != NULL)
        SSL_set_session(client, memory->session); /* if it cannot, the handshake is a full one */
}

void tls_memory_release(struct tls_memory *memory)
{
    SSL_SESSION_free(memory->session);
    memory->session = NULL;
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
    SSL_CTX_free(context);
    return NULL;
}

static bool open_all(struct tls *tls, struct err *err)
{
    const struct conf *conf = tls->conf;

    tls->servers = mem_array(conf->certificate_count + 1, sizeof *tls->servers);
    tls->shards = mem_array(conf->shard_count + 1, sizeof *tls->shards);
    if (tls->servers == NULL || tls->shards == NULL)
        return err_set(err, ERR_INTERNAL, "no memory for TLS");
    for (size_t i = 0; i < conf->certificate_count; i++) {
        tls->servers[i] = server_context(tls, &conf->certificates[i], err);
        if (tls->servers[i] == NULL)
            return false;
    }
    for (size_t i = 0; i < conf->shard_count; i++) {
        if (conf->shards[i].tls == TLS_NONE)
            continue;
        tls->shards[i] = shard_context(&conf->shards[i], err);
        if (tls->shards[i] == NULL)
            return false;
    }
    return true;
}

struct tls *tls_open(const struct conf *conf, struct err *err)
{
    struct tls *tls = mem_new(sizeof *tls);

    if (tls == NULL) {
        err_set(err, ERR_INTERNAL, "no memory for TLS");
        return NULL;
    }
    tls->conf = conf;
    if (!open_all(tls, err))
        tls_close(&tls);
    return tls;
}

void tls_close(struct tls **tls)
{
    struct tls *t = *tls;

    *tls = NULL;
    if (t == NULL)
        return;
    for (size_t i = 0; t->servers != NULL && i < t->conf->certificate_count; i++)
        SSL_CTX_free(t->servers[i]);
    for (size_t i = 0; t->shards != NULL && i < t->conf->shard_count; i++)
        SSL_CTX_free(t->shards[i]);
    mem_free(t->servers);
    mem_free(t->shards);
    mem_free(t);
}

SSL_CTX *tls_server_context(const struct tls *tls)
{
    return tls->conf->certificate_count == 0 ? NULL : tls->servers[0];
}

SSL_CTX *tls_shard_context(const struct tls *tls, const struct conf_shard *shard)
{
    return tls->shards[shard - tls->conf->shards];
}
