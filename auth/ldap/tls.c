/*
 * Owns the TLS contexts for directories. Each is made in an LDAP* of its own, for libldap's options
 * for the process must not change while threads connect.
 */
#include "auth/ldap/tls.h"

#include "proxy/base/mem.h"

#include <assert.h>
#include <utlist.h>
#include <uv.h>

/*
 * Exported by libldap, for slapd, but in no header: gives back what LDAP_OPT_X_TLS_CTX has counted.
 */
void ldap_pvt_tls_ctx_free(void *context);

struct shared {
    const struct conf_ldap *conf;
    void *context; /* NULL: no TLS is spoken */
    size_t users;
    struct shared *next;
};

static const char debian_ca_file[] = "/etc/ssl/certs/ca-certificates.crt";
static struct shared *all;
static uv_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* --- one context --- */

static bool set_text(LDAP *ldap, int option, const char *text)
{
    return ldap_set_option(ldap, option, text) == LDAP_OPT_SUCCESS;
}

/* Whom we trust; from ldap.conf, if proxy.conf does not tell. */
static bool set_authorities(LDAP *ldap, const struct conf_ldap *conf)
{
    char *inherited = NULL;
    bool ok;

    if (!conf->verify)
        return true;
    if (conf->ca_file[0] != '\0')
        return set_text(ldap, LDAP_OPT_X_TLS_CACERTFILE, conf->ca_file);
    (void)ldap_get_option(NULL, LDAP_OPT_X_TLS_CACERTFILE, &inherited);
    ok = set_text(ldap, LDAP_OPT_X_TLS_CACERTFILE, inherited == NULL ? debian_ca_file : inherited);
    ldap_memfree(inherited);
    return ok;
}

/* The certificate that we show, if there is one; not that of a user's ldap.conf. */
static bool set_certificate(LDAP *ldap, const struct conf_ldap *conf)
{
    const char *chain = conf->client_certificate[0] == '\0' ? NULL : conf->client_certificate;

    return set_text(ldap, LDAP_OPT_X_TLS_CERTFILE, chain) &&
           set_text(ldap, LDAP_OPT_X_TLS_KEYFILE,
                    conf->client_key[0] == '\0' ? chain : conf->client_key);
}

static bool needs_tls(const struct conf_ldap *conf)
{
    bool needed = conf->start_tls || conf->referrals;

    for (size_t i = 0; i < conf->uri.count; i++)
        needed = needed || ldap_is_ldaps_url(conf->uri.items[i]);
    return needed;
}

static bool set_verify(LDAP *ldap, const struct conf_ldap *conf)
{
    int verify = conf->verify ? LDAP_OPT_X_TLS_DEMAND : LDAP_OPT_X_TLS_NEVER;

    return ldap_set_option(ldap, LDAP_OPT_X_TLS_REQUIRE_CERT, &verify) == LDAP_OPT_SUCCESS;
}

/* NULL when something in the settings is no good. */
static void *make_context(LDAP *ldap, const struct conf_ldap *conf)
{
    int oldest = LDAP_OPT_X_TLS_PROTOCOL_TLS1_2, client = 0;
    void *context = NULL;

    if (set_verify(ldap, conf) &&
        ldap_set_option(ldap, LDAP_OPT_X_TLS_PROTOCOL_MIN, &oldest) == LDAP_OPT_SUCCESS &&
        set_authorities(ldap, conf) && set_certificate(ldap, conf) &&
        ldap_set_option(ldap, LDAP_OPT_X_TLS_NEWCTX, &client) == LDAP_OPT_SUCCESS)
        (void)ldap_get_option(ldap, LDAP_OPT_X_TLS_CTX, &context); /* counted for us */
    return context;
}

static bool open_context(struct shared *shared, struct err *err)
{
    LDAP *ldap = NULL;

    /* libldap reads its own files at first use. */
    if (ldap_initialize(&ldap, NULL) != LDAP_SUCCESS)
        return err_set(err, ERR_INTERNAL, "ldap: libldap cannot be used");
    if (needs_tls(shared->conf))
        shared->context = make_context(ldap, shared->conf);
    (void)ldap_unbind_ext(ldap, NULL, NULL);
    return shared->context != NULL || !needs_tls(shared->conf) ||
           err_set(err, ERR_CONFIG,
                   "ldap: TLS: the authorities, the certificate or its key cannot be used");
}

/* --- for all --- */

static struct shared *find(const struct conf_ldap *conf)
{
    struct shared *shared;

    LL_SEARCH_SCALAR(all, shared, conf, conf);
    return shared;
}

/* Reads files, which may take as long as a disk likes. */
static struct shared *open_shared(const struct conf_ldap *conf, struct err *err)
{
    struct shared *shared = mem_new(sizeof *shared);

    if (shared == NULL) {
        err_set(err, ERR_INTERNAL, "ldap: no memory");
        return NULL;
    }
    shared->conf = conf;
    shared->users = 1;
    if (open_context(shared, err))
        return shared;
    mem_free(shared);
    return NULL;
}

/* False: nobody has joined before. */
static bool join_others(const struct conf_ldap *conf)
{
    uv_mutex_lock(&lock);

    struct shared *shared = find(conf);

    if (shared != NULL)
        shared->users++;
    uv_mutex_unlock(&lock);
    return shared != NULL;
}

/* Who comes first reads without the lock, for which those wait who connect, and the loops. */
bool ldap_tls_join(const struct conf_ldap *conf, struct err *err)
{
    struct shared *shared;

    if (join_others(conf))
        return true;
    shared = open_shared(conf, err);
    if (shared == NULL)
        return false;
    uv_mutex_lock(&lock);
    LL_PREPEND(all, shared);
    uv_mutex_unlock(&lock);
    return true;
}

void ldap_tls_leave(const struct conf_ldap *conf)
{
    uv_mutex_lock(&lock);

    struct shared *shared = find(conf);

    assert(shared != NULL);
    if (--shared->users == 0) {
        LL_DELETE(all, shared);
        if (shared->context != NULL)
            ldap_pvt_tls_ctx_free(shared->context);
        mem_free(shared);
    }
    uv_mutex_unlock(&lock);
}

bool ldap_tls_apply(const struct conf_ldap *conf, LDAP *ldap)
{
    uv_mutex_lock(&lock);

    const struct shared *shared = find(conf);
    bool ok = shared != NULL &&
              (shared->context == NULL ||
               (set_verify(ldap, conf) &&
                ldap_set_option(ldap, LDAP_OPT_X_TLS_CTX, shared->context) == LDAP_OPT_SUCCESS));

    uv_mutex_unlock(&lock);
    return ok;
}
