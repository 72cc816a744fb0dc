/* Owns what is known of each directory server, and the probes; one probe at a time. */
#include "auth/ldap/servers.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"

enum { PAUSE_FIRST_MS = 100, PAUSE_MAX_MS = 5000 };

static void probe(uv_timer_t *timer);
static void timer_closed(uv_handle_t *handle);

bool ldap_servers_init(struct ldap_servers *servers, const struct env *env,
                       const struct conf_words *uris, bool start_tls,
                       void (*on_change)(struct ldap_servers *),
                       void (*on_released)(struct ldap_servers *))
{
    bool by_template = env->conf->ldap.dn_template[0] != '\0';

    *servers = (struct ldap_servers){
        .env = env, .count = uris->count, .on_change = on_change, .on_released = on_released};
    servers->list = mem_array(uris->count, sizeof *servers->list);
    if (servers->list == NULL)
        return false;
    for (size_t i = 0; i < uris->count; i++)
        servers->list[i].target = (struct ldap_target){uris->items[i], start_tls, !by_template};
    uv_timer_init(env->loop, &servers->timer);
    servers->timer.data = servers;
    servers->work.data = servers;
    return true;
}

/* --- what is known --- */

static bool is_well(const struct ldap_server *server)
{
    return !server->in_doubt && !server->down;
}

bool ldap_servers_best(const struct ldap_servers *servers, size_t *index_out)
{
    for (size_t i = 0; i < servers->count; i++)
        if (is_well(&servers->list[i])) {
            *index_out = i;
            return true;
        }
    return false;
}

bool ldap_servers_may_use(const struct ldap_servers *servers, size_t index)
{
    size_t best = index;

    (void)ldap_servers_best(servers, &best);
    return !servers->list[index].in_doubt && index <= best;
}

bool ldap_servers_has_hope(const struct ldap_servers *servers)
{
    for (size_t i = 0; i < servers->count; i++)
        if (!servers->list[i].down)
            return true;
    return false;
}

const struct ldap_target *ldap_servers_target(const struct ldap_servers *servers, size_t index)
{
    return &servers->list[index].target;
}

/* --- what changes --- */

/* Which server is used from now on: counts and tells. */
static void note_change(struct ldap_servers *servers)
{
    struct counters *counters = servers->env->counters;
    bool gone = !ldap_servers_has_hope(servers);
    size_t best = servers->current;

    if (gone != servers->gone)
        gauge_add(&counters->ldap_down, gone ? 1 : -1);
    servers->gone = gone;
    (void)ldap_servers_best(servers, &best);
    if (best == servers->current)
        return;

    bool is_over = best > servers->current;

    counter_add(is_over ? &counters->ldap_fail_overs : &counters->ldap_fail_backs, 1);
    log_event_limited(LOG_LEVEL_WARNING, is_over ? "ldap fail-over" : "ldap fail-back",
                      "from %s to %s", servers->list[servers->current].target.uri,
                      servers->list[best].target.uri);
    servers->current = best;
}

/*
 * When a server is asked again: soon and then less often while none is well; now and then while
 * another one serves.
 */
static uint64_t due_at(const struct ldap_servers *servers, const struct ldap_server *server)
{
    size_t best;

    if (server->in_doubt && !server->down)
        return 0;
    return server->failed_at + (ldap_servers_best(servers, &best)
                                    ? servers->env->conf->ldap.fail_back
                                    : server->pause_ms);
}

/* The timer waits for the probe that is due first; servers behind the best one are not asked. */
static void schedule(struct ldap_servers *servers)
{
    uint64_t now = uv_now(servers->env->loop), first = UINT64_MAX;
    size_t end = servers->count;

    if (servers->releasing || servers->probing)
        return;
    uv_timer_stop(&servers->timer);
    (void)ldap_servers_best(servers, &end);
    for (size_t i = 0; i < end; i++) {
        uint64_t due = due_at(servers, &servers->list[i]);

        if (due < first) {
            first = due;
            servers->probed = i;
        }
    }
    if (first != UINT64_MAX)
        uv_timer_start(&servers->timer, probe, first > now ? first - now : 0, 0);
}

static void mark_down(struct ldap_servers *servers, struct ldap_server *server)
{
    server->down = true;
    server->failed_at = uv_now(servers->env->loop);
    server->pause_ms = server->pause_ms == 0 ? PAUSE_FIRST_MS : server->pause_ms * 2;
    if (server->pause_ms > PAUSE_MAX_MS)
        server->pause_ms = PAUSE_MAX_MS;
}

static void mark_well(struct ldap_server *server)
{
    server->in_doubt = server->down = false;
    server->pause_ms = 0;
}

void ldap_servers_failed(struct ldap_servers *servers, size_t index, const struct err *err)
{
    struct ldap_server *server = &servers->list[index];

    if (server->down) /* others were under way with the first; together they count once */
        return;
    log_event_limited(LOG_LEVEL_ERROR, "ldap connect failed", "%s", err->text);
    mark_down(servers, server);
    note_change(servers);
    schedule(servers);
}

void ldap_servers_doubt(struct ldap_servers *servers, size_t index)
{
    struct ldap_server *server = &servers->list[index];

    if (!is_well(server))
        return;
    server->in_doubt = true;
    note_change(servers);
    schedule(servers);
}

void ldap_servers_answered(struct ldap_servers *servers, size_t index)
{
    struct ldap_server *server = &servers->list[index];

    if (!server->in_doubt)
        return;
    mark_well(server);
    note_change(servers);
    schedule(servers);
}

/* --- probes --- */

static void ask(uv_work_t *work)
{
    struct ldap_servers *servers = work->data;

    servers->answered = ldap_dial_probe(
        &servers->env->conf->ldap, &servers->list[servers->probed].target, &servers->probe_err);
}

static void asked(uv_work_t *work, int status)
{
    struct ldap_servers *servers = work->data;
    struct ldap_server *server = &servers->list[servers->probed];

    servers->probing = false;
    if (servers->releasing) {
        uv_close((uv_handle_t *)&servers->timer, timer_closed);
        return;
    }
    if (status == 0 && servers->answered) {
        if (server->down)
            log_event_limited(LOG_LEVEL_WARNING, "ldap server is back", "%s", server->target.uri);
        mark_well(server);
    } else if (!is_well(server)) { /* it may have answered an operation meanwhile */
        log_event_limited(server->down ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, "ldap server is down",
                          "%s", servers->probe_err.text);
        mark_down(servers, server);
    }
    note_change(servers);
    schedule(servers);
    servers->on_change(servers);
}

static void probe(uv_timer_t *timer)
{
    struct ldap_servers *servers = timer->data;

    servers->probing = true;
    servers->answered = false;
    servers->probe_err = (struct err){0};
    /* fails only without a callback */
    uv_queue_work(servers->env->loop, &servers->work, ask, asked);
}

/* --- end --- */

void ldap_servers_release(struct ldap_servers *servers)
{
    servers->releasing = true;
    if (servers->gone)
        gauge_add(&servers->env->counters->ldap_down, -1);
    uv_timer_stop(&servers->timer);
    if (servers->probing)
        (void)uv_cancel((uv_req_t *)&servers->work); /* `asked` comes either way */
    else
        uv_close((uv_handle_t *)&servers->timer, timer_closed);
}

static void timer_closed(uv_handle_t *handle)
{
    struct ldap_servers *servers = handle->data;

    mem_free(servers->list);
    servers->on_released(servers);
}
