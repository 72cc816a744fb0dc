/*
 * A text that many have in common, in one copy: what a store says at each login is nearly always
 * what it said at the last one. For one thread.
 */
#ifndef IMAPMUX_BASE_SHARED_TEXT_H
#define IMAPMUX_BASE_SHARED_TEXT_H

#include "proxy/base/span.h"

struct shared_text;

/*
 * The text as a shared one: `*latest`, if that says the same, else a new one, which is the latest
 * then. The caller releases it. NULL without memory.
 */
struct shared_text *shared_text_of(struct span text, struct shared_text **latest);

/* Nulls the pointer; harmless on NULL. Who holds a `latest` releases it, too. */
void shared_text_release(struct shared_text **text);

/* Borrowed until the release; empty of NULL. */
struct span shared_text_span(const struct shared_text *text);

#endif
