/*
 * A user's route as it is in Redis, the hash
 *     <prefix>user:{<name>}    shard state target backend_user epoch
 * Without `shard` the user is unknown; `state` is active (also when absent), moving, committed or
 * disabled; `epoch` is a decimal number, 0 when absent; `target` is the shard that a user goes to
 * who is moving or committed. Whatever does not look like this is a failure, never "unknown": what
 * Redis says is checked for type, length and octets.
 */
#ifndef IMAPMUX_ROUTING_USER_HASH_H
#define IMAPMUX_ROUTING_USER_HASH_H

#include "routing/route.h"

#include <hiredis/hiredis.h>

enum { USER_HASH_FIELDS = 5 };

/* In the order in which the reader wants their values. */
extern const char *const user_hash_fields[USER_HASH_FIELDS];

/*
 * Of the reply to an HMGET of these fields. An error reply is NO_ANSWER with *err set, as from a
 * server that is loading its data; but not one that is about this very key. FAILED: *err tells what
 * makes no sense.
 */
enum route_verdict user_hash_read(const redisReply *reply, struct route *route_out,
                                  struct err *err);

/*
 * Answers a request with what came for it, as a redis_reply_fn gets it. What makes no sense is
 * logged.
 */
void user_hash_answer(struct route_request *request, const redisReply *reply,
                      const struct err *err);

#endif
