/*
 * Tells in the log of certificates and OCSP responses that expire soon, or have expired: each once
 * for each set. On the control thread.
 */
#ifndef IMAPMUX_PROCESS_EXPIRY_H
#define IMAPMUX_PROCESS_EXPIRY_H

#include "proxy/net/tls.h"

#include <uv.h>

struct expiry;

/* NULL with *err set without memory. */
struct expiry *expiry_open(uv_loop_t *loop, struct err *err);

/* From now on it is about these certificates, which are held: they are looked at at once. */
void expiry_watch(struct expiry *expiry, const struct tls *tls);

/* Nulls the pointer, harmless on NULL; memory goes in the last close callback. */
void expiry_close(struct expiry **expiry);

enum expiry_state { EXPIRY_FAR, EXPIRY_SOON, EXPIRY_PAST };

/* Soon is the last quarter of its life, but at the most two weeks. Unix seconds. */
enum expiry_state expiry_state(int64_t from, int64_t until, int64_t now);

#endif
