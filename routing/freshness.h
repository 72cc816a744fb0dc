/*
 * How far this process may trust what it remembers of routes. One for the process, written by the
 * control thread, which hears the events of Redis, and read by every worker's router. All times are
 * of clock_ms; zeroed, nothing is to be trusted.
 */
#ifndef IMAPMUX_ROUTING_FRESHNESS_H
#define IMAPMUX_ROUTING_FRESHNESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct freshness {
    _Atomic uint64_t complete_since_ms; /* of changes since then all have been heard */
    _Atomic uint64_t events_until_ms;   /* until then it is certain that changes are heard */
    _Atomic uint64_t fence_ms;          /* until then last known routes serve while Redis is away */
    /*
     * Routes read before this are gone for good: for a while Redis did not know of this process (or
     * of the one whose snapshot it has read), so a user may have been moved without it.
     */
    _Atomic uint64_t known_since_ms;
    /*
     * After this no session may send anything to a store: the user may be at another one. What a
     * timer does about it would come too late in a process that was frozen meanwhile.
     */
    _Atomic uint64_t serve_until_ms; /* 0: no such end */
    /*
     * By the token in the record of this process the server that has confirmed it is told from
     * another one (server_check.h): as it is being written, and as it was written last.
     */
    const char *proxy; /* whose record it is; NULL: there is none. Set before there are workers */
    _Atomic uint64_t token, token_before;
    _Atomic uint64_t beats; /* how often it was written */
};

/* Whether sessions must keep away from their stores. `freshness` may be NULL: no. */
static inline bool freshness_fences_off(const struct freshness *freshness, uint64_t now_ms)
{
    uint64_t until = freshness == NULL ? 0 : atomic_load(&freshness->serve_until_ms);

    return until != 0 && now_ms >= until;
}

#endif
