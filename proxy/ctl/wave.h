/*
 * Moves many users, several at a time; what becomes of each is kept (wave_store.h), so that another
 * run goes on where this one has ended.
 */
#ifndef IMAPMUX_CTL_WAVE_H
#define IMAPMUX_CTL_WAVE_H

#include "proxy/ctl/plan.h"
#include "proxy/ctl/tool.h"
#include "proxy/ctl/wave_store.h"

struct wave {
    const struct tool *tool;
    const struct plan *plan;
    const struct wave_store *store;
    const char *to;      /* NULL: back, each to where she came from */
    const json_t *users; /* those to move: objects as the store has them, by name */
};

/* DONE only when all are moved. Signals are counted from now on (interrupt.h). */
enum ctl_status wave_run(const struct wave *wave);

/* Shows what would be done for each, and why not; changes nothing. */
enum ctl_status wave_rehearse(const struct wave *wave);

#endif
