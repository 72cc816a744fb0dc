/* Owns the table of handlers, and those about the process as a whole. */
#include "proxy/admin/handlers.h"

#include "auth/username.h"
#include "proxy/ask.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/control.h"
#include "proxy/ending.h"

#include <unistd.h>

enum { DRAIN_MAX_MS = 7 * 24 * 3600 * 1000 };

admin_handler *const admin_handlers[CTL_COMMAND_COUNT] = {
#define X(id, ...) run_##id,
    CTL_COMMANDS(X)
#undef X
};

/* --- what it is, and how it goes --- */

void run_version(struct admin_call *call)
{
    admin_answer(call, json_string(IMAPMUX_VERSION));
}

static json_t *list_words(const struct conf_words *words)
{
    json_t *list = json_array();

    for (size_t i = 0; i < words->count; i++)
        json_array_append_new(list, json_string(words->items[i]));
    return list;
}

/* Takes over the value; false when there was no memory for it. */
static bool set(json_t *object, const char *name, json_t *value)
{
    return json_object_set_new(object, name, value) == 0;
}

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

static const char *state_of(const struct control *control)
{
    return control->draining ? "draining" : control->stopping ? "stopping" : "running";
}

void run_status(struct admin_call *call)
{
    struct control *control = call->context;
    const struct conf *conf = control->env.conf;
    uint64_t uptime_ms = uv_now(control->env.loop) - control->started_ms;
    json_t *status = json_object();

    if (set(status, "version", json_string(IMAPMUX_VERSION)) &&
        set(status, "pid", number((uint64_t)getpid())) &&
        set(status, "state", json_string(state_of(control))) &&
        set(status, "uptime_seconds", number(uptime_ms / 1000)) &&
        set(status, "configuration", json_string(control->conf_path)) &&
        set(status, "log_level", json_string(log_level_name(log_level()))) &&
        set(status, "auth_sources", list_words(&conf->auth.sources)) &&
        set(status, "route_sources", list_words(&conf->route.sources)) &&
        set(status, "workers", number(workers_count(control->workers))) &&
        set(status, "sessions", number(workers_session_count(control->workers))) &&
        set(status, "max_sessions", number((uint64_t)conf->process.max_sessions)))
        admin_answer(call, json_incref(status));
    else
        admin_answer(call, NULL);
    json_decref(status);
}

void run_drain(struct admin_call *call)
{
    struct control *control = call->context;
    const char *within = admin_argument(call, "within");
    uint64_t within_ms = control->env.conf->process.drain_time;

    if (within != NULL && !conf_read_duration(within, DRAIN_MAX_MS, &within_ms))
        admin_refuse(call, "\"within\" is \"%.40s\", expected a duration up to 7d, as 5m", within);
    else if (control->stopping && !control->draining)
        admin_refuse(call, "the process is stopping");
    else if (ending_drain(control->ending, within_ms, "on request"))
        admin_answer(call, json_null());
    else
        admin_answer(call, NULL);
}

void run_metrics(struct admin_call *call)
{
    struct control *control = call->context;
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    bool good = out != NULL && workers_print_metrics(control->workers, out);

    good = (out == NULL || fclose(out) == 0) && good;
    admin_answer(call, good ? json_stringn(text, len) : NULL);
    mem_free(text);
}

void run_log_level(struct admin_call *call)
{
    const char *wanted = admin_argument(call, "level");

    for (int level = LOG_LEVEL_ERROR; wanted != NULL && level <= LOG_LEVEL_DEBUG; level++)
        if (strcmp(log_level_name((enum conf_log_level)level), wanted) == 0)
            log_set_level((enum conf_log_level)level);
    admin_answer(call, json_string(log_level_name(log_level())));
}

/* --- what is remembered --- */

struct flush {
    struct ask ask;          /* first member */
    struct admin_call *call; /* NULL: nobody waits for the answer any more */
    bool all;
    char user[USERNAME_MAX + 1];
};

static void flush_worker(struct ask *ask, struct home *home, size_t number)
{
    const struct flush *flush = (const struct flush *)ask;

    (void)number;
    auth_forget(home->auth, flush->all ? NULL : flush->user);
}

static void on_flushed(struct ask *ask)
{
    struct flush *flush = (struct flush *)ask;

    if (flush->call != NULL)
        admin_answer(flush->call, json_null());
    mem_free(flush);
}

static void cancel_flush(struct admin_call *call)
{
    struct flush *flush = call->state;

    flush->call = NULL;
}

void run_cache_flush(struct admin_call *call)
{
    struct control *control = call->context;
    const char *user = admin_argument(call, "user");
    struct flush *flush = mem_new(sizeof *flush);

    if (flush == NULL) {
        admin_answer(call, NULL);
        return;
    }
    flush->ask = (struct ask){.visit = flush_worker, .on_done = on_flushed};
    flush->call = call;
    flush->all = user == NULL;
    if (user != NULL &&
        !username_normalise(&control->env.conf->username, span_of(user), flush->user)) {
        mem_free(flush);
        admin_refuse(call, "this cannot be the name of a user");
        return;
    }
    call->state = flush;
    call->cancel = cancel_flush;
    if (!ask_workers(&flush->ask, control->workers, &control->inbox)) {
        mem_free(flush);
        admin_answer(call, NULL);
    }
}
