/*
 * Socket addresses as text and numbers: "192.0.2.1:993", "[2001:db8::1]:993", "host:993",
 * "192.0.2.0/24". Only numbers are resolved here; names are looked up in net/resolve.
 */
#ifndef IMAPMUX_BASE_ADDRESS_H
#define IMAPMUX_BASE_ADDRESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* A numeric IPv4 or IPv6 socket address. */
union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

enum { ADDRESS_TEXT_MAX = 64, HOST_MAX = 256 };

/*
 * "host:port" or "[v6]:port" into its parts; the host may be a name. False when it is malformed or
 * port is not 1..65535.
 */
bool address_split(const char *text, char host_out[HOST_MAX], uint16_t *port_out);

/* A numeric "a.b.c.d:port" or "[v6]:port". Port 0 is allowed (a listener that takes any). */
bool address_parse(const char *text, union address *address_out);

/* From numeric host and port, without brackets. */
bool address_of(const char *host, uint16_t port, union address *address_out);

/* "a.b.c.d" or "v6" without port. */
void address_host_text(const union address *address, char out[ADDRESS_TEXT_MAX]);

/*
 * Whom an address stands for where peers are counted: an IPv4 address (also when mapped into IPv6)
 * for itself, an IPv6 address for its /64, for who has one of these has all. As text, without port.
 */
void address_origin_text(const union address *address, char out[ADDRESS_TEXT_MAX]);

/* "a.b.c.d:port" or "[v6]:port". */
void address_text(const union address *address, char out[ADDRESS_TEXT_MAX]);

uint16_t address_port(const union address *address);

/* The length to give to bind and connect. */
socklen_t address_size(const union address *address);

/* An address block in CIDR form; a bare address is a block of one. */
struct network {
    union address address;
    unsigned prefix_bits;
};

bool network_parse(const char *text, struct network *network_out);

/* IPv4-mapped IPv6 addresses match IPv4 networks. */
bool network_contains(const struct network *network, const union address *address);

#endif
