/* Owns the question to all workers by which the process knows, and proves, that it is alive. */
#include "proxy/process/pulse.h"

#include "proxy/base/log.h"
#include "proxy/base/notify.h"

enum { EACH_MS = 1000, HANGS_MS = 5000 };

static void visit(struct ask *ask, struct home *home, size_t number)
{
    (void)ask;
    (void)home;
    (void)number; /* to come here is the answer */
}

static void on_all_answered(struct ask *ask)
{
    struct pulse *pulse = (struct pulse *)ask;

    pulse->asked_ms = 0;
    pulse->is_told = false;
    notify_alive();
}

/* The next question waits for the answers to this one. */
static void on_time(uv_timer_t *timer)
{
    struct pulse *pulse = timer->data;
    const struct control *control = pulse->control;

    if (pulse->asked_ms == 0 && control->workers != NULL &&
        ask_workers(&pulse->ask, control->workers, &pulse->control->inbox))
        pulse->asked_ms = uv_now(timer->loop);
    if (pulse_is_well(pulse) || pulse->is_told)
        return;
    pulse->is_told = true;
    log_event(LOG_LEVEL_WARNING, "watchdog", "a worker has not answered for %llu ms",
              (unsigned long long)pulse->hangs_ms);
}

void pulse_start(struct pulse *pulse, struct control *control)
{
    uint64_t limit_ms = notify_watchdog_ms(), each_ms = EACH_MS;

    pulse->control = control;
    pulse->hangs_ms = HANGS_MS;
    if (limit_ms > 0 && limit_ms / 2 < pulse->hangs_ms) /* told before the manager acts */
        pulse->hangs_ms = limit_ms / 2;
    if (limit_ms > 0 && limit_ms / 3 < each_ms)
        each_ms = limit_ms / 3;
    pulse->ask = (struct ask){.visit = visit, .on_done = on_all_answered};
    uv_timer_init(control->env.loop, &pulse->timer);
    pulse->timer.data = pulse;
    uv_timer_start(&pulse->timer, on_time, 0, each_ms);
}

void pulse_stop(struct pulse *pulse)
{
    if (!uv_is_closing((uv_handle_t *)&pulse->timer))
        uv_close((uv_handle_t *)&pulse->timer, NULL);
}

bool pulse_is_well(const struct pulse *pulse)
{
    return pulse->asked_ms == 0 || uv_now(pulse->timer.loop) - pulse->asked_ms < pulse->hangs_ms;
}
