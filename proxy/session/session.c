/* Owns the order of a session's phases, its first moment, and everything that must end with it. */
#include "proxy/session/session.h"

#include "proxy/base/clock.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/session/entry.h"
#include "proxy/session/relaying.h"
#include "proxy/session/traces.h"
#include "proxy/session/users.h"

#include <stdatomic.h>
#include <stdio.h>
#include <sys/random.h>

static enum phase_id enter_gone(struct session *s);

/* Verify, admit, route, lease, held and stranded have deadlines of their own. */
static const struct phase phases[PHASE_COUNT] = {
    /*                   name            limit        only end  on entry
                         client readable         deadline passed */
    [P_PROXY_HEADER] = {"proxy header", LIMIT_LOGIN, false, NULL, entry_read_proxy_header, NULL},
    [P_TLS] = {"tls", LIMIT_LOGIN, false, entry_enter_tls, NULL, entry_tls_overdue},
    [P_COMMAND] = {"command", LIMIT_LOGIN, false, entry_enter_command, entry_read_command,
                   entry_command_overdue},
    [P_MOVING] = {"moving", LIMIT_NONE, false, entry_enter_moving, NULL, NULL},
    [P_VERIFY] = {"verify", LIMIT_NONE, true, entry_enter_verify, entry_hear_end, NULL},
    [P_ADMIT] = {"admit", LIMIT_NONE, true, entry_enter_admit, entry_hear_end, NULL},
    [P_ROUTE] = {"route", LIMIT_NONE, true, entry_enter_route, entry_hear_end, NULL},
    [P_LEASE] = {"lease", LIMIT_NONE, true, entry_enter_lease, entry_hear_end, NULL},
    [P_HELD] = {"held", LIMIT_NONE, true, entry_enter_held, entry_hear_end, entry_held_overdue},
    /* the relay hears the client */
    [P_RELAY] = {"relay", LIMIT_IDLE, false, relaying_enter, NULL, relaying_overdue},
    [P_STRANDED] = {"stranded", LIMIT_NONE, false, relaying_enter_stranded, relaying_read_stranded,
                    relaying_tell_stranded},
    [P_LINGER] = {"linger", LIMIT_LINGER, false, relaying_enter_linger, relaying_read_and_drop,
                  relaying_linger_overdue},
    [P_GONE] = {"gone", LIMIT_NONE, false, enter_gone, NULL, NULL},
};

const struct phase *session_phases(void)
{
    return phases;
}

/* --- accept --- */

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
    socklen_t size = sizeof s->local;

    s->accepted_ms = clock_ms();
    s->peer = *peer;
    getsockname(conn_fd(s->client), &s->local.any, &size);
    make_id(s->id);
    counter_add(&s->home->env.counters->sessions_opened, 1);
    s->entry->login_started_ms = uv_now(s->home->env.loop);
    login_init(&s->entry->login, s->conf, s->listener, s->client);
    s->phase = PHASE_COUNT; /* none yet */
    phase_move(s, comes_with_proxy_header(s->listener, peer) ? P_PROXY_HEADER : entry_first(s));
}

bool session_accept(struct home *home, int fd, const union address *peer,
                    const struct conf_listener *listener)
{
    struct session *s = mem_new(sizeof *s);
    struct entry *entry = mem_new(sizeof *entry);
    struct conn *client = conn_open(&home->env, fd, &phase_client_events, s);

    if (s == NULL || entry == NULL || client == NULL) {
        conn_close(&client);
        mem_free(entry);
        mem_free(s);
        return false;
    }
    s->entry = entry;
    entry->session = s;
    s->conf = conf_hold(home->env.conf);
    s->client = client;
    s->listener = listener;
    phase_join_home(s, home);
    start(s, peer);
    return true;
}

/* --- gone --- */

static void log_address(struct log_line *line, const char *key, const union address *address)
{
    char text[ADDRESS_TEXT_MAX];

    if (address->any.sa_family != AF_INET && address->any.sa_family != AF_INET6)
        return; /* the system did not tell */
    address_text(address, text);
    log_text(line, key, text);
}

/* The whole story: what an account of her sessions needs is in this one line. */
static void log_end(struct session *s)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_INFO, "session end");
    log_text(&line, "session", s->id);
    if (s->user != NULL)
        log_text(&line, "user", users_name(s->user));
    if (s->master != NULL)
        log_text(&line, "master", s->master);
    log_address(&line, "peer", &s->peer);
    log_address(&line, "local", &s->local);
    log_text(&line, "listener", s->listener->title);
    log_text(&line, "method", s->method);
    if (s->client != NULL && conn_tls(s->client) != NULL) {
        log_text(&line, "tls", SSL_get_version(conn_tls(s->client)));
        log_text(&line, "cipher", SSL_get_cipher_name(conn_tls(s->client)));
    }
    if (s->relayed) {
        log_text(&line, "shard", s->shard->title);
        log_address(&line, "store", &s->store);
        log_text(&line, "lease", entry_lease_kinds[s->lease_kind]);
        log_number(&line, "commands", dialog_command_count(&s->relay.dialog));
        log_number(&line, "bytes_in", s->relay.bytes_from_client);
        log_number(&line, "bytes_out", s->relay.bytes_to_client);
    }
    log_number(&line, "duration_ms", clock_ms() - s->accepted_ms);
    log_text(&line, "why", s->reason);
    log_write(&line);
}

static void remember_end(struct session *s)
{
    if (s->relayed && s->user != NULL)
        history_ended(s->home->history, users_name(s->user), &s->peer,
                      pool_shard_title(s->home->pool, s->shard),
                      (clock_ms() - s->accepted_ms) / 1000, s->reason == NULL ? "" : s->reason);
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
    remember_end(s);
    if (s->user != NULL)
        traces_note(s, users_name(s->user), "session ends: %s", s->reason == NULL ? "" : s->reason);
    counter_add(&s->home->env.counters->sessions_closed, 1);
    if (s->entry != NULL) {
        auth_cancel(&s->entry->verify);
        admission_cancel(&s->entry->admit);
        router_cancel(&s->entry->route);
        pool_cancel(&s->entry->lease);
    }
    relaying_end(s);
    admission_leave(s->home->admission, &s->place);
    conn_close(&s->client);
    entry_release(s);
    users_leave(s);
    phase_set_shard(s, NULL);
    conf_release(&s->conf);
    mem_free(s->master);
    phase_leave_home(s);
    uv_close((uv_handle_t *)&s->deadline, handle_closed);
    return P_GONE;
}

/* --- stopping --- */

static void stop_one(struct session *s)
{
    if (s->phase == P_RELAY) {
        relay_end_politely(&s->relay, phase_stopping_bye);
    } else if (s->phase == P_STRANDED) {
        phase_move(s, relaying_tell_stranded(s));
    } else if (s->phase == P_COMMAND || s->phase == P_HELD) {
        conn_write(s->client, span_of(phase_stopping_bye));
        phase_move(s, entry_finish(s, "shutdown"));
    } else if (s->phase == P_PROXY_HEADER || s->phase == P_TLS) {
        phase_move(s, phase_gone(s, "shutdown"));
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
        phase_move(home->sessions, phase_gone(home->sessions, "cut off at shutdown"));
}
