/* Owns what /healthz and /readyz say. */
#include "proxy/http/verdicts.h"

#include "proxy/base/clock.h"
#include "proxy/fleet/fleet.h"
#include "proxy/net/redis_link.h"
#include "proxy/process/pulse.h"

#include <jansson.h>
#include <microhttpd.h>

static unsigned say(FILE *out, bool good, json_t *body)
{
    bool written = body != NULL && json_dumpf(body, out, JSON_INDENT(2)) == 0;

    fputc('\n', out);
    json_decref(body);
    return good && written ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
}

unsigned verdict_health(const struct control *control, FILE *out)
{
    bool good = pulse_is_well(control->pulse);

    return say(out, good,
               json_pack("{s:b, s:s}", "healthy", good, "reason",
                         good ? "all threads answer" : "a worker does not answer"));
}

const char *verdict_obstacle(const struct control *control)
{
    if (control->stopping)
        return control->draining ? "it drains" : "it stops";
    if (!control->serving)
        return "it starts";
    if (!pulse_is_well(control->pulse))
        return "a worker does not answer";
    if (freshness_fences_off(fleet_freshness(control->fleet), clock_ms()))
        return "Redis has been away for longer than route.keep_while_down";
    return NULL;
}

/* What is told, but does not count. */
static json_t *describe_others(const struct control *control)
{
    struct counters sum;

    if (control->workers == NULL || !workers_sum_metrics(control->workers, &sum))
        return json_object();
    return json_pack("{s:I, s:I, s:I, s:s}", "sessions",
                     (json_int_t)workers_session_count(control->workers), "stores_down",
                     (json_int_t)atomic_load(&sum.stores_down), "workers_without_directory",
                     (json_int_t)atomic_load(&sum.ldap_down), "redis",
                     control->env.redis == NULL                       ? "not used"
                     : redis_link_connection(control->env.redis) == 0 ? "not connected"
                                                                      : "connected");
}

unsigned verdict_readiness(const struct control *control, FILE *out)
{
    const char *obstacle = verdict_obstacle(control);

    return say(out, obstacle == NULL,
               json_pack("{s:b, s:s, s:o}", "ready", obstacle == NULL, "reason",
                         obstacle == NULL ? "clients are let in" : obstacle, "also",
                         describe_others(control)));
}

void verdict_print_metrics(const struct control *control, FILE *out)
{
    fprintf(out,
            "# HELP imapmux_ready Whether clients are let in, as /readyz has it.\n"
            "# TYPE imapmux_ready gauge\n"
            "imapmux_ready %d\n",
            verdict_obstacle(control) == NULL);
}
