/* Which shard is meant where others name it by its host. */
#ifndef IMAPMUX_ROUTING_SHARDS_H
#define IMAPMUX_ROUTING_SHARDS_H

#include "proxy/base/conf.h"

/*
 * The shard that has this host, and, unless it is 0, this port in one of its addresses, whatever
 * the letters' case. NULL when there is none, or more than one; *count_out, which may be NULL, says
 * how many there are.
 */
const struct conf_shard *shards_with_host(const struct conf *conf, const char *host, uint16_t port,
                                          size_t *count_out);

#endif
