/*
 * What a source knows of a user beside the password: the attributes of a directory's entry. An
 * immutable record, counted, for one thread. NULL stands for "nothing is known".
 */
#ifndef IMAPMUX_AUTH_FACTS_H
#define IMAPMUX_AUTH_FACTS_H

#include "proxy/base/address.h"

/* Texts are never NULL; "" is: not told. */
struct auth_facts {
    const char *user;         /* canonical name */
    const char *backend_user; /* name at the store */
    const char *shard;        /* title or host of the user's store */
    size_t network_count;     /* 0: the user may come from anywhere */
    unsigned holder_count;
    struct network networks[]; /* where the user may come from */
};

/* A copy of `facts` and its networks, held once. NULL without memory. */
struct auth_facts *auth_facts_new(const struct auth_facts *facts, const struct network *networks);

/* Returns its argument. Harmless on NULL, as is the release, which nulls the pointer. */
struct auth_facts *auth_facts_hold(struct auth_facts *facts);
void auth_facts_release(struct auth_facts **facts);

/* Whether the user may come from this address. */
bool auth_facts_allow(const struct auth_facts *facts, const union address *address);

#endif
