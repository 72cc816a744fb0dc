/*
 * What has become of a worker's users lately: how their last sessions have ended, and why their
 * last login was refused, for administration. Bounded: the user of whom nothing was heard for
 * longest is forgotten. Whoever fills it with made-up names of refused logins displaces no session.
 * No secret is kept. On one thread.
 */
#ifndef IMAPMUX_SESSION_HISTORY_H
#define IMAPMUX_SESSION_HISTORY_H

#include "proxy/base/address.h"
#include "proxy/base/err.h"

#include <time.h>

enum { HISTORY_USERS = 4096, HISTORY_ENDS = 3, HISTORY_WHY_MAX = 48, HISTORY_TEXT_MAX = 120 };

struct history;

struct history_end {
    time_t at;
    uint64_t seconds; /* that the session has lasted */
    union address peer;
    const char *shard; /* a title that outlives the process's workers */
    char why[HISTORY_WHY_MAX];
};

struct history_refusal {
    time_t at; /* 0: none */
    union address peer;
    const char *shard; /* as above; NULL: none was known yet */
    enum err_kind kind;
    char text[HISTORY_TEXT_MAX];
};

/* NULL without memory. */
struct history *history_open(void);

/* Forgets all, and nulls the pointer; harmless on NULL. */
void history_close(struct history **history);

/* It has ended just now; `why` is cut. Without memory it is not remembered. */
void history_ended(struct history *history, const char *user, const union address *peer,
                   const char *shard, uint64_t seconds, const char *why);
void history_refused(struct history *history, const char *user, const union address *peer,
                     const char *shard, const struct err *err);

/* What is remembered; the latest end first. The number of ends. */
size_t history_of(const struct history *history, const char *user,
                  struct history_end ends_out[HISTORY_ENDS], struct history_refusal *refusal_out);

#endif
