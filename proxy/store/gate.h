/*
 * A number of places that all workers share, and a line before them. A worker that finds no place
 * free puts a ticket into its own side's line; a place that becomes free goes to the sides in turn,
 * each serving its line in order. There is no lock: counts are atomic, tickets never leave their
 * worker.
 */
#ifndef IMAPMUX_STORE_GATE_H
#define IMAPMUX_STORE_GATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#define GATE_HELD UINT64_MAX

struct gate_side;

struct gate {
    _Atomic uint32_t limit;     /* places; 0: no limit, only counted */
    _Atomic uint32_t queue_max; /* tickets in all lines together */
    struct gate_side *_Atomic *sides;
    size_t side_count;
    _Atomic uint32_t used, waiting, turn;
    _Atomic uint64_t ramp_from_ms; /* 0: no ramp; GATE_HELD */
    _Atomic uint64_t ramp_ms;
};

/* One worker's side. Its members are that worker's alone, but for the atomics. */
struct gate_side {
    struct gate *gate;
    uv_async_t *wake; /* borrowed; its callback calls gate_serve */
    struct gate_ticket *first, *last;
    _Atomic uint32_t waiting; /* tickets in this line */
    _Atomic uint32_t granted; /* places given to this side and not yet to a ticket */
};

/* Embedded in whoever waits. */
struct gate_ticket {
    void (*on_place)(struct gate_ticket *ticket); /* the owner has a place now */
    struct gate_ticket *next, *previous;          /* private; `side` is NULL while not in a line */
    struct gate_side *side;
};

/*
 * `limit` and `queue_max` as in the struct; `ramp_ms` for gate_start_slowly. False without memory.
 */
bool gate_init(struct gate *gate, uint32_t limit, uint32_t queue_max, uint64_t ramp_ms,
               size_t side_count);
void gate_release(struct gate *gate);

/* Other bounds. Who has a place keeps it, and who waits goes on waiting. Any thread. */
void gate_change(struct gate *gate, uint32_t limit, uint32_t queue_max, uint64_t ramp_ms);

/* Makes `side` the gate's side number `index`, on its thread or before that runs. */
void gate_join(struct gate *gate, size_t index, struct gate_side *side, uv_async_t *wake);

/*
 * IN: the caller has a place. WAITS: the ticket is in the line; on_place follows, later, on this
 * worker, never after gate_cancel. FULL: neither.
 */
enum gate_answer { GATE_IN, GATE_WAITS, GATE_FULL };
enum gate_answer gate_enter(struct gate_side *side, struct gate_ticket *ticket);

/* Takes a place if one is free and nobody waits for it: true. Never waits. */
bool gate_try(struct gate_side *side);

/* Takes the ticket out of the line. Harmless on one that is in none. */
void gate_cancel(struct gate_ticket *ticket);

/* Gives a place back. */
void gate_leave(struct gate_side *side);

/*
 * Calls on_place for tickets of this side for which there are places. On wake, and now and then
 * while a ramp lasts.
 */
void gate_serve(struct gate_side *side);

/* Whether anybody waits, on any side. Any thread. */
bool gate_is_crowded(const struct gate *gate);

/* Wakes all sides: somebody waits, and they might have a place to spare. */
void gate_call(struct gate *gate);

/*
 * Held, a gate has one place only (all of them with a `ramp_ms` of 0), until gate_start_slowly:
 * from then on the limit grows to what it was. True for the one call that changes something. Any
 * thread.
 */
bool gate_hold(struct gate *gate);
bool gate_start_slowly(struct gate *gate);

#endif
