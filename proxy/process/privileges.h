/*
 * What the process may do, as the kernel sees it: its user, its capabilities, how many descriptors
 * it may have, and who may look into its memory. On the control thread, at the start, before any
 * other thread: threads have the rights of whoever started them.
 */
#ifndef IMAPMUX_PROCESS_PRIVILEGES_H
#define IMAPMUX_PROCESS_PRIVILEGES_H

#include "proxy/base/conf.h"

/*
 * How many descriptors the process may need at once: for sessions, connections that are kept, and
 * what each worker has open to listeners, directories and Redis.
 */
unsigned long long privileges_descriptors(const struct conf *conf, size_t worker_count);

/*
 * Raises the limit as far as the system lets us; what is missing is logged. While we may be root.
 */
void privileges_raise_descriptors(const struct conf *conf, size_t worker_count);

/*
 * Unless process.core_dumps: nobody but root may look into the memory, while the process lives or
 * after a crash.
 */
void privileges_guard_memory(const struct conf *conf);

/*
 * Once sockets are bound, and certificates and keys read: becomes process.user for good, and gives
 * up all capabilities, unless that leaves us root. False with *err set: that does not work, or the
 * user cannot read or write what the process needs while it runs.
 */
bool privileges_drop(const struct conf *conf, struct err *err);

#endif
