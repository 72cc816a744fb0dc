/* Owns the source `ldap`, and how it begins and ends; what it does stands in ldap_lookup.c. */
#include "auth/ldap/lookup.h"
#include "auth/ldap/pattern.h"
#include "auth/ldap/tls.h"
#include "proxy/base/mem.h"

static void pool_closed(void *owner);

static const struct ldap_pool_events pool_events = {
    .send = ldap_lookup_send,
    .on_answer = ldap_lookup_answered,
    .on_failure = ldap_lookup_failed,
    .on_closed = pool_closed,
};

static bool is_last_source(const struct conf *conf)
{
    const struct conf_words *names = &conf->auth.sources;

    return names->count > 0 && strcmp(names->items[names->count - 1], "ldap") == 0;
}

/* Whether no password goes over the network in clear: then it shall not elsewhere, either. */
static bool is_secure(const struct conf_ldap *conf)
{
    for (size_t i = 0; i < conf->uri.count; i++)
        if (ldap_dial_is_plain(conf->uri.items[i]) && !conf->start_tls)
            return false;
    return true;
}

static void free_source(struct ldap_source *source)
{
    ldap_wishes_close(&source->wishes);
    ldap_tls_leave(&source->env->conf->ldap);
    env_release(&source->env);
    mem_free(source);
}

static void *source_open(const struct env *env, struct err *err)
{
    const struct conf_ldap *conf = &env->conf->ldap;
    struct ldap_source *source = NULL;

    if (!ldap_patterns_check(conf, err) || !ldap_tls_join(conf, err)) {
        conf_blame(conf, err);
        return NULL;
    }
    source = mem_new(sizeof *source);
    if (source == NULL) {
        ldap_tls_leave(conf);
    } else {
        source->env = env_hold(env);
        source->mask_unknown = is_last_source(env->conf) && conf->dn_template[0] == '\0';
        source->base_varies = strstr(conf->base, "%{") != NULL;
        source->referred.start_tls = is_secure(conf);
        source->events = &pool_events;
        source->wishes = ldap_wishes_open(conf);
        if (source->wishes != NULL)
            source->pool = ldap_pool_open(env, &conf->uri, conf->start_tls, &pool_events, source);
    }
    if (source == NULL || source->pool == NULL) {
        err_set(err, ERR_INTERNAL, "ldap: no memory");
        if (source != NULL)
            free_source(source);
        return NULL;
    }
    source->pool_count = 1;
    return source;
}

static void source_close(void *state)
{
    struct ldap_source *source = state;

    ldap_referred_close(&source->referred);
    ldap_pool_close(&source->pool);
}

static void pool_closed(void *owner)
{
    struct ldap_source *source = owner;

    if (--source->pool_count == 0)
        free_source(source);
}

static void source_verify(void *state, struct auth_question *question)
{
    ldap_lookup_start(state, question);
}

static void source_cancel(void *state, struct auth_question *question)
{
    (void)state;
    ldap_lookup_cancel(question);
}

static void each_server(void *state, void (*tell)(void *owner, const struct auth_server *server),
                        void *owner)
{
    const struct ldap_source *source = state;

    ldap_pool_each_server(source->pool, tell, owner);
}

const struct auth_source auth_source_ldap = {
    .name = "ldap",
    .open = source_open,
    .verify = source_verify,
    .cancel = source_cancel,
    .close = source_close,
    .each_server = each_server,
};
