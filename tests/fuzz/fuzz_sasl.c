/*
 * What decodes must be the one encoding of its bytes, and all that is encoded decodes; PLAIN's
 * parts make up the whole message.
 */
#include "auth/sasl.h"

#include <assert.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_round_trip(struct span bytes)
{
    struct buf text, again, small;

    buf_init(&text, 131072);
    buf_init(&again, 65536);
    buf_init(&small, bytes.len > 0 ? bytes.len - 1 : 0);
    assert(sasl_encode_base64(bytes, &text) && buf_len(&text) == (bytes.len + 2) / 3 * 4);
    assert(sasl_decode_base64(buf_span(&text), &again) && span_equal(buf_span(&again), bytes));
    assert(sasl_decode_base64(buf_span(&text), &small) == (bytes.len == 0));
    buf_release(&text);
    buf_release(&again);
    buf_release(&small);
}

static void check_part(struct span part, const char *start, char behind)
{
    assert(part.ptr == start && memchr(part.ptr, '\0', part.len) == NULL);
    assert(behind != '\0' || part.ptr[part.len] == '\0');
}

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
    check_round_trip(input);
    if (sasl_parse_plain(input, &plain)) {
        check_part(plain.authzid, input.ptr, '\0');
        check_part(plain.authcid, input.ptr + plain.authzid.len + 1, '\0');
        check_part(plain.password, plain.authcid.ptr + plain.authcid.len + 1, 'x');
        assert(plain.authzid.len + plain.authcid.len + plain.password.len + 2 == size);
        assert(plain.authcid.len > 0 && plain.password.len > 0);
    }
    return 0;
}
