/*
 * What a person may read of a session: streams beside the lines that come of them. Each is offered
 * whole, cut at every byte, and octet by octet; the same lines must come each time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "proxy/imap/transcript.h"

#include <string.h>

static char told[16384];

static void on_line(void *owner, struct span line)
{
    size_t len = strlen(told);

    (void)owner;
    assert_true(len + line.len + 2 <= sizeof told);
    memcpy(told + len, line.ptr, line.len);
    memcpy(told + len + line.len, "\n", 2);
}

/* As its caller does: a scanner of its own goes before. */
static void add(struct transcript *transcript, struct scan *scan, struct span bytes)
{
    struct piece piece;

    transcript_add(transcript, scan, bytes, on_line, NULL);
    while (bytes.len > 0) {
        ptrdiff_t len = scan_next(scan, bytes, &piece);

        assert_true(len > 0);
        bytes = span_after(bytes, (size_t)len);
    }
}

static void play(enum scan_side side, bool bodies, struct span bytes, size_t cut, size_t step)
{
    struct transcript transcript;
    struct scan scan;

    told[0] = '\0';
    transcript_init(&transcript, bodies);
    scan_init(&scan, side, 0, 0);
    if (cut > 0)
        add(&transcript, &scan, (struct span){bytes.ptr, cut});
    for (size_t at = cut; at < bytes.len; at += step)
        add(&transcript, &scan,
            (struct span){bytes.ptr + at, bytes.len - at < step ? bytes.len - at : step});
}

static void expect(enum scan_side side, bool bodies, const char *stream, const char *lines)
{
    struct span bytes = span_of(stream);

    play(side, bodies, bytes, 0, bytes.len);
    assert_string_equal(told, lines);
    play(side, bodies, bytes, 0, 1);
    assert_string_equal(told, lines);
    for (size_t cut = 1; cut < bytes.len; cut++) {
        play(side, bodies, bytes, cut, bytes.len);
        assert_string_equal(told, lines);
    }
}

static void lines_are_shown(void **state)
{
    (void)state;
    expect(SCAN_CLIENT, false, "a1 NOOP\r\na2 SELECT \"my box\"\r\n",
           "a1 NOOP\na2 SELECT \"my box\"\n");
    expect(SCAN_SERVER, false, "* 3 EXISTS\r\na1 OK see {3}\r\n+ go on\r\n",
           "* 3 EXISTS\na1 OK see {3}\n+ go on\n");
    expect(SCAN_CLIENT, false, "\r\nDONE\n", "\nDONE\n");
}

static void literals_are_counted(void **state)
{
    (void)state;
    expect(SCAN_CLIENT, false, "a1 APPEND INBOX {7+}\r\nsecret!\r\na2 NOOP\r\n",
           "a1 APPEND INBOX {7+}\n(7 octets)\na2 NOOP\n");
    expect(SCAN_SERVER, false, "* 1 FETCH (BODY[1] {3}\r\nsec BODY[2] {0}\r\n UID 4)\r\n* BYE\r\n",
           "* 1 FETCH (BODY[1] {3}\n(3 octets)\n BODY[2] {0}\n UID 4)\n* BYE\n");
}

static void strings_of_mail_are_counted(void **state)
{
    (void)state;
    expect(SCAN_SERVER, false,
           "* 12 FETCH (ENVELOPE (\"a \\\" b\" NIL \"\") FLAGS (\\Seen))\r\n* LIST () \"/\" "
           "\"box\"\r\n",
           "* 12 FETCH (ENVELOPE (\"(6 octets)\" NIL \"\") FLAGS (\\Seen))\n* LIST () \"/\" "
           "\"box\"\n");
    expect(SCAN_SERVER, false, "* 1 fetch (BODY[1] {2}\r\nxy BODY[2] \"sec\")\r\n",
           "* 1 fetch (BODY[1] {2}\n(2 octets)\n BODY[2] \"(3 octets)\")\n");
    expect(SCAN_SERVER, false, "* 9 UIDFETCH (PREVIEW \"sec\")\r\n* URLFETCH \"u\" \"sec\"\r\n",
           "* 9 UIDFETCH (PREVIEW \"(3 octets)\")\n* URLFETCH \"(1 octets)\" \"(3 octets)\"\n");
    expect(SCAN_SERVER, false, "* 2 FETCH (X \"open\r\n* 3 EXISTS\r\n",
           "* 2 FETCH (X \"(4 octets)\n* 3 EXISTS\n");
    expect(SCAN_CLIENT, false, "a FETCH 1 BODY.PEEK[HEADER.FIELDS (\"subject\")]\r\n",
           "a FETCH 1 BODY.PEEK[HEADER.FIELDS (\"subject\")]\n");
}

static void bodies_are_shown_on_request(void **state)
{
    (void)state;
    expect(SCAN_SERVER, true, "* 1 FETCH (BODY[] {8}\r\none\r\ntwo X \"y\")\r\n",
           "* 1 FETCH (BODY[] {8}\none\ntwo\n X \"y\")\n");
}

static void tokens_of_urls_never(void **state)
{
    static const char url[] = "imap://ann@x/INBOX/;uid=1;urlauth=user+ann:internal:91354a473744";

    (void)state;
    for (int bodies = 0; bodies < 2; bodies++) {
        char stream[256], lines[256];

        snprintf(stream, sizeof stream, "a URLFETCH \"%s\" x\r\nb URLFETCH %s\r\n", url, url);
        snprintf(lines, sizeof lines, "a URLFETCH \"%.*s\" x\nb URLFETCH %.*s\n",
                 (int)(strstr(url, "user+") - url), url, (int)(strstr(url, "user+") - url), url);
        expect(SCAN_CLIENT, bodies != 0, stream, lines);
    }
}

static void long_lines_are_cut(void **state)
{
    char stream[3000], lines[2000];

    (void)state;
    memset(stream, 'x', sizeof stream);
    memcpy(stream + 2500, "\r\na NOOP\r\n", 11);
    memset(lines, 'x', TRANSCRIPT_LINE_MAX);
    memcpy(lines + TRANSCRIPT_LINE_MAX, "...\na NOOP\n", sizeof "...\na NOOP\n");
    play(SCAN_CLIENT, false, span_of(stream), 0, 700);
    assert_string_equal(told, lines);
}

/* What the scanner was told of a literal that was refused is not in the stream. */
static void a_refused_literal(void **state)
{
    struct transcript transcript;
    struct scan scan;

    (void)state;
    told[0] = '\0';
    transcript_init(&transcript, false);
    scan_init(&scan, SCAN_CLIENT, 0, 0);
    add(&transcript, &scan, span_of("a APPEND x {500}\r\n"));
    scan_cancel_literal(&scan);
    add(&transcript, &scan, span_of("b NOOP\r\n"));
    assert_string_equal(told, "a APPEND x {500}\nb NOOP\n");
}

/* From the middle of a literal on. */
static void it_begins_anywhere(void **state)
{
    struct transcript transcript;
    struct scan scan;
    struct piece piece;

    (void)state;
    told[0] = '\0';
    scan_init(&scan, SCAN_SERVER, 0, 0);
    scan_next(&scan, span_of("* 1 FETCH (BODY[] {9}\r\n"), &piece);
    scan_next(&scan, span_of("1234"), &piece);
    transcript_init(&transcript, false);
    add(&transcript, &scan, span_of("56789 X \"sec\")\r\na OK\r\n"));
    assert_non_null(strstr(told, "(5 octets)\n"));
    assert_null(strstr(told, "sec"));
    assert_non_null(strstr(told, "\na OK\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_shown),
        cmocka_unit_test(literals_are_counted),
        cmocka_unit_test(strings_of_mail_are_counted),
        cmocka_unit_test(bodies_are_shown_on_request),
        cmocka_unit_test(tokens_of_urls_never),
        cmocka_unit_test(long_lines_are_cut),
        cmocka_unit_test(a_refused_literal),
        cmocka_unit_test(it_begins_anywhere),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
