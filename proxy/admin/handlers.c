/* Owns the table of handlers, and those about the process as a whole. */
#include "proxy/admin/handlers.h"

#include "auth/username.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/process/ask.h"
#include "proxy/process/control.h"
#include "proxy/process/ending.h"

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
