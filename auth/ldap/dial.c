/*
 * Owns how a connection to a directory comes to be: options, TLS, the bind of the service account.
 */
#include "auth/ldap/dial.h"

#include "auth/ldap/deadline.h"
#include "auth/ldap/socket.h"
#include "auth/ldap/tls.h"

#include <assert.h>
#include <string.h>
#include <strings.h>
#include <sys/time.h>

enum {
    /* Of an answer: of an entry only the attributes are asked for that are needed. */
    MESSAGE_BYTES_MAX = 1024 * 1024
};

static const char sasl_external[] = "EXTERNAL"; /* RFC 4422 A */

/* An attempt, and the step that it has come to. */
struct attempt {
    const struct conf_ldap *conf;
    const struct ldap_target *target;
    LDAP *ldap;
    const char *step;
};

/* ldap_is_ldap_url says so of ldaps:// and ldapi://, too. */
bool ldap_dial_is_plain(const char *uri)
{
    return strncasecmp(uri, "ldap://", strlen("ldap://")) == 0;
}

static bool needs_start_tls(const struct ldap_target *target)
{
    return target->start_tls && ldap_dial_is_plain(target->uri);
}

/* --- options --- */

static bool set_options(const struct attempt *attempt)
{
    LDAP *ldap = attempt->ldap;
    int version = LDAP_VERSION3, idle_s = 60, probe_count = 3, interval_s = 10;

    /* Nice to have: firewalls forget quiet connections. */
    (void)ldap_set_option(ldap, LDAP_OPT_X_KEEPALIVE_IDLE, &idle_s);
    (void)ldap_set_option(ldap, LDAP_OPT_X_KEEPALIVE_PROBES, &probe_count);
    (void)ldap_set_option(ldap, LDAP_OPT_X_KEEPALIVE_INTERVAL, &interval_s);
    return ldap_set_option(ldap, LDAP_OPT_PROTOCOL_VERSION, &version) == LDAP_OPT_SUCCESS &&
           ldap_set_option(ldap, LDAP_OPT_REFERRALS, LDAP_OPT_OFF) == LDAP_OPT_SUCCESS &&
           ldap_set_option(ldap, LDAP_OPT_RESTART, LDAP_OPT_ON) == LDAP_OPT_SUCCESS &&
           ldap_tls_apply(attempt->conf, ldap) && ldap_deadline_install(ldap);
}

/* --- steps: each returns an LDAP code --- */

/* The next step has what is left of the time; false when nothing is. */
static bool begin(struct attempt *attempt, const char *step, struct timeval *left_out)
{
    uint64_t left = ldap_deadline_left();

    attempt->step = step;
    *left_out = (struct timeval){(time_t)(left / 1000), (suseconds_t)(left % 1000 * 1000)};
    return left > 0 &&
           ldap_set_option(attempt->ldap, LDAP_OPT_NETWORK_TIMEOUT, left_out) == LDAP_OPT_SUCCESS &&
           ldap_set_option(attempt->ldap, LDAP_OPT_TIMEOUT, left_out) == LDAP_OPT_SUCCESS;
}

/* What comes is trusted with so much memory, and no more. */
static bool limit_messages(LDAP *ldap)
{
    ber_len_t max = MESSAGE_BYTES_MAX;
    Sockbuf *sockbuf = NULL;

    return ldap_get_option(ldap, LDAP_OPT_SOCKBUF, &sockbuf) == LDAP_OPT_SUCCESS &&
           sockbuf != NULL && ber_sockbuf_ctrl(sockbuf, LBER_SB_OPT_SET_MAX_INCOMING, &max) == 1;
}

static int connect_and_start_tls(struct attempt *attempt)
{
    struct timeval left;
    int code;

    if (!begin(attempt, "connect", &left))
        return LDAP_TIMEOUT;
    code = ldap_connect(attempt->ldap);
    if (code != LDAP_SUCCESS)
        return code;
    if (!limit_messages(attempt->ldap) || !ldap_socket_wipe_requests(attempt->ldap))
        return LDAP_LOCAL_ERROR;
    if (!needs_start_tls(attempt->target))
        return LDAP_SUCCESS;
    return begin(attempt, "start TLS", &left) ? ldap_start_tls_s(attempt->ldap, NULL, NULL)
                                              : LDAP_TIMEOUT;
}

/*
 * Waits for the first message that comes for the operation, and no longer: `*message_out` is the
 * caller's. libldap's own calls that wait would gather all that a server sends.
 */
static int first_answer(struct attempt *attempt, int message_id, struct timeval *left,
                        LDAPMessage **message_out)
{
    int type = ldap_result(attempt->ldap, message_id, LDAP_MSG_ONE, left, message_out);
    int code = LDAP_LOCAL_ERROR;

    if (type > 0)
        return LDAP_SUCCESS;
    if (type == 0)
        return LDAP_TIMEOUT;
    (void)ldap_get_option(attempt->ldap, LDAP_OPT_RESULT_CODE, &code);
    return code == LDAP_SUCCESS ? LDAP_LOCAL_ERROR : code;
}

/* The code of the result, if that is what the message is; frees it. */
static int result_code(struct attempt *attempt, LDAPMessage *message, ber_tag_t expected)
{
    int code = LDAP_PROTOCOL_ERROR, parsed;

    if (ldap_msgtype(message) != (int)expected) {
        ldap_msgfree(message);
        return code;
    }
    parsed = ldap_parse_result(attempt->ldap, message, &code, NULL, NULL, NULL, NULL, 1);
    return parsed == LDAP_SUCCESS ? code : parsed;
}

static int bind_service(struct attempt *attempt)
{
    const struct conf_ldap *conf = attempt->conf;
    struct berval password = {conf->bind_password.len, conf->bind_password.bytes};
    char nothing[] = "";
    struct berval same = {0, nothing}; /* no other than the connection tells */
    LDAPMessage *message = NULL;
    struct timeval left;
    int code, message_id = 0;

    if (!attempt->target->as_searcher || (conf->bind_dn[0] == '\0' && !conf->sasl_external))
        return LDAP_SUCCESS;
    if (!begin(attempt, "bind the service account", &left))
        return LDAP_TIMEOUT;
    assert(conf->sasl_external || password.bv_len > 0); /* conf_check has seen to it */
    if (conf->sasl_external)
        code = ldap_sasl_bind(attempt->ldap, NULL, sasl_external, &same, NULL, NULL, &message_id);
    else
        code = ldap_sasl_bind(attempt->ldap, conf->bind_dn, LDAP_SASL_SIMPLE, &password, NULL, NULL,
                              &message_id);
    if (code == LDAP_SUCCESS)
        code = first_answer(attempt, message_id, &left, &message);
    return code == LDAP_SUCCESS ? result_code(attempt, message, LDAP_RES_BIND) : code;
}

/* The root's entry, which everybody may ask for; a refusal is an answer, too. */
static int ask_root(struct attempt *attempt)
{
    char no_attributes[] = LDAP_NO_ATTRS; /* libldap's prototype is not const */
    char *attributes[] = {no_attributes, NULL};
    LDAPMessage *message = NULL;
    struct timeval left;
    int code, message_id = 0;

    if (!begin(attempt, "get an answer", &left))
        return LDAP_TIMEOUT;
    code = ldap_search_ext(attempt->ldap, "", LDAP_SCOPE_BASE, NULL, attributes, 1, NULL, NULL,
                           NULL, 1, &message_id);
    if (code == LDAP_SUCCESS)
        code = first_answer(attempt, message_id, &left, &message);
    if (code != LDAP_SUCCESS || ldap_msgtype(message) != LDAP_RES_SEARCH_RESULT) {
        ldap_msgfree(message);
        return code;
    }
    code = result_code(attempt, message, LDAP_RES_SEARCH_RESULT);
    return code == LDAP_BUSY || code == LDAP_UNAVAILABLE || code < 0 ? code : LDAP_SUCCESS;
}

/* --- all of it --- */

static void explain(const struct attempt *attempt, int code, struct err *err)
{
    char *diagnostic = NULL;

    if (attempt->ldap != NULL)
        (void)ldap_get_option(attempt->ldap, LDAP_OPT_DIAGNOSTIC_MESSAGE, &diagnostic);
    err_set(err, ERR_UNAVAILABLE, "ldap: %s: cannot %s: %s%s%s", attempt->target->uri,
            attempt->step, ldap_err2string(ldap_deadline_left() == 0 ? LDAP_TIMEOUT : code),
            diagnostic != NULL && diagnostic[0] != '\0' ? ": " : "",
            diagnostic != NULL ? diagnostic : "");
    ldap_memfree(diagnostic);
}

static int take_steps(struct attempt *attempt, bool is_probe)
{
    int code = ldap_initialize(&attempt->ldap, attempt->target->uri);

    attempt->step = "set up";
    if (code == LDAP_SUCCESS && !set_options(attempt))
        code = LDAP_LOCAL_ERROR;
    if (code == LDAP_SUCCESS)
        code = connect_and_start_tls(attempt);
    if (code == LDAP_SUCCESS)
        code = bind_service(attempt);
    if (code == LDAP_SUCCESS && is_probe)
        code = ask_root(attempt);
    return code;
}

static LDAP *run(const struct conf_ldap *conf, const struct ldap_target *target, bool is_probe,
                 struct err *err)
{
    struct attempt attempt = {.conf = conf, .target = target};
    int code;

    ldap_deadline_begin(conf->connect_timeout);
    code = take_steps(&attempt, is_probe);
    if (code != LDAP_SUCCESS) {
        explain(&attempt, code, err);
        if (attempt.ldap != NULL)
            (void)ldap_unbind_ext(attempt.ldap, NULL, NULL);
        attempt.ldap = NULL;
    }
    ldap_deadline_end();
    return attempt.ldap;
}

LDAP *ldap_dial(const struct conf_ldap *conf, const struct ldap_target *target, struct err *err)
{
    return run(conf, target, false, err);
}

bool ldap_dial_probe(const struct conf_ldap *conf, const struct ldap_target *target,
                     struct err *err)
{
    LDAP *ldap = run(conf, target, true, err);

    if (ldap != NULL)
        (void)ldap_unbind_ext(ldap, NULL, NULL);
    return ldap != NULL;
}
