/*
 * Owns the strict base64 codec and the shape of PLAIN. The codec is our own because OpenSSL's skips
 * white space and forgives stray bits. Its table look-ups depend on secret bytes; that is accepted,
 * for the text came over the wire.
 */
#include "auth/sasl.h"

#include <stdint.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

enum { NOT_BASE64 = 64 };

static unsigned char_value(char ch);
static bool decode_group(const char *text, size_t used, char *bytes_out);

bool sasl_decode_base64(struct span text, struct buf *out)
{
    if (text.len == 0)
        return true;
    if (text.len % 4 != 0)
        return false;

    size_t padding = 0;

    while (padding < 2 && text.ptr[text.len - 1 - padding] == '=')
        padding++;

    size_t size = text.len / 4 * 3 - padding;
    char *bytes = buf_reserve(out, size);

    if (bytes == NULL)
        return false;
    for (size_t in = 0, done = 0; in < text.len; in += 4, done += 3) {
        size_t used = in + 4 == text.len ? 4 - padding : 4;

        if (!decode_group(text.ptr + in, used, bytes + done))
            return false; /* what was written stays uncommitted, in memory that buf wipes */
    }
    buf_commit(out, size);
    return true;
}

/* Two to four characters make one to three bytes; the bits that no byte uses must be zero. */
static bool decode_group(const char *text, size_t used, char *bytes_out)
{
    uint32_t bits = 0;

    for (size_t i = 0; i < 4; i++) {
        unsigned value = i < used ? char_value(text[i]) : 0;

        if (value == NOT_BASE64)
            return false;
        bits = bits << 6 | value;
    }
    if (used < 4 && (bits & (used == 3 ? 0xffU : 0xffffU)) != 0)
        return false;
    for (size_t i = 0; i + 1 < used; i++)
        bytes_out[i] = (char)(bits >> (16 - 8 * i) & 0xff);
    return true;
}

static unsigned char_value(char ch)
{
    if (ch >= 'A' && ch <= 'Z')
        return (unsigned)(ch - 'A');
    if (ch >= 'a' && ch <= 'z')
        return (unsigned)(ch - 'a') + 26;
    if (ch >= '0' && ch <= '9')
        return (unsigned)(ch - '0') + 52;
    return ch == '+' ? 62 : ch == '/' ? 63 : NOT_BASE64;
}

bool sasl_encode_base64(struct span bytes, struct buf *out)
{
    size_t groups = bytes.len / 3 + (bytes.len % 3 != 0);

    if (groups == 0)
        return true;
    if (groups > SIZE_MAX / 4)
        return false;

    char *text = buf_reserve(out, groups * 4);

    if (text == NULL)
        return false;
    for (size_t group = 0; group < groups; group++) {
        size_t left = bytes.len - group * 3;
        uint32_t bits = 0;

        for (size_t i = 0; i < 3; i++)
            bits = bits << 8 | (i < left ? (uint8_t)bytes.ptr[group * 3 + i] : 0U);
        for (size_t i = 0; i < 4; i++)
            text[group * 4 + i] = i <= left ? alphabet[bits >> (18 - 6 * i) & 0x3f] : '=';
    }
    buf_commit(out, groups * 4);
    return true;
}

bool sasl_parse_plain(struct span message, struct sasl_plain *plain_out)
{
    const char *first = message.len == 0 ? NULL : memchr(message.ptr, '\0', message.len);

    if (first == NULL)
        return false;

    struct span rest = span_after(message, (size_t)(first - message.ptr) + 1);
    const char *second = rest.len == 0 ? NULL : memchr(rest.ptr, '\0', rest.len);

    if (second == NULL)
        return false;
    plain_out->authzid = (struct span){message.ptr, (size_t)(first - message.ptr)};
    plain_out->authcid = (struct span){rest.ptr, (size_t)(second - rest.ptr)};
    plain_out->password = span_after(rest, plain_out->authcid.len + 1);
    return plain_out->authcid.len > 0 && plain_out->password.len > 0 &&
           memchr(plain_out->password.ptr, '\0', plain_out->password.len) == NULL;
}
