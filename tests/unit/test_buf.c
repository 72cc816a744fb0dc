/* The byte queue: order, ceiling, and that an empty one holds no memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/buf.h"

static void bytes_come_out_as_they_went_in(void **state)
{
    unsigned char in = 0, out = 0;
    struct buf buf;

    (void)state;
    buf_init(&buf, 5000);
    for (size_t round = 1; round < 200; round++) { /* grows, moves and empties on the way */
        for (size_t i = 0; i < round * 7 % 300; i++) {
            char byte = (char)in++;

            assert_true(buf_append(&buf, (struct span){&byte, 1}));
        }
        size_t take = round % 10 == 0 ? buf_len(&buf) : buf_len(&buf) / 2;
        for (size_t i = 0; i < take; i++)
            assert_int_equal((unsigned char)buf_span(&buf).ptr[i], out++);
        buf_consume(&buf, take);
    }
    buf_release(&buf);
}

static void an_empty_one_holds_no_memory(void **state)
{
    struct buf buf;

    (void)state;
    buf_init(&buf, 100);
    assert_null(buf.bytes);
    assert_non_null(buf_span(&buf).ptr);
    assert_true(buf_append(&buf, (struct span){NULL, 0}));
    assert_null(buf.bytes);
    assert_true(buf_append_text(&buf, "abc"));
    buf_consume(&buf, 2);
    assert_true(span_equal(buf_span(&buf), span_of("c")));
    buf_consume(&buf, 1);
    assert_null(buf.bytes);
    buf_consume(&buf, 0);
    assert_true(buf_append_text(&buf, "again"));
    buf_release(&buf);
    assert_int_equal(buf_len(&buf), 0);
    assert_int_equal(buf.ceiling, 100);
}

static void the_ceiling_holds(void **state)
{
    struct buf buf;

    (void)state;
    buf_init(&buf, 4);
    assert_false(buf_append_text(&buf, "12345"));
    assert_true(buf_append_text(&buf, "123"));
    assert_false(buf_append_text(&buf, "45"));
    assert_null(buf_reserve(&buf, SIZE_MAX));
    assert_true(span_equal(buf_span(&buf), span_of("123")));
    assert_true(buf_append_text(&buf, "4"));
    assert_null(buf_reserve(&buf, 1));
    buf_consume(&buf, 2);
    assert_true(buf_append_text(&buf, "56"));
    assert_true(span_equal(buf_span(&buf), span_of("3456")));
    buf_release(&buf);
}

/* Looks behind the content, and before it. */
static void nothing_is_left_behind(void **state)
{
    struct buf buf;
    size_t left = 0;

    (void)state;
    buf_init(&buf, 1000);
    assert_non_null(buf_reserve(&buf, 200));
    for (size_t i = 0; i < 200; i++)
        assert_true(buf_append_text(&buf, "x"));
    buf_consume(&buf, 150); /* leaves 50 at the end of 256 */
    for (size_t i = 0; i < 150; i++)
        left += buf.bytes[i] != '\0';
    assert_int_equal(left, 0);
    assert_true(buf_append(
        &buf, (struct span){"yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", 60}));
    assert_int_equal(buf.start, 0); /* it was moved, as there was no room behind it */
    assert_int_equal(buf.capacity, 256);
    for (size_t i = buf.end; i < buf.capacity; i++)
        left += buf.bytes[i] != '\0';
    assert_int_equal(left, 0);
    buf_release(&buf);
}

static void reserve_and_commit(void **state)
{
    struct buf buf;

    (void)state;
    buf_init(&buf, 1000);
    char *room = buf_reserve(&buf, 600);
    assert_non_null(room);
    assert_int_equal(buf_len(&buf), 0);
    memset(room, 'x', 600);
    buf_commit(&buf, 10);
    assert_true(span_equal(buf_span(&buf), span_of("xxxxxxxxxx")));
    buf_release(&buf);
}

static void formatted(void **state)
{
    struct buf buf;

    (void)state;
    buf_init(&buf, 32);
    assert_true(buf_printf(&buf, "%s %d", "a", 1));
    assert_true(buf_printf(&buf, " %04x", 255));
    assert_true(span_equal(buf_span(&buf), span_of("a 1 00ff")));
    assert_false(buf_printf(&buf, "%100d", 1));
    assert_int_equal(buf_len(&buf), 8);
    buf_release(&buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_out_as_they_went_in),
        cmocka_unit_test(an_empty_one_holds_no_memory),
        cmocka_unit_test(the_ceiling_holds),
        cmocka_unit_test(nothing_is_left_behind),
        cmocka_unit_test(reserve_and_commit),
        cmocka_unit_test(formatted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
