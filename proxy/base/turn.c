/*
 * Owns the list of tasks for a loop's next turn and the idle handle that makes the turn come at
 * once.
 */
#include "proxy/base/turn.h"

#include <assert.h>
#include <stddef.h>

static void run_all(uv_idle_t *idle);

void turn_init(struct turn *turn, uv_loop_t *loop)
{
    turn->first = NULL;
    turn->last = &turn->first;
    uv_idle_init(loop, &turn->idle); /* cannot fail */
    turn->idle.data = turn;
}

void turn_release(struct turn *turn)
{
    assert(turn->first == NULL);
    uv_close((uv_handle_t *)&turn->idle, NULL);
}

void turn_post(struct turn *turn, struct turn_task *task)
{
    if (task->link != NULL)
        return;
    if (turn->first == NULL)
        uv_idle_start(&turn->idle, run_all);
    task->next = NULL;
    task->link = turn->last;
    *turn->last = task;
    turn->last = &task->next;
}

void turn_cancel(struct turn *turn, struct turn_task *task)
{
    if (task->link == NULL)
        return;
    *task->link = task->next;
    if (task->next != NULL)
        task->next->link = task->link;
    else
        turn->last = task->link;
    task->link = NULL;
}

/* Runs what was posted before this turn; what the tasks post waits for the next one. */
static void run_all(uv_idle_t *idle)
{
    struct turn *turn = idle->data;
    struct turn_task fence = {0};

    turn_post(turn, &fence);
    while (turn->first != &fence) {
        struct turn_task *task = turn->first;

        turn_cancel(turn, task);
        task->run(task);
    }
    turn_cancel(turn, &fence);
    if (turn->first == NULL)
        uv_idle_stop(&turn->idle);
}
