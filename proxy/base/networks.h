/* A list of address blocks, as a setting names them: who is trusted, or exempt. */
#ifndef IMAPMUX_BASE_NETWORKS_H
#define IMAPMUX_BASE_NETWORKS_H

#include "proxy/base/address.h"
#include "proxy/base/conf.h"

struct networks {
    struct network *items;
    size_t count;
};

/*
 * Reads the words of `setting` ("throttle.trusted"). False with *err set: one of them is no
 * network, or memory is short. To be released in either case.
 */
bool networks_init(struct networks *networks, const struct conf_words *words, const char *setting,
                   struct err *err);
void networks_release(struct networks *networks);

bool networks_contain(const struct networks *networks, const union address *address);

#endif
