/*
 * Makes new ticket keys in time, and forgets old ones: for this process alone
 * (tls.ticket_keys = own), or together with the other proxies that use the same Redis
 * (= redis): whoever comes first, when a new key is due, makes it. While Redis is away all go on
 * with the keys that they know; one that has never reached it, with one of its own. On the control
 * thread.
 */
#ifndef IMAPMUX_PROCESS_TICKET_ROTATION_H
#define IMAPMUX_PROCESS_TICKET_ROTATION_H

#include "proxy/base/env.h"
#include "proxy/base/err.h"

struct ticket_rotation;

/*
 * A first key is in force at once. Borrows `env`, whose `redis` is used once the loop runs. NULL
 * with *err set.
 */
struct ticket_rotation *ticket_rotation_open(const struct env *env, const struct conf_tls *conf,
                                             struct err *err);

/* Another ticket_rotation and session_lifetime. */
void ticket_rotation_set(struct ticket_rotation *rotation, const struct conf_tls *conf);

/* Nulls the pointer, harmless on NULL; memory goes in the last close callback. */
void ticket_rotation_close(struct ticket_rotation **rotation);

#endif
