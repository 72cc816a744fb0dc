/*
 * Owns one LDAP*, its descriptor's uv_poll_t and the deadline of its oldest operation. The thread
 * that connects has the handle's `connect_err` and `ldap` to itself until it is done.
 */
#include "auth/ldap/handle.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <utlist.h>

enum { DRAIN_MAX = 64 }; /* messages taken before the loop turns */

static void connect_in_thread(uv_work_t *work);
static void connect_done(uv_work_t *work, int status);
static bool watch(struct ldap_handle *handle);
static bool still_connected(struct ldap_handle *handle);
static void begin(struct ldap_operation *operation);
static void sent(struct ldap_handle *handle, struct ldap_operation *operation, int code);
static void take_off(struct ldap_handle *handle, struct ldap_operation *operation);
static void arm_deadline(struct ldap_handle *handle);
static void readable(uv_poll_t *poll, int status, int events);
static void drain_later(struct turn_task *task);
static void drain(struct ldap_handle *handle);
static const char *take_message(struct ldap_handle *handle, LDAPMessage *message);
static const char *take_entry(struct ldap_operation *operation, LDAPMessage *message);
static void take_reference(struct ldap_handle *handle, struct ldap_operation *operation,
                           LDAPMessage *message);
static const char *take_result(struct ldap_handle *handle, struct ldap_operation *operation,
                               LDAPMessage *message);
static void forget_pieces(struct ldap_operation *operation);
static void deadline_passed(uv_timer_t *timer);
static void disconnect(struct ldap_handle *handle, const char *reason);
static void poll_closed(uv_handle_t *poll);
static void close_timer(struct ldap_handle *handle);
static void timer_closed(uv_handle_t *timer);

/* --- connecting --- */

void ldap_handle_init(struct ldap_handle *handle, enum ldap_handle_kind kind, const struct env *env,
                      const struct ldap_handle_events *events, void *owner)
{
    *handle = (struct ldap_handle){.kind = kind, .env = env, .events = events, .owner = owner};
    uv_timer_init(env->loop, &handle->deadline);
    handle->deadline.data = handle;
    handle->drain.run = drain_later;
}

void ldap_handle_connect(struct ldap_handle *handle, const struct ldap_target *target)
{
    assert(handle->state == LDAP_HANDLE_CLOSED && !handle->releasing);
    handle->state = LDAP_HANDLE_CONNECTING;
    handle->target = *target;
    handle->target.as_searcher = handle->kind == LDAP_HANDLE_SEARCH;
    handle->connect_err = (struct err){0};
    handle->connect.data = handle;
    /* fails only without a callback */
    uv_queue_work(handle->env->loop, &handle->connect, connect_in_thread, connect_done);
}

static void connect_in_thread(uv_work_t *work)
{
    struct ldap_handle *handle = work->data;

    handle->ldap = ldap_dial(&handle->env->conf->ldap, &handle->target, &handle->connect_err);
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

static _Atomic uint64_t *open_gauge(const struct ldap_handle *handle)
{
    struct counters *counters = handle->env->counters;

    return handle->kind == LDAP_HANDLE_SEARCH ? &counters->ldap_open_search
                                              : &counters->ldap_open_bind;
}

static bool watch(struct ldap_handle *handle)
{
    struct err *err = &handle->connect_err;

    if (ldap_get_option(handle->ldap, LDAP_OPT_DESC, &handle->descriptor) != LDAP_OPT_SUCCESS ||
        handle->descriptor < 0)
        return err_set(err, ERR_UNAVAILABLE, "ldap: %s: the connection is gone",
                       handle->target.uri);

    int flags = fcntl(handle->descriptor, F_GETFL);

    if (flags < 0 || fcntl(handle->descriptor, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_set(err, ERR_INTERNAL, "ldap: fcntl: %s", strerror(errno));

    int status = uv_poll_init(handle->env->loop, &handle->poll, handle->descriptor);

    if (status != 0)
        return err_set(err, ERR_INTERNAL, "ldap: poll: %s", uv_strerror(status));
    handle->poll.data = handle;
    uv_poll_start(&handle->poll, UV_READABLE, readable); /* cannot fail on a valid handle */
    counter_add(&handle->env->counters->auth_ldap_connects, 1);
    gauge_add(open_gauge(handle), 1);
    handle->state = LDAP_HANDLE_READY;
    return true;
}

/* --- sending --- */

void ldap_handle_search(struct ldap_handle *handle, struct ldap_operation *operation,
                        const struct ldap_query *query)
{
    int code = LDAP_SERVER_DOWN;

    assert(handle->state == LDAP_HANDLE_READY && handle->kind == LDAP_HANDLE_SEARCH);
    begin(operation);
    if (still_connected(handle))
        code = ldap_search_ext(handle->ldap, query->base, query->scope, query->filter,
                               query->attributes, 0, NULL, NULL, NULL, LDAP_ENTRIES_MAX,
                               &operation->message_id);
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
    char policy_oid[] = LDAP_CONTROL_PASSWORDPOLICYREQUEST;
    LDAPControl policy = {.ldctl_oid = policy_oid}; /* no value, and not critical */
    LDAPControl *controls[] = {&policy, NULL};
    int code = LDAP_SERVER_DOWN;

    begin(operation);
    if (still_connected(handle))
        code = ldap_sasl_bind(handle->ldap, dn, LDAP_SASL_SIMPLE, &cred,
                              handle->env->conf->ldap.password_policy ? controls : NULL, NULL,
                              &operation->message_id);
    counter_add(&handle->env->counters->auth_ldap_binds, 1);
    sent(handle, operation, code);
}

static void begin(struct ldap_operation *operation)
{
    operation->message_id = -1;
    operation->entry = NULL;
    operation->entry_count = 0;
    operation->url_count = 0;
    operation->urls_lost = false;
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
        struct ldap_answer answer = {.code = code, .diagnostic = ""};

        handle->events->on_answer(handle, operation, &answer);
        return;
    }

    bool idle = handle->operations == NULL;

    operation->sent_at = uv_now(handle->env->loop);
    operation->expires_at = operation->sent_at + handle->env->conf->ldap.timeout;
    DL_APPEND(handle->operations, operation);
    handle->operation_count++;
    gauge_add(&handle->env->counters->ldap_in_flight, 1);
    if (code != LDAP_SUCCESS) {
        disconnect(handle, ldap_err2string(code));
        return;
    }
    if (idle)
        arm_deadline(handle);
    turn_post(handle->env->turn,
              &handle->drain); /* also sends what the socket did not take at once */
}

static void take_off(struct ldap_handle *handle, struct ldap_operation *operation)
{
    DL_DELETE(handle->operations, operation);
    handle->operation_count--;
    gauge_add(&handle->env->counters->ldap_in_flight, -1);
}

void ldap_handle_abandon(struct ldap_handle *handle, struct ldap_operation *operation)
{
    assert(handle->state == LDAP_HANDLE_READY && handle->kind == LDAP_HANDLE_SEARCH);
    take_off(handle, operation);
    forget_pieces(operation);
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

/* --- receiving --- */

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
 * Takes messages until libldap has none: behind TLS they may lie in its buffers while the
 * descriptor is silent. What an answer leads to may end the connection. Messages are taken one by
 * one, so that libldap gathers nothing that is not wanted.
 */
static void drain(struct ldap_handle *handle)
{
    struct timeval at_once = {0, 0};

    for (unsigned taken = 0; handle->state == LDAP_HANDLE_READY; taken++) {
        LDAPMessage *message = NULL;
        const char *complaint = NULL;

        if (taken == DRAIN_MAX) {
            turn_post(handle->env->turn, &handle->drain);
            return;
        }

        int type = ldap_result(handle->ldap, LDAP_RES_ANY, LDAP_MSG_ONE, &at_once, &message);

        if (type == 0 && !has_ended(handle))
            return;
        complaint = type <= 0 ? "closed by the directory" : take_message(handle, message);
        if (complaint != NULL)
            disconnect(handle, complaint);
    }
}

/* Consumes the message; says why the connection cannot go on, or NULL. */
static const char *take_message(struct ldap_handle *handle, LDAPMessage *message)
{
    int message_id = ldap_msgid(message);
    struct ldap_operation *operation;

    DL_SEARCH_SCALAR(handle->operations, operation, message_id, message_id);
    if (operation == NULL) {
        ldap_msgfree(message);
        /* An unsolicited notification (RFC 4511 4.4) has no good news. */
        return message_id != 0 ? NULL : "the directory gave notice of disconnection";
    }
    switch (ldap_msgtype(message)) {
    case LDAP_RES_SEARCH_ENTRY:
        return take_entry(operation, message);
    case LDAP_RES_SEARCH_REFERENCE:
        take_reference(handle, operation, message);
        return NULL;
    case LDAP_RES_INTERMEDIATE:
        ldap_msgfree(message);
        return NULL;
    default:
        return take_result(handle, operation, message);
    }
}

static const char *take_entry(struct ldap_operation *operation, LDAPMessage *message)
{
    if (operation->entry_count == LDAP_ENTRIES_MAX) {
        ldap_msgfree(message);
        return "the directory sends more entries than were asked for";
    }
    if (operation->entry_count++ == 0)
        operation->entry = message;
    else
        ldap_msgfree(message);
    return NULL;
}

/* Of several URLs for the same thing, the first. */
static void note_url(struct ldap_operation *operation, char *const *urls)
{
    char *copy = NULL;

    if (urls == NULL || urls[0] == NULL)
        return;
    if (operation->url_count < LDAP_URLS_MAX)
        copy = mem_copy_text(urls[0], strlen(urls[0]));
    if (copy != NULL)
        operation->urls[operation->url_count++] = copy;
    else
        operation->urls_lost = true;
}

static void take_reference(struct ldap_handle *handle, struct ldap_operation *operation,
                           LDAPMessage *message)
{
    char **urls = NULL;

    if (handle->env->conf->ldap.referrals) {
        if (ldap_parse_reference(handle->ldap, message, &urls, NULL, 0) == LDAP_SUCCESS)
            note_url(operation, urls);
        else
            operation->urls_lost = true;
    }
    ldap_memvfree((void **)urls);
    ldap_msgfree(message);
}

/* Gives the answer, if it is one to what was asked. */
static const char *take_result(struct ldap_handle *handle, struct ldap_operation *operation,
                               LDAPMessage *message)
{
    bool is_search = handle->kind == LDAP_HANDLE_SEARCH;
    struct counters *counters = handle->env->counters;
    struct ldap_answer answer = {.code = LDAP_DECODING_ERROR, .ldap = handle->ldap};
    char *diagnostic = NULL, **urls = NULL;
    int code = LDAP_SUCCESS;

    if (ldap_msgtype(message) != (int)(is_search ? LDAP_RES_SEARCH_RESULT : LDAP_RES_BIND)) {
        ldap_msgfree(message);
        return "the directory answers what was not asked";
    }
    take_off(handle, operation);
    arm_deadline(handle);
    histogram_add(is_search ? &counters->ldap_search_seconds : &counters->ldap_bind_seconds,
                  uv_now(handle->env->loop) - operation->sent_at);
    if (ldap_parse_result(handle->ldap, message, &code, NULL, &diagnostic, &urls, &answer.controls,
                          1) == LDAP_SUCCESS)
        answer.code = code;
    note_url(operation, urls);
    ldap_memvfree((void **)urls);

    /* Its owner frees the operation while it reads the answer. */
    struct ldap_operation pieces = *operation;

    answer.entry = pieces.entry;
    answer.entry_count = pieces.entry_count;
    answer.urls = pieces.urls;
    answer.url_count = pieces.url_count;
    answer.urls_lost = pieces.urls_lost;
    answer.diagnostic = diagnostic != NULL ? diagnostic : "";
    handle->events->on_answer(handle, operation, &answer);
    forget_pieces(&pieces);
    ldap_controls_free(answer.controls);
    ldap_memfree(diagnostic);
    return NULL;
}

static void forget_pieces(struct ldap_operation *operation)
{
    ldap_msgfree(operation->entry);
    operation->entry = NULL;
    while (operation->url_count > 0)
        mem_free(operation->urls[--operation->url_count]);
}

/* --- the end --- */

/* The oldest operation is late, and so the connection is not to be trusted with more. */
static void deadline_passed(uv_timer_t *timer)
{
    disconnect(timer->data, "an operation was not answered in time");
}

void ldap_handle_disconnect(struct ldap_handle *handle)
{
    assert(handle->operation_count == 0);
    disconnect(handle, "not needed any more");
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
    gauge_add(open_gauge(handle), -1);
    if (!handle->releasing)
        log_event_limited(handle->operations != NULL ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG,
                          "ldap connection lost", "%s: %s, %zu operations in flight",
                          handle->target.uri, reason, handle->operation_count);
    uv_timer_stop(&handle->deadline);
    turn_cancel(handle->env->turn, &handle->drain);
    uv_close((uv_handle_t *)&handle->poll, poll_closed); /* before libldap closes the descriptor */
    (void)ldap_unbind_ext(handle->ldap, NULL, NULL); /* does not wait: the socket is non-blocking */
    handle->ldap = NULL;
    while ((operation = handle->operations) != NULL) {
        take_off(handle, operation);
        forget_pieces(operation);
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
