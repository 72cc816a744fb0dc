/*
 * The last known routes in a file, so that a process that is started while Redis is away can serve
 * the users whom the process before it knew. Plain files: no loop, no thread of its own.
 *     FILE        the snapshot: lines of text, the last one a checksum of the others
 *     FILE.moved  users who have been moved since, and are not served from it (journal.h)
 *     FILE.lock   locked by the process that uses the other two
 *
 * What the control thread does with it:
 *  - At the start, before workers take clients: snapshot_open, snapshot_read, and router_know of
 *    the user's worker for each route. The process before this one (head.proxy) is dead, or it would
 *    have the lock, and Redis may be told so. If its record was still there then, no move has gone
 *    on without its consent, and what was read goes on to be good; if not, known_since_ms of struct
 *    freshness makes it void. Until Redis has confirmed this process head.fence_ms is its fence.
 *  - Now and then, and at the end: head.mark = snapshot_mark; then each worker, on its thread,
 *    fills a struct buf of its own by router_known_each(router, snapshot_add, &buf); then
 *    snapshot_write of all of them, in uv_queue_work; then snapshot_written, on the control thread.
 *  - Before it tells Redis that a held user is not served here any more: snapshot_add_moved. The
 *    worker has heard of the move by then (router_learn), so nothing that is gathered later has the
 *    user.
 * While Redis has not confirmed this process, a snapshot bears the name and the fence that were
 * read: it is the process before that Redis knows.
 */
#ifndef IMAPMUX_ROUTING_SNAPSHOT_H
#define IMAPMUX_ROUTING_SNAPSHOT_H

#include "proxy/base/buf.h"
#include "proxy/base/err.h"
#include "routing/route.h"

enum { SNAPSHOT_PROXY_MAX = 63 };

struct snapshot; /* the three files; for one thread, but for snapshot_write */

/* Times are of the clock on the wall, in ms since 1970. */
struct snapshot_head {
    char proxy[SNAPSHOT_PROXY_MAX + 1]; /* the process that Redis knew; no blank or control in it */
    uint64_t written_ms;
    uint64_t fence_ms; /* until then users may be served from it */
    uint64_t mark;     /* snapshot_mark, before its routes were gathered */
};

/*
 * Takes the lock, and reads the files. NULL with *err set: BUSY, another process has the lock;
 * UNAVAILABLE, the lock or the journal cannot be had. Then the process goes on without a snapshot,
 * and says so.
 */
struct snapshot *snapshot_open(const char *path, struct err *err);

/* The lock goes with it. Nulls the pointer; harmless on NULL. */
void snapshot_close(struct snapshot **snapshot);

/*
 * Once, after the open: gives each route that may be served at `now_ms`; none if there is no file,
 * or its fence has passed. False with *err set, and nothing given: the file is torn, foreign or
 * unreadable, it was written in the future (the clock was set back), or its journal makes no sense.
 * `head_out->proxy` is "" unless the checksum is right, and `fence_ms` 0 unless routes may be
 * served.
 */
bool snapshot_read(struct snapshot *snapshot, uint64_t now_ms, struct snapshot_head *head_out,
                   void (*visit)(void *owner, const struct known_route *route), void *owner,
                   struct err *err);

/* For the head of a snapshot whose routes are gathered from now on. */
uint64_t snapshot_mark(const struct snapshot *snapshot);

/*
 * For router_known_each: appends the route to the struct buf `owner`. For want of memory it is left
 * out; the snapshot is good without it.
 */
void snapshot_add(void *owner, const struct known_route *route);

/*
 * Puts a new snapshot in the place of the old one: after a crash or a power failure one of them is
 * there, whole. `parts` are what snapshot_add has appended. May run on any thread, one at a time,
 * while the owner calls snapshot_mark and snapshot_add_moved. False with *err (UNAVAILABLE) set:
 * the old one may still be there.
 */
bool snapshot_write(const struct snapshot *snapshot, const struct snapshot_head *head,
                    const struct span *parts, size_t count, struct err *err);

/* That went well: the journal may be emptied. */
void snapshot_written(struct snapshot *snapshot, const struct snapshot_head *head);

/*
 * The user is not to be served from the snapshot any more. On the disk when it returns true. False
 * with *err set: the move must wait, for a process after this one would not know of it.
 */
bool snapshot_add_moved(struct snapshot *snapshot, const char *user, uint64_t epoch,
                        struct err *err);

#endif
