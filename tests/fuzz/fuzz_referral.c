/*
 * Referrals, as they stand in a store's answer: what is read has a user without control characters
 * and a host that addresses can have, and comes back when it is written anew; a shard is found only
 * by what stands in its addresses, to the letter.
 */
#include <assert.h>
#include <stdio.h>

#include "proxy/imap/reply.h"
#include "proxy/imap/url.h"
#include "routing/shards.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char blue[] = "blue.example.org:143", blue_tls[] = "blue.example.org:993";
static char red[] = "192.0.2.1:1143", green[] = "[2001:db8::1]:143", twin[] = "twin:143";
static char *of_blue[] = {blue, blue_tls}, *of_red[] = {red}, *of_green[] = {green},
            *of_twins[] = {twin};
static struct conf_shard shards[] = {
    {.address = {of_blue, 2}},  {.address = {of_red, 1}},   {.address = {of_green, 1}},
    {.address = {of_twins, 1}}, {.address = {of_twins, 1}},
};
static const struct conf conf = {.shards = shards, .shard_count = 5};

/* The URL with every octet of the user encoded. */
static void check_again(const struct url *url)
{
    char text[2 * URL_MAX];
    struct url again;
    size_t len = (size_t)snprintf(text, sizeof text, "imap://");

    for (const char *at = url->user; *at != '\0'; at++)
        len += (size_t)snprintf(text + len, sizeof text - len, "%%%02x", (unsigned char)*at);
    len +=
        (size_t)snprintf(text + len, sizeof text - len,
                         strchr(url->host, ':') == NULL ? ";AUTH=*@%s" : ";AUTH=*@[%s]", url->host);
    if (url->port != 0)
        len += (size_t)snprintf(text + len, sizeof text - len, ":%u", (unsigned)url->port);
    if (len >= URL_MAX)
        return;
    assert(url_parse(span_of(text), &again));
    assert(strcmp(url->user, again.user) == 0 && strcmp(url->host, again.host) == 0);
    assert(url->port == again.port);
}

static void check_parts(const struct url *url)
{
    char joined[HOST_MAX + 16], host[HOST_MAX];
    uint16_t port;

    assert(strlen(url->user) <= URL_USER_MAX && url->host[0] != '\0');
    for (const char *at = url->user; *at != '\0'; at++)
        assert((unsigned char)*at >= ' ' && *at != 0x7f);
    snprintf(joined, sizeof joined, strchr(url->host, ':') == NULL ? "%s:1" : "[%s]:1", url->host);
    assert(address_split(joined, host, &port) && strcmp(host, url->host) == 0);
}

static void check_shard(const struct url *url)
{
    size_t count;
    const struct conf_shard *found = shards_with_host(&conf, url->host, url->port, &count);
    bool is_blue = strcasecmp(url->host, "blue.example.org") == 0 &&
                   (url->port == 0 || url->port == 143 || url->port == 993);
    bool is_red = strcmp(url->host, "192.0.2.1") == 0 && (url->port == 0 || url->port == 1143);
    bool is_green =
        strcasecmp(url->host, "2001:db8::1") == 0 && url->port % 143 == 0 && url->port < 286;
    bool is_twin = strcasecmp(url->host, "twin") == 0 && url->port % 143 == 0 && url->port < 286;

    assert(found == (is_blue ? &shards[0] : is_red ? &shards[1] : is_green ? &shards[2] : NULL));
    assert(count == (is_twin ? 2 : found != NULL));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct span line = {(const char *)data, size};
    struct reply reply;
    struct url url;

    if (!reply_parse(line, &reply) || !span_is(reply.code, "REFERRAL") ||
        !url_parse(reply.code_args, &url))
        return 0;
    check_parts(&url);
    check_again(&url);
    check_shard(&url);
    return 0;
}
