/*
 * What is published on some of Redis' channels, over a connection of its own that is kept up: a
 * subscription that is lost is made again with a growing, jittered pause. What was published
 * meanwhile is lost, so after each on_up the owner reads again what the events are about. Whether
 * events really arrive is for the owner to find out: it publishes, and calls for a restart when
 * nothing comes.
 */
#ifndef IMAPMUX_NET_REDIS_EVENTS_H
#define IMAPMUX_NET_REDIS_EVENTS_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "proxy/base/span.h"

enum { REDIS_CHANNELS_MAX = 8 };

struct redis_events;

/*
 * Called from the loop, never inside a call of this interface, and never after redis_events_close
 * has returned; all of them may restart and close the events. on_up, messages, on_down, on_up...:
 * a message comes only between the first two and the next on_down.
 */
struct redis_events_handlers {
    void (*on_up)(void *owner); /* all channels are subscribed to */
    void (*on_message)(void *owner, const char *channel, struct span message);
    void (*on_down)(void *owner); /* once for each on_up */
};

/*
 * Subscribes to 1..REDIS_CHANNELS_MAX channels. Borrows the names, the handlers and env until the
 * close. NULL with *err set as redis_link_open.
 */
struct redis_events *redis_events_open(const struct env *env, const char *const *channels,
                                       size_t count, const struct redis_events_handlers *handlers,
                                       void *owner, struct err *err);

/* Ends the present connection, as one that is no good, and makes another; `why` is for the log. */
void redis_events_restart(struct redis_events *events, const char *why);

/* Memory goes in the last close callback. */
void redis_events_close(struct redis_events **events);

#endif
