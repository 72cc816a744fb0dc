/* Lays out what imapmuxctl top shows. */
#ifndef IMAPMUX_CTL_OVERVIEW_H
#define IMAPMUX_CTL_OVERVIEW_H

#include "proxy/ctl/figures.h"
#include "proxy/ctl/sheet.h"

struct overview {
    struct figures *figures;  /* NULL: there are none yet */
    const struct sample *now; /* may be empty */
    enum figures_order order;
    uint64_t interval_ms;
    bool is_paused;
    const char *trouble; /* "", or why there is nothing newer */
    size_t first_shard;  /* that is shown; set to one that there is */
    bool has_keys;       /* somebody can press them: the last line names them */
};

/* On a sheet that was cleared. Sorts the shards. */
void overview_draw(struct overview *overview, struct sheet *sheet);

#endif
