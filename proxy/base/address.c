/* Owns the text form of socket addresses and of address blocks; asks no resolver. */
#include "proxy/base/address.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdio.h>
#include <string.h>

enum { V4_BITS = 32, V6_BITS = 128, V4_MAPPED_AT = 12, V6_NETWORK_BYTES = 8 };

static bool split(const char *text, char host_out[HOST_MAX], uint16_t *port_out);
static bool is_host(const char *host, bool bracketed);
static bool read_number(const char *text, unsigned max, unsigned *number_out);
static const uint8_t *raw_bytes(const union address *address, int *family_out);
static bool same_bits(const uint8_t *a, const uint8_t *b, unsigned bits);

bool address_split(const char *text, char host_out[HOST_MAX], uint16_t *port_out)
{
    return split(text, host_out, port_out) && *port_out != 0;
}

bool address_parse(const char *text, union address *address_out)
{
    char host[HOST_MAX];
    uint16_t port;

    return split(text, host, &port) && address_of(host, port, address_out);
}

bool address_of(const char *host, uint16_t port, union address *address_out)
{
    union address address;

    memset(&address, 0, sizeof address);
    if (inet_pton(AF_INET, host, &address.v4.sin_addr) == 1) {
        address.v4.sin_family = AF_INET;
        address.v4.sin_port = htons(port);
    } else if (inet_pton(AF_INET6, host, &address.v6.sin6_addr) == 1) {
        address.v6.sin6_family = AF_INET6;
        address.v6.sin6_port = htons(port);
    } else {
        return false;
    }
    *address_out = address;
    return true;
}

void address_host_text(const union address *address, char out[ADDRESS_TEXT_MAX])
{
    const void *raw = address->any.sa_family == AF_INET6 ? (const void *)&address->v6.sin6_addr
                                                         : (const void *)&address->v4.sin_addr;

    assert(address->any.sa_family == AF_INET || address->any.sa_family == AF_INET6);
    out[0] = '\0';
    inet_ntop(address->any.sa_family, raw, out, ADDRESS_TEXT_MAX); /* 46 bytes at most */
}

void address_origin_text(const union address *address, char out[ADDRESS_TEXT_MAX])
{
    union address origin = *address;
    int family;
    const uint8_t *raw = raw_bytes(address, &family);

    if (family == AF_INET6) {
        memset(origin.v6.sin6_addr.s6_addr + V6_NETWORK_BYTES, 0, V6_NETWORK_BYTES);
    } else {
        origin.any.sa_family = AF_INET;
        memcpy(&origin.v4.sin_addr, raw, sizeof origin.v4.sin_addr);
    }
    address_host_text(&origin, out);
}

void address_text(const union address *address, char out[ADDRESS_TEXT_MAX])
{
    char host[ADDRESS_TEXT_MAX];
    bool is_v6 = address->any.sa_family == AF_INET6;

    address_host_text(address, host);
    snprintf(out, ADDRESS_TEXT_MAX, "%s%.48s%s:%u", is_v6 ? "[" : "", host, is_v6 ? "]" : "",
             (unsigned)address_port(address));
}

uint16_t address_port(const union address *address)
{
    return ntohs(address->any.sa_family == AF_INET6 ? address->v6.sin6_port : address->v4.sin_port);
}

socklen_t address_size(const union address *address)
{
    return address->any.sa_family == AF_INET6 ? sizeof address->v6 : sizeof address->v4;
}

bool network_parse(const char *text, struct network *network_out)
{
    struct network network;
    char host[INET6_ADDRSTRLEN];
    size_t host_len = strcspn(text, "/");

    if (host_len >= sizeof host)
        return false;
    memcpy(host, text, host_len);
    host[host_len] = '\0';
    if (!address_of(host, 0, &network.address))
        return false;
    unsigned bits = network.address.any.sa_family == AF_INET6 ? V6_BITS : V4_BITS;
    network.prefix_bits = bits;
    if (text[host_len] == '/' && !read_number(text + host_len + 1, bits, &network.prefix_bits))
        return false;
    *network_out = network;
    return true;
}

bool network_contains(const struct network *network, const union address *address)
{
    int network_family, family;
    const uint8_t *wanted = raw_bytes(&network->address, &network_family);
    const uint8_t *found = raw_bytes(address, &family);
    unsigned bits = network->prefix_bits;

    if (network_family != family)
        return false;
    if (family == AF_INET && network->address.any.sa_family == AF_INET6) {
        if (bits < V6_BITS - V4_BITS) /* a block that is larger than all mapped addresses */
            return false;
        bits -= V6_BITS - V4_BITS;
    }
    return same_bits(wanted, found, bits);
}

/* Cuts at the last colon; a host with colons must stand in brackets, and only such a host may. */
static bool split(const char *text, char host_out[HOST_MAX], uint16_t *port_out)
{
    const char *colon = strrchr(text, ':');
    unsigned port;

    if (colon == NULL || !read_number(colon + 1, UINT16_MAX, &port))
        return false;
    size_t len = (size_t)(colon - text);
    bool bracketed = len >= 2 && text[0] == '[' && text[len - 1] == ']';
    if (bracketed) {
        text++;
        len -= 2;
    }
    if (len == 0 || len >= HOST_MAX)
        return false;
    memcpy(host_out, text, len);
    host_out[len] = '\0';
    *port_out = (uint16_t)port;
    return is_host(host_out, bracketed);
}

static bool is_host(const char *host, bool bracketed)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    struct in6_addr v6;

    if (bracketed)
        return inet_pton(AF_INET6, host, &v6) == 1;
    return host[strspn(host, allowed)] == '\0';
}

static bool read_number(const char *text, unsigned max, unsigned *number_out)
{
    unsigned number = 0;

    if (*text == '\0')
        return false;
    for (; *text != '\0'; text++) {
        unsigned digit = (unsigned)(unsigned char)*text - '0';

        if (digit > 9 || digit > max || number > (max - digit) / 10)
            return false;
        number = number * 10 + digit;
    }
    *number_out = number;
    return true;
}

/* The address in network order; IPv4-mapped ones (RFC 4291 2.5.5.2) as the IPv4 address inside. */
static const uint8_t *raw_bytes(const union address *address, int *family_out)
{
    const uint8_t *v6 = address->v6.sin6_addr.s6_addr;

    *family_out = AF_INET;
    if (address->any.sa_family == AF_INET)
        return (const uint8_t *)&address->v4.sin_addr;
    if (IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr))
        return v6 + V4_MAPPED_AT;
    *family_out = AF_INET6;
    return v6;
}

static bool same_bits(const uint8_t *a, const uint8_t *b, unsigned bits)
{
    unsigned whole = bits / 8, rest = bits % 8;

    if (memcmp(a, b, whole) != 0)
        return false;
    return rest == 0 || ((a[whole] ^ b[whole]) >> (8 - rest)) == 0;
}
