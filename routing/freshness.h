/*
 * How far this process may trust what it remembers of routes. One for the process, written by the
 * control thread, which hears the events of Redis, and read by every worker's router. All times are
 * of uv_hrtime, in ms; zeroed, nothing is to be trusted.
 */
#ifndef IMAPMUX_ROUTING_FRESHNESS_H
#define IMAPMUX_ROUTING_FRESHNESS_H

#include <stdatomic.h>
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
};

#endif
