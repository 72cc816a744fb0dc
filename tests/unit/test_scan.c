/*
 * The scanner: each case whole, cut at every byte, and octet by octet, must give the same pieces.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "proxy/base/mem.h"
#include "proxy/imap/scan.h"

struct story {
    char text[2000]; /* what was seen: "text:14 sync:3 literal:3 text:2." */
    size_t text_len, run;
    enum piece_kind kind;
};

static void say(struct story *story, const char *what, uint64_t number)
{
    char *end = story->text + story->text_len;
    size_t room = sizeof story->text - story->text_len;
    int len = number > 0 ? snprintf(end, room, " %s%" PRIu64, what, number)
                         : snprintf(end, room, " %s", what);

    assert_true(len > 0);
    story->text_len += (size_t)len;
}

static void end_run(struct story *story)
{
    if (story->run > 0)
        say(story, story->kind == PIECE_TEXT ? "text:" : "literal:", story->run);
    story->run = 0;
}

static void tell(struct story *story, const struct piece *piece)
{
    if (story->run > 0)
        assert_int_equal(story->kind, piece->kind);
    story->kind = piece->kind;
    story->run += piece->bytes.len;
    if (!piece->ends_line && !piece->opens_literal && !piece->ends_literal)
        return;
    end_run(story);
    if (piece->ends_line)
        say(story, ".", 0);
    if (piece->opens_literal) {
        say(story, piece->literal_binary ? "binary" : "octets", 0);
        say(story, piece->literal_sync ? "sync:" : "async:", piece->literal_size);
    }
}

/* Offers bytes in memory of exactly their size, so that the sanitizer sees a read past the end. */
static bool scan_chunk(struct scan *scan, struct span chunk, struct story *story)
{
    char *copy = mem_array(chunk.len + (chunk.len == 0), 1);
    struct span in = {copy, chunk.len};
    bool good = true;

    assert_non_null(copy);
    memcpy(copy, chunk.ptr, chunk.len);
    while (good && in.len > 0) {
        struct piece piece;
        ptrdiff_t len = scan_next(scan, in, &piece);

        if (len == SCAN_BAD) {
            end_run(story);
            say(story, "bad", 0);
            good = false;
            break;
        }
        assert_true(len > 0 && (size_t)len <= in.len);
        assert_ptr_equal(piece.bytes.ptr, in.ptr);
        assert_int_equal(piece.bytes.len, len);
        tell(story, &piece);
        in = span_after(in, (size_t)len);
    }
    mem_free(copy);
    return good;
}

/* `first` octets, then the rest in chunks of `step`. */
static void scan_cut(enum scan_side side, struct span in, size_t first, size_t step,
                     struct story *story)
{
    struct scan scan;

    *story = (struct story){.run = 0};
    scan_init(&scan, side, 0, 0);

    bool good = scan_chunk(&scan, (struct span){in.ptr, first}, story);

    for (size_t at = first; good && at < in.len; at += step) {
        size_t len = in.len - at < step ? in.len - at : step;

        good = scan_chunk(&scan, (struct span){in.ptr + at, len}, story);
    }
    if (good)
        end_run(story);
}

static void check(enum scan_side side, struct span in, const char *expected)
{
    struct story story;

    for (size_t cut = 0; cut <= in.len; cut++) {
        scan_cut(side, in, cut, in.len, &story);
        /* what comes before the end of a bad line depends on the cut, that it is bad does not */
        if (strstr(expected, "bad") == NULL || cut == 0)
            assert_string_equal(story.text + 1, expected);
        assert_int_equal(strstr(story.text, "bad") != NULL, strstr(expected, "bad") != NULL);
    }
    scan_cut(side, in, 0, 1, &story);
    if (strstr(expected, "bad") == NULL)
        assert_string_equal(story.text + 1, expected);
    else
        assert_non_null(strstr(story.text, "bad"));
}

#define CLIENT(in, expected) check(SCAN_CLIENT, (struct span){in, sizeof in - 1}, expected)
#define SERVER(in, expected) check(SCAN_SERVER, (struct span){in, sizeof in - 1}, expected)

static void lines_end_at_lf(void **state)
{
    (void)state;
    CLIENT("a1 NOOP\r\na2 NOOP\r\n", "text:9 . text:9 .");
    CLIENT("a1 NOOP\na2 NOOP\n", "text:8 . text:8 .");
    CLIENT("a1 \rNOOP\r\r\n", "text:11 .");
    CLIENT("\r\n\n", "text:2 . text:1 .");
    CLIENT("a1 \0\xff NOOP\r\n", "text:12 .");
    CLIENT("a1 NO", "text:5");
}

static void literals_are_counted(void **state)
{
    (void)state;
    CLIENT("a1 LOGIN {3}\r\nann {6+}\r\nsecret\r\n",
           "text:14 octets sync:3 literal:3 text:7 octets async:6 literal:6 text:2 .");
    CLIENT("a APPEND x ~{4}\r\n\0\n{9\r\n", "text:17 binary sync:4 literal:4 text:2 .");
    CLIENT("a ~{2+}\nxy\n", "text:8 binary async:2 literal:2 text:1 .");
    CLIENT("a {0}\r\n\r\n", "text:7 octets sync: text:2 .");
    CLIENT("a {0+}\r\n {0}\r\n x\r\n", "text:8 octets async: text:6 octets sync: text:4 .");
    CLIENT("a {0003}\r\nxyz\r\n", "text:10 octets sync:3 literal:3 text:2 .");
    CLIENT("a {12+}\r\na {3}\r\n{4}\r\n\r\n", "text:9 octets async:12 literal:12 text:2 .");
    CLIENT("a x{1}\r\n!\r\n", "text:8 octets sync:1 literal:1 text:2 .");
    CLIENT("a {{1}\r\n!\r\n", "text:8 octets sync:1 literal:1 text:2 .");
    CLIENT("a {9{1}\r\n!\r\n", "text:9 octets sync:1 literal:1 text:2 .");
    CLIENT("a ~~{1}\r\n!\r\n", "text:9 binary sync:1 literal:1 text:2 .");
}

static void what_is_no_header(void **state)
{
    (void)state;
    CLIENT("a {}\r\n", "text:6 .");
    CLIENT("a {3} \r\n", "text:8 .");
    CLIENT("a {3}\r\r\n", "text:8 .");
    CLIENT("a {3}\rx\r\n", "text:9 .");
    CLIENT("a {3 }\r\n", "text:8 .");
    CLIENT("a {-3}\r\n", "text:8 .");
    CLIENT("a {3-}\r\n", "text:8 .");
    CLIENT("a {+}\r\n", "text:7 .");
    CLIENT("a {3++}\r\n", "text:9 .");
    CLIENT("a {3}}\r\n", "text:8 .");
    CLIENT("a {0x3}\r\n", "text:9 .");
    CLIENT("}\r\n", "text:3 .");
    CLIENT("3}\r\n", "text:4 .");
}

static void quotes_hide_headers(void **state)
{
    (void)state;
    CLIENT("a \"{3}\r\n", "text:8 .");
    CLIENT("a \"x\" {1}\r\n!\r\n", "text:11 octets sync:1 literal:1 text:2 .");
    CLIENT("a \"\\\"{3}\r\n", "text:10 .");
    CLIENT("a \"\\\\\"{1}\r\n!\r\n", "text:11 octets sync:1 literal:1 text:2 .");
    CLIENT("a \"{3}\"\r\n", "text:9 .");
    CLIENT("a \"open\r\nb {1}\r\n!\r\n", "text:9 . text:7 octets sync:1 literal:1 text:2 .");
    CLIENT("a \"\\\r\nb {1}\r\n!\r\n", "text:6 . text:7 octets sync:1 literal:1 text:2 .");
    CLIENT("a \\\"{3}\r\n", "text:9 ."); /* a backslash outside quotes escapes nothing */
    CLIENT("a {1}\r\n\" {1}\r\n!\r\n",
           "text:7 octets sync:1 literal:1 text:6 octets sync:1 literal:1 text:2 .");
}

static void numbers_do_not_overflow(void **state)
{
    (void)state;
    CLIENT("a {9223372036854775807}\r\nx", "text:25 octets sync:9223372036854775807 literal:1");
    CLIENT("a {9223372036854775808}\r\n", "bad");
    CLIENT("a {18446744073709551616}\r\n", "bad");
    CLIENT("a {18446744073709551619+}\r\n", "bad");
    CLIENT("a {99999999999999999999999999999999999999999}\r\n", "bad");
    CLIENT("a {99999999999999999999} x\r\n", "text:28 ."); /* no header, so no error */
    CLIENT("a {99999999999999999999}{1}\r\n!\r\n", "text:29 octets sync:1 literal:1 text:2 .");
}

static void free_text_opens_nothing(void **state)
{
    (void)state;
    SERVER("* OK hello {3}\r\n", "text:16 .");
    SERVER("a1 ok hello {3}\r\n", "text:17 .");
    SERVER("a1 NO {3}\r\n* bad \"{3}\r\n* BYE {3}\r\n* PREAUTH {3}\n",
           "text:11 . text:12 . text:11 . text:14 .");
    SERVER("+ {3}\r\n+{3}\r\n+\r\n", "text:7 . text:6 . text:3 .");
    CLIENT("* OK {3}\r\nabc\r\n", "text:10 octets sync:3 literal:3 text:2 .");
    CLIENT("+ {1}\r\n!\r\n", "text:7 octets sync:1 literal:1 text:2 .");
}

static void data_opens_literals(void **state)
{
    (void)state;
    SERVER("* 1 FETCH (BODY[] {5}\r\n* BYE)\r\n", "text:23 octets async:5 literal:5 text:3 .");
    SERVER("* OKAY {1}\r\n!\r\n", "text:12 octets async:1 literal:1 text:2 .");
    SERVER("*  OK {1}\r\n!\r\n", "text:11 octets async:1 literal:1 text:2 .");
    SERVER("* PREAUTHS {1}\r\n!\r\n", "text:16 octets async:1 literal:1 text:2 .");
    SERVER("* X\xff {1}\r\n!\r\n", "text:10 octets async:1 literal:1 text:2 .");
    /* behind a literal no new response begins */
    SERVER("* LIST () \"/\" {1}\r\nx OK {2}\r\n+ {3}\r\n{1}\r\n",
           "text:19 octets async:1 literal:1 text:9 octets async:2 literal:2 text:5 octets "
           "async:3 literal:3 text:2 .");
}

static void limits_are_kept(void **state)
{
    struct scan scan;
    struct piece piece;

    (void)state;
    scan_init(&scan, SCAN_CLIENT, 10, 20);
    assert_int_equal(scan_next(&scan, span_of("a {10}\r\n"), &piece), 8);
    assert_true(piece.opens_literal);
    assert_false(scan_at_start(&scan));
    assert_int_equal(scan_next(&scan, span_of("0123456789xx"), &piece), 10);
    assert_int_equal(scan_next(&scan, span_of("xxxxxxxxxx\r\n"), &piece), 12); /* 20 of text */
    assert_true(scan_at_start(&scan));
    assert_int_equal(scan_next(&scan, span_of("a {11}\r\n"), &piece), SCAN_BAD);
    scan_init(&scan, SCAN_CLIENT, 5, 0);
    assert_int_equal(scan_next(&scan, span_of("a {6}\r\n"), &piece), SCAN_BAD);
    scan_init(&scan, SCAN_CLIENT, 0, 20);
    assert_int_equal(scan_next(&scan, span_of("0123456789012345678\r\n"), &piece), SCAN_BAD);
    scan_init(&scan, SCAN_CLIENT, 0, 20);
    assert_int_equal(scan_next(&scan, span_of("01234567890123456789"), &piece), 20);
    assert_int_equal(scan_next(&scan, span_of("\n"), &piece), SCAN_BAD);
    assert_int_equal(scan_next(&scan, span_of(""), &piece), 0);
}

static void a_literal_can_be_cancelled(void **state)
{
    struct scan scan;
    struct piece piece;

    (void)state;
    scan_init(&scan, SCAN_CLIENT, 0, 0);
    assert_int_equal(scan_next(&scan, span_of("a {10}\r\n"), &piece), 8);
    scan_cancel_literal(&scan);
    assert_true(scan_at_start(&scan));
    assert_int_equal(scan_next(&scan, span_of("b NOOP\r\nc"), &piece), 8);
    assert_true(piece.ends_line);
    scan_free_line(&scan);
    assert_int_equal(scan_next(&scan, span_of("DONE {3}\r\nc"), &piece), 10);
    assert_true(piece.ends_line);
    assert_int_equal(scan_next(&scan, span_of("c {3}\r\n"), &piece), 7);
    assert_true(piece.opens_literal);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_end_at_lf),
        cmocka_unit_test(literals_are_counted),
        cmocka_unit_test(what_is_no_header),
        cmocka_unit_test(quotes_hide_headers),
        cmocka_unit_test(numbers_do_not_overflow),
        cmocka_unit_test(free_text_opens_nothing),
        cmocka_unit_test(data_opens_literals),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(a_literal_can_be_cancelled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
