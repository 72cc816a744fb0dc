/*
 * Owns one LDAP*, its descriptor's uv_poll_t and the deadline of its oldest operation. The thread
 * that connects has the handle's `connect_err`, `uri` and `ldap` to itself until it is done.
 */
#include "auth/ldap_handle.h"

#include "proxy/base/log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <utlist.h>

enum {
    DRAIN_MAX = 64,       /* results taken before the loop turns */
    SEARCH_SIZE_LIMIT = 2 /* enough to see that a user is not unique */
};

static const char debian_ca_file[] = "/etc/ssl/certs/ca-certificates.crt";

static void connect_in_thread(uv_work_t *work);
static bool connect_to(struct ldap_handle *handle, const char *uri);
static bool set_options(LDAP *ldap, const char *uri, const struct conf_ldap *conf);
static bool set_tls_options(LDAP *ldap, const struct conf_ldap *conf);
static int log_in(struct ldap_handle *handle, LDAP *ldap, const char *uri, const char **step_out);
static void explain(struct err *err, LDAP *ldap, const char *uri, const char *step, int code);
static void connect_done(uv_work_t *work, int status);
static bool watch(struct ldap_handle *handle);
static bool still_connected(struct ldap_handle *handle);
static void sent(struct ldap_handle *handle, struct ldap_operation *operation, int code);
static void arm_deadline(struct ldap_handle *handle);
static void readable(uv_poll_t *poll, int status, int events);
static void drain_later(struct turn_task *task);
static void drain(struct ldap_handle *handle);
static bool take_result(struct ldap_handle *handle, LDAPMessage *message);
static void give_answer(struct ldap_handle *handle, struct ldap_operation *operation,
                        LDAPMessage *message);
static void deadline_passed(uv_timer_t *timer);
static void disconnect(struct ldap_handle *handle, const char *reason);
static void poll_closed(uv_handle_t *poll);
static void close_timer(struct ldap_handle *handle);
static void timer_closed(uv_handle_t *timer);

/* libldap reads its files and sets up TLS at first use, which threads must not do at once. */
static void prepare_once(void)
{
    LDAP *ldap = NULL;
    int client = 0;

    if (ldap_initialize(&ldap, NULL) != LDAP_SUCCESS)
        return;
    (void)ldap_set_option(ldap, LDAP_OPT_X_TLS_NEWCTX, &client);
    (void)ldap_unbind_ext(ldap, NULL, NULL);
}

void ldap_handle_prepare(void)
{
    static uv_once_t once = UV_ONCE_INIT;

    uv_once(&once, prepare_once);
}

void ldap_handle_init(struct ldap_handle *handle, enum ldap_handle_kind kind, const struct env *env,
                      const struct ldap_handle_events *events, void *owner)
{
    *handle = (struct ldap_handle){.kind = kind, .env = env, .events = events, .owner = owner};
    uv_timer_init(env->loop, &handle->deadline);
    handle->deadline.data = handle;
    handle->drain.run = drain_later;
}

void ldap_handle_connect(struct ldap_handle *handle)
{
    assert(handle->state == LDAP_HANDLE_CLOSED && !handle->releasing);
    handle->state = LDAP_HANDLE_CONNECTING;
    handle->connect_err = (struct err){0};
    handle->connect.data = handle;
    /* fails only without a callback */
    uv_queue_work(handle->env->loop, &handle->connect, connect_in_thread, connect_done);
}

static void connect_in_thread(uv_work_t *work)
{
    struct ldap_handle *handle = work->data;
    const struct conf_words *uris = &handle->env->conf->ldap.uri;

    for (size_t i = 0; i < uris->count; i++)
        if (connect_to(handle, uris->items[i]))
            return;
}

static bool connect_to(struct ldap_handle *handle, const char *uri)
{
    const struct conf_ldap *conf = &handle->env->conf->ldap;
    const char *step = "set up";
    LDAP *ldap = NULL;
    int code = ldap_initialize(&ldap, uri);

    if (code != LDAP_SUCCESS) {
        explain(&handle->connect_err, NULL, uri, step, code);
        return false;
    }
    code = set_options(ldap, uri, conf) ? log_in(handle, ldap, uri, &step) : LDAP_LOCAL_ERROR;
    if (code != LDAP_SUCCESS) {
        explain(&handle->connect_err, ldap, uri, step, code);
        (void)ldap_unbind_ext(ldap, NULL, NULL);
        return false;
    }
    handle->connect_err = (struct err){0};
    handle->ldap = ldap;
    handle->uri = uri;
    return true;
}

static bool set_options(LDAP *ldap, const char *uri, const struct conf_ldap *conf)
{
    int version = LDAP_VERSION3, idle_s = 60, probe_count = 3, interval_s = 10;
    struct timeval limit = {(time_t)(conf->connect_timeout / 1000),
                            (suseconds_t)(conf->connect_timeout % 1000 * 1000)};

    /* Nice to have: firewalls forget quiet connections. */
    (void)ldap_set_option(ldap, LDAP_OPT_X_KEEPALIVE_IDLE, &idle_s);
    (void)ldap_set_option(ldap, LDAP_OPT_X_KEEPALIVE_PROBES, &probe_count);
    (void)ldap_set_option(ldap, LDAP_OPT_X_KEEPALIVE_INTERVAL, &interval_s);
    return ldap_set_option(ldap, LDAP_OPT_PROTOCOL_VERSION, &version) == LDAP_OPT_SUCCESS &&
           ldap_set_option(ldap, LDAP_OPT_NETWORK_TIMEOUT, &limit) == LDAP_OPT_SUCCESS &&
           ldap_set_option(ldap, LDAP_OPT_TIMEOUT, &limit) == LDAP_OPT_SUCCESS &&
           ldap_set_option(ldap, LDAP_OPT_REFERRALS, LDAP_OPT_OFF) == LDAP_OPT_SUCCESS &&
           ldap_set_option(ldap, LDAP_OPT_RESTART, LDAP_OPT_ON) == LDAP_OPT_SUCCESS &&
           ((!conf->start_tls && !ldap_is_ldaps_url(uri)) || set_tls_options(ldap, conf));
}

/*
 * A fresh LDAP* inherits the process's TLS context but none of the file names it was made from
 * (ldap.conf).
 */
static bool set_tls_options(LDAP *ldap, const struct conf_ldap *conf)
{
    int verify = conf->verify ? LDAP_OPT_X_TLS_DEMAND : LDAP_OPT_X_TLS_NEVER;
    int oldest = LDAP_OPT_X_TLS_PROTOCOL_TLS1_2, client = 0;
    char *inherited = NULL;
    const char *ca_file = conf->ca_file;

    if (ca_file[0] == '\0') {
        (void)ldap_get_option(NULL, LDAP_OPT_X_TLS_CACERTFILE, &inherited);
        ca_file = inherited != NULL ? inherited : debian_ca_file;
    }

    bool ok = ldap_set_option(ldap, LDAP_OPT_X_TLS_REQUIRE_CERT, &verify) == LDAP_OPT_SUCCESS &&
              ldap_set_option(ldap, LDAP_OPT_X_TLS_PROTOCOL_MIN, &oldest) == LDAP_OPT_SUCCESS &&
              (!conf->verify ||
               ldap_set_option(ldap, LDAP_OPT_X_TLS_CACERTFILE, ca_file) == LDAP_OPT_SUCCESS) &&
              (ldap_set_option(ldap, LDAP_OPT_X_TLS_NEWCTX, &client) == LDAP_OPT_SUCCESS ||
               conf->ca_file[0] == '\0'); /* plain ldap:// works on a host without authorities */

    ldap_memfree(inherited);
    return ok;
}

/* Connects, starts TLS, binds the service account: an LDAP code, and the step it belongs to. */
static int log_in(struct ldap_handle *handle, LDAP *ldap, const char *uri, const char **step_out)
{
    const struct conf_ldap *conf = &handle->env->conf->ldap;

    *step_out = "connect";

    int code = ldap_connect(ldap);

    if (code == LDAP_SUCCESS && conf->start_tls && ldap_is_ldap_url(uri)) {
        *step_out = "start TLS";
        code = ldap_start_tls_s(ldap, NULL, NULL);
    }
    if (code != LDAP_SUCCESS || handle->kind == LDAP_HANDLE_BIND || conf->bind_dn[0] == '\0')
        return code;
    assert(conf->bind_password.len > 0); /* checked when the source opens */

    struct berval password = {conf->bind_password.len, conf->bind_password.bytes};

    *step_out = "bind the service account";
    return ldap_sasl_bind_s(ldap, conf->bind_dn, LDAP_SASL_SIMPLE, &password, NULL, NULL, NULL);
}

static void explain(struct err *err, LDAP *ldap, const char *uri, const char *step, int code)
{
    char *diagnostic = NULL;

    if (ldap != NULL)
        (void)ldap_get_option(ldap, LDAP_OPT_DIAGNOSTIC_MESSAGE, &diagnostic);
    err_set(err, ERR_UNAVAILABLE, "ldap: %s: cannot %s: %s%s%s", uri, step, ldap_err2string(code),
            diagnostic != NULL && diagnostic[0] != '\0' ? ": " : "",
            diagnostic != NULL ? diagnostic : "");
    ldap_memfree(diagnostic);
}

static void connect_done(uv_work_t *work, int status)
{
    struct ldap_handle *handle = work->data;

    handle->state = LDAP_HANDLE_CLOSED;
    if (status != 0)
        err_set(&handle->connect_err, ERR_UNAVAILABLE, "ldap: %s", uv_strerror(status));
    if (handle->releasing) {
        if (handle->ldap != NULL)
            (void)ldap_unbind_ext(handle->ldap, NULL, NULL);
        handle->ldap = NULL;
        close_timer(handle);
        return;
    }
    if (handle->ldap != NULL && !watch(handle)) {
        (void)ldap_unbind_ext(handle->ldap, NULL, NULL);
        handle->ldap = NULL;
    }
    handle->events->on_connect(handle, &handle->connect_err);
}

/*
 * From here on libldap must not block: what it cannot read or write at once waits for the next
 * event.
 */
static bool watch(struct ldap_handle *handle)
{
    struct err *err = &handle->connect_err;

    if (ldap_get_option(handle->ldap, LDAP_OPT_DESC, &handle->descriptor) != LDAP_OPT_SUCCESS ||
        handle->descriptor < 0)
        return err_set(err, ERR_UNAVAILABLE, "ldap: %s: the connection is gone", handle->uri);

    int flags = fcntl(handle->descriptor, F_GETFL);

    if (flags < 0 || fcntl(handle->descriptor, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_set(err, ERR_INTERNAL, "ldap: fcntl: %s", strerror(errno));

    int status = uv_poll_init(handle->env->loop, &handle->poll, handle->descriptor);

    if (status != 0)
        return err_set(err, ERR_INTERNAL, "ldap: poll: %s", uv_strerror(status));
    handle->poll.data = handle;
    uv_poll_start(&handle->poll, UV_READABLE, readable); /* cannot fail on a valid handle */
    counter_add(&handle->env->counters->auth_ldap_connects, 1);
    handle->state = LDAP_HANDLE_READY;
    return true;
}

void ldap_handle_search(struct ldap_handle *handle, struct ldap_operation *operation,
                        const char *filter)
{
    const struct conf_ldap *conf = &handle->env->conf->ldap;
    static const int scopes[] = {
        [LDAP_SEARCH_BASE] = LDAP_SCOPE_BASE,
        [LDAP_SEARCH_ONE] = LDAP_SCOPE_ONELEVEL,
        [LDAP_SEARCH_SUBTREE] = LDAP_SCOPE_SUBTREE,
    };
    char no_attributes[] = LDAP_NO_ATTRS; /* libldap's prototype is not const */
    char *attributes[] = {no_attributes, NULL};

    assert(handle->state == LDAP_HANDLE_READY && handle->kind == LDAP_HANDLE_SEARCH);

    int code = LDAP_SERVER_DOWN;

    operation->message_id = -1;
    if (still_connected(handle))
        code = ldap_search_ext(handle->ldap, conf->base, scopes[conf->scope], filter, attributes, 1,
                               NULL, NULL, NULL, SEARCH_SIZE_LIMIT, &operation->message_id);
    counter_add(&handle->env->counters->auth_ldap_searches, 1);
    sent(handle, operation, code);
}

void ldap_handle_bind(struct ldap_handle *handle, struct ldap_operation *operation, const char *dn,
                      struct span password)
{
    assert(handle->state == LDAP_HANDLE_READY && handle->kind == LDAP_HANDLE_BIND);
    assert(handle->operation_count == 0);      /* RFC 4511 4.2.1 */
    assert(dn[0] != '\0' && password.len > 0); /* RFC 4513 5.1.2: either would always "succeed" */

    struct berval cred = {password.len,
                          (char *)(uintptr_t)password.ptr}; /* read only, says ldap_sasl_bind(3) */
    int code = LDAP_SERVER_DOWN;

    operation->message_id = -1;
    if (still_connected(handle))
        code = ldap_sasl_bind(handle->ldap, dn, LDAP_SASL_SIMPLE, &cred, NULL, NULL,
                              &operation->message_id);
    counter_add(&handle->env->counters->auth_ldap_binds, 1);
    sent(handle, operation, code);
}

/*
 * False when libldap has dropped the connection by itself and would make a new one, here and now.
 */
static bool still_connected(struct ldap_handle *handle)
{
    int descriptor = -1;

    (void)ldap_get_option(handle->ldap, LDAP_OPT_DESC, &descriptor);
    return descriptor == handle->descriptor;
}

/*
 * Takes the operation in; a failed send is either the operation's own fault or the end of the
 * connection.
 */
static void sent(struct ldap_handle *handle, struct ldap_operation *operation, int code)
{
    if (code == LDAP_FILTER_ERROR || code == LDAP_PARAM_ERROR || code == LDAP_ENCODING_ERROR ||
        code == LDAP_NO_MEMORY) {
        struct ldap_answer answer = {.code = code, .diagnostic = ldap_err2string(code)};

        handle->events->on_answer(handle, operation, &answer);
        return;
    }

    bool idle = handle->operations == NULL;

    operation->expires_at = uv_now(handle->env->loop) + handle->env->conf->ldap.timeout;
    DL_APPEND(handle->operations, operation);
    handle->operation_count++;
    if (code != LDAP_SUCCESS) {
        disconnect(handle, ldap_err2string(code));
        return;
    }
    if (idle)
        arm_deadline(handle);
    turn_post(handle->env->turn,
              &handle->drain); /* also sends what the socket did not take at once */
}

void ldap_handle_abandon(struct ldap_handle *handle, struct ldap_operation *operation)
{
    assert(handle->state == LDAP_HANDLE_READY && handle->kind == LDAP_HANDLE_SEARCH);
    DL_DELETE(handle->operations, operation);
    handle->operation_count--;
    arm_deadline(handle);
    if (!still_connected(handle) ||
        ldap_abandon_ext(handle->ldap, operation->message_id, NULL, NULL) != LDAP_SUCCESS)
        disconnect(handle, "the search could not be abandoned");
}

/* One timer for all: they have the same limit, so the oldest is due first. */
static void arm_deadline(struct ldap_handle *handle)
{
    uint64_t now = uv_now(handle->env->loop);

    if (handle->operations == NULL) {
        uv_timer_stop(&handle->deadline);
        return;
    }

    uint64_t due = handle->operations->expires_at;

    uv_timer_start(&handle->deadline, deadline_passed, due > now ? due - now : 0, 0);
}

static void readable(uv_poll_t *poll, int status, int events)
{
    struct ldap_handle *handle = poll->data;

    (void)events;
    if (status != 0)
        disconnect(handle, uv_strerror(status));
    else
        drain(handle);
}

static void drain_later(struct turn_task *task)
{
    drain((struct ldap_handle *)((char *)task - offsetof(struct ldap_handle, drain)));
}

/* libldap does not tell of an end that comes while it expects no answer. */
static bool has_ended(const struct ldap_handle *handle)
{
    char octet;
    ssize_t count = recv(handle->descriptor, &octet, 1, MSG_PEEK | MSG_DONTWAIT);

    return count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR);
}

/*
 * Takes results until libldap has none: behind TLS they may lie in its buffers while the descriptor
 * is silent. What an answer leads to may end the connection.
 */
static void drain(struct ldap_handle *handle)
{
    struct timeval at_once = {0, 0};

    for (unsigned taken = 0; handle->state == LDAP_HANDLE_READY; taken++) {
        LDAPMessage *message = NULL;

        if (taken == DRAIN_MAX) {
            turn_post(handle->env->turn, &handle->drain);
            return;
        }

        int type = ldap_result(handle->ldap, LDAP_RES_ANY, LDAP_MSG_ALL, &at_once, &message);

        if (type == 0 && !has_ended(handle))
            return;
        if (type <= 0)
            disconnect(handle, "closed by the directory");
        else if (!take_result(handle, message))
            disconnect(handle, "the directory gave notice of disconnection");
    }
}

/*
 * Consumes the message. False for an unsolicited notification (RFC 4511 4.4), which has no good
 * news.
 */
static bool take_result(struct ldap_handle *handle, LDAPMessage *message)
{
    int message_id = ldap_msgid(message);
    struct ldap_operation *operation;

    DL_SEARCH_SCALAR(handle->operations, operation, message_id, message_id);
    if (operation == NULL) {
        ldap_msgfree(message);
        return message_id != 0;
    }
    DL_DELETE(handle->operations, operation);
    handle->operation_count--;
    arm_deadline(handle);
    give_answer(handle, operation, message);
    return true;
}

static void give_answer(struct ldap_handle *handle, struct ldap_operation *operation,
                        LDAPMessage *message)
{
    struct ldap_answer answer = {.code = LDAP_DECODING_ERROR};
    char *diagnostic = NULL, *dn = NULL;
    int code = LDAP_SUCCESS;
    LDAPMessage *entry = ldap_first_entry(handle->ldap, message);

    if (ldap_parse_result(handle->ldap, message, &code, NULL, &diagnostic, NULL, NULL, 0) ==
        LDAP_SUCCESS)
        answer.code = code;
    answer.entry_count = ldap_count_entries(handle->ldap, message);
    if (entry != NULL)
        dn = ldap_get_dn(handle->ldap, entry);
    ldap_msgfree(message);
    answer.dn = dn;
    answer.diagnostic = diagnostic != NULL ? diagnostic : "";
    handle->events->on_answer(handle, operation, &answer);
    ldap_memfree(dn);
    ldap_memfree(diagnostic);
}

/* The oldest operation is late, and so the connection is not to be trusted with more. */
static void deadline_passed(uv_timer_t *timer)
{
    disconnect(timer->data, "an operation was not answered in time");
}

/*
 * Gives the operations back and lets the connection go; closing it abandons them at the directory
 * (RFC 4511 4.3).
 */
static void disconnect(struct ldap_handle *handle, const char *reason)
{
    uint64_t now = uv_now(handle->env->loop);
    struct ldap_operation *operation;

    assert(handle->state == LDAP_HANDLE_READY);
    handle->state = LDAP_HANDLE_CLOSING;
    if (!handle->releasing)
        log_event(handle->operations != NULL ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG,
                  "ldap connection lost", "%s: %s, %zu operations in flight", handle->uri, reason,
                  handle->operation_count);
    uv_timer_stop(&handle->deadline);
    turn_cancel(handle->env->turn, &handle->drain);
    uv_close((uv_handle_t *)&handle->poll, poll_closed); /* before libldap closes the descriptor */
    (void)ldap_unbind_ext(handle->ldap, NULL, NULL); /* does not wait: the socket is non-blocking */
    handle->ldap = NULL;
    while ((operation = handle->operations) != NULL) {
        DL_DELETE(handle->operations, operation);
        handle->operation_count--;
        handle->events->on_lost(handle, operation, operation->expires_at <= now);
    }
}

static void poll_closed(uv_handle_t *poll)
{
    struct ldap_handle *handle = poll->data;

    handle->state = LDAP_HANDLE_CLOSED;
    if (handle->releasing)
        close_timer(handle);
    else
        handle->events->on_closed(handle);
}

void ldap_handle_release(struct ldap_handle *handle)
{
    assert(!handle->releasing);
    handle->releasing = true;
    if (handle->state == LDAP_HANDLE_READY)
        disconnect(handle, "released");
    else if (handle->state == LDAP_HANDLE_CONNECTING)
        (void)uv_cancel((uv_req_t *)&handle->connect); /* connect_done comes either way */
    else if (handle->state == LDAP_HANDLE_CLOSED)
        close_timer(handle);
}

static void close_timer(struct ldap_handle *handle)
{
    uv_close((uv_handle_t *)&handle->deadline, timer_closed);
}

static void timer_closed(uv_handle_t *timer)
{
    struct ldap_handle *handle = timer->data;

    handle->events->on_released(handle);
}
