/* Owns which replies tell what about the role of a server. Nothing in them is taken on trust. */
#include "proxy/net/redis_role.h"

#include <stdio.h>
#include <string.h>

static bool is_text(const redisReply *reply)
{
    return reply->type == REDIS_REPLY_STRING && strlen(reply->str) == reply->len;
}

bool redis_role_read_address(const redisReply *reply, char address_out[REDIS_ADDRESS_MAX])
{
    const char *host, *port;
    char host_only[HOST_MAX];
    uint16_t number;
    bool is_v6;

    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 || !is_text(reply->element[0]) ||
        !is_text(reply->element[1]))
        return false;
    host = reply->element[0]->str;
    port = reply->element[1]->str;
    is_v6 = strchr(host, ':') != NULL;
    return (size_t)snprintf(address_out, REDIS_ADDRESS_MAX, "%s%s%s:%s", is_v6 ? "[" : "", host,
                            is_v6 ? "]" : "", port) < REDIS_ADDRESS_MAX &&
           address_split(address_out, host_only, &number);
}

bool redis_role_is_master(const redisReply *reply)
{
    return reply->type == REDIS_REPLY_ARRAY && reply->elements > 0 && is_text(reply->element[0]) &&
           strcmp(reply->element[0]->str, "master") == 0;
}

bool redis_role_refuses(const redisReply *reply)
{
    static const char *const codes[] = {"READONLY ", "MASTERDOWN ", "LOADING "};

    if (reply->type != REDIS_REPLY_ERROR)
        return false;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
        if (strncmp(reply->str, codes[i], strlen(codes[i])) == 0)
            return true;
    /* Before Redis 7, of what a script has called. */
    return strncmp(reply->str, "ERR Error running script", 24) == 0 &&
           strstr(reply->str, ": -READONLY ") != NULL;
}
