/*
 * Owns the change of phases: what is armed and heard in each, and the client's events until it is
 * relayed.
 */
#include "proxy/session/phase.h"

#include "proxy/base/log.h"

const char phase_stopping_bye[] =
    "* BYE [UNAVAILABLE] The server is shutting down, please connect again.\r\n";

static const struct phase *row_of(const struct session *s, enum phase_id id)
{
    return &s->home->phases[id];
}

static void listen_to_client(struct session *s, const struct phase *row)
{
    conn_want_read(s->client, row->readable != NULL && !row->only_end);
    if (row->only_end)
        conn_want_end(s->client);
}

/* The session is in this phase no more (-1), or from now on. */
static void count_phase(const struct session *s, unsigned id, int change)
{
    static const size_t gauges[PHASE_COUNT] = {
        [P_PROXY_HEADER] = offsetof(struct counters, in_proxy_header),
        [P_TLS] = offsetof(struct counters, in_tls),
        [P_COMMAND] = offsetof(struct counters, in_command),
        [P_MOVING] = offsetof(struct counters, in_moving),
        [P_VERIFY] = offsetof(struct counters, in_verify),
        [P_ADMIT] = offsetof(struct counters, in_admit),
        [P_ROUTE] = offsetof(struct counters, in_route),
        [P_LEASE] = offsetof(struct counters, in_lease),
        [P_HELD] = offsetof(struct counters, in_held),
        [P_RELAY] = offsetof(struct counters, in_relay),
        [P_STRANDED] = offsetof(struct counters, in_stranded),
        [P_LINGER] = offsetof(struct counters, in_linger),
    };

    if (id < P_GONE)
        gauge_add((_Atomic uint64_t *)((char *)s->home->env.counters + gauges[id]), change);
}

void phase_move(struct session *s, enum phase_id next)
{
    while (next != s->phase) {
        const struct phase *row = row_of(s, next);

        count_phase(s, s->phase, -1);
        count_phase(s, next, 1);
        s->phase = (uint8_t)next;
        log_event(LOG_LEVEL_DEBUG, "phase", "session=%s phase=\"%s\"", s->id, row->name);
        if (next != P_MOVING && next != P_GONE) {
            phase_arm(s, row->limit);
            if (next != P_RELAY)
                listen_to_client(s, row);
        }
        if (row->enter != NULL)
            next = row->enter(s);
    }
}

enum phase_id phase_gone(struct session *s, const char *reason)
{
    if (s->reason == NULL)
        s->reason = reason;
    return P_GONE;
}

enum phase_id phase_linger(struct session *s, const char *reason)
{
    phase_gone(s, reason);
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
    phase_move(s, P_COMMAND);
}

static void on_readable(void *owner)
{
    struct session *s = owner;

    if (row_of(s, s->phase)->readable != NULL)
        phase_move(s, row_of(s, s->phase)->readable(s));
}

static void on_drained(void *owner)
{
    struct session *s = owner;

    if (s->phase == P_LINGER && s->client_ended)
        phase_move(s, P_GONE);
}

static void on_broken(void *owner)
{
    struct session *s = owner;

    if (s->phase == P_TLS)
        counter_add(&s->home->env.counters->tls_failed, 1);
    phase_move(s, phase_gone(s, conn_failure(s->client)));
}

const struct conn_events phase_client_events = {on_open, on_readable, on_drained, on_broken};

/* --- deadlines --- */

static void on_deadline(uv_timer_t *timer)
{
    struct session *s = timer->data;
    const struct phase *row = row_of(s, s->phase);

    phase_move(s, row->overdue != NULL ? row->overdue(s) : phase_gone(s, "time-out"));
}

/*
 * While clients in IDLE are to hear of us the timer comes more often, a little early at random, but
 * not once there is a reason to end; and in time for a relay that is to end.
 */
void phase_arm_for(struct session *s, uint64_t timeout)
{
    uint64_t notify = s->home->env.conf->session.idle_notify;
    uint64_t now = uv_now(s->home->env.loop);

    if (s->phase == P_RELAY && notify > 0 && s->reason == NULL) {
        uint64_t jittered = notify - uv_hrtime() % (notify / 4 + 1);

        timeout = timeout < jittered ? timeout : jittered;
    }
    if (s->phase == P_RELAY && s->end_ms > 0 && s->end_ms < now + timeout)
        timeout = s->end_ms > now ? s->end_ms - now : 0;
    uv_timer_start(&s->deadline, on_deadline, timeout, 0);
}

void phase_arm(struct session *s, enum limit limit)
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

        phase_arm_for(s, timeout);
    }
}

/* --- shard --- */

void phase_set_shard(struct session *s, const struct conf_shard *shard)
{
    const struct conf *old = s->shard_conf; /* what is to be set may be of it */

    s->shard = shard;
    s->shard_conf = shard == NULL ? NULL : conf_hold(s->home->env.conf);
    conf_release(&old);
}

/* --- home --- */

void phase_join_home(struct session *s, struct home *home)
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

void phase_leave_home(struct session *s)
{
    if (s->link == NULL)
        return;
    for (struct phase_walk *walk = s->home->walks; walk != NULL; walk = walk->next)
        if (walk->at == s)
            walk->at = s->next;
    *s->link = s->next;
    if (s->next != NULL)
        s->next->link = s->link;
    s->link = NULL;
}

void phase_walk_begin(struct phase_walk *walk, struct home *home)
{
    *walk = (struct phase_walk){
        .home = home, .at = home->sessions, .next = home->walks, .link = &home->walks};
    if (walk->next != NULL)
        walk->next->link = &walk->next;
    home->walks = walk;
}

void phase_walk_end(struct phase_walk *walk)
{
    if (walk->home == NULL)
        return;
    *walk->link = walk->next;
    if (walk->next != NULL)
        walk->next->link = walk->link;
    walk->home = NULL;
}

struct session *phase_walk_next(struct phase_walk *walk)
{
    struct session *s = walk->home == NULL ? NULL : walk->at;

    if (s == NULL)
        phase_walk_end(walk);
    else
        walk->at = s->next;
    return s;
}
