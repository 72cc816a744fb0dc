/* Owns the search for a shard by the host of its addresses. */
#include "routing/shards.h"

#include "proxy/base/address.h"

#include <strings.h>

static bool has_host(const struct conf_shard *shard, const char *name, uint16_t wanted)
{
    char host[HOST_MAX];
    uint16_t port;

    for (size_t i = 0; i < shard->address.count; i++)
        if (address_split(shard->address.items[i], host, &port) && strcasecmp(host, name) == 0 &&
            (wanted == 0 || port == wanted))
            return true;
    return false;
}

const struct conf_shard *shards_with_host(const struct conf *conf, const char *host, uint16_t port,
                                          size_t *count_out)
{
    const struct conf_shard *found = NULL;
    size_t count = 0;

    for (size_t i = 0; i < conf->shard_count; i++)
        if (has_host(&conf->shards[i], host, port)) {
            found = &conf->shards[i];
            count++;
        }
    if (count_out != NULL)
        *count_out = count;
    return count == 1 ? found : NULL;
}
