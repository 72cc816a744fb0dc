/*
 * Walks over all addresses of all names of a shard, in order, looking names up as it comes to them
 * (RFC 6724 order within a name). Addresses that are known not to answer come last. It opens no
 * socket: the owner tries each address and asks for the next one if that is no good.
 */
#ifndef IMAPMUX_NET_DIAL_H
#define IMAPMUX_NET_DIAL_H

#include "proxy/base/conf.h"
#include "proxy/net/resolve.h"

enum dial_step {
    DIAL_ADDRESS, /* `to` is the next address to try, of the name `host` */
    DIAL_LATER,   /* a name is being looked up: on_ready follows, then dial_next again */
    DIAL_END      /* there are no more */
};

struct dial_late;

struct dial {
    /* Set by the owner before the first dial_next; all else zero. */
    const struct env *env;
    const struct conf_words *names; /* "host:port", checked with the configuration */
    void (*on_ready)(struct dial *dial, const struct err *err); /* err: this name has no address */
    /* Whether it is to be tried after all others; NULL: none is. */
    bool (*comes_last)(void *owner, const union address *address);
    void *owner;

    /* Set by dial_next. */
    const union address *to; /* until the next dial_next or dial_release */
    char host[HOST_MAX];
    size_t name_index; /* of `names` */

    /* Private. */
    struct resolve_request resolving;
    union address *addresses; /* of the name that is tried */
    size_t address_count, address_next, name_next;
    struct dial_late *late; /* those that come last */
    size_t late_count, late_next;
};

enum dial_step dial_next(struct dial *dial);

/* Gives up a look-up under way: the next dial_next goes on with the name after it. */
void dial_skip(struct dial *dial);

/* Cancels and frees. Harmless on a zeroed one. */
void dial_release(struct dial *dial);

#endif
