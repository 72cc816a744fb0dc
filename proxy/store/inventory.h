/*
 * The mailboxes that a store tells a user of, and how those of two stores differ: which can be
 * selected, and of each its UIDVALIDITY (unless it never had a message), UIDNEXT and number of
 * messages. Names are compared as paths: whatever separates their parts, and whatever the user's
 * own namespace begins with. INBOX is so in any case; mailboxes of other namespaces do not count.
 * A plain value.
 */
#ifndef IMAPMUX_STORE_INVENTORY_H
#define IMAPMUX_STORE_INVENTORY_H

#include "proxy/base/err.h"
#include "proxy/base/hash.h"
#include "proxy/base/span.h"

#include <stdint.h>

enum {
    INVENTORY_MAILBOXES_MAX = 100000,
    INVENTORY_PREFIX_MAX = 64, /* of a namespace, with its NUL */
    INVENTORY_FOREIGN_MAX = 8,
    INVENTORY_DIFFERENCES_MAX = 10,
    INVENTORY_TEXT_MAX = 160
};

struct inventory_mailbox {
    UT_hash_handle hh;
    char *path; /* NULL unless it is listed, selectable, and the user's own */
    bool counted;
    uint64_t uidvalidity, uidnext, messages;
    char name[]; /* as the store has it */
};

struct inventory {
    struct inventory_mailbox *by_name; /* in the order in which they were heard of */
    size_t count;                      /* of these */
    size_t own_count;                  /* with a path */
    char own_prefix[INVENTORY_PREFIX_MAX];
    char foreign_prefixes[INVENTORY_FOREIGN_MAX][INVENTORY_PREFIX_MAX];
    size_t foreign_count;
};

struct inventory_difference {
    char mailbox[INVENTORY_TEXT_MAX], what[INVENTORY_TEXT_MAX];
};

struct inventory_comparison {
    size_t mailboxes; /* of both, when there is no difference */
    uint64_t messages;
    size_t difference_count;
    struct inventory_difference
        differences[INVENTORY_DIFFERENCES_MAX]; /* the first ones, by name */
};

/*
 * Takes in one untagged response; those that are of no interest, too. NAMESPACE comes before the
 * mailboxes. False with *err set: it makes no sense, there are too many, or no memory.
 */
bool inventory_take(struct inventory *inventory, struct span response, struct err *err);

/* Compares, and calls the stores by these names. False without memory. */
bool inventory_compare(const struct inventory *from, const struct inventory *to,
                       const char *from_name, const char *to_name,
                       struct inventory_comparison *comparison_out);

void inventory_release(struct inventory *inventory);

#endif
