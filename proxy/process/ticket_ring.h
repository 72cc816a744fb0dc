/*
 * Which ticket keys a process knows, for how long, and which of them is for new tickets: pure, on
 * whatever clock the caller has. Keys are its own, or *shared* with other proxies through Redis.
 * A shared key is for new tickets only once it is `lead` old, when all proxies have it; until then
 * the one before it is.
 */
#ifndef IMAPMUX_PROCESS_TICKET_RING_H
#define IMAPMUX_PROCESS_TICKET_RING_H

#include "proxy/net/ticket_keys.h"

#include <stdint.h>

struct ring_key {
    struct secret key;
    int64_t made_ms;
    int64_t until_ms; /* INT64_MAX: not known yet */
    bool shared;
};

/* Newest first. A zeroed struct is empty. */
struct ticket_ring {
    size_t count;
    struct ring_key keys[TICKET_KEYS_MAX];
};

/*
 * Makes a key of our own, for new tickets; those that were there are good for `keep_ms` from now.
 * False with *err set: nothing has changed.
 */
bool ticket_ring_make(struct ticket_ring *ring, int64_t now_ms, int64_t keep_ms, struct err *err);

/*
 * What the others know, in any order; `made_ms` of each on our clock. All that is not among them is
 * good for `keep_ms` from now, if it is not to go earlier. Takes the keys over.
 */
void ticket_ring_merge(struct ticket_ring *ring, struct ring_key *shared, size_t count,
                       int64_t now_ms, int64_t keep_ms);

/* Forgets what has had its time. */
void ticket_ring_expire(struct ticket_ring *ring, int64_t now_ms);

/* Copies, that for new tickets first. False without memory, or if there is none. */
bool ticket_ring_keys(const struct ticket_ring *ring, int64_t now_ms, int64_t lead_ms,
                      struct ticket_keys *out);

void ticket_ring_release(struct ticket_ring *ring);

#endif
