/* Owns what is told of the process. */
#include "proxy/http/status.h"

#include "proxy/base/clock.h"
#include "proxy/base/json_text.h"
#include "proxy/http/problems.h"
#include "proxy/net/redis_link.h"
#include "proxy/net/tls.h"

#include <time.h>
#include <unistd.h>

int64_t status_unix_time(uint64_t moment_ms)
{
    return (int64_t)time(NULL) - (int64_t)((clock_ms() - moment_ms) / 1000);
}

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

/* --- shards --- */

static const char *state_of(const struct store *store)
{
    enum store_order order = (enum store_order)atomic_load(&store->order);

    return order == STORE_DOWN               ? "set down"
           : atomic_load(&store->is_down)    ? "down"
           : order == STORE_DRAIN            ? "draining"
           : store_addresses_down(store) > 0 ? "partly down"
                                             : "up";
}

/* What a look at the addresses gathers. */
struct addresses {
    json_t *list;
    const char *error;
};

static void add_address(void *owner, const struct health_address *at)
{
    struct addresses *addresses = owner;

    if (*at->why != '\0')
        addresses->error = at->why;
    if (*at->text != '\0')
        json_array_append_new(addresses->list, json_pack("{s:o, s:s}", "address",
                                                         json_text(at->text), "state", at->state));
}

static json_t *describe_shard(const struct control *control, const struct conf_shard *shard)
{
    const struct store *store = stores_of(workers_stores(control->workers), shard);
    struct addresses addresses = {json_array(), ""};

    health_each_address(control->health, shard, add_address, &addresses);
    return json_pack(
        "{s:s, s:s, s:I, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:s}", "shard",
        shard->title, "state", state_of(store), "since",
        status_unix_time(atomic_load(&store->changed_ms)), "order",
        store_order_names[atomic_load(&store->order)], "weight",
        number(atomic_load(&store->weight)), "sessions", number(atomic_load(&store->sessions)),
        "connections", number(atomic_load(&store->connections.used)), "max_connections",
        number(atomic_load(&store->connections.limit)), "logins_in_flight",
        number(atomic_load(&store->logins.used)), "waiting",
        number(atomic_load(&store->logins.waiting) + atomic_load(&store->connections.waiting)),
        "logins_ok", number(atomic_load(&store->logins_ok)), "logins_failed",
        number(atomic_load(&store->logins_failed)), "addresses", addresses.list, "error",
        json_text(addresses.error), "replica", shard->replica);
}

static json_t *describe_shards(const struct control *control)
{
    json_t *list = json_array();

    for (size_t i = 0; i < control->env.conf->shard_count; i++)
        json_array_append_new(list, describe_shard(control, &control->env.conf->shards[i]));
    return list;
}

/* --- what is around --- */

static json_t *describe_redis(const struct control *control, const struct counters *sum)
{
    if (control->env.redis == NULL)
        return json_null();
    return json_pack("{s:s, s:o, s:o}", "state",
                     redis_link_connection(control->env.redis) == 0 ? "not connected" : "connected",
                     "commands", number(atomic_load(&sum->redis_commands)), "failures",
                     number(atomic_load(&sum->redis_failures)));
}

static json_t *describe_directory(const struct control *control, const struct counters *sum)
{
    const struct conf *conf = control->env.conf;
    uint64_t without = atomic_load(&sum->ldap_down);

    if (!conf_has_word(&conf->auth.sources, "ldap") && !conf_has_word(&conf->route.sources, "ldap"))
        return json_null();
    return json_pack(
        "{s:s, s:o, s:o, s:o, s:o, s:o}", "state",
        without == 0                                ? "up"
        : without < workers_count(control->workers) ? "partly down"
                                                    : "down",
        "workers_without", number(without), "connections",
        number(atomic_load(&sum->ldap_open_search) + atomic_load(&sum->ldap_open_bind)), "waiting",
        number(atomic_load(&sum->ldap_waiting)), "lookups",
        number(atomic_load(&sum->ldap_verified) + atomic_load(&sum->ldap_refused) +
               atomic_load(&sum->ldap_unknown)),
        "failures", number(atomic_load(&sum->auth_ldap_failures)));
}

static json_t *describe_certificates(const struct control *control)
{
    json_t *list = json_array();

    for (size_t i = 0; i < tls_certificate_count(control->tls); i++) {
        struct tls_certificate certificate;

        tls_certificate(control->tls, i, &certificate);
        json_array_append_new(
            list, json_pack("{s:o, s:o, s:I}", "certificate", json_text(certificate.title), "name",
                            json_text(certificate.name), "not_after", certificate.not_after));
    }
    return list;
}

/* --- the process --- */

/* A number of the last five seconds; null when there was nothing to measure. */
static json_t *measured(double value)
{
    return value < 0 ? json_null() : json_real(value);
}

static json_t *describe_lately(const struct trend *trend)
{
    const struct trend_point *point = trend_latest(trend);

    if (point == NULL)
        return json_null();
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "logins_ok", measured((double)point->logins_ok),
        "logins_refused", measured((double)point->logins_refused), "errors",
        measured((double)point->errors), "median_ms", measured((double)point->median_ms), "slow_ms",
        measured((double)point->slow_ms), "bytes_in", measured((double)point->bytes_in),
        "bytes_out", measured((double)point->bytes_out), "reused", measured((double)point->reused));
}

static json_t *describe_totals(const struct counters *sum)
{
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "logins_ok", number(atomic_load(&sum->logins_ok)),
        "logins_refused", number(atomic_load(&sum->logins_refused)), "errors",
        number(atomic_load(&sum->backend_failures) + atomic_load(&sum->auth_ldap_failures) +
               atomic_load(&sum->redis_failures)),
        "sessions_refused", number(atomic_load(&sum->sessions_refused)), "tls_failed",
        number(atomic_load(&sum->tls_failed)), "bytes_in",
        number(atomic_load(&sum->bytes_from_clients)), "bytes_out",
        number(atomic_load(&sum->bytes_to_clients)));
}

static json_t *describe_connections(const struct counters *sum)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "open", number(atomic_load(&sum->backends_open)),
                     "warm", number(atomic_load(&sum->backends_warm)), "parked",
                     number(atomic_load(&sum->backends_parked)), "waiting",
                     number(atomic_load(&sum->leases_waiting)), "logins_in_flight",
                     number(atomic_load(&sum->logins_in_flight)));
}

static json_t *describe_process(const struct control *control)
{
    uint64_t uptime = (uv_now(control->env.loop) - control->started_ms) / 1000;
    char host[UV_MAXHOSTNAMESIZE] = "";
    size_t size = sizeof host;

    uv_os_gethostname(host, &size);
    return json_pack("{s:s, s:o, s:i, s:s, s:o, s:o, s:I}", "version", IMAPMUX_VERSION, "host",
                     json_text(host), "pid", (int)getpid(), "state",
                     control->draining   ? "draining"
                     : control->stopping ? "stopping"
                                         : "running",
                     "uptime_seconds", number(uptime), "workers",
                     number(workers_count(control->workers)), "now", (json_int_t)time(NULL));
}

static json_t *describe_sessions(const struct control *control)
{
    return json_pack("{s:o, s:I}", "now", number(workers_session_count(control->workers)), "most",
                     (json_int_t)control->env.conf->process.max_sessions);
}

json_t *status_describe(const struct status_view *view)
{
    const struct control *control = view->control;
    struct counters sum;

    if (!workers_sum_metrics(control->workers, &sum))
        return NULL;
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "problems",
                     problems_list(view, &sum), "shards", describe_shards(control), "sessions",
                     describe_sessions(control), "lately", describe_lately(view->trend),
                     "connections", describe_connections(&sum), "redis",
                     describe_redis(control, &sum), "directory", describe_directory(control, &sum),
                     "certificates", describe_certificates(control), "proxies",
                     view->proxies == NULL ? json_array() : json_deep_copy(view->proxies), "totals",
                     describe_totals(&sum), "process", describe_process(control));
}
