/*
 * Capability lists as text: words with spaces between them, ASCII case-insensitive (RFC 9051
 * 7.2.2). Pure functions.
 */
#ifndef IMAPMUX_IMAP_CAPS_H
#define IMAPMUX_IMAP_CAPS_H

#include "proxy/base/span.h"

struct caps_filter {
    const char *const *remove; /* a word ending in "*" is a prefix: "AUTH=*" */
    size_t remove_count;
    const char *const *add;
    size_t add_count;
    const struct span
        *common; /* a word that one of these lists lacks is removed; empty ones are unknown */
    size_t common_count;
};

/* Whether the list has the word `name`, whole. */
bool caps_has(struct span list, const char *name);

/*
 * Writes the list as a client may see it after login: without what only works between the proxy and
 * the store (STARTTLS, LOGINDISABLED, AUTH=*, SASL-IR, UNAUTHENTICATE, LOGIN-REFERRALS,
 * COMPRESS=*), without filter->remove and what one of filter->common lacks, with filter->add
 * behind unless there already. Order kept,
 * duplicates dropped, single spaces, no NUL. `filter` may be NULL. Returns the length, -1 if it
 * does not fit. `out` must not overlap the list.
 */
ptrdiff_t caps_rewrite(struct span list, const struct caps_filter *filter, char *out, size_t size);

#endif
