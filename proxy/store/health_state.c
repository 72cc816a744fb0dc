/* Owns the rules of going down and coming up. */
#include "proxy/store/health_state.h"

enum {
    CONFIRM_MAX_MS = 1000,
    RELAPSES_MAX = 3,   /* doublings of `rise` */
    SOON_INTERVALS = 30 /* who goes down within so many of coming up has a relapse */
};

uint64_t health_confirm_ms(const struct health_rules *rules)
{
    return rules->interval_ms < CONFIRM_MAX_MS ? rules->interval_ms : CONFIRM_MAX_MS;
}

static void go_down(struct health_state *state, const struct health_rules *rules, uint64_t now_ms)
{
    bool relapse =
        state->came_up_ms != 0 && now_ms - state->came_up_ms < SOON_INTERVALS * rules->interval_ms;

    state->is_down = true;
    state->failures = 1;
    if (!relapse)
        state->relapses = 0;
    else if (state->relapses < RELAPSES_MAX)
        state->relapses++;
}

bool health_state_take(struct health_state *state, const struct health_rules *rules, bool good,
                       uint64_t now_ms)
{
    uint32_t wanted = state->is_down ? rules->rise << state->relapses : rules->fall;

    if (good == !state->is_down) {
        state->against = 0;
        state->failures += state->is_down && state->failures < UINT32_MAX;
        return false;
    }
    state->failures = 0;
    if (++state->against < wanted)
        return false;
    state->against = 0;
    if (state->is_down) {
        state->is_down = false;
        state->came_up_ms = now_ms;
    } else {
        go_down(state, rules, now_ms);
    }
    return true;
}

/* Doubles with each failure. */
static uint64_t down_pause(const struct health_state *state, const struct health_rules *rules)
{
    uint64_t pause = health_confirm_ms(rules);

    for (uint32_t i = 1; i < state->failures && pause < rules->max_interval_ms; i++)
        pause *= 2;
    return pause < rules->max_interval_ms ? pause : rules->max_interval_ms;
}

/* One with relapses shall not come up by a short good time: it is looked at less often. */
uint64_t health_state_pause(const struct health_state *state, const struct health_rules *rules)
{
    if (state->is_down && state->against == 0)
        return down_pause(state, rules);
    if (state->against == 0 || (state->is_down && state->relapses > 0))
        return rules->interval_ms;
    return health_confirm_ms(rules);
}
