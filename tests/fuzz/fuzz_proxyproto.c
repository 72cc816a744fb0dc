/*
 * Feeds PROXY protocol headers as a session does: only as many bytes as the parser asks for. What
 * is read is written again, as it was (version 1) or so that the same is read (version 2).
 */
#include "proxy/net/proxyproto.h"

#include <assert.h>
#include <stdint.h>
#include <stdio.h>

/* In clear letters; IPv6 addresses have many spellings, so those are not compared. */
static void check_text(struct span text, const struct proxyproto *header)
{
    char source[ADDRESS_TEXT_MAX], destination[ADDRESS_TEXT_MAX], line[256];

    if (header->source.any.sa_family != AF_INET)
        return;
    address_host_text(&header->source, source);
    address_host_text(&header->destination, destination);
    snprintf(line, sizeof line, "PROXY TCP4 %s %s %u %u\r\n", source, destination,
             (unsigned)address_port(&header->source), (unsigned)address_port(&header->destination));
    assert(span_equal(text, span_of(line)));
}

static void check_written(const struct proxyproto *header, const char *unique_id)
{
    char out[PROXYPROTO_MAX];
    struct proxyproto again;
    size_t len = proxyproto_write(&header->source, &header->destination, unique_id, "TLSv1.3", "X",
                                  out, sizeof out);

    assert(len > 0 && proxyproto_missing((struct span){out, len}) == 0);
    for (size_t i = 0; i < len; i++)
        assert(proxyproto_missing((struct span){out, i}) > 0);
    assert(proxyproto_parse((struct span){out, len}, &again) && again.told);
    assert(memcmp(&again.source, &header->source, sizeof again.source) == 0);
    assert(memcmp(&again.destination, &header->destination, sizeof again.destination) == 0);
    assert(proxyproto_write(&header->source, &header->destination, unique_id, "TLSv1.3", "X", out,
                            len - 1) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    struct span input = {(const char *)bytes, len};
    struct span so_far = {input.ptr, 0};
    struct proxyproto header;

    for (;;) {
        ptrdiff_t missing = proxyproto_missing(so_far);

        if (missing == 0)
            break;
        if (missing < 0 || (size_t)missing > input.len - so_far.len)
            return 0;
        so_far.len += (size_t)missing;
        assert(so_far.len <= PROXYPROTO_MAX);
    }
    if (!proxyproto_parse(so_far, &header) || !header.told)
        return 0;
    assert(header.source.any.sa_family == header.destination.any.sa_family);
    if (so_far.ptr[0] == 'P')
        check_text(so_far, &header);
    check_written(&header, "0123456789abcdef");
    return 0;
}
