/* Owns two rings of points, the hour's and the day's, each with what its next point begins with. */
#include "proxy/http/trend.h"

#include "proxy/base/mem.h"

#include <math.h>

enum { POINTS_MAX = 720, DAY_LOOKS = 24 /* of 5 s: two minutes */ };

struct ring {
    size_t looks; /* that make up a point */
    size_t looked, count, next;
    bool begun;
    struct counters before; /* all that was counted up to the last point */
    uint64_t before_ms;
    uint32_t waiting;
    uint32_t down; /* a bit for each shard: it was down at a look since the last point */
    struct trend_point points[POINTS_MAX];
    struct {
        uint32_t down, sessions[TREND_SHARDS];
    } shards[POINTS_MAX]; /* of the same points */
    size_t shard_count;
};

struct trend {
    struct ring hour, day;
};

struct trend *trend_open(void)
{
    struct trend *trend = mem_new(sizeof *trend);

    if (trend == NULL)
        return NULL;
    trend->hour.looks = 1;
    trend->day.looks = DAY_LOOKS;
    return trend;
}

void trend_close(struct trend **trend)
{
    mem_free(*trend);
    *trend = NULL;
}

/* --- what has happened between two moments --- */

#define GROWN(after, before, field) (atomic_load(&(after)->field) - atomic_load(&(before)->field))

static void measure_logins(struct trend_point *point, const struct counters *after,
                           const struct counters *before)
{
    uint64_t buckets[HISTOGRAM_BUCKETS], total = 0;

    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        buckets[i] = GROWN(after, before, login_seconds.buckets[i]);
        total += buckets[i];
    }
    point->median_ms = total == 0 ? -1 : (float)histogram_quantile(buckets, 0.5);
    point->slow_ms = total == 0 ? -1 : (float)histogram_quantile(buckets, 0.95);
}

static void measure_pool(struct trend_point *point, const struct counters *after,
                         const struct counters *before)
{
    uint64_t reused = GROWN(after, before, leases_warm) + GROWN(after, before, leases_parked) +
                      GROWN(after, before, leases_reset);
    uint64_t all = reused + GROWN(after, before, leases_new);

    point->reused = all == 0 ? -1 : (float)reused / (float)all;
}

static struct trend_point measure(const struct ring *ring, const struct trend_look *look)
{
    const struct counters *after = look->sum, *before = &ring->before;
    float seconds = (float)(look->clock_ms - ring->before_ms) / 1000;
    struct trend_point point = {
        .at = look->at, .sessions = look->sessions, .waiting = ring->waiting};

    if (seconds <= 0)
        seconds = 1;
    point.logins_ok = (float)GROWN(after, before, logins_ok) / seconds;
    point.logins_refused = (float)GROWN(after, before, logins_refused) / seconds;
    point.errors =
        (float)(GROWN(after, before, backend_failures) + GROWN(after, before, auth_ldap_failures) +
                GROWN(after, before, redis_failures)) /
        seconds;
    point.bytes_in = (float)GROWN(after, before, bytes_from_clients) / seconds;
    point.bytes_out = (float)GROWN(after, before, bytes_to_clients) / seconds;
    measure_logins(&point, after, before);
    measure_pool(&point, after, before);
    return point;
}

/* --- the rings --- */

static void put(struct ring *ring, const struct trend_look *look)
{
    ring->points[ring->next] = measure(ring, look);
    ring->shards[ring->next].down = ring->down;
    for (size_t i = 0; i < look->shard_count; i++)
        ring->shards[ring->next].sessions[i] = look->shards[i].sessions;
    ring->shard_count = look->shard_count;
    ring->next = (ring->next + 1) % POINTS_MAX;
    if (ring->count < POINTS_MAX)
        ring->count++;
}

static void begin(struct ring *ring, const struct trend_look *look)
{
    metrics_sum(&ring->before, &look->sum, 1);
    ring->before_ms = look->clock_ms;
    ring->looked = 0;
    ring->waiting = 0;
    ring->down = 0;
    ring->begun = true;
}

static void add(struct ring *ring, const struct trend_look *look)
{
    uint32_t waiting = (uint32_t)atomic_load(&look->sum->leases_waiting);

    if (waiting > ring->waiting)
        ring->waiting = waiting;
    for (size_t i = 0; i < look->shard_count; i++)
        ring->down |= (uint32_t)look->shards[i].is_down << i;
    if (ring->begun && ++ring->looked < ring->looks)
        return;
    if (ring->begun)
        put(ring, look);
    begin(ring, look);
}

void trend_add(struct trend *trend, const struct trend_look *look)
{
    add(&trend->hour, look);
    add(&trend->day, look);
}

/* The place of a point, counted from the oldest one. */
static size_t place(const struct ring *ring, size_t index)
{
    return (ring->next + POINTS_MAX - ring->count + index) % POINTS_MAX;
}

const struct trend_point *trend_latest(const struct trend *trend)
{
    const struct ring *ring = &trend->hour;

    return ring->count == 0 ? NULL : &ring->points[place(ring, ring->count - 1)];
}

/* --- as JSON --- */

static double at(const struct trend_point *point)
{
    return (double)point->at;
}

static double sessions(const struct trend_point *point)
{
    return point->sessions;
}

static double waiting(const struct trend_point *point)
{
    return point->waiting;
}

#define FLOAT_COLUMN(name)                                                                         \
    static double name(const struct trend_point *point)                                            \
    {                                                                                              \
        return (double)point->name;                                                                \
    }
FLOAT_COLUMN(logins_ok)
FLOAT_COLUMN(logins_refused)
FLOAT_COLUMN(errors)
FLOAT_COLUMN(median_ms)
FLOAT_COLUMN(slow_ms)
FLOAT_COLUMN(bytes_in)
FLOAT_COLUMN(bytes_out)
FLOAT_COLUMN(reused)

static const struct {
    const char *name;
    double (*value)(const struct trend_point *point);
} columns[] = {
#define COLUMN(name)                                                                               \
    {                                                                                              \
#name, name                                                                                \
    }
    COLUMN(at),       COLUMN(sessions),       COLUMN(waiting), COLUMN(logins_ok),
    COLUMN(errors),   COLUMN(logins_refused), COLUMN(slow_ms), COLUMN(median_ms),
    COLUMN(bytes_in), COLUMN(bytes_out),      COLUMN(reused),
#undef COLUMN
};

static void print_number(FILE *out, size_t index, double value)
{
    if (index > 0)
        fputc(',', out);
    if (value < 0)
        fputs("null", out);
    else if (value == floor(value))
        fprintf(out, "%.0f", value);
    else
        fprintf(out, "%.4g", value);
}

static void print_shard(const struct ring *ring, size_t shard, const char *title, FILE *out)
{
    fprintf(out, "%s\"%s\":{\"sessions\":[", shard == 0 ? "" : ",", title);
    for (size_t i = 0; i < ring->count; i++)
        print_number(out, i, ring->shards[place(ring, i)].sessions[shard]);
    fputs("],\"down\":[", out);
    for (size_t i = 0; i < ring->count; i++)
        print_number(out, i, ring->shards[place(ring, i)].down >> shard & 1);
    fputs("]}", out);
}

static void print_ring(const struct ring *ring, const char *const *titles, FILE *out)
{
    fprintf(out, "{\"interval_seconds\":%zu", ring->looks * TREND_EACH_MS / 1000);
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        fprintf(out, ",\"%s\":[", columns[i].name);
        for (size_t j = 0; j < ring->count; j++)
            print_number(out, j, columns[i].value(&ring->points[place(ring, j)]));
        fputc(']', out);
    }
    fputs(",\"shards\":{", out);
    for (size_t i = 0; i < ring->shard_count; i++)
        print_shard(ring, i, titles[i], out);
    fputs("}}", out);
}

void trend_print(const struct trend *trend, const char *const *titles, FILE *out)
{
    fputs("{\"hour\":", out);
    print_ring(&trend->hour, titles, out);
    fputs(",\"day\":", out);
    print_ring(&trend->day, titles, out);
    fputs("}\n", out);
}
