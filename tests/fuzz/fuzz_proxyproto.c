/* Feeds PROXY protocol headers as a session does: only as many bytes as the parser asks for. */
#include "proxy/net/proxyproto.h"

#include <assert.h>
#include <stdint.h>

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
    if (proxyproto_parse(so_far, &header) && header.told)
        assert(header.source.any.sa_family == header.destination.any.sa_family);
    return 0;
}
