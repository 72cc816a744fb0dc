/* Owns the verdict on how the process fares. */
#include "proxy/http/problems.h"

#include "proxy/http/verdicts.h"
#include "proxy/net/redis_link.h"
#include "proxy/net/tls.h"

#include <time.h>

enum { DAY_SECONDS = 86400, EXPIRES_SOON_DAYS = 14 };

static const char critical[] = "critical", warning[] = "warning", notice[] = "notice";

/* `since` 0: it is not known. Takes over the text. */
static void add(json_t *list, const char *level, int64_t since, json_t *text)
{
    json_array_append_new(list, json_pack("{s:s, s:o, s:o}", "level", level, "text", text, "since",
                                          since == 0 ? json_null() : json_integer(since)));
}

static void judge_shard(json_t *list, const struct store *store)
{
    const char *title = store->title;
    enum store_order order = (enum store_order)atomic_load(&store->order);
    size_t addresses_down = store_addresses_down(store);

    if (order == STORE_DOWN)
        add(list, warning, 0, json_sprintf("Shard %s is set down by an operator", title));
    else if (atomic_load(&store->is_down))
        add(list, critical, status_unix_time(atomic_load(&store->changed_ms)),
            json_sprintf("Shard %s is down", title));
    else if (addresses_down > 0)
        add(list, warning, 0,
            json_sprintf("Shard %s: %zu of its addresses %s down", title, addresses_down,
                         addresses_down == 1 ? "is" : "are"));
    if (order == STORE_DRAIN)
        add(list, notice, 0, json_sprintf("Shard %s is set to drain by an operator", title));
}

static void judge_certificate(json_t *list, const struct tls *tls, size_t index)
{
    struct tls_certificate certificate;

    tls_certificate(tls, index, &certificate);

    int64_t left = certificate.not_after - (int64_t)time(NULL);

    if (left <= 0)
        add(list, critical, certificate.not_after,
            json_sprintf("The certificate of %s has expired", certificate.name));
    else if (left < EXPIRES_SOON_DAYS * DAY_SECONDS)
        add(list, warning, 0,
            json_sprintf("The certificate of %s expires in %d day%s", certificate.name,
                         (int)(left / DAY_SECONDS), left / DAY_SECONDS == 1 ? "" : "s"));
}

static void judge_services(json_t *list, const struct control *control, const struct counters *sum)
{
    size_t workers = workers_count(control->workers);
    uint64_t without = atomic_load(&sum->ldap_down);

    if (control->env.redis != NULL && redis_link_connection(control->env.redis) == 0)
        add(list, critical, 0, json_string("Redis does not answer"));
    if (without >= workers)
        add(list, critical, 0, json_string("No directory server answers"));
    else if (without > 0)
        add(list, warning, 0, json_string("Not all workers reach a directory server"));
}

static void judge_process(json_t *list, const struct control *control, const struct counters *sum)
{
    const char *obstacle = verdict_obstacle(control);
    size_t sessions = workers_session_count(control->workers);
    int64_t most = control->env.conf->process.max_sessions;

    if (control->stopping)
        add(list, notice, 0,
            json_sprintf("This proxy %s: it takes no new clients",
                         control->draining ? "drains" : "stops"));
    else if (obstacle != NULL)
        add(list, critical, 0, json_sprintf("This proxy is not ready: %s", obstacle));
    if ((int64_t)sessions >= most)
        add(list, critical, 0, json_string("This proxy is full: process.max_sessions is reached"));
    else if ((int64_t)sessions * 10 >= most * 9)
        add(list, warning, 0, json_string("This proxy is almost full (process.max_sessions)"));
    if (atomic_load(&sum->leases_waiting) > 0)
        add(list, warning, 0, json_string("Logins wait in line before a shard"));
}

static void judge_proxies(json_t *list, const json_t *proxies)
{
    size_t silent = 0, i;
    json_t *proxy;

    json_array_foreach(proxies, i, proxy)
    {
        const char *state = json_string_value(json_object_get(proxy, "state"));

        silent += state != NULL && strcmp(state, "silent") == 0;
    }
    if (silent > 0)
        add(list, warning, 0,
            json_sprintf("%zu other prox%s not been heard of", silent,
                         silent == 1 ? "y has" : "ies have"));
}

/* The worst first; else in the order in which they were found. */
static json_t *sort(json_t *found)
{
    const char *const levels[] = {critical, warning, notice};
    json_t *sorted = json_array(), *problem;
    size_t index;

    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++)
        json_array_foreach(found, index, problem)
        {
            const char *level = json_string_value(json_object_get(problem, "level"));

            if (level != NULL && strcmp(level, levels[i]) == 0)
                json_array_append(sorted, problem);
        }
    json_decref(found);
    return sorted;
}

json_t *problems_list(const struct status_view *view, const struct counters *sum)
{
    const struct control *control = view->control;
    const struct conf *conf = control->env.conf;
    json_t *list = json_array();

    judge_process(list, control, sum);
    for (size_t i = 0; i < conf->shard_count; i++)
        judge_shard(list, stores_of(workers_stores(control->workers), &conf->shards[i]));
    judge_services(list, control, sum);
    for (size_t i = 0; i < tls_certificate_count(control->tls); i++)
        judge_certificate(list, control->tls, i);
    judge_proxies(list, view->proxies);
    return sort(list);
}
