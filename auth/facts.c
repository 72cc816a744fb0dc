/* Owns the memory of facts: one block, with the texts behind the networks. */
#include "auth/facts.h"

#include "proxy/base/mem.h"

#include <string.h>

/* Copies the text to *end, and moves that behind it. */
static const char *put(char **end, const char *text)
{
    char *copy = *end;
    size_t size = strlen(text) + 1;

    memcpy(copy, text, size);
    *end += size;
    return copy;
}

struct auth_facts *auth_facts_new(const struct auth_facts *facts, const struct network *networks)
{
    size_t networks_size = facts->network_count * sizeof networks[0];
    size_t texts_size =
        strlen(facts->user) + strlen(facts->backend_user) + strlen(facts->shard) + 3;
    struct auth_facts *copy = mem_new(sizeof *copy + networks_size + texts_size);
    char *end;

    if (copy == NULL)
        return NULL;
    end = (char *)copy->networks + networks_size;
    copy->user = put(&end, facts->user);
    copy->backend_user = put(&end, facts->backend_user);
    copy->shard = put(&end, facts->shard);
    copy->network_count = facts->network_count;
    if (networks_size > 0)
        memcpy(copy->networks, networks, networks_size);
    copy->holder_count = 1;
    return copy;
}

struct auth_facts *auth_facts_hold(struct auth_facts *facts)
{
    if (facts != NULL)
        facts->holder_count++;
    return facts;
}

void auth_facts_release(struct auth_facts **facts)
{
    if (*facts != NULL && --(*facts)->holder_count == 0)
        mem_free(*facts);
    *facts = NULL;
}

bool auth_facts_allow(const struct auth_facts *facts, const union address *address)
{
    if (facts == NULL || facts->network_count == 0)
        return true;
    for (size_t i = 0; i < facts->network_count; i++)
        if (network_contains(&facts->networks[i], address))
            return true;
    return false;
}
