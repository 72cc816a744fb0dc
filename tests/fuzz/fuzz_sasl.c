/* What decodes must be the one encoding of its bytes; PLAIN's parts must lie inside the message. */
#include "auth/sasl.h"

#include <assert.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct span input = {(const char *)data, size};
    struct buf bytes, text;
    struct sasl_plain plain;

    buf_init(&bytes, 65536);
    buf_init(&text, 131072);
    if (sasl_decode_base64(input, &bytes)) {
        assert(sasl_encode_base64(buf_span(&bytes), &text));
        assert(span_equal(buf_span(&text), input));
        (void)sasl_parse_plain(buf_span(&bytes), &plain);
    }
    buf_release(&bytes);
    buf_release(&text);
    if (sasl_parse_plain(input, &plain)) {
        assert(plain.authzid.len + plain.authcid.len + plain.password.len + 2 == size);
        assert(plain.authcid.len > 0 && plain.password.len > 0);
    }
    return 0;
}
