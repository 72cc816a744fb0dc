/*
 * How many sessions there are in this process of each user, from each client address, and of each
 * user from each address; and whether one more would be too many. Addresses are origins
 * (address_origin_text). One for the process, for all workers: any thread may call.
 */
#ifndef IMAPMUX_SESSION_LIMITS_H
#define IMAPMUX_SESSION_LIMITS_H

#include "proxy/base/address.h"
#include "proxy/base/conf.h"
#include "proxy/base/err.h"
#include "proxy/base/networks.h"

struct limits;
struct limits_entry;

/* Where a session is counted; zeroed, it is not. */
struct limits_place {
    struct limits_entry *user, *address, *pair; /* NULL where nothing has limited it */
};

/* NULL with *err set. */
struct limits *limits_open(const struct conf_limits *conf, struct err *err);

/*
 * Other limits count for those who come from now on; `trusted` (networks_init) are the trusted
 * networks of `conf`: it has the old ones afterwards. Whoever came while nothing limited her is not
 * counted.
 */
void limits_change(struct limits *limits, const struct conf_limits *conf, struct networks *trusted);

/* No session may be counted. Nulls the pointer; harmless on NULL. */
void limits_close(struct limits **limits);

/*
 * Counts one more. False, and nothing is counted, when that would be too many (USER_LIMIT,
 * ADDRESS_LIMIT, USER_ADDRESS_LIMIT) or memory is short (INTERNAL).
 */
bool limits_enter(struct limits *limits, struct limits_place *place, const char *user,
                  const union address *address, struct err *err);

/*
 * Counts a connection that has not logged in, apart from sessions. False, and it is not counted,
 * when that would be too many of its address, or memory is short.
 */
bool limits_await(struct limits *limits, struct limits_place *place, const union address *address);

/* Counts it no more, and zeroes the place. Harmless on one that is not counted. */
void limits_leave(struct limits *limits, struct limits_place *place);

/* The settings as they hold for a client from there: 0 is no limit. */
struct limits_numbers {
    uint32_t user, address, user_address;
};
struct limits_numbers limits_for(struct limits *limits, const union address *address);

#endif
