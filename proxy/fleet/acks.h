/*
 * This process's consents to moves of users: Redis is told of each user who is held and has no
 * connection to a store here any more. On one loop.
 */
#ifndef IMAPMUX_FLEET_ACKS_H
#define IMAPMUX_FLEET_ACKS_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"

struct acks;

/*
 * `id` is the process's. `may_tell` is asked before each consent; false: another time. All is
 * borrowed until the close. NULL with *err set.
 */
struct acks *acks_open(const struct env *env, const char *id,
                       bool (*may_tell)(void *owner, const char *user, uint64_t epoch), void *owner,
                       struct err *err);

/*
 * The move that has begun at this epoch may go on, as far as this process is concerned. Told at
 * once, if Redis answers; else by acks_retry. It takes the place of whatever epoch was known of
 * this user, for a Redis that has lost data may count anew. False without memory.
 */
bool acks_add(struct acks *acks, const char *user, uint64_t epoch);

/* Her moves that have begun at this epoch or before it are over. */
void acks_drop(struct acks *acks, const char *user, uint64_t epoch);

/* Tells what could not be told. */
void acks_retry(struct acks *acks);

/* Tells all again: another Redis may answer now, which has not heard of all. */
void acks_repeat(struct acks *acks);

/* Nulls the pointer; harmless on NULL. */
void acks_close(struct acks **acks);

#endif
