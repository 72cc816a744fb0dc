/*
 * What two samples come to: rates, latencies, shards and workers, for people and for programs.
 */
#ifndef IMAPMUX_CTL_FIGURES_H
#define IMAPMUX_CTL_FIGURES_H

#include "proxy/ctl/sample.h"

#include <stddef.h>

enum { FIGURES_NAME_MAX = 64 };

/* Of a histogram. Times are in seconds; negative: nothing was measured in between. */
struct figures_latency {
    const char *name, *metric;
    bool is_used; /* something was measured since the start of imapmux */
    double per_second, p50, p95, p99;
};

enum figures_latency_id {
    FIGURES_LOGIN,
    FIGURES_QUEUE,
    FIGURES_LDAP_SEARCH,
    FIGURES_LDAP_BIND,
    FIGURES_REDIS,
    FIGURES_LATENCIES
};

struct figures_shard {
    char name[FIGURES_NAME_MAX];
    const char *order; /* "up", "drain", "down": what operators want */
    bool is_up;        /* it answers */
    double sessions, connections, logins_in_flight, waiting;
    double logins_per_second, failures_per_second;
};

struct figures_worker {
    json_int_t number;
    bool is_well;
    double relayed, logins_per_second;
};

struct figures {
    double seconds; /* between the samples */
    double sessions, max_sessions;
    double before_login, logging_in, relayed, ending; /* of the sessions */
    double connections_per_second, in_per_second, out_per_second;
    double logins_ok_per_second, logins_refused_per_second;
    double logins_in_flight, waiting;
    double leases_per_second, hits_percent; /* percent: negative without a lease */
    double open, warm, parked;              /* connections to stores */
    double redis_per_second, ldap_per_second, cpu_percent;
    struct figures_latency latencies[FIGURES_LATENCIES];
    struct figures_shard *shards;
    size_t shard_count;
    struct figures_worker *workers;
    size_t worker_count;
};

/* False without memory; to be released in either case. */
bool figures_make(struct figures *figures_out, const struct sample *before,
                  const struct sample *now);
void figures_release(struct figures *figures);

/* The same for programs; the caller has the reference. */
json_t *figures_describe(const struct figures *figures, const struct sample *now);

/* Orders the shards; those that are alike by name. */
enum figures_order { FIGURES_BY_NAME, FIGURES_BY_SESSIONS, FIGURES_BY_LOGINS, FIGURES_BY_WAITING };
void figures_sort(struct figures *figures, enum figures_order order);

#endif
