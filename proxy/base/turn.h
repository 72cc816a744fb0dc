/*
 * Work for the next turn of a loop. It is how an asynchronous request that already knows its answer
 * still answers later, never inside the call. Tasks are embedded in their owner; nothing is
 * allocated.
 */
#ifndef IMAPMUX_BASE_TURN_H
#define IMAPMUX_BASE_TURN_H

#include <stdbool.h>
#include <uv.h>

struct turn_task {
    void (*run)(struct turn_task *task); /* may free the task */
    struct turn_task *next, **link;      /* private; link is NULL while not posted */
};

struct turn {
    struct turn_task *first, **last;
    uv_idle_t idle;
};

void turn_init(struct turn *turn, uv_loop_t *loop);

/* Closes the handle; the loop must run once more before the memory goes. No task may be posted. */
void turn_release(struct turn *turn);

/* Runs task->run once, in the next turn. A task that is already posted stays where it is. */
void turn_post(struct turn *turn, struct turn_task *task);

/* After this the task does not run. Harmless on one that is not posted. */
void turn_cancel(struct turn *turn, struct turn_task *task);

#endif
