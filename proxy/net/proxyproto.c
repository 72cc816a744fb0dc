/* Owns the wire format of PROXY protocol headers. */
#include "proxy/net/proxyproto.h"

#include <stdlib.h>

static const char v2_signature[12] = "\r\n\r\n\0\r\nQUIT\n";

enum { V2_FIXED = 16, V1_MAX = 107, V1_PREFIX = 6 };

static bool is_v2(struct span so_far)
{
    return so_far.len >= sizeof v2_signature &&
           memcmp(so_far.ptr, v2_signature, sizeof v2_signature) == 0;
}

static size_t v2_total(struct span so_far)
{
    const unsigned char *bytes = (const unsigned char *)so_far.ptr;

    return V2_FIXED + ((size_t)bytes[14] << 8 | bytes[15]);
}

ptrdiff_t proxyproto_missing(struct span so_far)
{
    if (so_far.len < sizeof v2_signature)
        return (ptrdiff_t)(sizeof v2_signature - so_far.len); /* the shortest v1 header is longer */
    if (is_v2(so_far)) {
        if (so_far.len < V2_FIXED)
            return (ptrdiff_t)(V2_FIXED - so_far.len);
        size_t total = v2_total(so_far);
        return total > PROXYPROTO_MAX || so_far.len > total ? -1 : (ptrdiff_t)(total - so_far.len);
    }
    if (memcmp(so_far.ptr, "PROXY ", V1_PREFIX) != 0 || so_far.len > V1_MAX)
        return -1;
    if (so_far.ptr[so_far.len - 1] == '\n')
        return 0;
    return so_far.len == V1_MAX ? -1 : 1;
}

static bool parse_v2(struct span header, struct proxyproto *out)
{
    const unsigned char *bytes = (const unsigned char *)header.ptr;
    size_t body = header.len - V2_FIXED;

    if ((bytes[12] & 0xF0) != 0x20 || (bytes[12] & 0x0F) > 1)
        return false;
    if ((bytes[12] & 0x0F) == 0) /* LOCAL: a health check of the balancer itself */
        return true;
    if (bytes[13] == 0x11 && body >= 12) {
        out->source.v4.sin_family = out->destination.v4.sin_family = AF_INET;
        memcpy(&out->source.v4.sin_addr, bytes + 16, 4);
        memcpy(&out->destination.v4.sin_addr, bytes + 20, 4);
        memcpy(&out->source.v4.sin_port, bytes + 24, 2);
        memcpy(&out->destination.v4.sin_port, bytes + 26, 2);
        out->told = true;
    } else if (bytes[13] == 0x21 && body >= 36) {
        out->source.v6.sin6_family = out->destination.v6.sin6_family = AF_INET6;
        memcpy(&out->source.v6.sin6_addr, bytes + 16, 16);
        memcpy(&out->destination.v6.sin6_addr, bytes + 32, 16);
        memcpy(&out->source.v6.sin6_port, bytes + 48, 2);
        memcpy(&out->destination.v6.sin6_port, bytes + 50, 2);
        out->told = true;
    } else if (bytes[13] == 0x11 || bytes[13] == 0x21) {
        return false;
    } /* else UNSPEC, UDP or Unix sockets: nothing to tell */
    return true;
}

/* Takes the next word, which one space ends; the last one ends with the line. */
static bool take_word(char **line, char **word_out)
{
    *word_out = strsep(line, " ");
    return *word_out != NULL && **word_out != '\0';
}

static bool parse_port(const char *text, uint16_t *port_out)
{
    char *end;
    unsigned long port = strtoul(text, &end, 10);

    *port_out = (uint16_t)port;
    bool is_plain = text[0] >= '1' || strcmp(text, "0") == 0; /* no leading zero: is it octal? */

    return text[0] <= '9' && is_plain && *end == '\0' && port <= 65535;
}

static bool parse_v1(struct span header, struct proxyproto *out)
{
    char text[V1_MAX + 1];
    char *line = text, *word, *family, *source, *destination, *source_port, *destination_port;
    uint16_t from, to;

    if (header.len > V1_MAX || header.len < 2 ||
        memcmp(header.ptr + header.len - 2, "\r\n", 2) != 0 ||
        memchr(header.ptr, '\0', header.len) != NULL)
        return false;
    memcpy(text, header.ptr, header.len - 2);
    text[header.len - 2] = '\0';
    if (!take_word(&line, &word) || !take_word(&line, &family))
        return false;
    if (strcmp(family, "UNKNOWN") == 0) /* whatever follows does not count */
        return true;
    if (!take_word(&line, &source) || !take_word(&line, &destination) ||
        !take_word(&line, &source_port) || !take_word(&line, &destination_port) || line != NULL ||
        !parse_port(source_port, &from) || !parse_port(destination_port, &to) ||
        !address_of(source, from, &out->source) || !address_of(destination, to, &out->destination))
        return false;
    out->told = true;
    int expected = strcmp(family, "TCP4") == 0   ? AF_INET
                   : strcmp(family, "TCP6") == 0 ? AF_INET6
                                                 : AF_UNSPEC;
    return out->source.any.sa_family == expected && out->destination.any.sa_family == expected;
}

bool proxyproto_parse(struct span header, struct proxyproto *out)
{
    *out = (struct proxyproto){0};
    return is_v2(header) ? parse_v2(header, out) : parse_v1(header, out);
}

/* --- writing --- */

enum {
    V2_LOCAL = 0x20,
    V2_PROXY = 0x21,
    V2_TCP4 = 0x11,
    V2_TCP6 = 0x21,
    TLV_UNIQUE_ID = 0x05,
    TLV_SSL = 0x20,
    TLV_SSL_VERSION = 0x21,
    TLV_SSL_CIPHER = 0x23,
    SSL_CLIENT_SPEAKS_TLS = 0x01
};

struct writer {
    char *at, *end; /* at is NULL once something did not fit */
};

static void put(struct writer *w, const void *bytes, size_t len)
{
    if (w->at == NULL || (size_t)(w->end - w->at) < len) {
        w->at = NULL;
        return;
    }
    memcpy(w->at, bytes, len);
    w->at += len;
}

static void put_number(struct writer *w, size_t value)
{
    put(w, (unsigned char[]){(unsigned char)(value >> 8), (unsigned char)value}, 2);
}

static void put_tlv(struct writer *w, unsigned char type, const char *value)
{
    put(w, &type, 1);
    put_number(w, strlen(value));
    put(w, value, strlen(value));
}

static void put_tls(struct writer *w, const char *version, const char *cipher)
{
    /* The client flags, what verifying its certificate gave (none was asked for), two TLVs. */
    put(w, (unsigned char[]){TLV_SSL}, 1);
    put_number(w, 5 + 3 + strlen(version) + 3 + strlen(cipher));
    put(w, (unsigned char[]){SSL_CLIENT_SPEAKS_TLS, 0, 0, 0, 1}, 5);
    put_tlv(w, TLV_SSL_VERSION, version);
    put_tlv(w, TLV_SSL_CIPHER, cipher);
}

static void put_ipv6(struct writer *w, const union address *address)
{
    static const unsigned char mapped[12] = {[10] = 0xFF, [11] = 0xFF};

    if (address->any.sa_family == AF_INET6) {
        put(w, &address->v6.sin6_addr, 16);
    } else {
        put(w, mapped, sizeof mapped);
        put(w, &address->v4.sin_addr, 4);
    }
}

size_t proxyproto_write(const union address *source, const union address *destination,
                        const char *unique_id, const char *tls_version, const char *tls_cipher,
                        char *out, size_t size)
{
    struct writer w = {out, out + size};
    bool v4 = source->any.sa_family == AF_INET && destination->any.sa_family == AF_INET;

    put(&w, v2_signature, sizeof v2_signature);
    if (source->any.sa_family == AF_UNSPEC) {
        put(&w, (unsigned char[]){V2_LOCAL, 0, 0, 0}, 4);
        return w.at == NULL ? 0 : V2_FIXED;
    }
    put(&w, (unsigned char[]){V2_PROXY, v4 ? V2_TCP4 : V2_TCP6, 0, 0}, 4);
    if (v4) {
        put(&w, &source->v4.sin_addr, 4);
        put(&w, &destination->v4.sin_addr, 4);
    } else {
        put_ipv6(&w, source);
        put_ipv6(&w, destination);
    }
    put_number(&w, address_port(source));
    put_number(&w, address_port(destination));
    put_tlv(&w, TLV_UNIQUE_ID, unique_id);
    if (tls_version != NULL)
        put_tls(&w, tls_version, tls_cipher);
    if (w.at == NULL)
        return 0;
    size_t total = (size_t)(w.at - out);
    out[14] = (char)((total - V2_FIXED) >> 8);
    out[15] = (char)(total - V2_FIXED);
    return total;
}
