/*
 * What is published for all proxies and for this one, and how certain it is that nothing is missed:
 * a tick of our own each quarter of a second that comes back over the subscription shows that what
 * was published before it has come, too. Writes the other two members of struct freshness. On one
 * loop.
 */
#ifndef IMAPMUX_FLEET_HEARING_H
#define IMAPMUX_FLEET_HEARING_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"
#include "routing/freshness.h"

#include <jansson.h>

struct hearing;

/* Never inside a call of its own. */
struct hearing_events {
    /* Of both channels, in the order in which Redis has published them; borrowed for the call. */
    void (*on_event)(void *owner, const char *name, const json_t *event);
    /* Events may have been missed, and are heard again from now on: what they are about is read. */
    void (*on_gap)(void *owner);
};

/* `id` is the process's. All is borrowed until the close. NULL with *err set. */
struct hearing *hearing_open(const struct env *env, const char *id, struct freshness *freshness,
                             const struct hearing_events *events, void *owner, struct err *err);

/*
 * The channel of the process with this id (NULL: that of all), as a whole key. False when it does
 * not fit.
 */
bool hearing_channel(char out[], size_t size, const struct conf_redis *conf, const char *id);

/* An event could not be made use of: from now on is heard again, as if a gap had been before. */
void hearing_begin_anew(struct hearing *hearing);

/* Nulls the pointer; memory goes in the last close callback. Harmless on NULL. */
void hearing_close(struct hearing **hearing);

#endif
