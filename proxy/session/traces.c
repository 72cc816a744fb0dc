/* Owns who on this worker is listened to, and the lines until they are fetched. */
#include "proxy/session/traces.h"

#include "proxy/base/clock.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/imap/transcript.h"
#include "proxy/session/phase.h"
#include "proxy/session/users.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <utlist.h>

enum { PATROL_MS = 1000 };

/* What listens to one relayed session. */
struct tap {
    struct trace *trace;
    struct session *session;
    struct transcript from_client, from_store;
    struct tap *prev, *next;
};

struct trace {
    struct traces *all;
    struct trace *prev, *next;
    struct tap *taps;
    struct traces_line *first, *last;
    size_t bytes;
    struct traces_loss loss;
    uint64_t until_ms;
    bool shows_bodies;
    char id[TRACES_ID_MAX + 1];
    char user[];
};

struct traces {
    struct home *home;
    struct trace *list;
    size_t count;
    uv_timer_t patrol;
};

static void on_patrol(uv_timer_t *timer);

struct traces *traces_open(struct home *home)
{
    struct traces *traces = mem_new(sizeof *traces);

    if (traces == NULL)
        return NULL;
    traces->home = home;
    uv_timer_init(home->env.loop, &traces->patrol);
    traces->patrol.data = traces;
    return traces;
}

/* --- lines --- */

static size_t size_of(const struct traces_line *line)
{
    return sizeof *line + strlen(line->text) + 1;
}

/* It may be mail. */
static void drop_first(struct trace *trace)
{
    struct traces_line *line = trace->first;
    size_t size = size_of(line);

    trace->first = line->next;
    if (trace->first == NULL)
        trace->last = NULL;
    trace->bytes -= size;
    secret_wipe(line, size);
    mem_free(line);
}

static void lose_line(struct trace *trace)
{
    trace->loss.lines++;
    trace->loss.at_ms = clock_wall_ms();
}

static void add_line(struct trace *trace, const char *session, const char *from, struct span text)
{
    size_t size = sizeof(struct traces_line) + text.len + 1;
    struct traces_line *line = trace->bytes + size > TRACES_BYTES_MAX ? NULL : mem_new(size);

    if (line == NULL) {
        lose_line(trace);
        return;
    }
    line->at_ms = clock_wall_ms();
    line->from = from;
    snprintf(line->session, sizeof line->session, "%s", session);
    for (size_t i = 0; i < text.len; i++) /* a text has no NUL */
        line->text[i] = text.ptr[i] == '\0' ? '?' : text.ptr[i];
    *(trace->last == NULL ? &trace->first : &trace->last->next) = line;
    trace->last = line;
    trace->bytes += size;
}

/* --- sessions --- */

static void on_client_line(void *owner, struct span line)
{
    struct tap *tap = owner;

    add_line(tap->trace, tap->session->id, "client", line);
}

static void on_store_line(void *owner, struct span line)
{
    struct tap *tap = owner;

    add_line(tap->trace, tap->session->id, "store", line);
}

/* Our own lines are whole ones. */
static void add_own(struct tap *tap, struct span bytes)
{
    while (bytes.len > 0) {
        const char *end = memchr(bytes.ptr, '\n', bytes.len);
        size_t len = end == NULL ? bytes.len : (size_t)(end - bytes.ptr) + 1, shown = len;

        while (shown > 0 && (bytes.ptr[shown - 1] == '\n' || bytes.ptr[shown - 1] == '\r'))
            shown--;
        add_line(tap->trace, tap->session->id, "proxy", (struct span){bytes.ptr, shown});
        bytes = span_after(bytes, len);
    }
}

static void on_passed(void *owner, enum relay_way way, const struct scan *at, struct span bytes)
{
    struct tap *tap = owner;

    if (way == RELAY_FROM_CLIENT)
        transcript_add(&tap->from_client, at, bytes, on_client_line, tap);
    else if (way == RELAY_FROM_STORE)
        transcript_add(&tap->from_store, at, bytes, on_store_line, tap);
    else
        add_own(tap, bytes);
}

static void attach(struct trace *trace, struct session *s)
{
    struct tap *tap = s->relay.tap != NULL ? NULL : mem_new(sizeof *tap);

    if (tap == NULL) {
        if (s->relay.tap == NULL)
            lose_line(trace);
        return;
    }
    tap->trace = trace;
    tap->session = s;
    transcript_init(&tap->from_client, trace->shows_bodies);
    transcript_init(&tap->from_store, trace->shows_bodies);
    DL_APPEND(trace->taps, tap);
    s->relay.on_passed = on_passed;
    s->relay.tap = tap;
}

static void remove_tap(struct tap *tap)
{
    DL_DELETE(tap->trace->taps, tap);
    tap->session->relay.on_passed = NULL;
    tap->session->relay.tap = NULL;
    secret_wipe(tap, sizeof *tap);
    mem_free(tap);
}

static struct trace *find(struct traces *traces, const char *user)
{
    struct trace *trace;

    DL_FOREACH(traces->list, trace)
    if (strcmp(trace->user, user) == 0)
        return trace;
    return NULL;
}

void traces_note(struct session *s, const char *user, const char *format, ...)
{
    struct traces *traces = s->home->traces;
    struct trace *trace = traces->list == NULL ? NULL : find(traces, user);
    char text[TRANSCRIPT_LINE_MAX];
    va_list values;

    if (trace == NULL)
        return;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    add_line(trace, s->id, "proxy", span_of(text));
}

void traces_attach(struct session *s)
{
    struct traces *traces = s->home->traces;
    struct trace *trace = traces->list == NULL ? NULL : find(traces, users_name(s->user));

    if (trace != NULL)
        attach(trace, s);
}

void traces_detach(struct session *s)
{
    if (s->relay.tap != NULL)
        remove_tap(s->relay.tap);
}

/* --- traces --- */

static void attach_relayed(void *owner, struct session *s)
{
    if (s->relaying)
        attach(owner, s);
}

/* Whoever reads the log knows that somebody has listened. */
static void log_trace(const struct trace *trace, const char *what)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_INFO, "trace");
    log_text(&line, "user", trace->user);
    log_text(&line, "detail", what);
    log_write(&line);
}

static struct trace *begin(struct traces *traces, const char *user, const char *id,
                           bool shows_bodies)
{
    size_t len = strlen(user);
    struct trace *trace = traces->count >= TRACES_MAX ? NULL : mem_new(sizeof *trace + len + 1);

    if (trace == NULL)
        return NULL;
    trace->all = traces;
    trace->shows_bodies = shows_bodies;
    snprintf(trace->id, sizeof trace->id, "%s", id);
    memcpy(trace->user, user, len);
    DL_APPEND(traces->list, trace);
    if (traces->count++ == 0)
        uv_timer_start(&traces->patrol, on_patrol, PATROL_MS, PATROL_MS);
    users_each_of(traces->home, user, attach_relayed, trace);
    log_trace(trace, shows_bodies ? "begins, with mail" : "begins");
    return trace;
}

static void end(struct trace *trace)
{
    struct traces *traces = trace->all;

    log_trace(trace, "ends");
    while (trace->taps != NULL)
        remove_tap(trace->taps);
    while (trace->first != NULL)
        drop_first(trace);
    DL_DELETE(traces->list, trace);
    if (--traces->count == 0)
        uv_timer_stop(&traces->patrol);
    mem_free(trace);
}

void traces_end(struct traces *traces, const char *user, const char *id)
{
    struct trace *trace = find(traces, user);

    if (trace != NULL && strcmp(trace->id, id) == 0)
        end(trace);
}

static void on_patrol(uv_timer_t *timer)
{
    struct traces *traces = timer->data;
    struct trace *trace, *next;

    DL_FOREACH_SAFE(traces->list, trace, next)
    if (uv_now(timer->loop) >= trace->until_ms)
        end(trace);
}

enum traces_answer traces_fetch(struct traces *traces, const char *user, const char *id,
                                bool shows_bodies,
                                bool (*take)(void *owner, const struct traces_line *line),
                                void *owner, struct traces_loss *loss_out)
{
    struct trace *trace = find(traces, user);

    *loss_out = (struct traces_loss){0};
    if (trace != NULL && strcmp(trace->id, id) != 0)
        return TRACES_OTHER;
    if (trace == NULL)
        trace = begin(traces, user, id, shows_bodies);
    if (trace == NULL)
        return TRACES_FULL;
    trace->until_ms = uv_now(traces->home->env.loop) + TRACES_LEASE_MS;
    while (trace->first != NULL && take(owner, trace->first))
        drop_first(trace);
    *loss_out = trace->loss;
    trace->loss = (struct traces_loss){0};
    return TRACES_TOLD;
}

static void on_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

void traces_close(struct traces **traces)
{
    struct traces *t = *traces;

    *traces = NULL;
    if (t == NULL)
        return;
    while (t->list != NULL)
        end(t->list);
    uv_close((uv_handle_t *)&t->patrol, on_closed);
}
