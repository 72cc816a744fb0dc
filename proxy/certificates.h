/*
 * The certificates and authorities in force: how new ones come to all who use them. On the control
 * thread.
 */
#ifndef IMAPMUX_PROXY_CERTIFICATES_H
#define IMAPMUX_PROXY_CERTIFICATES_H

#include "proxy/control.h"

/* The first ones, before the workers start. They are held until certificates_close. */
void certificates_open(struct control *control, const struct tls *tls);
void certificates_close(struct control *control);

/*
 * Handshakes that begin from now on, of workers, checks, and whatever the control thread opens, use
 * `tls`, which all of them hold. Those under way end with what they began with, and sessions
 * notice nothing. False with *err set, and nothing has changed, without memory.
 */
bool certificates_use(struct control *control, const struct tls *tls, struct err *err);

#endif
