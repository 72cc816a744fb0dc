/*
 * How the process has fared: a point every five seconds for the last hour, and one every two
 * minutes for the last day. Bounded, about 160 KiB. A plain value of numbers; times are the
 * caller's.
 */
#ifndef IMAPMUX_HTTP_TREND_H
#define IMAPMUX_HTTP_TREND_H

#include "proxy/base/metrics.h"

#include <stdbool.h>

enum { TREND_EACH_MS = 5000, TREND_SHARDS = 16 /* by their ids, the first ones */ };

struct trend;

/* A shard at one moment. */
struct trend_shard {
    uint32_t sessions;
    bool is_down;
};

/* What there is at one moment. */
struct trend_look {
    int64_t at;        /* unix seconds */
    uint64_t clock_ms; /* of a clock that never jumps */
    uint32_t sessions;
    const struct counters *sum;
    const struct trend_shard *shards; /* the first shard_count ones, at most TREND_SHARDS */
    size_t shard_count;
};

/* A stretch of time, as its last look and what has happened since the one before. */
struct trend_point {
    int64_t at;
    uint32_t sessions, waiting;              /* waiting: the most at any look */
    float logins_ok, logins_refused, errors; /* in a second; errors: of stores, directory, Redis */
    float median_ms, slow_ms;  /* of logins: of 50 %, of 95 %; below 0: there were none */
    float bytes_in, bytes_out; /* in a second */
    float reused; /* sessions that got a connection that was there, 0 to 1; below 0: no session */
};

/* NULL without memory. */
struct trend *trend_open(void);
void trend_close(struct trend **trend); /* nulls the pointer; harmless on NULL */

/* To be called each TREND_EACH_MS. The first one only begins. */
void trend_add(struct trend *trend, const struct trend_look *look);

/* The last five seconds; NULL at the beginning. Valid until the next one is added. */
const struct trend_point *trend_latest(const struct trend *trend);

/*
 * All of it as JSON, {"hour":{...},"day":{...}}: "interval_seconds", and a list by the name of each
 * number, from old to new, null where there was none; "shards" has, by title, "sessions" and
 * "down", as 0 and 1.
 */
void trend_print(const struct trend *trend, const char *const *titles, FILE *out);

#endif
