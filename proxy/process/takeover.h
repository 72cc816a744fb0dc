/*
 * Taking the place of a process that runs, as its heir does it: over the socket of administration
 * of the other one, by the command "handover" (proxy/admin/handle_handover.c). It blocks.
 *
 *     heir                                         other process
 *     begin    ------------------------------->    serves on
 *              <--- listening sockets, its id ---
 *     opens what it needs
 *     release  ------------------------------->    gives up what only one can have
 *              <-------------------------- ok ---
 *     opens that, too
 *     finish   ------------------------------->    closes its listeners, drains
 *              <-------------------------- ok ---
 *     accepts clients
 *
 * The connection of `begin` stays: if it ends before `finish`, whatever the reason, the other
 * process goes on as if nothing had been. If the other process ends, the heir goes on without it.
 */
#ifndef IMAPMUX_PROCESS_TAKEOVER_H
#define IMAPMUX_PROCESS_TAKEOVER_H

#include "proxy/base/err.h"
#include "proxy/process/inherited.h"

#include <stdbool.h>

/* Raised when one of the steps changes, so that versions that cannot work together say so. */
#define TAKEOVER_PROTOCOL "1"

struct takeover;

/* The sockets are inherited, in any case to be released. NULL with *err set. */
struct takeover *takeover_begin(const char *socket, struct inherited *inherited_out,
                                struct err *err);

/* The fleet_id of the other process. */
const char *takeover_id(const struct takeover *takeover);

/* False with *err set: the other process goes on. True also if it has ended. */
bool takeover_release(struct takeover *takeover, struct err *err);

/* The same; `beside`: see admin_open. */
bool takeover_finish(struct takeover *takeover, bool beside, struct err *err);

/* Nulls the pointer; harmless on NULL. */
void takeover_close(struct takeover **takeover);

#endif
