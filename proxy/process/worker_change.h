/*
 * Another configuration for a worker, in two steps, both on its thread: the first opens what is
 * made anew for it, and may fail; the second puts it in force, between two turns of the loop, and
 * cannot. Requests under way end with those whom they have asked. Sessions keep what they have, and
 * are let go if it was a shard that is configured no more.
 */
#ifndef IMAPMUX_PROCESS_WORKER_CHANGE_H
#define IMAPMUX_PROCESS_WORKER_CHANGE_H

#include "proxy/session/home.h"

/* The stores have made their first step. False with *err set, and nothing has changed. */
bool worker_prepare(struct home *home, const struct conf *conf, const struct tls *tls,
                    struct err *err);
void worker_commit(struct home *home);
void worker_discard(struct home *home); /* harmless when nothing is prepared */

/* What clients are shown of capabilities, by the configuration in force. */
void worker_set_filter(struct home *home);

#endif
