/*
 * Owns the command `status`. What workers and Redis must be asked for is waited for, but not for
 * long: a status that hangs with what it should tell of is none.
 */
#include "proxy/admin/handlers.h"

#include "auth/chain.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/process_metrics.h"
#include "proxy/fleet/fleet.h"
#include "proxy/net/redis_link.h"
#include "proxy/net/tls.h"
#include "proxy/process/ask.h"
#include "proxy/process/control.h"

#include <stdio.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_MS = 2000, SERVERS_MAX = 8, ROLE_MAX = 16 };

struct server {
    char address[128];
    const char *state;
    size_t connections;
};

/* What one worker says. Only it touches this, until `has_answered`. */
struct part {
    struct server servers[SERVERS_MAX];
    size_t server_count;
    _Atomic bool has_answered;
};

struct status {
    struct ask ask;          /* first member */
    struct admin_call *call; /* NULL: it has been answered, or nobody waits for it any more */
    struct control *control;
    struct part *parts;
    struct redis_command *role_command;
    struct turn_task role_told;
    char role[ROLE_MAX];
    uv_timer_t deadline;
    bool workers_are_asked; /* letters are under way */
    bool timer_is_open;
};

/* Takes over the value; false when there was no memory for it. */
static bool set(json_t *object, const char *name, json_t *value)
{
    return json_object_set_new(object, name, value) == 0;
}

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

/* --- the process --- */

static json_t *list_words(const struct conf_words *words)
{
    json_t *list = json_array();

    for (size_t i = 0; i < words->count; i++)
        json_array_append_new(list, json_string(words->items[i]));
    return list;
}

static json_t *describe_time(int64_t at)
{
    struct tm utc;
    char text[32] = "";
    time_t seconds = (time_t)at;

    if (gmtime_r(&seconds, &utc) != NULL)
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return json_string(text);
}

static const char *state_of(const struct control *control)
{
    return control->draining ? "draining" : control->stopping ? "stopping" : "running";
}

static bool add_process(json_t *status, const struct control *control)
{
    const struct conf *conf = control->env.conf;
    uint64_t uptime_ms = uv_now(control->env.loop) - control->started_ms;

    return set(status, "version", json_string(IMAPMUX_VERSION)) &&
           set(status, "pid", number((uint64_t)getpid())) &&
           set(status, "state", json_string(state_of(control))) &&
           set(status, "uptime_seconds", number(uptime_ms / 1000)) &&
           set(status, "configuration", admin_text(control->conf_path)) &&
           set(status, "configuration_read", describe_time(conf->read_at)) &&
           set(status, "log_level", json_string(log_level_name(log_level()))) &&
           set(status, "auth_sources", list_words(&conf->auth.sources)) &&
           set(status, "route_sources", list_words(&conf->route.sources)) &&
           set(status, "workers", number(workers_count(control->workers))) &&
           set(status, "sessions", number(workers_session_count(control->workers))) &&
           set(status, "max_sessions", number((uint64_t)conf->process.max_sessions));
}

static json_t *describe_resources(void)
{
    struct rlimit limit = {0};
    size_t memory = 0;
    int count = process_count_descriptors();

    getrlimit(RLIMIT_NOFILE, &limit);
    return json_pack("{s:o, s:I, s:o}", "descriptors",
                     count < 0 ? json_null() : json_integer(count), "max_descriptors",
                     (json_int_t)limit.rlim_cur, "memory_bytes",
                     uv_resident_set_memory(&memory) == 0 ? number(memory) : json_null());
}

/* --- sessions --- */

/* Those that somebody is in. */
static json_t *describe_phases(const struct workers *workers)
{
#define PHASE(name)                                                                                \
    {                                                                                              \
#name, offsetof(struct counters, in_##name)                                                \
    }
    static const struct {
        const char *name;
        size_t offset;
    } phases[] = {PHASE(proxy_header), PHASE(tls),   PHASE(command),  PHASE(moving),
                  PHASE(verify),       PHASE(admit), PHASE(route),    PHASE(lease),
                  PHASE(held),         PHASE(relay), PHASE(stranded), PHASE(linger)};
#undef PHASE
    json_t *told = json_object();

    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
        uint64_t count = workers_metric(workers, phases[i].offset);

        if (count > 0 && !set(told, phases[i].name, number(count)))
            break;
    }
    return told;
}

static json_t *describe_logins(const struct workers *workers)
{
    return json_pack(
        "{s:I, s:I}", "ok",
        (json_int_t)workers_metric(workers, offsetof(struct counters, logins_ok)), "refused",
        (json_int_t)workers_metric(workers, offsetof(struct counters, logins_refused)));
}

static json_t *list_workers(const struct status *status)
{
    const struct workers *workers = status->control->workers;
    json_t *list = json_array();

    for (size_t i = 0; i < workers_count(workers); i++)
        json_array_append_new(
            list,
            json_pack(
                "{s:I, s:s, s:I, s:I, s:I}", "worker", (json_int_t)i, "state",
                atomic_load(&status->parts[i].has_answered) ? "well" : "silent", "relayed",
                (json_int_t)worker_metric(workers, i, offsetof(struct counters, in_relay)),
                "logins_ok",
                (json_int_t)worker_metric(workers, i, offsetof(struct counters, logins_ok)),
                "logins_refused",
                (json_int_t)worker_metric(workers, i, offsetof(struct counters, logins_refused))));
    return list;
}

/* --- what it depends on --- */

static json_t *describe_redis(const struct status *status)
{
    const struct redis_link *redis = status->control->env.redis;
    const char *address = redis_link_address(redis);

    return json_pack("{s:s, s:s*, s:s*}", "state", address == NULL ? "away" : "connected",
                     "address", address, "role", *status->role == '\0' ? NULL : status->role);
}

/* Every worker has servers of its own, in the same order: how many of them find each one well. */
static json_t *list_servers(const struct status *status)
{
    json_t *list = json_array();

    for (size_t at = 0; at < SERVERS_MAX; at++) {
        const struct server *server = NULL;
        json_int_t up = 0, connections = 0;

        for (size_t i = 0; i < workers_count(status->control->workers); i++) {
            const struct part *part = &status->parts[i];

            if (!atomic_load(&part->has_answered) || at >= part->server_count)
                continue;
            server = &part->servers[at];
            up += strcmp(server->state, "up") == 0;
            connections += (json_int_t)server->connections;
        }
        if (server != NULL)
            json_array_append_new(list,
                                  json_pack("{s:o, s:s, s:I, s:I}", "server",
                                            admin_text(server->address), "state", server->state,
                                            "up_for_workers", up, "connections", connections));
    }
    return list;
}

static json_t *describe_stores(struct control *control)
{
    const struct conf *conf = control->env.conf;
    json_t *down = json_array(), *withdrawn = json_array();

    for (size_t i = 0; i < conf->shard_count; i++) {
        const struct store *store = stores_of(workers_stores(control->workers), &conf->shards[i]);
        json_t *title = json_string(store->title);

        if (atomic_load(&store->is_down))
            json_array_append(down, title);
        if (atomic_load(&store->order) != STORE_UP)
            json_array_append(withdrawn, title);
        json_decref(title);
    }
    return json_pack("{s:I, s:o, s:o}", "up",
                     (json_int_t)(conf->shard_count - json_array_size(down)), "down", down,
                     "withdrawn", withdrawn);
}

static json_t *list_certificates(const struct tls *tls)
{
    json_t *list = json_array();

    for (size_t i = 0; i < tls_certificate_count(tls); i++) {
        struct tls_certificate certificate;

        tls_certificate(tls, i, &certificate);
        json_int_t left = certificate.not_after - (int64_t)time(NULL);
        json_array_append_new(
            list,
            json_pack("{s:o, s:o, s:o, s:I, s:o}", "title", admin_text(certificate.title), "name",
                      admin_text(certificate.name), "expires", describe_time(certificate.not_after),
                      "left_seconds", left < 0 ? 0 : left, "file", admin_text(certificate.file)));
    }
    return list;
}

static json_t *describe_fleet(const struct control *control)
{
    uint64_t proxies = workers_metric(control->workers, offsetof(struct counters, fleet_proxies));

    return json_pack("{s:s, s:I}", "id", fleet_id(control->fleet), "proxies",
                     control->env.redis == NULL ? 1 : (json_int_t)proxies);
}

static bool add_surroundings(json_t *told, const struct status *status)
{
    struct control *control = status->control;
    json_t *servers = list_servers(status);
    bool good = (control->env.redis == NULL || set(told, "redis", describe_redis(status))) &&
                (json_array_size(servers) == 0 || json_object_set(told, "ldap", servers) == 0) &&
                set(told, "stores", describe_stores(control)) &&
                set(told, "certificates", list_certificates(control->tls)) &&
                set(told, "fleet", describe_fleet(control));

    json_decref(servers);
    return good;
}

/* --- the answer --- */

static void release(struct status *status)
{
    if (status->workers_are_asked || status->timer_is_open)
        return;
    mem_free(status->parts);
    mem_free(status);
}

static void timer_closed(uv_handle_t *handle)
{
    struct status *status = handle->data;

    status->timer_is_open = false;
    release(status);
}

/* Nobody waits any more. What is under way at the workers comes back by itself. */
static void end(struct status *status)
{
    status->call = NULL;
    if (status->role_command != NULL)
        redis_command_cancel(status->role_command);
    turn_cancel(status->control->env.turn, &status->role_told);
    uv_close((uv_handle_t *)&status->deadline, timer_closed);
}

static void answer(struct status *status)
{
    struct admin_call *call = status->call;
    const struct workers *workers = status->control->workers;
    json_t *told = json_object();

    if (add_process(told, status->control) && set(told, "phases", describe_phases(workers)) &&
        set(told, "logins", describe_logins(workers)) &&
        set(told, "worker_threads", list_workers(status)) && add_surroundings(told, status) &&
        set(told, "resources", describe_resources()))
        admin_answer(call, json_incref(told));
    else
        admin_answer(call, NULL);
    json_decref(told);
    end(status);
}

static void answer_if_complete(struct status *status)
{
    if (status->call != NULL && !status->workers_are_asked && status->role_command == NULL)
        answer(status);
}

/* --- what is asked --- */

static void note_server(void *owner, const struct auth_server *server)
{
    struct part *part = owner;

    if (part->server_count >= SERVERS_MAX)
        return;
    struct server *own = &part->servers[part->server_count++];
    snprintf(own->address, sizeof own->address, "%s", server->address);
    own->state = server->state;
    own->connections = server->connections;
}

static void visit(struct ask *ask, struct home *home, size_t worker)
{
    struct part *part = &((struct status *)ask)->parts[worker];

    chain_each_server(auth_chain(home->auth), note_server, part);
    atomic_store(&part->has_answered, true);
}

static void on_asked(struct ask *ask)
{
    struct status *status = (struct status *)ask;

    status->workers_are_asked = false;
    answer_if_complete(status);
    release(status);
}

/* From hiredis: only noted. */
static void on_role(void *owner, const redisReply *reply, const struct err *err)
{
    struct status *status = owner;

    (void)err; /* then it is not known */
    status->role_command = NULL;
    if (reply != NULL && reply->type == REDIS_REPLY_ARRAY && reply->elements > 0 &&
        reply->element[0]->type == REDIS_REPLY_STRING)
        snprintf(status->role, sizeof status->role, "%s", reply->element[0]->str);
    turn_post(status->control->env.turn, &status->role_told);
}

static void role_told(struct turn_task *task)
{
    answer_if_complete((struct status *)((char *)task - offsetof(struct status, role_told)));
}

static void on_deadline(uv_timer_t *timer)
{
    answer(timer->data);
}

static void cancel(struct admin_call *call)
{
    end(call->state);
}

static void ask_for_role(struct status *status)
{
    static const char *argv[] = {"ROLE"};
    static const size_t lengths[] = {4};
    struct redis_link *redis = status->control->env.redis;
    struct err err;

    if (redis != NULL && redis_link_address(redis) != NULL)
        status->role_command = redis_link_send(redis, 1, argv, lengths, on_role, status, &err);
}

void run_status(struct admin_call *call)
{
    struct control *control = call->context;
    struct status *status = mem_new(sizeof *status);

    if (status != NULL)
        status->parts = mem_array(workers_count(control->workers), sizeof *status->parts);
    if (status == NULL || status->parts == NULL) {
        mem_free(status);
        admin_answer(call, NULL);
        return;
    }
    status->ask = (struct ask){.visit = visit, .on_done = on_asked};
    status->control = control;
    status->role_told.run = role_told;
    status->workers_are_asked = ask_workers(&status->ask, control->workers, &control->inbox);
    if (!status->workers_are_asked) {
        release(status);
        admin_answer(call, NULL);
        return;
    }
    status->call = call;
    call->state = status;
    call->cancel = cancel;
    status->timer_is_open = true;
    uv_timer_init(control->env.loop, &status->deadline);
    status->deadline.data = status;
    uv_timer_start(&status->deadline, on_deadline, PATIENCE_MS, 0);
    ask_for_role(status);
}
