/* Owns the server of the process, and what is at which path. */
#include "proxy/http/site.h"

#include "proxy/base/mem.h"
#include "proxy/http/http.h"
#include "proxy/http/verdicts.h"

#include <microhttpd.h>

static const char json_type[] = "application/json";

struct site {
    struct control *control;
    struct http *http;
};

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

static const struct http_page pages[] = {
    {"/metrics", "text/plain; version=0.0.4; charset=utf-8", NULL, write_metrics},
    {"/healthz", json_type, NULL, write_health},
    {"/readyz", json_type, NULL, write_readiness},
    {NULL, NULL, NULL, NULL},
};

struct site *site_open(struct control *control, struct err *err)
{
    struct site *site = mem_new(sizeof *site);

    if (site == NULL) {
        err_set(err, ERR_INTERNAL, "http: no memory");
        return NULL;
    }
    site->control = control;
    site->http = http_open(&control->env, pages, site, err);
    if (site->http == NULL)
        site_close(&site);
    return site;
}

void site_close(struct site **site)
{
    struct site *s = *site;

    *site = NULL;
    if (s == NULL)
        return;
    http_close(&s->http);
    mem_free(s);
}
