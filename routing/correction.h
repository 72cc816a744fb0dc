/*
 * Changes a user's route in Redis to where a store has said that the user is. Of one worker, on its
 * connection to Redis.
 */
#ifndef IMAPMUX_ROUTING_CORRECTION_H
#define IMAPMUX_ROUTING_CORRECTION_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"

struct corrector;

/* Borrows env, whose connection to Redis must be there until the close. NULL with *err set. */
struct corrector *corrector_open(const struct env *env, struct err *err);

/*
 * The user's route leads to `to` from now on, unless it is another one by now than `from` at this
 * epoch, or is not active. Nobody waits for that: what became of it is logged.
 */
void corrector_change(struct corrector *corrector, const char *user, const char *from,
                      uint64_t epoch, const char *to);

/* The connection is closed. Nulls the pointer; harmless on NULL. */
void corrector_close(struct corrector **corrector);

#endif
