/*
 * PROXY protocol headers (version 2) as they are written: read back as a store's parser would, and
 * octet by octet against the specification (haproxy.org/download/2.9/doc/proxy-protocol.txt, 2.2).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/mem.h"
#include "proxy/net/proxyproto.h"

#include <string.h>

static const struct header {
    const char *source, *destination, *unique_id, *tls_version, *tls_cipher;
    const char *source_read, *destination_read; /* what comes back; NULL: the same */
    const char *bytes;                          /* behind the signature */
    size_t len;
} headers[] = {
#define BYTES(text) text, sizeof text - 1
    {"192.0.2.1:4660", "198.51.100.2:993", "a1", NULL, NULL, NULL, NULL,
     BYTES("\x21\x11\x00\x11"
           "\xc0\x00\x02\x01\xc6\x33\x64\x02\x12\x34\x03\xe1"
           "\x05\x00\x02"
           "a1")},
    {"[2001:db8::1]:65535", "[2001:db8::2]:143", "", NULL, NULL, NULL, NULL,
     BYTES("\x21\x21\x00\x27"
           "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
           "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"
           "\xff\xff\x00\x8f"
           "\x05\x00\x00")},
    {"192.0.2.1:1", "[2001:db8::2]:143", "x", NULL, NULL, "[::ffff:192.0.2.1]:1", NULL,
     BYTES("\x21\x21\x00\x28"
           "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01"
           "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"
           "\x00\x01\x00\x8f"
           "\x05\x00\x01"
           "x")},
    {"[2001:db8::1]:1", "192.0.2.2:143", "x", NULL, NULL, NULL, "[::ffff:192.0.2.2]:143",
     BYTES("\x21\x21\x00\x28"
           "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
           "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x02"
           "\x00\x01\x00\x8f"
           "\x05\x00\x01"
           "x")},
    {"192.0.2.1:1", "192.0.2.2:143", "id", "TLSv1.3", "TLS_X", NULL, NULL,
     BYTES("\x21\x11\x00\x2b"
           "\xc0\x00\x02\x01\xc0\x00\x02\x02\x00\x01\x00\x8f"
           "\x05\x00\x02"
           "id"
           "\x20\x00\x17"
           "\x01\x00\x00\x00\x01"
           "\x21\x00\x07"
           "TLSv1.3"
           "\x23\x00\x05"
           "TLS_X")},
#undef BYTES
};

enum { HEADERS = sizeof headers / sizeof headers[0] };

static const char signature[] = "\r\n\r\n\0\r\nQUIT\n";

static size_t write_header(const struct header *header, char *out, size_t size)
{
    union address source, destination;

    assert_true(address_parse(header->source, &source));
    assert_true(address_parse(header->destination, &destination));
    return proxyproto_write(&source, &destination, header->unique_id, header->tls_version,
                            header->tls_cipher, out, size);
}

static void every_octet_is_as_specified(void **state)
{
    char out[600];

    (void)state;
    for (size_t i = 0; i < HEADERS; i++) {
        const struct header *header = &headers[i];

        memset(out, 'x', sizeof out);
        assert_int_equal(write_header(header, out, sizeof out), 12 + header->len);
        assert_memory_equal(out, signature, 12);
        assert_memory_equal(out + 12, header->bytes, header->len);
        assert_int_equal(out[12 + header->len], 'x');
    }
}

static void check_address(const union address *address, const char *expected)
{
    char text[ADDRESS_TEXT_MAX];

    address_text(address, text);
    assert_string_equal(text, expected);
}

static void what_is_written_can_be_read(void **state)
{
    char out[600];

    (void)state;
    for (size_t i = 0; i < HEADERS; i++) {
        const struct header *header = &headers[i];
        size_t len = write_header(header, out, sizeof out);
        struct proxyproto read;

        assert_true(proxyproto_parse((struct span){out, len}, &read));
        assert_true(read.told);
        check_address(&read.source,
                      header->source_read == NULL ? header->source : header->source_read);
        check_address(&read.destination, header->destination_read == NULL
                                             ? header->destination
                                             : header->destination_read);
    }
}

/* A reader that asks how much more it may take, from every length on, ends with all of it. */
static void a_reader_takes_the_header_and_no_more(void **state)
{
    char out[600];

    (void)state;
    for (size_t i = 0; i < HEADERS; i++) {
        size_t len = write_header(&headers[i], out, sizeof out);

        for (size_t start = 0; start <= len; start++) {
            size_t taken = start;

            for (ptrdiff_t more; (more = proxyproto_missing((struct span){out, taken})) != 0;) {
                assert_true(more > 0);
                taken += (size_t)more;
                assert_true(taken <= len);
            }
            assert_int_equal(taken, len);
        }
    }
}

/* Into memory of exactly each size, so that the sanitizer sees a write past the end. */
static void for_nobody_it_is_local(void **state)
{
    static const union address none;
    struct proxyproto header;
    char out[16];

    (void)state;
    assert_int_equal(proxyproto_write(&none, &none, "id", NULL, NULL, out, sizeof out), 16);
    assert_memory_equal(out, signature, 12);
    assert_memory_equal(out + 12, "\x20\0\0\0", 4);
    assert_int_equal(proxyproto_missing((struct span){out, 16}), 0);
    assert_true(proxyproto_parse((struct span){out, 16}, &header));
    assert_false(header.told);
    assert_int_equal(proxyproto_write(&none, &none, "id", NULL, NULL, out, 15), 0);
}

static void what_does_not_fit_is_not_written(void **state)
{
    char whole[600];

    (void)state;
    for (size_t i = 0; i < HEADERS; i++) {
        size_t len = write_header(&headers[i], whole, sizeof whole);

        for (size_t size = 0; size <= len + 1; size++) {
            char *out = mem_array(size + (size == 0), 1);

            assert_non_null(out);
            assert_int_equal(write_header(&headers[i], out, size), size < len ? 0 : len);
            if (size >= len)
                assert_memory_equal(out, whole, len);
            mem_free(out);
        }
    }
}

static void long_values_are_counted_in_two_octets(void **state)
{
    static char id[301], cipher[301], out[1000];
    struct header header = {"192.0.2.1:1", "192.0.2.2:2", id, "TLSv1.2", cipher, NULL, NULL, "", 0};
    size_t len;

    (void)state;
    memset(id, 'i', sizeof id - 1);
    memset(cipher, 'c', sizeof cipher - 1);
    len = write_header(&header, out, sizeof out);
    assert_int_equal(len, 16 + 12 + 3 + 300 + 3 + 5 + 3 + 7 + 3 + 300);
    assert_memory_equal(out + 14, "\x02\x7c", 2); /* all behind these 16 octets: 636 */
    assert_memory_equal(out + 28, "\x05\x01\x2ci", 4);
    assert_memory_equal(out + 331, "\x20\x01\x3e\x01", 4); /* 318 */
    assert_memory_equal(out + 349, "\x23\x01\x2c", 3);
    assert_int_equal(out[len - 1], 'c');
    assert_int_equal(proxyproto_missing((struct span){out, len}), 0);
    for (size_t size = 0; size < len; size++)
        assert_int_equal(write_header(&header, out, size), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_octet_is_as_specified),
        cmocka_unit_test(what_is_written_can_be_read),
        cmocka_unit_test(a_reader_takes_the_header_and_no_more),
        cmocka_unit_test(for_nobody_it_is_local),
        cmocka_unit_test(what_does_not_fit_is_not_written),
        cmocka_unit_test(long_values_are_counted_in_two_octets),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
