/* Owns which files are read for a configuration that is only to be checked. */
#include "proxy/process/preflight.h"

#include "auth/ldap/pattern.h"
#include "auth/ldap/tls.h"
#include "auth/passwd/file.h"
#include "auth/token/jwks_source.h"
#include "routing/route.h"

static bool check_directory(const struct conf_ldap *ldap, struct err *err)
{
    if (!ldap_patterns_check(ldap, err) || !ldap_tls_join(ldap, err))
        return conf_blame(ldap, err);
    ldap_tls_leave(ldap);
    return true;
}

static bool check_routes(const struct conf *conf, struct err *err)
{
    const struct env env = {.conf = conf};
    void *routes = route_source_file.open(&env, NULL, err);

    if (routes != NULL)
        route_source_file.close(routes);
    return routes != NULL;
}

bool preflight_check(const struct conf *conf, struct err *err)
{
    const struct conf_words *proofs = &conf->auth.sources, *routes = &conf->route.sources;

    return (!conf_has_word(proofs, "passwd") || passwd_file_check(conf->passwd.file, err)) &&
           (!conf_has_word(proofs, "ldap") || check_directory(&conf->ldap, err)) &&
           (*conf->oauth.keys != '/' || jwks_source_check(&conf->oauth, err)) &&
           (!conf_has_word(routes, route_source_file.name) || check_routes(conf, err));
}
