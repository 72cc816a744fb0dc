/*
 * The directory servers that may be asked, in the order of preference, and which of them are well.
 * Servers that are not are asked now and then, in the background, until one answers; so nobody's
 * login has to try a server that is known to be away.
 *
 *     well --cannot be connected--> down --answers a probe--> well
 *       `--an operation is late--> in doubt --does not answer a probe--> down
 *
 * All of it on one loop, but for the probe itself.
 */
#ifndef IMAPMUX_AUTH_LDAP_SERVERS_H
#define IMAPMUX_AUTH_LDAP_SERVERS_H

#include "auth/ldap/dial.h"
#include "proxy/base/env.h"

struct ldap_server {
    struct ldap_target target;
    uint64_t failed_at, pause_ms; /* the next probe comes so long after the last failure */
    bool in_doubt, down;
};

struct ldap_servers {
    /* Private. */
    const struct env *env;
    struct ldap_server *list;
    size_t count, current; /* the best one when last there was one */
    bool gone;             /* none is well or in doubt: counted in the gauge */
    void (*on_change)(struct ldap_servers *servers);
    void (*on_released)(struct ldap_servers *servers);
    uv_timer_t timer;
    uv_work_t work;
    size_t probed;
    bool probing, answered, releasing;
    struct err probe_err;
};

/*
 * `on_change` comes when a probe has made a server well or down; not from the calls below. False
 * without memory: then nothing is to be released. The URIs are borrowed.
 */
bool ldap_servers_init(struct ldap_servers *servers, const struct env *env,
                       const struct conf_words *uris, bool start_tls,
                       void (*on_change)(struct ldap_servers *),
                       void (*on_released)(struct ldap_servers *));

/* The first that is well; false when none is. */
bool ldap_servers_best(const struct ldap_servers *servers, size_t *index_out);

/* A connection to this one may go on to be used: it is not in doubt, and none before it is well. */
bool ldap_servers_may_use(const struct ldap_servers *servers, size_t index);

/* Whether it makes sense to wait: one is well, or not given up yet. */
bool ldap_servers_has_hope(const struct ldap_servers *servers);

const struct ldap_target *ldap_servers_target(const struct ldap_servers *servers, size_t index);

/* It could not be connected; it has not answered in time, or hung up twice; it has answered. */
void ldap_servers_failed(struct ldap_servers *servers, size_t index, const struct err *err);
void ldap_servers_doubt(struct ldap_servers *servers, size_t index);
void ldap_servers_answered(struct ldap_servers *servers, size_t index);

/* on_released comes later, when a probe that is under way has ended; on_change does not any more.
 */
void ldap_servers_release(struct ldap_servers *servers);

#endif
