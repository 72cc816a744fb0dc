/* Owns the question to all workers that tells whether they answer. */
#include "proxy/pulse.h"

enum { EACH_MS = 1000, HANGS_MS = 5000 };

static void visit(struct ask *ask, struct home *home, size_t number)
{
    (void)ask;
    (void)home;
    (void)number; /* to come here is the answer */
}

static void on_all_answered(struct ask *ask)
{
    ((struct pulse *)ask)->asked_ms = 0;
}

/* The next question waits for the answers to this one. */
static void on_time(uv_timer_t *timer)
{
    struct pulse *pulse = timer->data;

    if (pulse->asked_ms == 0 && pulse->control->workers != NULL &&
        ask_workers(&pulse->ask, pulse->control->workers, &pulse->control->inbox))
        pulse->asked_ms = uv_now(timer->loop);
}

void pulse_start(struct pulse *pulse, struct control *control)
{
    pulse->control = control;
    pulse->ask = (struct ask){.visit = visit, .on_done = on_all_answered};
    uv_timer_init(control->env.loop, &pulse->timer);
    pulse->timer.data = pulse;
    uv_timer_start(&pulse->timer, on_time, 0, EACH_MS);
}

void pulse_stop(struct pulse *pulse)
{
    if (pulse->control != NULL && !uv_is_closing((uv_handle_t *)&pulse->timer))
        uv_close((uv_handle_t *)&pulse->timer, NULL);
}

bool pulse_is_well(const struct pulse *pulse)
{
    return pulse->asked_ms == 0 || uv_now(pulse->timer.loop) - pulse->asked_ms < HANGS_MS;
}
