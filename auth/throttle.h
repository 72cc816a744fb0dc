/*
 * Slows down who guesses passwords: each failure of an address (IPv6 by /64) or for a user makes
 * the next answer wait longer, up to a bound. The same wrong password again is no guess: it is a
 * telephone that has not heard of the new one. One for the process, for all workers.
 */
#ifndef IMAPMUX_AUTH_THROTTLE_H
#define IMAPMUX_AUTH_THROTTLE_H

#include "proxy/base/address.h"
#include "proxy/base/conf.h"
#include "proxy/base/err.h"
#include "proxy/base/networks.h"
#include "proxy/base/secret.h"

struct throttle;
struct throttle_entry;

/* One login; embedded in its owner, zeroed before its first use. */
struct throttle_attempt {
    struct throttle_entry *address, *user; /* NULL: not counted */
    uint64_t guess;                        /* tells passwords apart */
};

enum throttle_outcome {
    THROTTLE_VERIFIED, /* the user's failures are forgotten */
    THROTTLE_REFUSED,  /* a guess, if it is a new one */
    THROTTLE_UNKNOWN   /* nobody has decided */
};

/* NULL with *err set. */
struct throttle *throttle_open(const struct conf_throttle *conf, struct err *err);

/*
 * Other settings count from now on, of which `trusted` (networks_init) are the trusted networks: it
 * has the old ones afterwards. What has failed is not forgotten.
 */
void throttle_change(struct throttle *throttle, const struct conf_throttle *conf,
                     struct networks *trusted);

/* No attempt may be under way. Nulls the pointer; harmless on NULL. */
void throttle_close(struct throttle **throttle);

/*
 * An attempt begins. `user` is NULL where only the address counts. *delay_ms_out is how long it is
 * to wait before the password is looked at. False when too many of its address are under way: it is
 * refused, and has not begun. Each one that has begun ends with throttle_end. Times are of a clock
 * that only goes forward, the same for all workers.
 */
bool throttle_begin(struct throttle *throttle, struct throttle_attempt *attempt,
                    const union address *address, const char *user, const struct secret *password,
                    uint64_t now_ms, uint64_t *delay_ms_out);

void throttle_end(struct throttle *throttle, struct throttle_attempt *attempt,
                  enum throttle_outcome outcome, uint64_t now_ms);

/*
 * The failures for this user that time has not forgiven, and how long her next login has to wait
 * for them. Changes nothing.
 */
unsigned throttle_look(struct throttle *throttle, const char *user, uint64_t now_ms,
                       uint64_t *delay_ms_out);

#endif
