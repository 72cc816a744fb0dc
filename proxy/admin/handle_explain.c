/* Owns the handlers that tell of one user: where her mail is, and how she fares. */
#include "proxy/admin/handlers.h"

#include "auth/username.h"
#include "proxy/admin/verdict.h"
#include "proxy/base/mem.h"
#include "proxy/process/control.h"
#include "proxy/store/store_login.h"

#include <stdio.h>
#include <time.h>

struct explain {
    struct inquiry inquiry;  /* first member */
    struct admin_call *call; /* NULL: nobody waits for the answer any more */
    struct control *control;
    void (*tell)(struct explain *explain);
};

/* --- values --- */

/* Of what others say, which need not be UTF-8. "" and NULL are null. */
static json_t *text(const char *value)
{
    return value == NULL || value[0] == '\0' ? json_null() : admin_text(value);
}

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

/* Takes over the value; false when there was no memory for it. */
static bool set(json_t *object, const char *name, json_t *value)
{
    return json_object_set_new(object, name, value) == 0;
}

static const char *state_name(enum route_state state)
{
    static const char *const names[] = {[ROUTE_ACTIVE] = "active",
                                        [ROUTE_MOVING] = "moving",
                                        [ROUTE_COMMITTED] = "committed",
                                        [ROUTE_DISABLED] = "disabled",
                                        [ROUTE_GONE] = "gone"};

    return names[state];
}

static const char *time_text(time_t at, char out[32])
{
    struct tm tm;

    if (gmtime_r(&at, &tm) == NULL || strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        out[0] = '\0';
    return out;
}

/* --- route --- */

static void tell_route(struct explain *explain)
{
    const struct inquiry *inquiry = &explain->inquiry;
    const struct route *route = &inquiry->route;
    bool is_needed = false; /* whether the account may have told the route */
    struct err err;
    const struct conf_words *sources = &explain->control->env.conf->route.sources;

    for (size_t i = 0; i < sources->count; i++)
        is_needed = is_needed || strcmp(sources->items[i], "ldap") == 0;
    if (is_needed && inquiry->account.kind != ERR_NONE &&
        inquiry->account.kind != ERR_CREDENTIALS) {
        err_set(&err, inquiry->account.kind, "%s: %s", inquiry->user, inquiry->account.text);
        admin_fail(explain->call, &err);
        return;
    }
    if (!inquiry->has_route) {
        err_set(&err, inquiry->route_err.kind, "%s: %s", inquiry->name, inquiry->route_err.text);
        admin_fail(explain->call, &err);
        return;
    }
    json_t *told = json_object();
    if (set(told, "user", text(inquiry->name)) && set(told, "shard", text(route->shard)) &&
        set(told, "state", text(state_name(route->state))) &&
        set(told, "source", text(route->source)) && set(told, "epoch", number(route->epoch)) &&
        set(told, "backend_user", text(route->backend_user)) &&
        set(told, "age_ms", number(route->age_ms)) &&
        set(told, "stale", json_boolean(route->stale)) &&
        (route->target[0] == '\0' || set(told, "target", text(route->target))))
        admin_answer(explain->call, json_incref(told));
    else
        admin_answer(explain->call, NULL);
    json_decref(told);
}

/* --- explain --- */

static json_t *list_networks(const struct inquiry *inquiry)
{
    json_t *list = json_array();

    for (size_t i = 0; i < inquiry->network_count && i < INQUIRY_NETWORKS_MAX; i++) {
        char address[ADDRESS_TEXT_MAX];

        address_host_text(&inquiry->networks[i].address, address);
        json_array_append_new(list,
                              json_sprintf("%s/%u", address, inquiry->networks[i].prefix_bits));
    }
    if (inquiry->network_count > INQUIRY_NETWORKS_MAX)
        json_array_append_new(list, json_string("..."));
    return list;
}

static json_t *describe_account(const struct inquiry *inquiry)
{
    switch (inquiry->account.kind) {
    case ERR_NONE:
        return json_string("known");
    case ERR_CREDENTIALS:
        return json_string("unknown");
    default:
        return text(inquiry->account.text);
    }
}

static bool add_account(json_t *told, const struct inquiry *inquiry)
{
    static const char *const words[] = {
        [CACHE_UNKNOWN] = "no", [CACHE_VERIFIED] = "yes", [CACHE_STALE] = "stale"};
    const struct auth_memory *memory = &inquiry->memory;
    bool is_cached = memory->password != CACHE_UNKNOWN;

    return set(told, "authenticator", text(inquiry->source)) &&
           set(told, "account", describe_account(inquiry)) &&
           set(told, "told_shard", text(inquiry->told_shard)) &&
           set(told, "told_backend_user", text(inquiry->told_backend_user)) &&
           set(told, "networks", list_networks(inquiry)) &&
           set(told, "password_cached", text(words[memory->password])) &&
           set(told, "cached_since_seconds",
               is_cached ? number(memory->password_age_ms / 1000) : json_null()) &&
           set(told, "throttle_failures", number(memory->failures)) &&
           set(told, "throttle_delay_ms", number(memory->delay_ms));
}

static bool add_route(json_t *told, const struct inquiry *inquiry)
{
    const struct route *route = inquiry->has_route ? &inquiry->route : NULL;

    return set(told, "route_source", route == NULL ? json_null() : text(route->source)) &&
           set(told, "shard", route == NULL ? json_null() : text(route->shard)) &&
           set(told, "state", route == NULL ? json_null() : text(state_name(route->state))) &&
           set(told, "target", route == NULL ? json_null() : text(route->target)) &&
           set(told, "epoch", route == NULL ? json_null() : number(route->epoch)) &&
           set(told, "route_age_seconds",
               route == NULL ? json_null() : number(route->age_ms / 1000)) &&
           set(told, "stale", route == NULL ? json_null() : json_boolean(route->stale)) &&
           set(told, "backend_user", route == NULL ? json_null() : text(route->backend_user)) &&
           set(told, "route_error", text(inquiry->route_err.text)) &&
           set(told, "held", json_boolean(inquiry->is_held));
}

/* How one with these proofs is logged in there; NULL: no shard is known. */
static json_t *login_way(const struct conf_shard *shard, const struct secret *password)
{
    struct store_client client = {.password = password};

    return shard == NULL ? json_null()
                         : text(store_login_name(store_login_foreseen(shard, &client)));
}

/* Of the shard of her route, and of who serves it; all NULL if there is none. */
static bool add_shard(json_t *told, const struct store *store, const struct conf_shard *serving)
{
    const struct secret some = {0};
    const char *order = store == NULL ? NULL : store_order_names[atomic_load(&store->order)];
    const char *health = store == NULL ? NULL : atomic_load(&store->is_down) ? "down" : "up";

    return set(told, "shard_state", text(order)) && set(told, "shard_health", text(health)) &&
           set(told, "served_by", text(serving == NULL ? NULL : serving->title)) &&
           set(told, "store_login", login_way(serving, &some)) &&
           set(told, "store_login_without_password", login_way(serving, NULL));
}

static json_t *describe_end(const struct history_end *end)
{
    char at[32], peer[ADDRESS_TEXT_MAX];

    address_text(&end->peer, peer);
    return json_sprintf("%s %s %s %llus (%s)", time_text(end->at, at), end->shard, peer,
                        (unsigned long long)end->seconds, end->why);
}

static json_t *list_ends(const struct inquiry *inquiry)
{
    json_t *list = json_array();

    for (size_t i = 0; i < inquiry->end_count; i++)
        json_array_append_new(list, describe_end(&inquiry->ends[i]));
    return list;
}

static json_t *describe_refusal(const struct history_refusal *refusal)
{
    char at[32], peer[ADDRESS_TEXT_MAX], all[512];

    if (refusal->at == 0)
        return json_null();
    address_text(&refusal->peer, peer);
    snprintf(all, sizeof all, "%s %s%s%s: %s (%s)", time_text(refusal->at, at), peer,
             refusal->shard == NULL ? "" : " ", refusal->shard == NULL ? "" : refusal->shard,
             err_name(refusal->kind), refusal->text);
    return text(all);
}

static bool add_sessions(json_t *told, const struct inquiry *inquiry, const struct conf *conf)
{
    return set(told, "sessions", number(inquiry->sessions)) &&
           set(told, "sessions_everywhere",
               inquiry->sessions_known ? number(inquiry->all_sessions) : json_null()) &&
           set(told, "max_sessions",
               conf->limits.per_user > 0 ? number((uint64_t)conf->limits.per_user) : json_null()) &&
           set(told, "parked_connections", number(inquiry->parked)) &&
           set(told, "last_sessions", list_ends(inquiry)) &&
           set(told, "last_refusal", describe_refusal(&inquiry->refusal));
}

/* What her next login would come to. */
static json_t *judge(const struct explain *explain, const struct stores *stores,
                     const struct conf_shard *serving)
{
    const struct conf *conf = explain->control->env.conf;
    struct err refusal = {0};
    char verdict[VERDICT_MAX];

    if (serving != NULL && store_refuses(stores_of(stores, serving)))
        store_tell_refusal(stores_of(stores, serving), &refusal);
    verdict_tell(&(struct verdict_view){conf, &explain->inquiry, serving, &refusal}, verdict);
    return text(verdict);
}

static void tell_all(struct explain *explain)
{
    const struct inquiry *inquiry = &explain->inquiry;
    struct workers *workers = explain->control->workers;
    const struct conf *conf = explain->control->env.conf;
    const struct stores *stores = workers_stores(workers);
    const struct store *store = NULL;
    const struct conf_shard *serving = NULL;
    const struct conf_shard *shard =
        inquiry->has_route ? conf_find_shard(conf, inquiry->route.shard) : NULL;
    json_t *told = json_object();

    if (shard != NULL) {
        store = stores_of(stores, shard);
        serving = conf_shard_of(conf, store_serving(store)->id);
    }
    if (set(told, "name", text(admin_argument(explain->call, "user"))) &&
        set(told, "normalised", text(inquiry->user)) && set(told, "user", text(inquiry->name)) &&
        set(told, "worker", number(workers_number_of(workers, inquiry->name))) &&
        add_account(told, inquiry) && add_route(told, inquiry) && add_shard(told, store, serving) &&
        add_sessions(told, inquiry, conf) && set(told, "verdict", judge(explain, stores, serving)))
        admin_answer(explain->call, json_incref(told));
    else
        admin_answer(explain->call, NULL);
    json_decref(told);
}

/* --- requests --- */

static void on_done(struct inquiry *inquiry)
{
    struct explain *explain = (struct explain *)inquiry;

    if (explain->call != NULL && inquiry->stopped)
        admin_refuse(explain->call, "the process is stopping");
    else if (explain->call != NULL)
        explain->tell(explain);
    mem_free(explain);
}

static void cancel(struct admin_call *call)
{
    struct explain *explain = call->state;

    explain->call = NULL;
}

static void start(struct admin_call *call, void (*tell)(struct explain *explain))
{
    struct control *control = call->context;
    const char *user = admin_argument(call, "user");
    struct explain *explain = mem_new(sizeof *explain);
    const struct conf_username *conf = &control->env.conf->username;

    if (explain == NULL) {
        admin_answer(call, NULL);
        return;
    }
    *explain = (struct explain){
        .inquiry.on_done = on_done, .call = call, .control = control, .tell = tell};
    if (!username_normalise(conf, span_of(user), explain->inquiry.user)) {
        mem_free(explain);
        admin_refuse(call, "this cannot be the name of a user: see section username");
        return;
    }
    call->state = explain;
    call->cancel = cancel;
    workers_post(control->workers, workers_number_of(control->workers, explain->inquiry.user),
                 inquiry_begin(&explain->inquiry, &control->inbox));
}

void run_route(struct admin_call *call)
{
    start(call, tell_route);
}

void run_explain(struct admin_call *call)
{
    start(call, tell_all);
}
