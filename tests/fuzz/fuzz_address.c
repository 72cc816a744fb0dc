/*
 * Addresses: what is read comes back as text, and whether a network holds an address is counted
 * bit by bit. The first line is an address with its port or a network, the second a host.
 */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "proxy/base/address.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_split(const char *text)
{
    char host[HOST_MAX], again[HOST_MAX], joined[HOST_MAX + 16];
    uint16_t port, port_again;

    if (!address_split(text, host, &port))
        return;
    assert(port > 0 && host[0] != '\0' && strlen(host) < HOST_MAX);
    assert(strpbrk(host, " \t\r\n/[]") == NULL);
    snprintf(joined, sizeof joined, strchr(host, ':') == NULL ? "%s:%u" : "[%s]:%u", host,
             (unsigned)port);
    assert(address_split(joined, again, &port_again));
    assert(strcmp(host, again) == 0 && port == port_again);
}

static void check_address(const char *text)
{
    union address address, again;
    char out[ADDRESS_TEXT_MAX], host[ADDRESS_TEXT_MAX];

    if (!address_parse(text, &address))
        return;
    address_text(&address, out);
    assert(address_parse(out, &again));
    assert(memcmp(&address, &again, sizeof address) == 0);
    address_host_text(&address, host);
    assert(address_of(host, address_port(&address), &again));
    assert(memcmp(&address, &again, sizeof address) == 0);
    assert(address_size(&address) ==
           (strchr(host, ':') == NULL ? sizeof address.v4 : sizeof address.v6));
}

/* The address as IPv6 has it. */
static void widen(const union address *address, uint8_t out[16])
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

    if (address->any.sa_family == AF_INET6) {
        memcpy(out, &address->v6.sin6_addr, 16);
    } else {
        memcpy(out, mapped, 12);
        memcpy(out + 12, &address->v4.sin_addr, 4);
    }
}

static bool is_mapped(const uint8_t wide[16])
{
    uint8_t zeros[10] = {0};

    return memcmp(wide, zeros, 10) == 0 && wide[10] == 0xff && wide[11] == 0xff;
}

/* No block of IPv6 addresses is taken for one of IPv4 addresses, but one within the mapped ones. */
static bool contains(const struct network *network, const union address *address)
{
    uint8_t block[16], wanted[16];
    unsigned bits = network->prefix_bits + (network->address.any.sa_family == AF_INET ? 96 : 0);

    widen(&network->address, block);
    widen(address, wanted);
    if (is_mapped(block) != is_mapped(wanted) || (is_mapped(wanted) && bits < 96))
        return false;
    for (unsigned i = 0; i < bits; i++)
        if (((block[i / 8] ^ wanted[i / 8]) >> (7 - i % 8) & 1) != 0)
            return false;
    return true;
}

static void check_network(const char *text, const char *host)
{
    struct network network;
    union address address;

    if (!network_parse(text, &network))
        return;
    assert(network.prefix_bits <= (network.address.any.sa_family == AF_INET ? 32 : 128));
    if (network.prefix_bits >= 96 || network.address.any.sa_family == AF_INET)
        assert(network_contains(&network, &network.address));
    if (address_of(host, 1, &address))
        assert(network_contains(&network, &address) == contains(&network, &address));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[512];

    if (size >= sizeof text)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';

    char *host = text;

    strsep(&host, "\n");
    check_split(text);
    check_address(text);
    check_network(text, host == NULL ? "" : host);
    return 0;
}
