/*
 * Tells how the moves of many users go. On a terminal: a bar, and above it what goes wrong.
 * Otherwise, or for programs: a line of JSON for each user who is done. What commands print goes to
 * standard error. Any thread may call it.
 */
#ifndef IMAPMUX_CTL_PROGRESS_H
#define IMAPMUX_CTL_PROGRESS_H

#include "proxy/base/span.h"
#include "proxy/ctl/move.h"

struct progress;

/* `json`: lines of JSON also on a terminal. NULL without memory. */
struct progress *progress_open(size_t total, bool json);

/* Frees it, and removes the bar. Nulls the pointer. */
void progress_close(struct progress **progress);

/* A line of a command's output, or of ours. */
void progress_say(struct progress *progress, const char *user, struct span line);

void progress_begun(struct progress *progress);

/* `result` as move_describe has it, borrowed. */
void progress_done(struct progress *progress, const struct move *move, enum move_end end,
                   const json_t *result);

/* Draws the bar anew, now and then. */
void progress_draw(struct progress *progress);

/* How many were not moved? Of MOVE_FAILED and MOVE_UNSURE. */
size_t progress_errors(struct progress *progress);

/* {users, moved, there, failed, left, median_hold_ms, worst_hold_ms, elapsed_seconds}, owned. */
json_t *progress_sum(struct progress *progress);

#endif
