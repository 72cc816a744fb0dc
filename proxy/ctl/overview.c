/* Owns where everything stands: for 80 columns and 24 lines; more lines show more shards. */
#include "proxy/ctl/overview.h"

#include <string.h>
#include <time.h>

enum {
    LABEL_WIDTH = 8,
    WORKERS_COLUMN = 48,
    AMOUNT_MAX = 32,
    CERTIFICATE_WARNING_DAYS = 14,
    FULL_PERCENT = 90 /* from here on a limit is near */
};

/* --- amounts, in at most seven characters --- */

static const char *count_text(double count, char out[AMOUNT_MAX])
{
    if (count < 100000)
        snprintf(out, AMOUNT_MAX, "%.0f", count);
    else if (count < 1e7)
        snprintf(out, AMOUNT_MAX, "%.0fk", count / 1e3);
    else
        snprintf(out, AMOUNT_MAX, "%.0fM", count / 1e6);
    return out;
}

static const char *rate_text(double rate, char out[AMOUNT_MAX])
{
    if (rate > 0 && rate < 10)
        snprintf(out, AMOUNT_MAX, "%.1f", rate);
    else
        count_text(rate, out);
    return out;
}

static const char *size_text(double bytes, char out[AMOUNT_MAX])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;

    for (; bytes >= 1000 && unit < sizeof units / sizeof *units - 1; unit++)
        bytes /= 1024;
    snprintf(out, AMOUNT_MAX, unit == 0 || bytes >= 100 ? "%.0f %s" : "%.1f %s", bytes,
             units[unit]);
    return out;
}

/* "-" where nothing was measured. */
static const char *time_text(double seconds, char out[AMOUNT_MAX])
{
    if (seconds < 0)
        snprintf(out, AMOUNT_MAX, "-");
    else if (seconds < 0.01)
        snprintf(out, AMOUNT_MAX, "%.1f ms", 1000 * seconds);
    else if (seconds < 1)
        snprintf(out, AMOUNT_MAX, "%.0f ms", 1000 * seconds);
    else
        snprintf(out, AMOUNT_MAX, "%.1f s", seconds);
    return out;
}

/* In the two largest units. */
static const char *age_text(double seconds, char out[AMOUNT_MAX])
{
    long long all = (long long)seconds;

    if (all >= 86400)
        snprintf(out, AMOUNT_MAX, "%lldd %lldh", all / 86400, all % 86400 / 3600);
    else if (all >= 3600)
        snprintf(out, AMOUNT_MAX, "%lldh %lldm", all / 3600, all % 3600 / 60);
    else if (all >= 60)
        snprintf(out, AMOUNT_MAX, "%lldm %llds", all / 60, all % 60);
    else
        snprintf(out, AMOUNT_MAX, "%llds", all);
    return out;
}

/* --- what the status says --- */

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text == NULL ? "" : text;
}

static double number_of(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

/* --- the lines --- */

static void begin_line(struct sheet *sheet, const char *label)
{
    sheet_move(sheet, sheet->line + 1, 0);
    sheet_put(sheet, SHEET_LABEL, "%-*s", LABEL_WIDTH, label);
}

/* "   12.3 MiB/s in   ": four of them, and their label, fill 80 columns. */
static void put_amount(struct sheet *sheet, enum sheet_style style, const char *amount,
                       const char *what)
{
    sheet_put(sheet, style, "%7s", amount);
    sheet_put(sheet, SHEET_PLAIN, "%-11s", what);
}

static enum sheet_style near(double used, double limit)
{
    return limit > 0 && used >= limit                        ? SHEET_ALARM
           : limit > 0 && used * 100 >= limit * FULL_PERCENT ? SHEET_WARNING
                                                             : SHEET_PLAIN;
}

static enum sheet_style warn_if(bool is_so)
{
    return is_so ? SHEET_WARNING : SHEET_PLAIN;
}

static void draw_title(const struct overview *o, struct sheet *sheet)
{
    const json_t *status = o->now->status;
    char age[AMOUNT_MAX], clock[16] = "", right[64];
    const char *state = text_of(status, "state");
    time_t now = time(NULL);
    struct tm local;

    if (localtime_r(&now, &local) != NULL)
        strftime(clock, sizeof clock, "%H:%M:%S", &local);
    sheet_put(sheet, SHEET_HEAD, "imapmux %s", text_of(status, "version"));
    if (status != NULL) {
        sheet_put(sheet, SHEET_HEAD, "  pid %.0f  up %s  ", number_of(status, "pid"),
                  age_text(number_of(status, "uptime_seconds"), age));
        sheet_put(sheet, strcmp(state, "running") == 0 ? SHEET_HEAD : SHEET_ALARM, "%s", state);
    }
    int len = snprintf(right, sizeof right, "%s%s  every %gs", o->is_paused ? "PAUSED  " : "",
                       clock, (double)o->interval_ms / 1000);
    int column = sheet->column;
    sheet_fill(sheet, SHEET_HEAD);
    sheet_move(sheet, 0, sheet->columns - len > column ? sheet->columns - len : column + 1);
    sheet_put(sheet, o->is_paused ? SHEET_ALARM : SHEET_HEAD, "%s", right);
    sheet_move(sheet, 1, 0);
    if (*o->trouble != '\0')
        sheet_put(sheet, SHEET_ALARM, "No answer, trying again: %s", o->trouble);
}

static void draw_clients(const struct figures *f, struct sheet *sheet)
{
    char text[AMOUNT_MAX];

    begin_line(sheet, "Sessions");
    put_amount(sheet, near(f->sessions, f->max_sessions), count_text(f->sessions, text), "");
    sheet->column -= 11;
    sheet_put(sheet, SHEET_PLAIN, " of %-7s", count_text(f->max_sessions, text));
    put_amount(sheet, SHEET_PLAIN, count_text(f->before_login, text), " arriving");
    put_amount(sheet, SHEET_PLAIN, count_text(f->logging_in, text), " logging in");
    put_amount(sheet, SHEET_PLAIN, count_text(f->relayed, text), " at stores");
    begin_line(sheet, "Clients");
    put_amount(sheet, SHEET_PLAIN, rate_text(f->connections_per_second, text), "/s connect");
    put_amount(sheet, SHEET_PLAIN, size_text(f->in_per_second, text), "/s in");
    put_amount(sheet, SHEET_PLAIN, size_text(f->out_per_second, text), "/s out");
    begin_line(sheet, "Logins");
    put_amount(sheet, SHEET_PLAIN, rate_text(f->logins_ok_per_second, text), "/s ok");
    put_amount(sheet, warn_if(f->logins_refused_per_second > 0),
               rate_text(f->logins_refused_per_second, text), "/s refused");
    put_amount(sheet, SHEET_PLAIN, count_text(f->logins_in_flight, text), " in flight");
    put_amount(sheet, warn_if(f->waiting > 0), count_text(f->waiting, text), " waiting");
}

static void draw_pool(const struct figures *f, struct sheet *sheet)
{
    char text[AMOUNT_MAX];

    begin_line(sheet, "Pool");
    if (f->hits_percent < 0)
        put_amount(sheet, SHEET_PLAIN, "-", " hits");
    else
        put_amount(sheet, SHEET_PLAIN, count_text(f->hits_percent, text), "% hits");
    put_amount(sheet, SHEET_PLAIN, count_text(f->open, text), " open");
    put_amount(sheet, SHEET_PLAIN, count_text(f->warm, text), " warm");
    put_amount(sheet, SHEET_PLAIN, count_text(f->parked, text), " parked");
}

static void draw_redis(const struct overview *o, struct sheet *sheet)
{
    const json_t *redis = json_object_get(o->now->status, "redis");
    bool is_there = strcmp(text_of(redis, "state"), "connected") == 0;
    char text[AMOUNT_MAX];

    if (redis == NULL)
        return;
    begin_line(sheet, "Redis");
    put_amount(sheet, SHEET_PLAIN, rate_text(o->figures->redis_per_second, text), "/s commands");
    sheet_put(sheet, is_there ? SHEET_GOOD : SHEET_ALARM, "  %s", text_of(redis, "state"));
    sheet_put(sheet, SHEET_PLAIN, " %s %s", text_of(redis, "role"), text_of(redis, "address"));
}

static void draw_directories(const struct overview *o, struct sheet *sheet)
{
    const json_t *servers = json_object_get(o->now->status, "ldap");
    char text[AMOUNT_MAX];
    size_t i;
    json_t *server;

    if (json_array_size(servers) == 0)
        return;
    begin_line(sheet, "LDAP");
    put_amount(sheet, SHEET_PLAIN, rate_text(o->figures->ldap_per_second, text), "/s requests");
    json_array_foreach((json_t *)servers, i, server)
    {
        const char *state = text_of(server, "state");

        sheet_put(sheet, SHEET_PLAIN, i == 0 ? "  %s " : ", %s ", text_of(server, "server"));
        sheet_put(sheet, strcmp(state, "up") == 0 ? SHEET_GOOD : SHEET_ALARM, "%s", state);
    }
}

/* The certificate that expires first; negative: there is none. */
static double first_expiry(const json_t *status)
{
    double first = -1;
    size_t i;
    json_t *certificate;

    json_array_foreach(json_object_get(status, "certificates"), i, certificate)
    {
        double left = number_of(certificate, "left_seconds");

        first = first < 0 || left < first ? left : first;
    }
    return first;
}

static void draw_process(const struct overview *o, struct sheet *sheet)
{
    const json_t *resources = json_object_get(o->now->status, "resources");
    double used = number_of(resources, "descriptors"),
           limit = number_of(resources, "max_descriptors"), left = first_expiry(o->now->status);
    char text[AMOUNT_MAX];

    begin_line(sheet, "Process");
    put_amount(sheet, SHEET_PLAIN, count_text(o->figures->cpu_percent, text), "% CPU");
    put_amount(sheet, SHEET_PLAIN, size_text(number_of(resources, "memory_bytes"), text),
               " memory");
    put_amount(sheet, near(used, limit), count_text(used, text), " files");
    if (left >= 0)
        put_amount(sheet, warn_if(left < CERTIFICATE_WARNING_DAYS * 86400), age_text(left, text),
                   " cert left");
}

/* --- latencies, and the workers beside them --- */

static void draw_latency(const struct figures_latency *latency, struct sheet *sheet)
{
    char text[AMOUNT_MAX];

    sheet_put(sheet, SHEET_PLAIN, "%-12s%7s", latency->name, rate_text(latency->per_second, text));
    sheet_put(sheet, SHEET_PLAIN, "%9s", time_text(latency->p50, text));
    sheet_put(sheet, SHEET_PLAIN, "%9s", time_text(latency->p95, text));
    sheet_put(sheet, SHEET_PLAIN, "%9s", time_text(latency->p99, text));
}

static void draw_worker(const struct figures_worker *worker, struct sheet *sheet)
{
    char relayed[AMOUNT_MAX], logins[AMOUNT_MAX];

    sheet_put(sheet, SHEET_PLAIN, "%-6lld%9s%9s  ", (long long)worker->number,
              count_text(worker->relayed, relayed), rate_text(worker->logins_per_second, logins));
    sheet_put(sheet, worker->is_well ? SHEET_PLAIN : SHEET_ALARM, "%s",
              worker->is_well ? "well" : "SILENT");
}

/* A silent one is shown in any case: it changes places with the last one that would be. */
static void bring_silent_forward(const struct figures *f, size_t room)
{
    for (size_t i = room; i < f->worker_count && room > 0; i++)
        if (!f->workers[i].is_well) {
            struct figures_worker other = f->workers[room - 1];

            f->workers[room - 1] = f->workers[i];
            f->workers[i] = other;
            return;
        }
}

static void draw_two_tables(const struct figures *f, struct sheet *sheet)
{
    int line = sheet->line + 2, rows = 0;

    sheet_move(sheet, line, 0);
    sheet_put(sheet, SHEET_HEAD, "%-12s%7s%9s%9s%9s", "LATENCY", "PER S", "P50", "P95", "P99");
    sheet_fill(sheet, SHEET_HEAD);
    for (size_t i = 0; i < FIGURES_LATENCIES; i++) {
        if (!f->latencies[i].is_used && i != FIGURES_LOGIN && i != FIGURES_QUEUE)
            continue;
        sheet_move(sheet, line + ++rows, 0);
        draw_latency(&f->latencies[i], sheet);
    }
    sheet_move(sheet, line, WORKERS_COLUMN);
    sheet_put(sheet, SHEET_HEAD, "%-6s%9s%9s  %s", "WORKER", "SESSIONS", "LOGINS/S", "STATE");
    size_t room = rows < 4 ? 4 : (size_t)rows;
    bring_silent_forward(f, room);
    for (size_t i = 0; i < f->worker_count && i < room; i++) {
        sheet_move(sheet, line + 1 + (int)i, WORKERS_COLUMN);
        draw_worker(&f->workers[i], sheet);
    }
    int workers = (int)(f->worker_count < room ? f->worker_count : room);
    if (f->worker_count > room) {
        sheet_move(sheet, line, sheet->columns - 12);
        sheet_put(sheet, SHEET_HEAD, "%zu of %zu", room, f->worker_count);
    }
    sheet_move(sheet, line + (workers > rows ? workers : rows), 0);
}

/* --- shards --- */

static enum sheet_style style_of(const struct figures_shard *shard)
{
    return !shard->is_up                     ? SHEET_ALARM
           : strcmp(shard->order, "up") != 0 ? SHEET_WARNING
                                             : SHEET_GOOD;
}

static void draw_shard(const struct figures_shard *shard, struct sheet *sheet)
{
    char text[AMOUNT_MAX];

    sheet_put(sheet, SHEET_PLAIN, "%-18.18s ", shard->name);
    sheet_put(sheet, style_of(shard), "%-6s%-7s", shard->order, shard->is_up ? "up" : "DOWN");
    sheet_put(sheet, SHEET_PLAIN, "%9s", count_text(shard->sessions, text));
    sheet_put(sheet, SHEET_PLAIN, "%9s", rate_text(shard->logins_per_second, text));
    sheet_put(sheet, warn_if(shard->failures_per_second > 0), "%9s",
              rate_text(shard->failures_per_second, text));
    sheet_put(sheet, SHEET_PLAIN, "%7s", count_text(shard->logins_in_flight, text));
    sheet_put(sheet, warn_if(shard->waiting > 0), "%8s", count_text(shard->waiting, text));
    sheet_put(sheet, SHEET_PLAIN, "%6s", count_text(shard->connections, text));
}

/* Returns how many there was room for. */
static size_t draw_shards(struct overview *o, struct sheet *sheet)
{
    const struct figures *f = o->figures;
    int line = sheet->line + 2;
    int room = sheet->lines - line - 1 - (o->has_keys ? 1 : 0);
    size_t rows = room < 1 ? 0 : (size_t)room;

    if (o->first_shard + rows > f->shard_count)
        o->first_shard = f->shard_count > rows ? f->shard_count - rows : 0;
    sheet_move(sheet, line, 0);
    sheet_put(sheet, SHEET_HEAD, "%-18s %-6s%-7s%9s%9s%9s%7s%8s%6s", "SHARD", "STATE", "HEALTH",
              "SESSIONS", "LOGINS/S", "FAILED/S", "FLIGHT", "WAITING", "OPEN");
    sheet_fill(sheet, SHEET_HEAD);
    size_t shown = f->shard_count < rows ? f->shard_count : rows;
    for (size_t i = 0; i < shown; i++) {
        sheet_move(sheet, line + 1 + (int)i, 0);
        draw_shard(&f->shards[o->first_shard + i], sheet);
    }
    return shown;
}

/* The letter that chooses it is marked; so is the order that holds. */
static void draw_order(const struct overview *o, enum figures_order order, const char *word,
                       struct sheet *sheet)
{
    sheet_put(sheet, SHEET_LABEL, " %c", *word);
    sheet_put(sheet, o->order == order ? SHEET_HEAD : SHEET_PLAIN, "%s", word + 1);
}

static void draw_keys(const struct overview *o, size_t shown, struct sheet *sheet)
{
    size_t count = o->figures == NULL ? 0 : o->figures->shard_count;

    sheet_move(sheet, sheet->lines - 1, 0);
    sheet_put(sheet, SHEET_LABEL, "q");
    sheet_put(sheet, SHEET_PLAIN, "uit  ");
    sheet_put(sheet, SHEET_LABEL, "p");
    sheet_put(sheet, SHEET_PLAIN, "ause  sort by");
    draw_order(o, FIGURES_BY_NAME, "name", sheet);
    draw_order(o, FIGURES_BY_SESSIONS, "sessions", sheet);
    draw_order(o, FIGURES_BY_LOGINS, "logins", sheet);
    draw_order(o, FIGURES_BY_WAITING, "waiting", sheet);
    if (shown < count)
        sheet_put(sheet, SHEET_PLAIN, "   shards %zu-%zu of %zu", o->first_shard + 1,
                  o->first_shard + shown, count);
}

void overview_draw(struct overview *overview, struct sheet *sheet)
{
    size_t shown = 0;

    draw_title(overview, sheet);
    if (overview->figures != NULL) {
        figures_sort(overview->figures, overview->order);
        draw_clients(overview->figures, sheet);
        draw_pool(overview->figures, sheet);
        draw_redis(overview, sheet);
        draw_directories(overview, sheet);
        draw_process(overview, sheet);
        draw_two_tables(overview->figures, sheet);
        shown = draw_shards(overview, sheet);
    }
    if (overview->has_keys)
        draw_keys(overview, shown, sheet);
}
