/*
 * What a server tells of a user's mailboxes: untagged LIST, STATUS and NAMESPACE (RFC 9051 7.3.1,
 * 7.3.4, 6.3.10). Pure functions over one whole response with its literals in place.
 */
#ifndef IMAPMUX_IMAP_LISTING_H
#define IMAPMUX_IMAP_LISTING_H

#include "proxy/imap/args.h"

#include <stdint.h>

enum listing_kind { LISTING_BAD = -1, LISTING_OTHER, LISTING_LIST, LISTING_STATUS, LISTING_SPACES };

struct listing {
    struct arg mailbox;                      /* LIST, STATUS */
    char separator;                          /* LIST: of the hierarchy; NUL for NIL */
    bool selectable;                         /* LIST: neither \Noselect nor \NonExistent */
    uint64_t messages, uidnext, uidvalidity; /* STATUS; 0 when not told */
    struct args spaces;                      /* NAMESPACE: for listing_space */
    unsigned space_list;                     /* private */
};

/*
 * OTHER is any other response; BAD is one of these that makes no sense, and none of the members
 * counts. Spans borrow from the response.
 */
enum listing_kind listing_parse(struct span response, struct listing *listing_out);

/*
 * Steps through the namespaces of a NAMESPACE response: the user's own ones, then those of others
 * and the shared ones. Call until it is neither OWN nor FOREIGN.
 */
enum listing_space { LISTING_SPACE_BAD = -1, LISTING_SPACE_END, LISTING_OWN, LISTING_FOREIGN };
enum listing_space listing_space(struct listing *listing, struct arg *prefix_out);

#endif
