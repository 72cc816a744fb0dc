/* How users are moved, as the options of `move` and `shard empty` say it. */
#ifndef IMAPMUX_CTL_PLAN_H
#define IMAPMUX_CTL_PLAN_H

#include "proxy/base/err.h"
#include "proxy/ctl/move.h"

enum { PLAN_PARALLEL_MAX = 32 };

struct plan {
    struct move_plan move;
    size_t parallel;       /* moves at a time */
    double interval_ms;    /* from one beginning to the next; 0: none */
    double errors_percent; /* of all users; with more it stops */
};

/* Reads arguments, from which it borrows; sets no socket, nor whom to talk to. */
bool plan_read(struct plan *plan_out, const json_t *arguments, struct err *err);

#endif
