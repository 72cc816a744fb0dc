/*
 * The proxies that share our Redis, as they were a few seconds ago: asked for when somebody looks,
 * so that nobody's looking costs nothing. On the control thread.
 */
#ifndef IMAPMUX_HTTP_NEIGHBOURS_H
#define IMAPMUX_HTTP_NEIGHBOURS_H

#include "proxy/fleet/roster.h"
#include "proxy/process/control.h"

struct neighbours {
    struct roster_request request; /* first member; private, as all of it */
    const struct control *control;
    json_t *list; /* NULL: not known yet */
    uint64_t asked_ms;
    bool asking;
};

/* What is known, borrowed until the loop turns; NULL: nothing yet, or there are none. */
const json_t *neighbours_look(struct neighbours *neighbours, const struct control *control);

/* Before the control thread's connection to Redis is closed. */
void neighbours_close(struct neighbours *neighbours);

#endif
