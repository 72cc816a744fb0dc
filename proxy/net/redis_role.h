/*
 * Who a Redis server is, and who is the master, read from replies of servers and of sentinels.
 */
#ifndef IMAPMUX_NET_REDIS_ROLE_H
#define IMAPMUX_NET_REDIS_ROLE_H

#include "proxy/base/address.h"

#include <hiredis/hiredis.h>

enum { REDIS_ADDRESS_MAX = HOST_MAX + 8 };

/*
 * The answer to SENTINEL get-master-addr-by-name, as "host:port" or "[v6]:port". False for any
 * other reply: nil is that of a sentinel that does not know the master.
 */
bool redis_role_read_address(const redisReply *reply, char address_out[REDIS_ADDRESS_MAX]);

/* Whether this answer to ROLE is a master's. */
bool redis_role_is_master(const redisReply *reply);

/*
 * Whether a command, or a script, was refused because the server is not the master (any more), or
 * has not read its data yet: it has done nothing, and another server may do it.
 */
bool redis_role_refuses(const redisReply *reply);

#endif
