/*
 * Owns the server of the process: what is at which path, and the looks at the process, every few
 * seconds, that make up its history.
 */
#include "proxy/http/site.h"

#include "proxy/base/clock.h"
#include "proxy/base/mem.h"
#include "proxy/http/http.h"
#include "proxy/http/neighbours.h"
#include "proxy/http/page.h"
#include "proxy/http/status.h"
#include "proxy/http/trend.h"
#include "proxy/http/verdicts.h"

#include <assert.h>
#include <microhttpd.h>
#include <string.h>
#include <time.h>

enum { PAGE_COUNT = 6, START_MS = 100 };

struct site {
    struct control *control;
    struct http *http;
    struct http_page pages[PAGE_COUNT + 1];
    char policy[PAGE_POLICY_MAX];
    struct trend *trend;
    struct neighbours neighbours;
    uv_timer_t look; /* at the process, for the trend */
    uint64_t looked_ms;
};

/* --- the pages --- */

static unsigned write_metrics(void *owner, FILE *out)
{
    const struct workers *workers = ((struct site *)owner)->control->workers;

    return workers != NULL && workers_print_metrics(workers, out) ? MHD_HTTP_OK
                                                                  : MHD_HTTP_SERVICE_UNAVAILABLE;
}

static unsigned write_health(void *owner, FILE *out)
{
    return verdict_health(((struct site *)owner)->control, out);
}

static unsigned write_readiness(void *owner, FILE *out)
{
    return verdict_readiness(((struct site *)owner)->control, out);
}

/* NULL while there is nothing to tell, or without memory. */
static json_t *describe(struct site *site)
{
    const struct status_view view = {.control = site->control,
                                     .trend = site->trend,
                                     .proxies = neighbours_look(&site->neighbours, site->control)};

    return site->control->serving ? status_describe(&view) : NULL;
}

static unsigned write_status(void *owner, FILE *out)
{
    json_t *status = describe(owner);
    bool written = status != NULL && json_dumpf(status, out, JSON_COMPACT) == 0;

    json_decref(status);
    return written ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
}

static unsigned write_history(void *owner, FILE *out)
{
    const struct site *site = owner;
    const struct conf_words *all = &site->control->env.conf->shard_titles;
    const char *titles[TREND_SHARDS];

    for (size_t i = 0; i < all->count && i < TREND_SHARDS; i++)
        titles[i] = all->items[i];
    trend_print(site->trend, titles, out);
    return MHD_HTTP_OK;
}

static unsigned write_page(void *owner, FILE *out)
{
    json_t *status = describe(owner);

    if (status == NULL) {
        fputs("<!DOCTYPE html><title>imapmux</title><p>imapmux starts.\n", out);
        return MHD_HTTP_SERVICE_UNAVAILABLE;
    }
    page_print(out, status);
    json_decref(status);
    return MHD_HTTP_OK;
}

static void list_pages(struct site *site)
{
    static const char json_type[] = "application/json";
    const struct http_page pages[] = {
        {"/", "text/html; charset=utf-8", site->policy, write_page},
        {"/status.json", json_type, NULL, write_status},
        {"/history.json", json_type, NULL, write_history},
        {"/metrics", "text/plain; version=0.0.4; charset=utf-8", NULL, write_metrics},
        {"/healthz", json_type, NULL, write_health},
        {"/readyz", json_type, NULL, write_readiness},
    };

    static_assert(sizeof pages / sizeof pages[0] == PAGE_COUNT, "one more place ends the list");
    memcpy(site->pages, pages, sizeof pages);
}

/* --- the history --- */

/* Now, or between this look and the one before. */
static bool was_down(const struct site *site, const struct store *store)
{
    return store_refuses(store) ||
           (site->looked_ms != 0 && atomic_load(&store->changed_ms) > site->looked_ms);
}

static void on_look(uv_timer_t *timer)
{
    struct site *site = timer->data;
    const struct control *control = site->control;
    size_t count = control->env.conf->shard_titles.count;
    struct trend_shard shards[TREND_SHARDS];
    struct counters sum;

    if (!control->serving) {
        uv_timer_start(timer, on_look, START_MS, TREND_EACH_MS); /* the first look is the start */
        return;
    }
    if (!workers_sum_metrics(control->workers, &sum))
        return;
    count = count < TREND_SHARDS ? count : TREND_SHARDS;
    for (size_t i = 0; i < count; i++) {
        const struct store *store = workers_stores(control->workers)->by_id[i];

        shards[i] = (struct trend_shard){atomic_load(&store->sessions), was_down(site, store)};
    }
    site->looked_ms = clock_ms();
    trend_add(site->trend,
              &(struct trend_look){.at = (int64_t)time(NULL),
                                   .clock_ms = site->looked_ms,
                                   .sessions = (uint32_t)workers_session_count(control->workers),
                                   .sum = &sum,
                                   .shards = shards,
                                   .shard_count = count});
}

/* --- life --- */

static bool open_all(struct site *site, struct err *err)
{
    if (!page_policy(site->policy))
        return err_set(err, ERR_INTERNAL, "http: no memory");
    list_pages(site);
    site->trend = trend_open();
    if (site->trend == NULL)
        return err_set(err, ERR_INTERNAL, "http: no memory");
    site->http = http_open(&site->control->env, site->pages, site, err);
    return site->http != NULL;
}

struct site *site_open(struct control *control, struct err *err)
{
    struct site *site = mem_new(sizeof *site);

    if (site == NULL) {
        err_set(err, ERR_INTERNAL, "http: no memory");
        return NULL;
    }
    site->control = control;
    uv_timer_init(control->env.loop, &site->look);
    site->look.data = site;
    uv_timer_start(&site->look, on_look, 0, TREND_EACH_MS);
    if (!open_all(site, err))
        site_close(&site);
    return site;
}

static void look_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

void site_close(struct site **site)
{
    struct site *s = *site;

    *site = NULL;
    if (s == NULL)
        return;
    http_close(&s->http);
    neighbours_close(&s->neighbours);
    trend_close(&s->trend);
    uv_close((uv_handle_t *)&s->look, look_closed);
}
