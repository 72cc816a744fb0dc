/*
 * Owns the phases from the login's OK to the client's end: the relay, and what is still to be said
 * when it is over.
 */
#include "proxy/session/relaying.h"

#include "proxy/base/clock.h"
#include "proxy/base/mem.h"
#include "proxy/session/entry.h"
#include "proxy/session/traces.h"
#include "proxy/session/users.h"
#include "routing/freshness.h"

/* --- relay --- */

static void on_relay_linger(void *owner)
{
    struct session *s = owner;

    if (s->told_to_end && relay_has_left_store(&s->relay)) {
        phase_move(s, phase_linger(s, "closed by store"));
        return;
    }
    s->lingering = true;
    phase_arm(s, LIMIT_LINGER);
    /* A client that was told BYE may come again before it closes. */
    if (s->relay.why == RELAY_BACKEND_LEFT || s->relay.why == RELAY_BACKEND_BROKEN)
        admission_leave(s->home->admission, &s->place);
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
void relaying_end(struct session *s)
{
    enum lease_end end = lease_end(s);

    if ((end == LEASE_CLEAN || end == LEASE_CLEAN_SELECTED) && users_keeps_nothing(s))
        end = LEASE_DONE;
    traces_detach(s);
    if (s->relaying)
        relay_release(&s->relay);
    s->relaying = false;
    pool_return(&s->connection, end);
    users_left_store(s);
}

/* A client that was told to go, has logged out, or is to hear of its store, is still to leave. */
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

    phase_gone(s, logout ? "logout" : reasons[why]);
    if (why == RELAY_STRANDED)
        return P_STRANDED;
    return why == RELAY_LOGOUT || why == RELAY_ASKED ? P_LINGER : P_GONE;
}

static void on_relay_end(void *owner)
{
    struct session *s = owner;

    phase_move(s, after_relay(s));
}

/* Remembers what this shard can do: with policy = common the other shards' users see no more. */
static void learn_capabilities(struct session *s)
{
    struct home *home = s->home;
    struct span *known = &home->shard_capabilities[s->shard->id];
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

/* For the time after the entry. */
static bool keep_master(struct session *s)
{
    const char *master = s->entry->master;

    if (master[0] != '\0')
        s->master = mem_copy_text(master, strlen(master));
    return master[0] == '\0' || s->master != NULL;
}

/* The client may have spoken already, behind its login, and so may the store. */
static enum phase_id begin_relay(struct session *s)
{
    struct buf from_client = *login_rest(&s->entry->login);

    buf_init(login_rest(&s->entry->login), LOGIN_INPUT_MAX);
    entry_release(s);
    relay_start(&s->relay, pool_would_keep(s->connection), &from_client,
                backend_rest(pooled_backend(s->connection)));
    bool unheard = buf_len(&from_client) > 0; /* the relay has ended at once */
    buf_release(&from_client);
    if (s->phase == P_STRANDED && unheard)
        return relaying_tell_stranded(s); /* it waits for an answer */
    if (s->phase == P_RELAY && s->home->stopping)
        relay_end_politely(&s->relay, phase_stopping_bye);
    else if (s->phase == P_RELAY)
        users_is_relayed(s);
    return s->phase; /* it may have ended meanwhile */
}

enum phase_id relaying_enter(struct session *s)
{
    struct relay *relay = &s->relay;
    struct backend *backend = pooled_backend(s->connection);
    struct counters *counters = s->home->env.counters;

    if (freshness_fences_off(s->home->env.freshness, clock_ms()))
        return phase_gone(s, "cut off: no word from Redis");
    if (!keep_master(s))
        return phase_gone(s, "out of memory");
    if (!welcome(s))
        return phase_gone(s, conn_failure(s->client));
    counter_add(&counters->logins_ok, 1);
    histogram_add(&counters->login_seconds, clock_ms() - s->entry->identified_ms);
    entry_log(s, LOG_LEVEL_INFO, "login ok", NULL);
    traces_note(s, users_name(s->user), "is logged in at %s, by a connection that was %s",
                s->shard->title, entry_lease_kinds[s->lease_kind]);
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
    traces_attach(s);

    conn_end_secrecy(s->client);
    return begin_relay(s);
}

/* Whether a client that is lingered for has taken some of our last words since the last look. */
static bool client_drains(struct session *s)
{
    size_t before = s->undrained, now = conn_unacknowledged(s->client);

    s->undrained = now;
    return now > 0 && (before == 0 || now < before);
}

/* The relay's timer: it comes before the time is up, to see whether bytes have passed meanwhile. */
enum phase_id relaying_overdue(struct session *s)
{
    const struct conf_session *conf = &s->home->env.conf->session;
    uint64_t silent = uv_now(s->home->env.loop) - s->relay.last_active_ms;
    uint64_t limit = s->lingering ? conf->linger_timeout : conf->idle_timeout;

    if (users_see_deadline(s))
        return s->phase;
    if ((s->reason == NULL || s->told_to_end) && silent < limit) {
        /* A store may have much to say to a client that has closed its half. */
        if (conf->idle_notify > 0 && !s->lingering)
            relay_say_still_here(&s->relay);
        phase_arm_for(s, limit - silent);
    } else if (s->reason == NULL && !s->lingering) {
        s->reason = "idle time-out";
        phase_arm(s, LIMIT_LINGER);
        relay_end_politely(&s->relay, "* BYE [UNAVAILABLE] Idle for too long.\r\n");
    } else if (client_drains(s)) {
        phase_arm(s, LIMIT_LINGER);
    } else {
        return phase_gone(s, "time-out");
    }
    return s->phase; /* it may have ended meanwhile */
}

/* --- stranded: the store is lost, the client has not been told --- */

enum phase_id relaying_tell_stranded(struct session *s)
{
    conn_write(s->client, relay_last_words(&s->relay));
    return P_LINGER;
}

/* If many are stranded at once they are told one after the other, lest all come back at once. */
enum phase_id relaying_enter_stranded(struct session *s)
{
    struct home *home = s->home;
    uint64_t delay = home->stopping ? 0 : pool_letting_go_delay(home->pool, s->shard);

    pool_return(&s->connection, LEASE_LOST);
    users_left_store(s);
    conn_set_owner(s->client, &phase_client_events, s);
    if (delay == 0)
        return relaying_tell_stranded(s);
    phase_arm_for(s, delay);
    return P_STRANDED;
}

/* It wants something of its store, or leaves: it is told now. */
enum phase_id relaying_read_stranded(struct session *s)
{
    ssize_t count = conn_read(s->client, s->home->scratch, s->home->scratch_size);

    if (count == CONN_AGAIN)
        return P_STRANDED;
    return count == CONN_BROKEN ? P_GONE
                                : relaying_tell_stranded(s); /* the end comes again in linger */
}

/* --- linger: our last words are under way --- */

enum phase_id relaying_enter_linger(struct session *s)
{
    if (s->relaying) {
        relaying_end(s);
        conn_set_owner(s->client, &phase_client_events, s);
    }
    admission_leave(s->home->admission, &s->place);
    if (s->entry != NULL)
        login_release(&s->entry->login); /* what it has said is over, passwords and all */
    conn_finish(s->client);
    return P_LINGER;
}

enum phase_id relaying_read_and_drop(struct session *s)
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

enum phase_id relaying_linger_overdue(struct session *s)
{
    if (!client_drains(s))
        return phase_gone(s, "time-out");
    phase_arm(s, LIMIT_LINGER);
    return P_LINGER;
}
