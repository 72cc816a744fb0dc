/*
 * Whether something that is checked again and again counts as up or down, and when to look again. A
 * plain value without a clock of its own: times are the caller's.
 *
 * It takes `fall` failures in a row to go down, and `rise` good checks in a row to come up; each
 * time that it goes down soon after it came up doubles the latter, up to eight times as many.
 */
#ifndef IMAPMUX_STORE_HEALTH_STATE_H
#define IMAPMUX_STORE_HEALTH_STATE_H

#include <stdbool.h>
#include <stdint.h>

struct health_rules {
    uint32_t fall, rise;
    uint64_t interval_ms;     /* while all is well */
    uint64_t max_interval_ms; /* the longest pause while it is down */
};

/* Zeroed: up, and nothing known. */
struct health_state {
    bool is_down;
    uint32_t against;  /* checks in a row that speak against is_down */
    uint32_t failures; /* in a row, while it is down */
    uint32_t relapses; /* how often it went down soon after it came up, one after the other */
    uint64_t came_up_ms;
};

/* Takes the result of a check that ended now. True: is_down has changed. */
bool health_state_take(struct health_state *state, const struct health_rules *rules, bool good,
                       uint64_t now_ms);

/* The pause until the next check. A first word against the state is looked into quickly. */
uint64_t health_state_pause(const struct health_state *state, const struct health_rules *rules);

/* How quickly that is. */
uint64_t health_confirm_ms(const struct health_rules *rules);

#endif
