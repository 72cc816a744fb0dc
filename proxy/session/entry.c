/*
 * Owns the phases from the first byte to a connection to the store: who the client is, whether that
 * is true, and where its mail is.
 */
#include "proxy/session/entry.h"

#include "auth/username.h"
#include "proxy/base/clock.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/session/traces.h"
#include "proxy/session/users.h"

#include <assert.h>
#include <stdio.h>

enum {
    UNREAD_MAX = 32 * 1024, /* answers before login that the client has not read yet */
    HELD_LOOK_MS = 1000     /* whoever is held looks again this often, whatever it hears */
};

const char *const entry_lease_kinds[] = {
    [LEASE_NEW] = "new", [LEASE_WARM] = "warm", [LEASE_PARKED] = "parked", [LEASE_RESET] = "reset"};

/* One address shall not take the places of all. TLS is too dear to tell it why. */
enum phase_id entry_first(struct session *s)
{
    static const char bye[] = "* BYE [LIMIT] Too many connections from your address are open.\r\n";
    bool implicit_tls = s->listener->tls == TLS_IMPLICIT;

    if (admission_await(s->home->admission, &s->entry->waiting, &s->peer))
        return implicit_tls ? P_TLS : P_COMMAND;
    if (!implicit_tls)
        conn_write(s->client, span_of(bye));
    return phase_gone(s, "too many of its address have not logged in");
}

/* --- proxy header --- */

enum phase_id entry_read_proxy_header(struct session *s)
{
    struct entry *entry = s->entry;

    for (;;) {
        struct span so_far = {entry->proxy_header, entry->proxy_header_len};
        ptrdiff_t missing = proxyproto_missing(so_far);
        struct proxyproto header;

        if (missing == 0 && proxyproto_parse(so_far, &header)) {
            if (header.told) {
                s->peer = header.source;
                s->local = header.destination;
            }
            return entry_first(s);
        }
        if (missing <= 0)
            return phase_gone(s, "no valid PROXY protocol header");
        ssize_t count =
            conn_read(s->client, entry->proxy_header + entry->proxy_header_len, (size_t)missing);
        if (count < 0)
            return phase_gone(s, "closed before the PROXY protocol header");
        if (count == CONN_AGAIN)
            return P_PROXY_HEADER;
        entry->proxy_header_len += (size_t)count;
    }
}

/* --- tls --- */

enum phase_id entry_tls_overdue(struct session *s)
{
    return phase_gone(s, "TLS time-out");
}

enum phase_id entry_enter_tls(struct session *s)
{
    if (conn_queued(s->client) > 0) /* TLS cannot start behind clear text that nobody reads */
        return phase_gone(s, "client does not read");
    if (!conn_start_tls_server(s->client, tls_server_context(s->home->tls)))
        return phase_gone(s, "no memory for TLS");
    return P_TLS; /* on_open or on_broken follows */
}

/* --- command: IMAP before login --- */

static enum phase_id handle_commands(struct session *s);

/* Comes here at the start, after STARTTLS, and after a login that was refused. */
enum phase_id entry_enter_command(struct session *s)
{
    bool greeted = s->entry->login.tag[0] != '\0';

    if (!greeted && !login_greet(&s->entry->login))
        return phase_gone(s, conn_failure(s->client));
    if (greeted)
        return handle_commands(s);
    return P_COMMAND;
}

enum phase_id entry_read_command(struct session *s)
{
    struct home *home = s->home;
    ssize_t count = conn_read(s->client, home->scratch, home->scratch_size);

    if (count == CONN_AGAIN)
        return P_COMMAND;
    if (count < 0)
        return phase_gone(s, count == CONN_EOF ? "closed by client before login"
                                               : conn_failure(s->client));
    bool kept = login_feed(&s->entry->login, (struct span){home->scratch, (size_t)count});
    secret_wipe(home->scratch, (size_t)count);
    if (conn_queued(s->client) > UNREAD_MAX)
        return phase_gone(s, "client does not read");
    return kept ? handle_commands(s) : phase_gone(s, "too much input before login");
}

enum phase_id entry_finish(struct session *s, const char *reason)
{
    conn_finish(s->client);
    return phase_linger(s, reason);
}

static enum phase_id refuse(struct session *s, const struct err *err);

/*
 * Whose names they are; empty passwords end here, before any directory could take one for an
 * anonymous bind. Whoever brings a token has no name yet.
 */
static bool name_all(struct session *s, struct err *err)
{
    const struct conf_username *conf = &s->home->env.conf->username;
    const struct sasl_credentials *who = &s->entry->login.who;
    struct entry *entry = s->entry;

    if (who->proof == AUTH_BY_PASSWORD && who->secret.len == 0 && who->user[0] != '\0')
        return err_set(err, ERR_CREDENTIALS, "empty password");
    if ((who->proof != AUTH_BY_TOKEN &&
         !username_normalise(conf, span_of(who->user), entry->user)) ||
        (who->login_as[0] != '\0' &&
         !username_normalise(conf, span_of(who->login_as), entry->login_as)))
        return err_set(err, ERR_CREDENTIALS, "no name that is allowed, or a malformed message");
    if (strcmp(entry->login_as, entry->user) == 0)
        entry->login_as[0] = '\0';
    return true;
}

static enum phase_id identify(struct session *s)
{
    struct err err = {0};

    s->entry->identified_ms = clock_ms();
    s->method = s->entry->login.method;
    return name_all(s, &err) ? P_MOVING : refuse(s, &err);
}

static enum phase_id handle_commands(struct session *s)
{
    for (;;) {
        switch (login_run(&s->entry->login)) {
        case LOGIN_MORE:
            return P_COMMAND;
        case LOGIN_START_TLS:
            login_restart(&s->entry->login);
            return P_TLS;
        case LOGIN_OVER:
            return entry_finish(s, s->entry->login.over);
        case LOGIN_IDENTIFIED: {
            enum phase_id next = identify(s);

            if (next != P_COMMAND)
                return next;
        }
        }
    }
}

enum phase_id entry_command_overdue(struct session *s)
{
    login_bye(&s->entry->login, "UNAVAILABLE", "Login takes too long.");
    return phase_linger(s, "login time-out");
}

/* --- moving: to the worker that serves this user --- */

static enum phase_id after_moving(struct session *s)
{
    if (s->home->stopping) {
        conn_write(s->client, span_of(phase_stopping_bye));
        return entry_finish(s, "shutdown");
    }
    return s->entry->verified ? P_ADMIT : P_VERIFY;
}

static void arrive(struct letter *letter, void *receiver)
{
    struct entry *entry = (struct entry *)((char *)letter - offsetof(struct entry, letter));
    struct session *s = entry->session;

    phase_join_home(s, receiver);
    if (!conn_attach(&s->client, &s->home->env))
        phase_move(s, phase_gone(s, "out of descriptors"));
    else
        phase_move(s, after_moving(s));
}

static void one_handle_closed(struct session *s)
{
    if (--s->handles_open > 0)
        return;
    s->entry->letter.deliver = arrive;
    if (s->home->stopping) /* the other worker may have ended already */
        arrive(&s->entry->letter, s->home);
    else
        inbox_post(&s->home->home_of(s->home, s->entry->user)->inbox, &s->entry->letter);
}

static void timer_left(uv_handle_t *handle)
{
    one_handle_closed(handle->data);
}

static void client_left(void *owner)
{
    one_handle_closed(owner);
}

enum phase_id entry_enter_moving(struct session *s)
{
    if (s->entry->user[0] == '\0' || s->home->home_of(s->home, s->entry->user) == s->home)
        return after_moving(s);
    counter_add(&s->home->env.counters->handovers, 1);
    phase_leave_home(s);
    s->handles_open = 2;
    conn_detach(s->client, client_left);
    uv_close((uv_handle_t *)&s->deadline, timer_left);
    return P_MOVING;
}

/* --- verify --- */

void entry_log(struct session *s, enum conf_log_level level, const char *event,
               const struct err *err)
{
    struct log_line line;
    char peer[ADDRESS_TEXT_MAX];

    address_text(&s->peer, peer);
    log_begin(&line, level, event);
    log_text(&line, "session", s->id);
    if (s->entry != NULL && s->entry->user[0] != '\0')
        log_text(&line, "user", s->entry->user);
    else if (s->entry != NULL)
        log_text(&line, "user", s->entry->login.who.user);
    if (s->entry != NULL && s->entry->master[0] != '\0')
        log_text(&line, "master", s->entry->master);
    if (s->entry != NULL && s->entry->login_as[0] != '\0')
        log_text(&line, "login_as", s->entry->login_as);
    log_text(&line, "peer", peer);
    log_text(&line, "method", s->method);
    log_text(&line, "tls",
             conn_tls(s->client) == NULL ? "none" : SSL_get_version(conn_tls(s->client)));
    if (s->shard != NULL)
        log_text(&line, "shard", s->shard->title);
    if (s->connection != NULL)
        log_text(&line, "lease", entry_lease_kinds[s->lease_kind]);
    if (err != NULL)
        log_err(&line, err);
    log_write(&line);
}

/*
 * Answers the login with NO and goes on with the client's next command, unless it has had too many
 * tries.
 */
static enum phase_id refuse(struct session *s, const struct err *err)
{
    bool ours = err->kind == ERR_UNAVAILABLE || err->kind == ERR_BUSY || err->kind == ERR_FULL ||
                err->kind == ERR_MOVING || err->kind == ERR_REFERRAL || err->kind == ERR_CONFIG ||
                err->kind == ERR_INTERNAL;

    counter_add(&s->home->env.counters->logins_refused, 1);
    counter_add(&s->home->env.counters->logins_unavailable, ours);
    entry_log(s, ours ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "login refused", err);
    if (s->phase >= P_VERIFY && s->entry->user[0] != '\0') { /* it is at the user's home */
        history_refused(s->home->history, s->entry->user, &s->peer,
                        s->shard == NULL ? NULL : pool_shard_title(s->home->pool, s->shard), err);
        traces_note(s, s->entry->user, "login refused: %s, %s", err_name(err->kind), err->text);
    }
    phase_set_shard(s, NULL);
    users_leave(s);
    admission_leave(s->home->admission, &s->place);
    s->entry->held_since_ms = 0;
    s->entry->login_started_ms = uv_now(s->home->env.loop);
    if (!login_refuse(&s->entry->login, err))
        return entry_finish(s, "too many failed logins");
    s->entry->user[0] = s->entry->login_as[0] = s->entry->master[0] = '\0';
    s->entry->verified = false;
    if (s->home->stopping) {
        conn_write(s->client, span_of(phase_stopping_bye));
        return entry_finish(s, "shutdown");
    }
    return P_COMMAND;
}

static void keep_identity(struct entry *entry, const struct auth_identity *identity)
{
    entry->verified = true;
    entry->login_as[0] = '\0';
    snprintf(entry->user, sizeof entry->user, "%s", identity->user);
    snprintf(entry->master, sizeof entry->master, "%s",
             identity->master == NULL ? "" : identity->master);
    snprintf(entry->told_shard, sizeof entry->told_shard, "%s", identity->shard);
    snprintf(entry->told_backend_user, sizeof entry->told_backend_user, "%s",
             identity->backend_user);
}

static void on_verified(struct auth_request *request, const struct auth_identity *identity,
                        const struct err *err)
{
    struct session *s = request->owner;

    if (err->kind != ERR_NONE) {
        if (s->entry->user[0] == '\0') /* for the log: the token has told */
            snprintf(s->entry->user, sizeof s->entry->user, "%s", identity->user);
        if ((err->kind == ERR_ADMIN || err->kind == ERR_EXPIRED) && s->entry->login_as[0] == '\0')
            pool_forget_user(s->home->pool, s->entry->user); /* but not for a wrong guess */
        phase_move(s, refuse(s, err));
        return;
    }
    keep_identity(s->entry, identity);
    phase_move(s, P_MOVING); /* the name may be another one now */
}

enum phase_id entry_enter_verify(struct session *s)
{
    struct auth_request *verify = &s->entry->verify;
    char peer[ADDRESS_TEXT_MAX];

    address_text(&s->peer, peer);
    traces_note(s, s->entry->user, "logs in by %s, from %s", s->method, peer);
    verify->proof = s->entry->login.who.proof;
    verify->user = s->entry->user;
    verify->login_as = s->entry->login_as;
    verify->secret = &s->entry->login.who.secret;
    verify->address = &s->peer;
    verify->on_answer = on_verified;
    verify->owner = s;
    auth_verify(s->home->auth, verify);
    return P_VERIFY;
}

/* --- admit: may the user have one session more? --- */

static void on_admitted(struct admission_request *admit, const struct err *err)
{
    struct session *s = admit->owner;

    phase_move(s, err->kind == ERR_NONE ? P_ROUTE : refuse(s, err));
}

enum phase_id entry_enter_admit(struct session *s)
{
    struct admission_request *admit = &s->entry->admit;
    struct err err = {0};

    admit->user = s->entry->user;
    admit->address = &s->peer;
    admit->place = &s->place;
    admit->on_answer = on_admitted;
    admit->owner = s;
    switch (admission_enter(s->home->admission, admit, &err)) {
    case ADMISSION_IN:
        return P_ROUTE;
    case ADMISSION_WAITS:
        return P_ADMIT;
    default:
        return refuse(s, &err);
    }
}

/* --- route --- */

static void on_route(struct route_request *request, const struct route *route,
                     const struct err *err)
{
    struct session *s = request->owner;

    if (route != NULL && (route->state == ROUTE_MOVING || route->state == ROUTE_COMMITTED)) {
        users_hold(s->home, s->entry->user, route->epoch); /* this session, too */
        return;
    }
    if (route != NULL && route->state == ROUTE_DISABLED)
        pool_forget_user(s->home->pool, s->entry->user);
    if (err->kind != ERR_NONE) {
        phase_move(s, refuse(s, err));
        return;
    }
    assert(route != NULL);
    if (!users_may_go_on(s, route->epoch)) {
        phase_move(s, P_HELD);
        return;
    }

    const struct conf_shard *shard = conf_find_shard(s->home->env.conf, route->shard);

    if (shard == NULL) { /* it was removed while a router was asked: the present one tells */
        phase_move(s, entry_enter_route(s));
        return;
    }
    referral_start(&s->entry->referral, route);
    phase_set_shard(s, pool_serving(s->home->pool, shard));
    snprintf(s->entry->backend_user, sizeof s->entry->backend_user, "%s", route->backend_user);
    phase_move(s, P_LEASE);
}

enum phase_id entry_enter_route(struct session *s)
{
    struct route_request *route = &s->entry->route;
    struct err err = {0};

    if (!users_join(s, s->entry->user)) {
        err_set(&err, ERR_INTERNAL, "no memory for a user");
        return refuse(s, &err);
    }
    route->user = s->entry->user;
    route->told_shard = s->entry->told_shard;
    route->told_backend_user = s->entry->told_backend_user;
    route->on_answer = on_route;
    route->owner = s;
    router_find(s->home->router, route);
    return P_ROUTE;
}

/* --- lease --- */

/* The store says that she is elsewhere: the phase begins anew, there. */
static enum phase_id follow(struct session *s)
{
    struct entry *entry = s->entry;
    struct err err = {0};

    const struct conf_shard *to =
        referral_follow(&entry->referral, s->home->env.conf, s->shard, entry->backend_user,
                        &entry->lease.referral, &err);

    if (to == NULL)
        return refuse(s, &err);
    counter_add(&s->home->env.counters->referrals_followed, 1);
    log_event(LOG_LEVEL_INFO, "referral", "session %s of %s: shard %s refers to shard %s", s->id,
              entry->user, s->shard->title, to->title);
    phase_set_shard(s, pool_serving(s->home->pool, to));
    return entry_enter_lease(s);
}

static void on_lease(struct lease_request *lease, struct pooled *connection, const struct err *err)
{
    struct session *s = lease->owner;

    if (err->kind == ERR_NONE) {
        s->connection = connection;
        s->lease_kind = (uint8_t)pooled_kind(connection);
        s->store = *backend_address(pooled_backend(connection));
        if (s->home->env.conf->route.keep_referrals)
            referral_keep(&s->entry->referral, s->home->corrector, s->entry->user);
    }
    phase_move(s, err->kind == ERR_NONE       ? P_RELAY
                  : err->kind == ERR_REFERRAL ? follow(s)
                                              : refuse(s, err));
}

/* Who logs in at the store. A master's password is not the user's. */
static struct store_client store_client_of(const struct session *s)
{
    const struct entry *entry = s->entry;
    const struct sasl_credentials *who = &entry->login.who;
    const SSL *tls = conn_tls(s->client);
    bool itself = entry->master[0] == '\0';

    return (struct store_client){
        .user = entry->backend_user,
        .password = itself && who->proof == AUTH_BY_PASSWORD ? &who->secret : NULL,
        .token = itself && who->proof == AUTH_BY_TOKEN ? &who->secret : NULL,
        .master = itself ? NULL : entry->master,
        .session_id = s->id,
        .id = buf_span(&entry->login.id.fields),
        .proxy_ttl = entry->login.id.proxy_ttl,
        .tls_version = tls == NULL ? NULL : SSL_get_version(tls),
        .tls_cipher = tls == NULL ? NULL : SSL_get_cipher_name(tls),
        .address = s->peer,
        .local = s->local};
}

enum phase_id entry_enter_lease(struct session *s)
{
    struct lease_request *lease = &s->entry->lease;
    struct err err = {0};

    if (s->entry->login.id.proxy_ttl == 0) {
        err_set(&err, ERR_CONFIG, "too many proxies in a row: does shard %s lead back here?",
                s->shard->title);
        return refuse(s, &err);
    }
    lease->user = s->entry->user;
    lease->client = store_client_of(s);
    if (!store_login_is_foreseen(s->shard, &lease->client)) {
        err_set(&err, ERR_CONFIG, "shard %s: no way in without a password: see passwordless_login",
                s->shard->title);
        return refuse(s, &err);
    }
    lease->on_answer = on_lease;
    lease->owner = s;
    return pool_lease(s->home->pool, lease, s->shard, &err) ? P_LEASE : refuse(s, &err);
}

/* --- held: the user's mailbox is being moved --- */

static uint64_t held_ms(const struct session *s)
{
    return uv_now(s->home->env.loop) - s->entry->held_since_ms;
}

/* cutover.hold_timeout counts all the time since this login was held for the first time. */
enum phase_id entry_enter_held(struct session *s)
{
    uint64_t limit = s->home->env.conf->cutover.hold_timeout;

    if (s->home->stopping) {
        conn_write(s->client, span_of(phase_stopping_bye));
        return entry_finish(s, "shutdown");
    }
    phase_set_shard(s, NULL);
    if (s->entry->held_since_ms == 0)
        s->entry->held_since_ms = uv_now(s->home->env.loop);

    uint64_t left = held_ms(s) < limit ? limit - held_ms(s) : 0;

    phase_arm_for(s, left < HELD_LOOK_MS ? left : HELD_LOOK_MS);
    return P_HELD;
}

enum phase_id entry_held_overdue(struct session *s)
{
    struct err err = {0};

    if (held_ms(s) < s->home->env.conf->cutover.hold_timeout)
        return P_ROUTE;
    err_set(&err, ERR_MOVING, "the user is being moved, for longer than cutover.hold_timeout");
    return refuse(s, &err);
}

/*
 * The client has closed its half while it is being logged in. It may still want the answers to what
 * it has sent; but in a line before a store that is short of places it only stands in the way, for
 * most who do so have given up.
 */
enum phase_id entry_hear_end(struct session *s)
{
    if (s->phase == P_HELD || (s->phase == P_LEASE && pool_waits(&s->entry->lease)))
        return phase_gone(s, "closed by client while it waited");
    return s->phase;
}

/* --- the end --- */

void entry_release(struct session *s)
{
    if (s->entry == NULL)
        return;
    admission_await_no_more(s->home->admission, &s->entry->waiting);
    login_release(&s->entry->login);
    mem_free(s->entry);
    s->entry = NULL;
}
