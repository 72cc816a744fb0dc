/*
 * The certificates and authorities in force: how new ones come to all who use them, and the watch
 * on their files, if tls.watch is set. On the control thread, whose control->tls is the set in
 * force.
 */
#ifndef IMAPMUX_PROCESS_CERTIFICATES_H
#define IMAPMUX_PROCESS_CERTIFICATES_H

#include "proxy/process/control.h"

struct certificates;

/*
 * The first set, before the workers start; it is held. Borrows `control`. NULL with *err set
 * without memory.
 */
struct certificates *certificates_open(struct control *control, const struct tls *tls,
                                       struct err *err);

/*
 * Once the workers have ended. Nulls the pointer, harmless on NULL; memory goes when the loop has
 * run out.
 */
void certificates_close(struct certificates **certificates);

/*
 * The set in force is this one from now on: workers and checks have it already, with another
 * configuration.
 */
void certificates_follow(struct certificates *certificates, const struct tls *tls);

/*
 * Handshakes that begin from now on, of workers, checks, and whatever the control thread opens, use
 * `tls`, which all of them hold. Those under way end with what they began with, and sessions
 * notice nothing. The watch goes on with the files of its configuration. False with *err set, and
 * nothing has changed, without memory. While workers run.
 */
bool certificates_use(struct certificates *certificates, const struct tls *tls, struct err *err);

/* When each of them expires, as Prometheus reads it. */
void certificates_print_metrics(const struct control *control, FILE *out);

#endif
