/* Base64 and PLAIN. */
#include "auth/sasl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
/* after its friends */
#include <cmocka.h>

static const struct {
    const char *bytes, *text;
} pairs[] = {
    /* RFC 4648 10, and one with both odd characters */
    {"", ""},
    {"f", "Zg=="},
    {"fo", "Zm8="},
    {"foo", "Zm9v"},
    {"foob", "Zm9vYg=="},
    {"fooba", "Zm9vYmE="},
    {"foobar", "Zm9vYmFy"},
    {"\xfb\xff\xbe", "+/++"},
};

static void known_pairs(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct buf out;

        buf_init(&out, 100);
        assert_true(sasl_decode_base64(span_of(pairs[i].text), &out));
        assert_true(span_equal(buf_span(&out), span_of(pairs[i].bytes)));
        buf_release(&out);
        assert_true(sasl_encode_base64(span_of(pairs[i].bytes), &out));
        assert_true(span_equal(buf_span(&out), span_of(pairs[i].text)));
        buf_release(&out);
    }
}

static void bad_base64(void **state)
{
    static const char *const bad[] = {"Z",    "Zg",   "Zg=",  "Zg===",    "=",      "====",
                                      "Z===", "Zh==", "Zm9=", "Zg==Zg==", "Zm 9v",  "Zm9v\r\n",
                                      "Zm-_", "Zm=v", "=Zm9", "Zm9\xff",  "Zg==\n", "*"};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct buf out;

        buf_init(&out, 100);
        if (sasl_decode_base64(span_of(bad[i]), &out))
            fail_msg("\"%s\" was taken", bad[i]);
        assert_int_equal(buf_len(&out), 0);
        buf_release(&out);
    }
}

static void ceilings_hold(void **state)
{
    struct buf out;

    (void)state;
    buf_init(&out, 6);
    assert_true(sasl_decode_base64(span_of("Zm9vYmFy"), &out));
    assert_false(sasl_decode_base64(span_of("Zg=="), &out));
    assert_false(sasl_encode_base64(span_of("f"), &out));
    assert_int_equal(buf_len(&out), 6);
    buf_release(&out);
}

static void all_octets_survive(void **state)
{
    char bytes[256];

    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)i;
    for (size_t len = 0; len <= sizeof bytes; len++) {
        struct buf text, back;

        buf_init(&text, 1000);
        buf_init(&back, 1000);
        assert_true(sasl_encode_base64((struct span){bytes, len}, &text));
        assert_true(sasl_decode_base64(buf_span(&text), &back));
        assert_true(span_equal(buf_span(&back), (struct span){bytes, len}));
        buf_release(&text);
        buf_release(&back);
    }
}

static void plain_messages(void **state)
{
    struct sasl_plain plain;

    (void)state;
    assert_true(sasl_parse_plain((struct span){"\0ann\0secret", 11}, &plain));
    assert_int_equal(plain.authzid.len, 0);
    assert_true(span_equal(plain.authcid, span_of("ann")));
    assert_true(span_equal(plain.password, span_of("secret")));
    assert_true(sasl_parse_plain((struct span){"bob\0ann\0s", 9}, &plain));
    assert_true(span_equal(plain.authzid, span_of("bob")));
    assert_false(sasl_parse_plain((struct span){"", 0}, &plain));
    assert_false(sasl_parse_plain((struct span){NULL, 0}, &plain));
    assert_false(sasl_parse_plain((struct span){"\0", 1}, &plain));
    assert_false(sasl_parse_plain((struct span){"\0\0", 2}, &plain));
    assert_false(sasl_parse_plain((struct span){"ann", 3}, &plain));
    assert_false(sasl_parse_plain((struct span){"\0ann", 4}, &plain));
    assert_false(sasl_parse_plain((struct span){"\0ann\0", 5}, &plain));
    assert_false(sasl_parse_plain((struct span){"\0\0secret", 8}, &plain));
    assert_false(sasl_parse_plain((struct span){"\0ann\0secret\0", 12}, &plain));
    assert_false(sasl_parse_plain((struct span){"\0ann\0sec\0ret", 12}, &plain));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_pairs),    cmocka_unit_test(bad_base64),
        cmocka_unit_test(ceilings_hold),  cmocka_unit_test(all_octets_survive),
        cmocka_unit_test(plain_messages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
