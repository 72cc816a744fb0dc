/*
 * Owns the counting of places and the lines before them.
 *
 * No wake-up is lost: who waits first counts itself as waiting and then looks for a place; who
 * leaves first frees its place and then looks for somebody who waits (pass_on does both). With
 * sequentially consistent atomics one of the two sees the other.
 */
#include "proxy/store/gate.h"

#include "proxy/base/clock.h"
#include "proxy/base/mem.h"

#include <assert.h>

bool gate_init(struct gate *gate, uint32_t limit, uint32_t queue_max, uint64_t ramp_ms,
               size_t side_count)
{
    *gate = (struct gate){.limit = limit,
                          .queue_max = queue_max,
                          .ramp_ms = ramp_ms,
                          .side_count = side_count,
                          .sides = mem_array(side_count, sizeof *gate->sides)};
    return gate->sides != NULL;
}

void gate_release(struct gate *gate)
{
    mem_free(gate->sides);
}

void gate_join(struct gate *gate, size_t index, struct gate_side *side, uv_async_t *wake)
{
    assert(index < gate->side_count && atomic_load(&gate->sides[index]) == NULL);
    *side = (struct gate_side){.gate = gate, .wake = wake};
    atomic_store(&gate->sides[index], side);
}

void gate_change(struct gate *gate, uint32_t limit, uint32_t queue_max, uint64_t ramp_ms)
{
    atomic_store(&gate->limit, limit);
    atomic_store(&gate->queue_max, queue_max);
    atomic_store(&gate->ramp_ms, ramp_ms);
    gate_call(gate); /* there may be room now for those who wait */
}

/* The limit of this moment. */
static uint32_t limit_now(struct gate *gate)
{
    uint64_t from = atomic_load(&gate->ramp_from_ms), ramp_ms = atomic_load(&gate->ramp_ms);
    uint32_t limit = atomic_load(&gate->limit);
    uint64_t passed;

    if (limit == 0)
        return UINT32_MAX;
    if (from == 0 || ramp_ms == 0)
        return limit;
    if (from == GATE_HELD)
        return 1;
    passed = clock_ms() - from;
    if (passed >= ramp_ms) {
        atomic_compare_exchange_strong(&gate->ramp_from_ms, &from, 0);
        return limit;
    }
    uint32_t grown = (uint32_t)(limit * passed / ramp_ms);
    return grown == 0 ? 1 : grown;
}

static bool take_place(struct gate *gate)
{
    uint32_t limit = limit_now(gate), used = atomic_load(&gate->used);

    while (used < limit)
        if (atomic_compare_exchange_weak(&gate->used, &used, used + 1))
            return true;
    return false;
}

/*
 * Number of the next side in turn that has a ticket for which no place is on its way; or
 * side_count.
 */
static size_t next_side(struct gate *gate)
{
    uint32_t turn = atomic_load(&gate->turn);

    for (size_t i = 0; i < gate->side_count; i++) {
        size_t number = (turn + i) % gate->side_count;
        struct gate_side *side = atomic_load(&gate->sides[number]);

        if (side != NULL && atomic_load(&side->waiting) > atomic_load(&side->granted))
            return number;
    }
    return gate->side_count;
}

/* Gives free places to those who wait. */
static void pass_on(struct gate *gate)
{
    while (gate_is_crowded(gate)) {
        size_t number = next_side(gate);

        if (number == gate->side_count || !take_place(gate))
            return;
        atomic_store(&gate->turn, (uint32_t)number + 1); /* the next one's turn */

        struct gate_side *side = atomic_load(&gate->sides[number]);

        atomic_fetch_add(&side->granted, 1);
        uv_async_send(side->wake);
    }
}

bool gate_try(struct gate_side *side)
{
    return !gate_is_crowded(side->gate) && take_place(side->gate);
}

enum gate_answer gate_enter(struct gate_side *side, struct gate_ticket *ticket)
{
    struct gate *gate = side->gate;

    assert(ticket->side == NULL);
    if (side->first == NULL && take_place(gate))
        return GATE_IN;
    if (atomic_load(&gate->waiting) >= atomic_load(&gate->queue_max))
        return GATE_FULL;
    ticket->side = side;
    ticket->next = NULL;
    ticket->previous = side->last;
    if (side->last == NULL)
        side->first = ticket;
    else
        side->last->next = ticket;
    side->last = ticket;
    atomic_fetch_add(&side->waiting, 1);
    atomic_fetch_add(&gate->waiting, 1);
    pass_on(gate);
    return GATE_WAITS;
}

void gate_cancel(struct gate_ticket *ticket)
{
    struct gate_side *side = ticket->side;

    if (side == NULL)
        return;
    if (ticket->previous == NULL)
        side->first = ticket->next;
    else
        ticket->previous->next = ticket->next;
    if (ticket->next == NULL)
        side->last = ticket->previous;
    else
        ticket->next->previous = ticket->previous;
    ticket->side = NULL;
    atomic_fetch_sub(&side->waiting, 1);
    atomic_fetch_sub(&side->gate->waiting, 1);
}

void gate_leave(struct gate_side *side)
{
    uint32_t before = atomic_fetch_sub(&side->gate->used, 1);

    assert(before > 0);
    (void)before;
    pass_on(side->gate);
}

void gate_serve(struct gate_side *side)
{
    for (uint32_t places = atomic_exchange(&side->granted, 0); places > 0; places--) {
        struct gate_ticket *ticket = side->first;

        if (ticket == NULL) { /* who was to have it has left */
            gate_leave(side);
            continue;
        }
        gate_cancel(ticket);
        ticket->on_place(ticket);
    }
    pass_on(side->gate);
}

bool gate_is_crowded(const struct gate *gate)
{
    return atomic_load(&gate->waiting) > 0;
}

void gate_call(struct gate *gate)
{
    for (size_t i = 0; i < gate->side_count; i++) {
        struct gate_side *side = atomic_load(&gate->sides[i]);

        if (side != NULL)
            uv_async_send(side->wake);
    }
}

bool gate_hold(struct gate *gate)
{
    return atomic_exchange(&gate->ramp_from_ms, GATE_HELD) != GATE_HELD;
}

bool gate_start_slowly(struct gate *gate)
{
    uint64_t held = GATE_HELD;

    return atomic_compare_exchange_strong(&gate->ramp_from_ms, &held,
                                          atomic_load(&gate->ramp_ms) == 0 ? 0 : clock_ms());
}
