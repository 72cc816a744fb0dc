/* Owns the question to all workers by which the process proves that it is alive. */
#include "proxy/watchdog.h"

#include "proxy/base/log.h"
#include "proxy/base/notify.h"
#include "proxy/control.h"

static void on_asked(struct ask *ask, struct home *home, size_t number)
{
    (void)ask;
    (void)home;
    (void)number; /* that it comes here is the answer */
}

static void on_all_answered(struct ask *ask)
{
    struct watchdog *watchdog = (struct watchdog *)ask;

    watchdog->is_asking = watchdog->is_late = false;
    notify_alive();
}

/* The next question waits for all answers to this one: meanwhile nothing is told. */
static void on_time(uv_timer_t *timer)
{
    struct watchdog *watchdog = timer->data;
    struct control *control = watchdog->control;

    if (!watchdog->is_asking) {
        watchdog->is_asking = ask_workers(&watchdog->ask, control->workers, &control->inbox);
    } else if (!watchdog->is_late) {
        watchdog->is_late = true;
        log_event(LOG_LEVEL_WARNING, "watchdog", "a worker has not answered for %llu ms",
                  (unsigned long long)uv_timer_get_repeat(timer));
    }
}

void watchdog_start(struct watchdog *watchdog, struct control *control)
{
    uint64_t period_ms = notify_watchdog_ms() / 3;

    watchdog->control = control;
    watchdog->ask = (struct ask){.visit = on_asked, .on_done = on_all_answered};
    if (period_ms == 0)
        return;
    uv_timer_init(control->env.loop, &watchdog->timer);
    watchdog->timer.data = watchdog;
    uv_timer_start(&watchdog->timer, on_time, 0, period_ms);
}

void watchdog_stop(struct watchdog *watchdog)
{
    if (watchdog->timer.data != NULL && !uv_is_closing((uv_handle_t *)&watchdog->timer))
        uv_close((uv_handle_t *)&watchdog->timer, NULL);
}
