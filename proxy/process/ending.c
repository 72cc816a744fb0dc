/* Owns the end of the process: what it waits for, and for how long. */
#include "proxy/process/ending.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/notify.h"
#include "proxy/process/ask.h"
#include "proxy/process/launcher.h"
#include "proxy/process/listeners.h"
#include "proxy/session/users.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

enum { AFTER_MS = 15000 }; /* what comes after the last session: leaving Redis, closing */

struct ending {
    struct control *control;
    uv_timer_t deadline;
    uv_async_t idle;
    unsigned handles_open;
};

/* --- life --- */

static void tell_idle(void *owner)
{
    ending_tell_idle(owner);
}

/* Whoever has asked for a new process is still to hear of it. */
static void on_idle(uv_async_t *async)
{
    struct ending *ending = async->data;

    if (!launcher_wait(ending->control->launcher, tell_idle, ending))
        uv_stop(async->loop);
}

struct ending *ending_open(struct control *control, struct err *err)
{
    struct ending *ending = mem_new(sizeof *ending);

    if (ending == NULL || uv_async_init(control->env.loop, &ending->idle, on_idle) != 0) {
        err_set(err, ERR_INTERNAL, "no memory or descriptors for the control loop");
        mem_free(ending);
        return NULL;
    }
    ending->control = control;
    uv_timer_init(control->env.loop, &ending->deadline);
    ending->idle.data = ending->deadline.data = ending;
    ending->handles_open = 2;
    return ending;
}

static void handle_closed(uv_handle_t *handle)
{
    struct ending *ending = handle->data;

    if (--ending->handles_open == 0)
        mem_free(ending);
}

void ending_close(struct ending **ending)
{
    struct ending *e = *ending;

    *ending = NULL;
    if (e == NULL)
        return;
    uv_close((uv_handle_t *)&e->deadline, handle_closed);
    uv_close((uv_handle_t *)&e->idle, handle_closed);
}

void ending_tell_idle(struct ending *ending)
{
    uv_async_send(&ending->idle);
}

/* --- in order --- */

static void on_stop_deadline(uv_timer_t *timer)
{
    log_event(LOG_LEVEL_WARNING, "stop", "time is up: the remaining sessions are cut off");
    uv_stop(timer->loop);
}

void ending_stop(struct ending *ending, const char *why)
{
    struct control *control = ending->control;
    bool at_once = (control->stopping && !control->draining) || control->workers == NULL;

    control->stopping = true;
    control->draining = false;
    if (at_once) {
        uv_stop(control->env.loop);
        return;
    }
    log_event(LOG_LEVEL_INFO, "stopping", "%s", why);
    notify_stopping(control->env.conf->process.stop_timeout + AFTER_MS);
    uv_timer_start(&ending->deadline, on_stop_deadline, control->env.conf->process.stop_timeout, 0);
    listeners_close(&control->listeners);
    workers_stop(control->workers);
}

/* --- draining --- */

struct drain {
    struct ask ask; /* first member */
    uint64_t within_ms;
};

static void drain_worker(struct ask *ask, struct home *home, size_t number)
{
    (void)number;
    users_drain(home, ((const struct drain *)ask)->within_ms);
}

static void on_asked(struct ask *ask)
{
    mem_free(ask);
}

static bool ask_to_drain(struct control *control, uint64_t within_ms)
{
    struct drain *drain = mem_new(sizeof *drain);

    if (drain == NULL)
        return false;
    drain->ask = (struct ask){.visit = drain_worker, .on_done = on_asked};
    drain->within_ms = within_ms;
    if (ask_workers(&drain->ask, control->workers, &control->inbox))
        return true;
    mem_free(drain);
    return false;
}

static void on_drain_deadline(uv_timer_t *timer)
{
    struct ending *ending = timer->data;

    ending_stop(ending, "the time to drain is up");
}

bool ending_drain(struct ending *ending, uint64_t within_ms, const char *why)
{
    struct control *control = ending->control;

    if (!ask_to_drain(control, within_ms))
        return false;
    log_event(LOG_LEVEL_INFO, "draining", "%s: sessions are let go within %llu s", why,
              (unsigned long long)within_ms / 1000);
    notify_stopping(within_ms + control->env.conf->process.stop_timeout + AFTER_MS);
    uv_timer_start(&ending->deadline, on_drain_deadline, within_ms, 0);
    if (!control->draining) {
        control->stopping = control->draining = true;
        listeners_close(&control->listeners);
        workers_drain(control->workers);
    }
    return true;
}

/* --- what comes after the last session --- */

/* A signal's handler. Nobody may read standard error either. */
static void give_up(int number)
{
    static const char text[] = "imapmux: the end takes too long: something does not answer\n";
    struct pollfd out = {STDERR_FILENO, POLLOUT, 0};

    (void)number;
    if (poll(&out, 1, 0) > 0)
        (void)!write(STDERR_FILENO, text, sizeof text - 1);
    _exit(EXIT_FAILURE);
}

void ending_has_begun(const struct conf *conf)
{
    uint64_t limit_ms = AFTER_MS + (conf_uses_redis(conf) ? 2 * conf->redis.timeout : 0);

    signal(SIGALRM, give_up); /* no loop need turn for it */
    alarm((unsigned)(limit_ms / 1000));
}

void ending_is_complete(void)
{
    alarm(0);
}
