/* Owns a client's session: the order of its phases, and everything that must end when it ends. */
#include "proxy/session.h"

#include "auth/username.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/login.h"
#include "proxy/net/proxyproto.h"
#include "proxy/relay.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

enum phase_id {
    P_PROXY_HEADER,
    P_TLS,
    P_COMMAND,
    P_MOVING,
    P_VERIFY,
    P_ROUTE,
    P_LEASE,
    P_RELAY,
    P_STRANDED,
    P_LINGER,
    P_GONE,
    PHASE_COUNT
};

enum { UNREAD_MAX = 32 * 1024 }; /* answers before login that the client has not read yet */

/* What a session holds only until it is relayed. */
struct entry {
    struct login login;
    struct auth_request verify;
    struct route_request route;
    struct lease_request lease;
    char user[USERNAME_MAX + 1];
    char backend_user[BACKEND_USER_MAX + 1];
    char proxy_header[PROXYPROTO_MAX];
    size_t proxy_header_len;
    uint64_t login_started_ms; /* the time for it counts from here */
    union address local;       /* where the client has connected to */
    struct session *session;
    struct letter letter;   /* carries the session to its next home */
    uint64_t identified_ms; /* when the client had said who it is; uv_hrtime: loops differ */
};

struct session {
    struct home *home;
    struct session *next, **link; /* in home->sessions; link is NULL on the way between two homes */
    struct conn *client;
    struct entry *entry; /* NULL once relayed */
    char *user;          /* normalised name, once verified */
    const struct conf_listener *listener;
    const struct conf_shard *shard;
    struct pooled *connection; /* to the store, while leased */
    struct relay relay;
    uv_timer_t deadline;
    const char *reason; /* of the end, for the log */
    const char *method;
    union address peer, store;
    uint64_t accepted_ms; /* wall clock */
    char id[24];
    uint8_t phase;
    uint8_t handles_open;
    size_t undrained; /* what the client had not taken when its lingering was last looked at */
    uint8_t lease_kind;
    bool client_ended; /* lingering: it sends no more, and still reads */
    bool lingering;    /* one side of the relay has left: the deadline counts from then */
    bool relaying;     /* relay_start was called, relay_release not yet */
    bool relayed;      /* it was called at all */
};

static enum phase_id enter_tls(struct session *s);
static enum phase_id enter_command(struct session *s);
static enum phase_id enter_moving(struct session *s);
static enum phase_id enter_verify(struct session *s);
static enum phase_id enter_route(struct session *s);
static enum phase_id enter_lease(struct session *s);
static enum phase_id enter_relay(struct session *s);
static enum phase_id enter_stranded(struct session *s);
static enum phase_id enter_linger(struct session *s);
static enum phase_id enter_gone(struct session *s);
static enum phase_id read_proxy_header(struct session *s);
static enum phase_id read_command(struct session *s);
static enum phase_id hear_end(struct session *s);
static enum phase_id read_stranded(struct session *s);
static enum phase_id read_and_drop(struct session *s);

enum limit { LIMIT_NONE, LIMIT_LOGIN, LIMIT_IDLE, LIMIT_LINGER };

/* Verify, route, lease and stranded have deadlines of their own. */
static const struct phase {
    const char *name;
    enum limit limit;
    bool only_end; /* the client is not read: what it sends waits, but its end is told */
    enum phase_id (*enter)(struct session *s);    /* NULL: nothing to do */
    enum phase_id (*readable)(struct session *s); /* NULL: the client is not read */
} phases[PHASE_COUNT] = {
    /*                   name            limit        only end  on entry       client readable */
    [P_PROXY_HEADER] = {"proxy header", LIMIT_LOGIN, false, NULL, read_proxy_header},
    [P_TLS] = {"tls", LIMIT_LOGIN, false, enter_tls, NULL},
    [P_COMMAND] = {"command", LIMIT_LOGIN, false, enter_command, read_command},
    [P_MOVING] = {"moving", LIMIT_NONE, false, enter_moving, NULL},
    [P_VERIFY] = {"verify", LIMIT_NONE, true, enter_verify, hear_end},
    [P_ROUTE] = {"route", LIMIT_NONE, true, enter_route, hear_end},
    [P_LEASE] = {"lease", LIMIT_NONE, true, enter_lease, hear_end},
    [P_RELAY] = {"relay", LIMIT_IDLE, false, enter_relay, NULL}, /* the relay hears the client */
    [P_STRANDED] = {"stranded", LIMIT_NONE, false, enter_stranded, read_stranded},
    [P_LINGER] = {"linger", LIMIT_LINGER, false, enter_linger, read_and_drop},
    [P_GONE] = {"gone", LIMIT_NONE, false, enter_gone, NULL},
};

static const char *const lease_kinds[] = {
    [LEASE_NEW] = "new", [LEASE_WARM] = "warm", [LEASE_PARKED] = "parked", [LEASE_RESET] = "reset"};

static const char stopping_bye[] =
    "* BYE [UNAVAILABLE] The server is shutting down, please connect again.\r\n";

static void arm_deadline(struct session *s, enum limit limit);
static void start_deadline(struct session *s, uint64_t timeout);

static void listen_to_client(struct session *s, const struct phase *row)
{
    conn_want_read(s->client, row->readable != NULL && !row->only_end);
    if (row->only_end)
        conn_want_end(s->client);
}

/* The one place that changes the phase. After it the session may be gone. */
static void session_move(struct session *s, enum phase_id next)
{
    while (next != s->phase) {
        const struct phase *row = &phases[next];

        s->phase = (uint8_t)next;
        log_event(LOG_LEVEL_DEBUG, "phase", "session=%s phase=\"%s\"", s->id, row->name);
        if (next != P_MOVING && next != P_GONE) {
            arm_deadline(s, row->limit);
            if (next != P_RELAY)
                listen_to_client(s, row);
        }
        if (row->enter != NULL)
            next = row->enter(s);
    }
}

/* Ends for `reason`, a constant phrase for the log; the first one counts. */
static enum phase_id gone(struct session *s, const char *reason)
{
    if (s->reason == NULL)
        s->reason = reason;
    return P_GONE;
}

static enum phase_id linger(struct session *s, const char *reason)
{
    gone(s, reason);
    return P_LINGER;
}

/* --- events of the client's connection, until the relay takes over --- */

static void on_open(void *owner)
{
    struct session *s = owner; /* TLS is up */
    struct counters *counters = s->home->env.counters;

    counter_add(&counters->tls_handshakes, 1);
    if (SSL_session_reused(conn_tls(s->client)))
        counter_add(&counters->tls_resumed, 1);
    session_move(s, P_COMMAND);
}

static void on_readable(void *owner)
{
    struct session *s = owner;

    if (phases[s->phase].readable != NULL)
        session_move(s, phases[s->phase].readable(s));
}

static void on_drained(void *owner)
{
    struct session *s = owner;

    if (s->phase == P_LINGER && s->client_ended)
        session_move(s, P_GONE);
}

static void on_broken(void *owner)
{
    struct session *s = owner;

    if (s->phase == P_TLS)
        counter_add(&s->home->env.counters->tls_failed, 1);
    session_move(s, gone(s, conn_failure(s->client)));
}

static const struct conn_events client_events = {on_open, on_readable, on_drained, on_broken};

/* --- deadlines --- */

static enum phase_id tell_stranded(struct session *s);

/* Whether a client that is lingered for has taken some of our last words since the last look. */
static bool client_drains(struct session *s)
{
    size_t before = s->undrained, now = conn_unacknowledged(s->client);

    s->undrained = now;
    return now > 0 && (before == 0 || now < before);
}

/* The relay's timer: it comes before the time is up, to see whether bytes have passed meanwhile. */
static void on_relay_deadline(struct session *s)
{
    const struct conf_session *conf = &s->home->env.conf->session;
    uint64_t silent = uv_now(s->home->env.loop) - s->relay.last_active_ms;
    uint64_t limit = s->lingering ? conf->linger_timeout : conf->idle_timeout;

    if (s->reason == NULL && silent < limit) {
        /* A store may have much to say to a client that has closed its half. */
        if (conf->idle_notify > 0 && !s->lingering)
            relay_say_still_here(&s->relay);
        start_deadline(s, limit - silent);
    } else if (s->reason == NULL && !s->lingering) {
        s->reason = "idle time-out";
        arm_deadline(s, LIMIT_LINGER);
        relay_end_politely(&s->relay, "* BYE [UNAVAILABLE] Idle for too long.\r\n");
    } else if (client_drains(s)) {
        arm_deadline(s, LIMIT_LINGER);
    } else {
        session_move(s, gone(s, "time-out"));
    }
}

static void on_deadline(uv_timer_t *timer)
{
    struct session *s = timer->data;

    if (s->phase == P_COMMAND) {
        login_bye(&s->entry->login, "UNAVAILABLE", "Login takes too long.");
        session_move(s, linger(s, "login time-out"));
    } else if (s->phase == P_RELAY) {
        on_relay_deadline(s);
    } else if (s->phase == P_STRANDED) {
        session_move(s, tell_stranded(s));
    } else if (s->phase == P_LINGER && client_drains(s)) {
        arm_deadline(s, LIMIT_LINGER);
    } else {
        session_move(s, gone(s, s->phase == P_TLS ? "TLS time-out" : "time-out"));
    }
}

/* While clients in IDLE are to hear of us the timer comes more often, a little early at random. */
static void start_deadline(struct session *s, uint64_t timeout)
{
    uint64_t notify = s->home->env.conf->session.idle_notify;

    if (s->phase == P_RELAY && notify > 0) {
        uint64_t jittered = notify - uv_hrtime() % (notify / 4 + 1);

        timeout = timeout < jittered ? timeout : jittered;
    }
    uv_timer_start(&s->deadline, on_deadline, timeout, 0);
}

static void arm_deadline(struct session *s, enum limit limit)
{
    const struct conf *conf = s->home->env.conf;
    uint64_t now = uv_now(s->home->env.loop);

    if (limit == LIMIT_NONE) {
        uv_timer_stop(&s->deadline);
    } else if (limit == LIMIT_LOGIN) { /* one deadline for all phases up to the login */
        uint64_t spent = now - s->entry->login_started_ms;

        uv_timer_start(&s->deadline, on_deadline,
                       spent < conf->login.timeout ? conf->login.timeout - spent : 0, 0);
    } else {
        uint64_t timeout =
            limit == LIMIT_IDLE ? conf->session.idle_timeout : conf->session.linger_timeout;

        start_deadline(s, timeout);
    }
}

/* --- accept --- */

static void join_home(struct session *s, struct home *home)
{
    s->home = home;
    s->next = home->sessions;
    s->link = &home->sessions;
    if (s->next != NULL)
        s->next->link = &s->next;
    home->sessions = s;
    uv_timer_init(home->env.loop, &s->deadline);
    s->deadline.data = s;
}

static void leave_home(struct session *s)
{
    if (s->link == NULL)
        return;
    *s->link = s->next;
    if (s->next != NULL)
        s->next->link = s->link;
    s->link = NULL;
}

/* Unique across proxies and restarts: 32 random bits of the process, and a count. */
static void make_id(char id[24])
{
    static _Atomic uint32_t process, count;

    if (atomic_load(&process) == 0) {
        uint32_t random = 0, zero = 0;

        if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random || random == 0)
            random = 1;
        atomic_compare_exchange_strong(&process, &zero, random);
    }
    snprintf(id, 24, "%08x%08x", atomic_load(&process), atomic_fetch_add(&count, 1));
}

static bool comes_with_proxy_header(const struct conf_listener *listener, const union address *peer)
{
    for (size_t i = 0; i < listener->proxy_protocol.count; i++) {
        struct network network;

        if (network_parse(listener->proxy_protocol.items[i], &network) &&
            network_contains(&network, peer))
            return true;
    }
    return false;
}

static void start(struct session *s, const union address *peer)
{
    struct timespec wall;
    socklen_t size = sizeof s->entry->local;

    clock_gettime(CLOCK_REALTIME, &wall);
    s->accepted_ms = (uint64_t)wall.tv_sec * 1000 + (uint64_t)wall.tv_nsec / 1000000;
    s->peer = *peer;
    getsockname(conn_fd(s->client), &s->entry->local.any, &size);
    make_id(s->id);
    counter_add(&s->home->env.counters->sessions_opened, 1);
    s->entry->login_started_ms = uv_now(s->home->env.loop);
    login_init(&s->entry->login, s->home->env.conf, s->listener, s->client);
    s->phase = PHASE_COUNT; /* none yet */
    if (comes_with_proxy_header(s->listener, peer))
        session_move(s, P_PROXY_HEADER);
    else
        session_move(s, s->listener->tls == TLS_IMPLICIT ? P_TLS : P_COMMAND);
}

bool session_accept(struct home *home, int fd, const union address *peer,
                    const struct conf_listener *listener)
{
    struct session *s = mem_new(sizeof *s);
    struct entry *entry = mem_new(sizeof *entry);
    struct conn *client = conn_open(&home->env, fd, &client_events, s);

    if (s == NULL || entry == NULL || client == NULL) {
        conn_close(&client);
        mem_free(entry);
        mem_free(s);
        return false;
    }
    s->entry = entry;
    entry->session = s;
    s->client = client;
    s->listener = listener;
    join_home(s, home);
    start(s, peer);
    return true;
}

/* --- proxy header --- */

static enum phase_id read_proxy_header(struct session *s)
{
    struct entry *entry = s->entry;

    for (;;) {
        struct span so_far = {entry->proxy_header, entry->proxy_header_len};
        ptrdiff_t missing = proxyproto_missing(so_far);
        struct proxyproto header;

        if (missing == 0 && proxyproto_parse(so_far, &header)) {
            if (header.told) {
                s->peer = header.source;
                s->entry->local = header.destination;
            }
            return s->listener->tls == TLS_IMPLICIT ? P_TLS : P_COMMAND;
        }
        if (missing <= 0)
            return gone(s, "no valid PROXY protocol header");
        ssize_t count =
            conn_read(s->client, entry->proxy_header + entry->proxy_header_len, (size_t)missing);
        if (count < 0)
            return gone(s, "closed before the PROXY protocol header");
        if (count == CONN_AGAIN)
            return P_PROXY_HEADER;
        entry->proxy_header_len += (size_t)count;
    }
}

/* --- tls --- */

static enum phase_id enter_tls(struct session *s)
{
    if (conn_queued(s->client) > 0) /* TLS cannot start behind clear text that nobody reads */
        return gone(s, "client does not read");
    if (!conn_start_tls_server(s->client, tls_server_context(s->home->tls)))
        return gone(s, "no memory for TLS");
    return P_TLS; /* on_open or on_broken follows */
}

/* --- command: IMAP before login --- */

static enum phase_id handle_commands(struct session *s);

/* Comes here at the start, after STARTTLS, and after a login that was refused. */
static enum phase_id enter_command(struct session *s)
{
    bool greeted = s->entry->login.tag[0] != '\0';

    if (!greeted && !login_greet(&s->entry->login))
        return gone(s, conn_failure(s->client));
    if (greeted)
        return handle_commands(s);
    return P_COMMAND;
}

static enum phase_id read_command(struct session *s)
{
    struct home *home = s->home;
    ssize_t count = conn_read(s->client, home->scratch, home->scratch_size);

    if (count == CONN_AGAIN)
        return P_COMMAND;
    if (count < 0)
        return gone(s,
                    count == CONN_EOF ? "closed by client before login" : conn_failure(s->client));
    if (conn_queued(s->client) > UNREAD_MAX)
        return gone(s, "client does not read");
    bool kept = login_feed(&s->entry->login, (struct span){home->scratch, (size_t)count});
    secret_wipe(home->scratch, (size_t)count);
    return kept ? handle_commands(s) : gone(s, "too much input before login");
}

static enum phase_id finish_with(struct session *s, const char *reason)
{
    conn_finish(s->client);
    return linger(s, reason);
}

static enum phase_id refuse(struct session *s, const struct err *err);

/*
 * Whose name it is; empty passwords end here, before any directory could take one for an anonymous
 * bind.
 */
static enum phase_id identify(struct session *s)
{
    struct login *login = &s->entry->login;
    struct err err = {0};

    s->entry->identified_ms = uv_hrtime() / 1000000;
    s->method = login->method;
    if (!username_normalise(&s->home->env.conf->username, span_of(login->user), s->entry->user)) {
        err_set(&err, ERR_CREDENTIALS, "no such name is allowed");
        return refuse(s, &err);
    }
    if (login->password.len == 0) {
        err_set(&err, ERR_CREDENTIALS, "empty password");
        return refuse(s, &err);
    }
    return P_MOVING;
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
            return finish_with(s, s->entry->login.over);
        case LOGIN_IDENTIFIED: {
            enum phase_id next = identify(s);

            if (next != P_COMMAND)
                return next;
        }
        }
    }
}

/* --- moving: to the worker that serves this user --- */

static void arrive(struct letter *letter, void *receiver)
{
    struct entry *entry = (struct entry *)((char *)letter - offsetof(struct entry, letter));
    struct session *s = entry->session;

    join_home(s, receiver);
    if (!conn_attach(&s->client, &s->home->env))
        session_move(s, gone(s, "out of descriptors"));
    else
        session_move(s, P_VERIFY);
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

static enum phase_id enter_moving(struct session *s)
{
    if (s->home->home_of(s->home, s->entry->user) == s->home)
        return P_VERIFY;
    counter_add(&s->home->env.counters->handovers, 1);
    leave_home(s);
    s->handles_open = 2;
    conn_detach(s->client, client_left);
    uv_close((uv_handle_t *)&s->deadline, timer_left);
    return P_MOVING;
}

/* --- verify --- */

static void log_login(struct session *s, enum conf_log_level level, const char *event,
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
        log_text(&line, "user", s->entry->login.user);
    log_text(&line, "peer", peer);
    log_text(&line, "method", s->method);
    log_text(&line, "tls",
             conn_tls(s->client) == NULL ? "none" : SSL_get_version(conn_tls(s->client)));
    if (s->shard != NULL)
        log_text(&line, "shard", s->shard->title);
    if (s->connection != NULL)
        log_text(&line, "lease", lease_kinds[s->lease_kind]);
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
                err->kind == ERR_CONFIG || err->kind == ERR_INTERNAL;

    counter_add(&s->home->env.counters->logins_refused, 1);
    log_login(s, ours ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "login refused", err);
    s->shard = NULL;
    s->entry->login_started_ms = uv_now(s->home->env.loop);
    if (!login_refuse(&s->entry->login, err))
        return finish_with(s, "too many failed logins");
    s->entry->user[0] = '\0';
    if (s->home->stopping) {
        conn_write(s->client, span_of(stopping_bye));
        return finish_with(s, "shutdown");
    }
    return P_COMMAND;
}

static void on_verified(struct auth_request *request, const struct err *err)
{
    struct session *s = request->owner;

    if (err->kind == ERR_ADMIN || err->kind == ERR_EXPIRED) /* but not for a wrong guess */
        pool_forget_user(s->home->pool, s->entry->user);
    session_move(s, err->kind == ERR_NONE ? P_ROUTE : refuse(s, err));
}

static enum phase_id enter_verify(struct session *s)
{
    struct auth_request *verify = &s->entry->verify;

    if (s->home->stopping) {
        conn_write(s->client, span_of(stopping_bye));
        return finish_with(s, "shutdown");
    }
    verify->user = s->entry->user;
    verify->password = &s->entry->login.password;
    verify->on_answer = on_verified;
    verify->owner = s;
    auth_verify(s->home->auth, verify);
    return P_VERIFY;
}

/* --- route --- */

static void on_route(struct route_request *request, const struct route *route,
                     const struct err *err)
{
    struct session *s = request->owner;

    if (route != NULL && route->state != ROUTE_ACTIVE)
        pool_forget_user(s->home->pool, s->entry->user);
    if (err->kind != ERR_NONE) {
        session_move(s, refuse(s, err));
        return;
    }
    s->shard = conf_find_shard(s->home->env.conf, route->shard); /* the router has checked */
    assert(s->shard != NULL);
    snprintf(s->entry->backend_user, sizeof s->entry->backend_user, "%s", route->backend_user);
    session_move(s, P_LEASE);
}

static enum phase_id enter_route(struct session *s)
{
    struct route_request *route = &s->entry->route;

    route->user = s->entry->user;
    route->on_answer = on_route;
    route->owner = s;
    router_find(s->home->router, route);
    return P_ROUTE;
}

/* --- lease --- */

static void on_lease(struct lease_request *lease, struct pooled *connection, const struct err *err)
{
    struct session *s = lease->owner;

    if (err->kind == ERR_NONE) {
        s->connection = connection;
        s->lease_kind = (uint8_t)pooled_kind(connection);
        s->store = *backend_address(pooled_backend(connection));
    }
    session_move(s, err->kind == ERR_NONE ? P_RELAY : refuse(s, err));
}

static enum phase_id enter_lease(struct session *s)
{
    struct lease_request *lease = &s->entry->lease;
    const SSL *tls = conn_tls(s->client);
    struct err err = {0};

    if (s->entry->login.proxy_ttl == 0) {
        err_set(&err, ERR_CONFIG, "too many proxies in a row: does shard %s lead back here?",
                s->shard->title);
        return refuse(s, &err);
    }
    lease->user = s->entry->user;
    lease->client =
        (struct store_client){.user = s->entry->backend_user,
                              .password = &s->entry->login.password,
                              .session_id = s->id,
                              .id = buf_span(&s->entry->login.id),
                              .proxy_ttl = s->entry->login.proxy_ttl,
                              .tls_version = tls == NULL ? NULL : SSL_get_version(tls),
                              .tls_cipher = tls == NULL ? NULL : SSL_get_cipher_name(tls),
                              .address = s->peer,
                              .local = s->entry->local};
    lease->on_answer = on_lease;
    lease->owner = s;
    return pool_lease(s->home->pool, lease, s->shard, &err) ? P_LEASE : refuse(s, &err);
}

/*
 * The client has closed its half while it is being logged in. It may still want the answers to what
 * it has sent; but in a line before a store that is short of places it only stands in the way, for
 * most who do so have given up.
 */
static enum phase_id hear_end(struct session *s)
{
    if (s->phase == P_LEASE && pool_waits(&s->entry->lease))
        return gone(s, "closed by client while it waited");
    return s->phase;
}

/* --- relay --- */

static void on_relay_linger(void *owner)
{
    struct session *s = owner;

    s->lingering = true;
    arm_deadline(s, LIMIT_LINGER);
}

static enum lease_end lease_end(const struct session *s)
{
    const struct relay *relay = &s->relay;

    if (!s->relaying)
        return LEASE_UNCLEAN;
    if (relay_leaves_clean(relay))
        return dialog_is_selected(&relay->dialog) ? LEASE_CLEAN_SELECTED : LEASE_CLEAN;
    return (relay->why == RELAY_BACKEND_LEFT || relay->why == RELAY_BACKEND_BROKEN) &&
                   !dialog_logout_seen(&relay->dialog)
               ? LEASE_LOST
               : LEASE_UNCLEAN;
}

/* The relay is over: the store's connection goes back. */
static void end_relay(struct session *s)
{
    enum lease_end end = lease_end(s);

    if (s->relaying)
        relay_release(&s->relay);
    s->relaying = false;
    pool_return(&s->connection, end);
}

/* A client that has logged out, or is to hear of its store, is still to be told, and to go. */
static enum phase_id after_relay(struct session *s)
{
    static const char *const reasons[] = {
        [RELAY_CLIENT_LEFT] = "closed by client",
        [RELAY_BACKEND_LEFT] = "closed by store",
        [RELAY_CLIENT_BROKEN] = "connection to client broke",
        [RELAY_BACKEND_BROKEN] = "connection to store broke",
        [RELAY_PROTOCOL] = "protocol limit",
        [RELAY_ASKED] = "ended by the proxy",
        [RELAY_LOGOUT] = "logout",
        [RELAY_STRANDED] = "closed by store",
    };
    enum relay_end why = s->relay.why;
    bool logout = (why == RELAY_BACKEND_LEFT || why == RELAY_CLIENT_LEFT) &&
                  dialog_logout_seen(&s->relay.dialog);

    gone(s, logout ? "logout" : reasons[why]);
    return why == RELAY_LOGOUT ? P_LINGER : why == RELAY_STRANDED ? P_STRANDED : P_GONE;
}

static void on_relay_end(void *owner)
{
    struct session *s = owner;

    session_move(s, after_relay(s));
}

/* Remembers what this shard can do: with policy = common the other shards' users see no more. */
static void learn_capabilities(struct session *s)
{
    struct home *home = s->home;
    struct span *known = &home->shard_capabilities[s->shard - home->env.conf->shards];
    struct span heard = backend_capabilities(pooled_backend(s->connection));
    char *copy;

    if (home->env.conf->capability.policy != CAPABILITY_COMMON || span_equal(*known, heard))
        return;
    copy = mem_copy_text(heard.ptr, heard.len);
    if (copy == NULL) /* what was known still serves */
        return;
    mem_free((void *)known->ptr);
    *known = (struct span){copy, heard.len};
}

/* Tells the client that it is logged in, with what the store can do. */
static bool welcome(struct session *s)
{
    char list[DIALOG_LINE_MAX];
    struct backend *backend = pooled_backend(s->connection);

    learn_capabilities(s);
    ptrdiff_t len =
        caps_rewrite(backend_capabilities(backend), &s->home->filter, list, sizeof list);
    bool told = len >= 0 && conn_write(s->client, buf_span(backend_notices(backend))) &&
                login_accept(&s->entry->login, (struct span){list, (size_t)len},
                             backend_login_text(backend));

    buf_release(backend_notices(backend)); /* the next session shall not hear them again */
    return told;
}

static void release_entry(struct session *s)
{
    if (s->entry == NULL)
        return;
    login_release(&s->entry->login);
    mem_free(s->entry);
    s->entry = NULL;
}

static enum phase_id enter_relay(struct session *s)
{
    struct relay *relay = &s->relay;
    struct backend *backend = pooled_backend(s->connection);
    struct counters *counters = s->home->env.counters;

    s->user = mem_copy_text(s->entry->user, strlen(s->entry->user));
    if (s->user == NULL || !welcome(s))
        return gone(s, s->user == NULL ? "out of memory" : conn_failure(s->client));
    counter_add(&counters->logins_ok, 1);
    histogram_add(&counters->login_seconds, uv_hrtime() / 1000000 - s->entry->identified_ms);
    log_login(s, LOG_LEVEL_INFO, "login ok", NULL);
    relay->env = &s->home->env;
    relay->client = s->client;
    relay->backend = backend_conn(backend);
    relay->filter = &s->home->filter;
    relay->scratch = s->home->scratch;
    relay->scratch_size = s->home->scratch_size;
    relay->on_linger = on_relay_linger;
    relay->on_end = on_relay_end;
    relay->owner = s;
    s->relaying = s->relayed = true;

    struct buf from_client = *login_rest(&s->entry->login);
    buf_init(login_rest(&s->entry->login), LOGIN_INPUT_MAX);
    release_entry(s);
    relay_start(relay, pool_would_keep(s->connection), &from_client, backend_rest(backend));
    buf_release(&from_client); /* nothing is left in it, unless the relay ended at once */
    if (s->phase == P_RELAY && s->home->stopping)
        relay_end_politely(relay, stopping_bye);
    return s->phase; /* it may have ended meanwhile */
}

/* --- stranded: the store is lost, the client has not been told --- */

static enum phase_id tell_stranded(struct session *s)
{
    conn_write(s->client, relay_last_words(&s->relay));
    return P_LINGER;
}

/* If many are stranded at once they are told one after the other, lest all come back at once. */
static enum phase_id enter_stranded(struct session *s)
{
    struct home *home = s->home;
    uint64_t delay = home->stopping ? 0 : pool_letting_go_delay(home->pool, s->shard);

    pool_return(&s->connection, LEASE_LOST);
    conn_set_owner(s->client, &client_events, s);
    if (delay == 0)
        return tell_stranded(s);
    uv_timer_start(&s->deadline, on_deadline, delay, 0);
    return P_STRANDED;
}

/* It wants something of its store, or leaves: it is told now. */
static enum phase_id read_stranded(struct session *s)
{
    ssize_t count = conn_read(s->client, s->home->scratch, s->home->scratch_size);

    if (count == CONN_AGAIN)
        return P_STRANDED;
    return count == CONN_BROKEN ? P_GONE : tell_stranded(s); /* the end comes again in linger */
}

/* --- linger: our last words are under way --- */

static enum phase_id enter_linger(struct session *s)
{
    if (s->relaying) {
        end_relay(s);
        conn_set_owner(s->client, &client_events, s);
    }
    conn_finish(s->client);
    return P_LINGER;
}

static enum phase_id read_and_drop(struct session *s)
{
    ssize_t count = conn_read(s->client, s->home->scratch, s->home->scratch_size);

    if (count > 0)
        secret_wipe(s->home->scratch, (size_t)count); /* it may be another try to log in */
    if (count != CONN_EOF || conn_queued(s->client) == 0)
        return count < 0 ? P_GONE : P_LINGER;
    s->client_ended = true; /* its half, but it still reads: on_drained ends it, or the deadline */
    conn_want_read(s->client, false);
    return P_LINGER;
}

/* --- gone --- */

static void log_end(struct session *s)
{
    struct log_line line;
    struct timespec wall;
    char peer[ADDRESS_TEXT_MAX];

    clock_gettime(CLOCK_REALTIME, &wall);
    address_text(&s->peer, peer);
    log_begin(&line, LOG_LEVEL_INFO, "session end");
    log_text(&line, "session", s->id);
    log_text(&line, "user", s->user);
    log_text(&line, "peer", peer);
    if (s->client != NULL && conn_tls(s->client) != NULL) {
        log_text(&line, "tls", SSL_get_version(conn_tls(s->client)));
        log_text(&line, "cipher", SSL_get_cipher_name(conn_tls(s->client)));
    }
    if (s->relayed) {
        char store[ADDRESS_TEXT_MAX];

        address_text(&s->store, store);
        log_text(&line, "shard", s->shard->title);
        log_text(&line, "store", store);
        log_text(&line, "lease", lease_kinds[s->lease_kind]);
        log_number(&line, "bytes_in", s->relay.bytes_from_client);
        log_number(&line, "bytes_out", s->relay.bytes_to_client);
    }
    log_number(&line, "duration_ms",
               (uint64_t)wall.tv_sec * 1000 + (uint64_t)wall.tv_nsec / 1000000 - s->accepted_ms);
    log_text(&line, "why", s->reason);
    log_write(&line);
}

static void handle_closed(uv_handle_t *handle)
{
    struct session *s = handle->data;
    struct home *home = s->home;

    mem_free(s);
    home->on_session_gone(home);
}

/*
 * Cancels what is outstanding and closes what is open; nothing calls back after this but the
 * timer's close.
 */
static enum phase_id enter_gone(struct session *s)
{
    log_end(s);
    counter_add(&s->home->env.counters->sessions_closed, 1);
    if (s->entry != NULL) {
        auth_cancel(&s->entry->verify);
        router_cancel(&s->entry->route);
        pool_cancel(&s->entry->lease);
    }
    end_relay(s);
    conn_close(&s->client);
    release_entry(s);
    mem_free(s->user);
    leave_home(s);
    uv_close((uv_handle_t *)&s->deadline, handle_closed);
    return P_GONE;
}

/* --- stopping --- */

static void stop_one(struct session *s)
{
    if (s->phase == P_RELAY) {
        relay_end_politely(&s->relay, stopping_bye);
    } else if (s->phase == P_STRANDED) {
        session_move(s, tell_stranded(s));
    } else if (s->phase == P_COMMAND) {
        conn_write(s->client, span_of(stopping_bye));
        session_move(s, finish_with(s, "shutdown"));
    } else if (s->phase == P_PROXY_HEADER || s->phase == P_TLS) {
        session_move(s, gone(s, "shutdown"));
    } /* else it is about to be answered, and ends then */
}

void sessions_stop(struct home *home)
{
    struct session *next;

    home->stopping = true;
    pool_stop(home->pool);
    for (struct session *s = home->sessions; s != NULL; s = next) {
        next = s->next;
        stop_one(s);
    }
}

void sessions_cut_off(struct home *home)
{
    while (home->sessions != NULL)
        session_move(home->sessions, gone(home->sessions, "cut off at shutdown"));
}
