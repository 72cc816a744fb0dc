/*
 * Owns the source `ldap`: who waits for a connection, which connections there are, and what the
 * directory's answers mean. A look-up is a search for the user's DN and then a bind as that DN;
 * with a DN template it is the bind alone. Searches share connections bound as the service account,
 * each bind has a connection to itself while it runs. A look-up whose question was cancelled while
 * its bind is under way stays until the result has come, for the connection is not free before.
 * Connections are made when somebody waits, and not again for a while after that has failed.
 */
#include "auth/source.h"

#include "auth/ldap_escape.h"
#include "auth/ldap_handle.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"

#include <assert.h>
#include <utlist.h>

enum {
    TEXT_MAX = 4096,    /* longest filter or DN */
    SEARCHES_MAX = 128, /* in flight on one connection: what a socket buffer holds with ease */
    BACKOFF_FIRST_MS = 100,
    BACKOFF_MAX_MS = 5000
};

/* The connections of one kind, and who waits for one. */
struct group {
    struct ldap_source *source;
    enum ldap_handle_kind kind;
    struct ldap_handle *handles;
    size_t handle_count;
    size_t operations_max; /* at once, on each handle */
    struct ldap_operation *waiting;
    size_t waiting_count;
};

struct ldap_source {
    const struct env *env;
    struct group search, bind;
    size_t handles_open;                /* all of them, until released */
    uint64_t last_serial;               /* connections are numbered as they become ready */
    uint64_t backoff_ms, connect_after; /* no connecting before that loop time */
    bool closing;
};

struct lookup {
    struct ldap_operation operation; /* first: the handles give this back */
    struct ldap_source *source;
    struct group *group;
    struct ldap_handle *handle;     /* NULL while it waits */
    struct auth_question *question; /* NULL once cancelled */
    char *text;                     /* the filter, then the DN */
    bool retried;
    uint64_t newer_than; /* connections with this serial or an older one will not do */
};

static bool check_conf(const struct conf_ldap *conf, struct err *err);
static bool check_uris(const struct conf_words *uris, struct err *err);
static bool open_group(struct group *group, struct ldap_source *source, enum ldap_handle_kind kind,
                       int64_t handle_count);
static void close_group(struct group *group);
static char *expand(const struct conf_ldap *conf, const char *user, struct err *err);
static void enqueue(struct lookup *lookup, struct group *group, bool first);
static void dispatch(struct group *group);
static struct ldap_handle *pick(const struct group *group, const struct lookup *lookup);
static void send_on(struct ldap_handle *handle, struct lookup *lookup);
static void connect_more(struct group *group, size_t wanted_count);
static bool has_hope(const struct group *group, const struct lookup *lookup);
static void search_answered(struct lookup *lookup, const struct ldap_answer *answer);
static void start_bind(struct lookup *lookup, const char *dn);
static void bind_answered(struct lookup *lookup, const struct ldap_answer *answer);
static void fail(struct lookup *lookup, enum err_kind kind, const char *what,
                 const struct ldap_answer *answer);
static void unavailable(struct lookup *lookup, const char *why);
static void finish(struct lookup *lookup, enum auth_verdict verdict, const struct err *err);
static void free_lookup(struct lookup *lookup);
static void maybe_free_source(struct ldap_source *source);

static void on_connect(struct ldap_handle *handle, const struct err *err);
static void on_answer(struct ldap_handle *handle, struct ldap_operation *operation,
                      const struct ldap_answer *answer);
static void on_lost(struct ldap_handle *handle, struct ldap_operation *operation, bool timed_out);
static void on_closed(struct ldap_handle *handle);
static void on_released(struct ldap_handle *handle);

static const struct ldap_handle_events handle_events = {
    .on_connect = on_connect,
    .on_answer = on_answer,
    .on_lost = on_lost,
    .on_closed = on_closed,
    .on_released = on_released,
};

static bool by_template(const struct conf_ldap *conf)
{
    return conf->dn_template[0] != '\0';
}

static void *source_open(const struct env *env, struct err *err)
{
    const struct conf_ldap *conf = &env->conf->ldap;
    struct ldap_source *source = NULL;

    if (!check_conf(conf, err))
        return NULL;
    ldap_handle_prepare();
    source = mem_new(sizeof *source);
    if (source == NULL) {
        err_set(err, ERR_INTERNAL, "ldap: no memory");
        return NULL;
    }
    source->env = env;
    if ((by_template(conf) ||
         open_group(&source->search, source, LDAP_HANDLE_SEARCH, conf->search_handles)) &&
        open_group(&source->bind, source, LDAP_HANDLE_BIND, conf->bind_handles))
        return source;
    err_set(err, ERR_INTERNAL, "ldap: no memory");
    source->closing = true;
    close_group(&source->search);
    maybe_free_source(source);
    return NULL;
}

static bool check_conf(const struct conf_ldap *conf, struct err *err)
{
    char *sample = NULL;

    if (!check_uris(&conf->uri, err))
        return false;
    if (conf->bind_dn[0] != '\0' && conf->bind_password.len == 0)
        return err_set(err, ERR_CONFIG, "ldap.bind_dn: there is no ldap.bind_password_file");
    sample = expand(conf, "user@domain", err);
    if (sample == NULL)
        return false;
    mem_free(sample);
    return true;
}

static bool check_uris(const struct conf_words *uris, struct err *err)
{
    if (uris->count == 0)
        return err_set(err, ERR_CONFIG, "ldap.uri: expected at least one directory server");
    for (size_t i = 0; i < uris->count; i++) {
        const char *uri = uris->items[i];

        if (!ldap_is_ldap_url(uri) && !ldap_is_ldaps_url(uri) && !ldap_is_ldapi_url(uri))
            return err_set(err, ERR_CONFIG, "ldap.uri: \"%s\" is not ldap://, ldaps:// or ldapi://",
                           uri);
    }
    return true;
}

static bool open_group(struct group *group, struct ldap_source *source, enum ldap_handle_kind kind,
                       int64_t handle_count)
{
    assert(handle_count > 0);
    group->source = source;
    group->kind = kind;
    group->operations_max = kind == LDAP_HANDLE_BIND ? 1 : SEARCHES_MAX;
    group->handles = mem_array((size_t)handle_count, sizeof *group->handles);
    if (group->handles == NULL)
        return false;
    group->handle_count = (size_t)handle_count;
    for (size_t i = 0; i < group->handle_count; i++)
        ldap_handle_init(&group->handles[i], kind, source->env, &handle_events, group);
    source->handles_open += group->handle_count;
    return true;
}

static void source_verify(void *state, struct auth_question *question)
{
    struct ldap_source *source = state;
    const struct conf_ldap *conf = &source->env->conf->ldap;
    struct lookup *lookup = NULL;
    struct err err = {0};

    err_set(&err, ERR_INTERNAL, "ldap: no memory");
    if (source->search.waiting_count + source->bind.waiting_count >= (size_t)conf->max_queue)
        err_set(&err, ERR_UNAVAILABLE, "ldap: %lld logins wait already",
                (long long)conf->max_queue);
    else
        lookup = mem_new(sizeof *lookup);
    if (lookup != NULL)
        lookup->text = expand(conf, question->user, &err);
    if (lookup == NULL || lookup->text == NULL) {
        mem_free(lookup);
        auth_source_answer(question, AUTH_FAILED, NULL, &err);
        return;
    }
    lookup->source = source;
    lookup->question = question;
    question->operation = lookup;
    enqueue(lookup, by_template(conf) ? &source->bind : &source->search, false);
    dispatch(lookup->group);
}

/* The DN to bind as, or the filter to search with. */
static char *expand(const struct conf_ldap *conf, const char *user, struct err *err)
{
    bool template = by_template(conf);
    struct err why = {0};
    struct buf text;
    char *copy = NULL;

    buf_init(&text, TEXT_MAX);
    if (!ldap_escape_expand(template ? conf->dn_template : conf->filter, span_of(user),
                            template ? LDAP_ESCAPE_DN : LDAP_ESCAPE_FILTER, &text, &why))
        err_set(err, why.kind, "ldap.%s: %s", template ? "dn_template" : "filter", why.text);
    else if (buf_len(&text) == 0)
        err_set(err, ERR_CONFIG, "ldap.%s: it is empty", template ? "dn_template" : "filter");
    else if ((copy = mem_copy_text(buf_span(&text).ptr, buf_len(&text))) == NULL)
        err_set(err, ERR_INTERNAL, "ldap: no memory");
    buf_release(&text);
    return copy;
}

static void enqueue(struct lookup *lookup, struct group *group, bool first)
{
    lookup->group = group;
    lookup->handle = NULL;
    if (first)
        DL_PREPEND(group->waiting, &lookup->operation);
    else
        DL_APPEND(group->waiting, &lookup->operation);
    group->waiting_count++;
}

static void dequeue(struct lookup *lookup)
{
    DL_DELETE(lookup->group->waiting, &lookup->operation);
    lookup->group->waiting_count--;
}

/*
 * Serves who waits, as far as connections are free; makes more; sends away who would wait for
 * nothing.
 */
static void dispatch(struct group *group)
{
    while (group->waiting != NULL) {
        struct lookup *lookup = (struct lookup *)group->waiting;
        struct ldap_handle *handle = pick(group, lookup);

        if (handle != NULL) {
            bool shared = handle->operation_count > 0;

            dequeue(lookup);
            send_on(handle, lookup);
            connect_more(group, shared ? 1 : 0);
            continue;
        }
        connect_more(group, group->waiting_count);
        if (has_hope(group, lookup))
            return;
        dequeue(lookup);
        unavailable(lookup, "no connection");
    }
}

/* The least busy connection that can take the look-up. */
static struct ldap_handle *pick(const struct group *group, const struct lookup *lookup)
{
    struct ldap_handle *best = NULL;

    for (size_t i = 0; i < group->handle_count; i++) {
        struct ldap_handle *handle = &group->handles[i];

        if (handle->state == LDAP_HANDLE_READY && handle->serial > lookup->newer_than &&
            handle->operation_count < group->operations_max &&
            (best == NULL || handle->operation_count < best->operation_count))
            best = handle;
    }
    return best;
}

static void send_on(struct ldap_handle *handle, struct lookup *lookup)
{
    assert(lookup->question != NULL);
    lookup->handle = handle;
    if (handle->kind == LDAP_HANDLE_SEARCH)
        ldap_handle_search(handle, &lookup->operation, lookup->text);
    else
        ldap_handle_bind(handle, &lookup->operation, lookup->text,
                         secret_span(lookup->question->password));
}

/* Starts closed handles until `wanted_count` are on their way. */
static void connect_more(struct group *group, size_t wanted_count)
{
    struct ldap_source *source = group->source;
    size_t connecting_count = 0;

    if (uv_now(source->env->loop) < source->connect_after)
        return;
    for (size_t i = 0; i < group->handle_count; i++)
        if (group->handles[i].state == LDAP_HANDLE_CONNECTING)
            connecting_count++;
    for (size_t i = 0; i < group->handle_count && connecting_count < wanted_count; i++)
        if (group->handles[i].state == LDAP_HANDLE_CLOSED) {
            ldap_handle_connect(&group->handles[i]);
            connecting_count++;
        }
}

/* Is there anything under way after which the look-up may be sent? */
static bool has_hope(const struct group *group, const struct lookup *lookup)
{
    bool may_connect = uv_now(group->source->env->loop) >= group->source->connect_after;

    for (size_t i = 0; i < group->handle_count; i++) {
        const struct ldap_handle *handle = &group->handles[i];

        if ((handle->state == LDAP_HANDLE_READY && handle->serial > lookup->newer_than) ||
            handle->state == LDAP_HANDLE_CONNECTING ||
            (handle->state == LDAP_HANDLE_CLOSING && may_connect))
            return true;
    }
    return false;
}

static void on_connect(struct ldap_handle *handle, const struct err *err)
{
    struct group *group = handle->owner;
    struct ldap_source *source = group->source;

    if (err->kind == ERR_NONE) {
        handle->serial = ++source->last_serial;
        source->backoff_ms = 0;
        source->connect_after = 0;
        log_event(LOG_LEVEL_DEBUG, "ldap connected", "%s", handle->uri);
    } else if (uv_now(source->env->loop) >= source->connect_after) {
        /* Others may have been under way with this one; together they count once. */
        source->backoff_ms = source->backoff_ms == 0 ? BACKOFF_FIRST_MS : source->backoff_ms * 2;
        if (source->backoff_ms > BACKOFF_MAX_MS)
            source->backoff_ms = BACKOFF_MAX_MS;
        source->connect_after = uv_now(source->env->loop) + source->backoff_ms;
        log_event(LOG_LEVEL_ERROR, "ldap connect failed", "%s", err->text);
    }
    dispatch(group);
}

static void on_closed(struct ldap_handle *handle)
{
    dispatch(handle->owner);
}

static void on_answer(struct ldap_handle *handle, struct ldap_operation *operation,
                      const struct ldap_answer *answer)
{
    struct group *group = handle->owner;
    struct lookup *lookup = (struct lookup *)operation;

    if (lookup->question == NULL)
        free_lookup(lookup);
    else if (group->kind == LDAP_HANDLE_SEARCH)
        search_answered(lookup, answer);
    else
        bind_answered(lookup, answer);
    dispatch(group);
}

static void search_answered(struct lookup *lookup, const struct ldap_answer *answer)
{
    if (answer->code == LDAP_SIZELIMIT_EXCEEDED || answer->entry_count > 1)
        fail(lookup, ERR_INTERNAL, "the search finds several entries for one user", answer);
    else if (answer->code == LDAP_NO_SUCH_OBJECT)
        fail(lookup, ERR_INTERNAL, "the search base does not exist", answer);
    else if (answer->code == LDAP_FILTER_ERROR)
        fail(lookup, ERR_CONFIG, "the filter is malformed", answer);
    else if (answer->code != LDAP_SUCCESS)
        fail(lookup, ERR_UNAVAILABLE, "the search failed", answer);
    else if (answer->entry_count == 0)
        finish(lookup, AUTH_UNKNOWN_USER, NULL);
    else if (answer->dn == NULL || answer->dn[0] == '\0')
        fail(lookup, ERR_INTERNAL, "the entry found has no name", answer);
    else
        start_bind(lookup, answer->dn);
}

static void start_bind(struct lookup *lookup, const char *dn)
{
    char *copy = mem_copy_text(dn, strlen(dn));
    struct err err = {0};

    if (copy == NULL) {
        err_set(&err, ERR_INTERNAL, "ldap: no memory");
        finish(lookup, AUTH_FAILED, &err);
        return;
    }
    mem_free(lookup->text);
    lookup->text = copy;
    lookup->retried = false;
    lookup->newer_than = 0;
    enqueue(lookup, &lookup->source->bind, false);
    dispatch(lookup->group);
}

static void bind_answered(struct lookup *lookup, const struct ldap_answer *answer)
{
    struct err err = {0};

    switch (answer->code) {
    case LDAP_SUCCESS:
        finish(lookup, AUTH_VERIFIED, NULL);
        break;
    case LDAP_INVALID_CREDENTIALS: /* most servers say this to unknown DNs as well (RFC 4511 A.2) */
    case LDAP_INAPPROPRIATE_AUTH:
        err_set(&err, ERR_CREDENTIALS, "ldap: wrong password");
        finish(lookup, AUTH_REFUSED, &err);
        break;
    case LDAP_NO_SUCH_OBJECT:
        finish(lookup, AUTH_UNKNOWN_USER, NULL);
        break;
    case LDAP_INVALID_DN_SYNTAX:
        fail(lookup, ERR_CONFIG, "the name to bind as is malformed", answer);
        break;
    default:
        fail(lookup, ERR_UNAVAILABLE, "the bind failed", answer);
        break;
    }
}

/*
 * Once more on a newer connection: an idle one that the directory had closed must not fail a login.
 */
static void on_lost(struct ldap_handle *handle, struct ldap_operation *operation, bool timed_out)
{
    struct lookup *lookup = (struct lookup *)operation;

    if (lookup->question == NULL) {
        free_lookup(lookup);
    } else if (timed_out) {
        unavailable(lookup, "no answer within ldap.timeout");
    } else if (lookup->retried) {
        unavailable(lookup, "the connection was lost twice");
    } else {
        lookup->retried = true;
        lookup->newer_than = lookup->source->last_serial;
        enqueue(lookup, handle->owner, true);
    }
}

/* For what an operator must look at. */
static void fail(struct lookup *lookup, enum err_kind kind, const char *what,
                 const struct ldap_answer *answer)
{
    struct err err = {0};
    struct log_line line;

    err_set(&err, kind, "ldap: %s: %s%s%s", what, ldap_err2string(answer->code),
            answer->diagnostic[0] != '\0' ? ": " : "", answer->diagnostic);
    log_begin(&line, LOG_LEVEL_ERROR, "ldap look-up failed");
    log_text(&line, "user", lookup->question->user);
    log_err(&line, &err);
    log_write(&line);
    finish(lookup, AUTH_FAILED, &err);
}

static void unavailable(struct lookup *lookup, const char *why)
{
    struct err err = {0};

    counter_add(&lookup->source->env->counters->auth_ldap_failures, 1);
    err_set(&err, ERR_UNAVAILABLE, "ldap: %s", why);
    finish(lookup, AUTH_FAILED, &err);
}

static void finish(struct lookup *lookup, enum auth_verdict verdict, const struct err *err)
{
    struct auth_question *question = lookup->question;

    free_lookup(lookup);
    auth_source_answer(question, verdict, NULL, err);
}

static void free_lookup(struct lookup *lookup)
{
    mem_free(lookup->text);
    mem_free(lookup);
}

static void source_cancel(void *state, struct auth_question *question)
{
    struct lookup *lookup = question->operation;

    (void)state;
    question->operation = NULL;
    if (lookup == NULL)
        return;

    struct group *group = lookup->group;

    lookup->question = NULL;
    if (lookup->handle != NULL && group->kind == LDAP_HANDLE_BIND)
        return; /* its result is still to come, and on_answer or on_lost frees it */
    if (lookup->handle != NULL)
        ldap_handle_abandon(lookup->handle, &lookup->operation);
    else
        dequeue(lookup);
    free_lookup(lookup);
    dispatch(group);
}

static void source_close(void *state)
{
    struct ldap_source *source = state;

    assert(source->search.waiting == NULL && source->bind.waiting == NULL);
    source->closing = true;
    close_group(&source->search);
    close_group(&source->bind);
}

static void close_group(struct group *group)
{
    for (size_t i = 0; i < group->handle_count; i++)
        ldap_handle_release(&group->handles[i]);
}

static void on_released(struct ldap_handle *handle)
{
    struct ldap_source *source = ((struct group *)handle->owner)->source;

    source->handles_open--;
    maybe_free_source(source);
}

static void maybe_free_source(struct ldap_source *source)
{
    if (!source->closing || source->handles_open > 0)
        return;
    mem_free(source->search.handles);
    mem_free(source->bind.handles);
    mem_free(source);
}

const struct auth_source auth_source_ldap = {
    .name = "ldap",
    .open = source_open,
    .verify = source_verify,
    .cancel = source_cancel,
    .close = source_close,
};
