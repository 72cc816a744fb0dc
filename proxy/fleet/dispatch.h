/*
 * What the workers are made to do about users and sessions by what this process hears: letters, of
 * which each finds its own end. On the control thread.
 */
#ifndef IMAPMUX_FLEET_DISPATCH_H
#define IMAPMUX_FLEET_DISPATCH_H

#include "proxy/process/control.h"
#include "routing/route.h"

/* What is said to those whose sessions an operator ends. */
extern const char dispatch_kick_bye[];

/* The state's word in Redis and in events. False if there is none such. */
bool dispatch_read_state(const char *word, enum route_state *state_out);

/*
 * The route of a user has changed: the worker that she is at home on learns it, and holds, releases
 * or ends her sessions; these in any case if she is `stray`, at a store that is not hers any more.
 * False without memory. Nothing happens once workers have ended.
 */
bool dispatch_route(struct control *control, const char *user, uint64_t epoch,
                    enum route_state state, bool stray);

/*
 * Lets all sessions go within this time; or cuts them off at once, and `on_done` follows, later or
 * inside the call. False without memory.
 */
bool dispatch_let_go(struct control *control, uint64_t within_ms);
bool dispatch_cut_off(struct control *control, void (*on_done)(void *owner), void *owner);

#endif
