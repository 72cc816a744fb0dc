/*
 * What is kept of a wave of moves in Redis, by requests to imapmux: its parameters, and an object
 * for each user:
 *     {"state":..., "from": shard, "move": id, "hold_ms":..., "why":...}
 * where `state` is "waiting", "moving", "moved", "there" (before it began), "failed"; of a wave
 * that is rolled back "returning" and "back". All block.
 */
#ifndef IMAPMUX_CTL_WAVE_STORE_H
#define IMAPMUX_CTL_WAVE_STORE_H

#include "proxy/base/err.h"

#include <jansson.h>

enum { WAVE_ID_DIGITS = 8 };

struct wave_store {
    const char *socket;
    char id[WAVE_ID_DIGITS + 1];
    char owner[64]; /* this program, among others that might work on the wave */
};

/* Takes over a wave that is there; false when this can be no id. */
bool wave_store_open(struct wave_store *store, const char *socket, const char *id, struct err *err);

/* Makes a new one. */
bool wave_store_create(struct wave_store *store, const char *socket, const json_t *parameters,
                       struct err *err);

/* Writes what became of users: an object with their names as its members. */
bool wave_store_put(const struct wave_store *store, const json_t *users, struct err *err);

/* Keeps others away for half a minute; false with what is wrong: another one works on it. */
bool wave_store_hold(const struct wave_store *store, struct err *err);

/* Others may work on it from now on. If that is not heard, they wait. */
void wave_store_release(const struct wave_store *store);

/* Reads all; the caller has the references. */
bool wave_store_read(const struct wave_store *store, json_t **parameters_out, json_t **users_out,
                     struct err *err);

#endif
