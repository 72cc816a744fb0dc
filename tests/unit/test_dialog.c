/*
 * A relayed session, told as what C (client) and S (server) send. Each is offered whole, cut at
 * every byte, and octet by octet; what comes out must be the same each time: the bytes that pass,
 * "{tag BAD}" for a refusal, a capability list in "<<" and ">>", "broken".
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "proxy/base/mem.h"
#include "proxy/imap/dialog.h"

#define OUT_MAX 60000

struct talk {
    struct dialog dialog;
    char held[2][OUT_MAX]; /* what the caller of dialog_client, dialog_server keeps */
    size_t held_len[2];
    char out[OUT_MAX]; /* all that came out */
    size_t out_len;
    bool broken;
};

static struct talk talk;

static void put(const char *bytes, size_t len)
{
    assert_true(len < sizeof talk.out - talk.out_len);
    memcpy(talk.out + talk.out_len, bytes, len);
    talk.out_len += len;
    talk.out[talk.out_len] = '\0';
}

static void put_rewritten(struct span in, const struct dialog_step *step)
{
    assert_true(step->list_len > 0 && step->list_offset + step->list_len < step->len);
    assert_true(step->len <= in.len && in.ptr[step->len - 1] == '\n');
    put(in.ptr, step->list_offset);
    put("<<", 2);
    put(in.ptr + step->list_offset, step->list_len);
    put(">>", 2);
    put(in.ptr + step->list_offset + step->list_len,
        step->len - step->list_offset - step->list_len);
}

/* Does what one step says; false when it took nothing. */
static bool do_step(int side, struct span in)
{
    struct dialog_step step;

    (side == 0 ? dialog_client : dialog_server)(&talk.dialog, in, &step);
    assert_true(step.len <= in.len);
    switch (step.action) {
    case DIALOG_PASS:
        put(in.ptr, step.len);
        break;
    case DIALOG_EAT:
        break;
    case DIALOG_REFUSE:
        assert_int_equal(side, 0);
        put("{", 1);
        put(step.tag.ptr, step.tag.len);
        put(" BAD}", 5);
        assert_non_null(step.text);
        break;
    case DIALOG_LOGOUT:
        assert_int_equal(side, 0);
        put("{", 1);
        put(step.tag.ptr, step.tag.len);
        put(" LOGOUT}", 8);
        break;
    case DIALOG_FAREWELL:
        assert_true(side == 1 && step.len == 0 && memchr(in.ptr, '\n', in.len) != NULL);
        return true; /* once, then it passes */
    case DIALOG_REWRITE:
        assert_int_equal(side, 1);
        put_rewritten(in, &step);
        break;
    case DIALOG_WAIT:
        assert_true(side == 0 && dialog_client_waits(&talk.dialog));
        break;
    case DIALOG_MORE:
        assert_true(in.len < (side == 0 ? (size_t)DIALOG_HEAD_MAX : (size_t)DIALOG_LINE_MAX));
        if (side == 1 && in.len > 0)
            assert_false(dialog_server_at_line_start(&talk.dialog));
        break;
    case DIALOG_BROKEN:
        assert_non_null(step.text);
        if (!talk.broken)
            put("broken", 6);
        talk.broken = true;
        break;
    }
    talk.held_len[side] -= step.len;
    memmove(talk.held[side], talk.held[side] + step.len, talk.held_len[side]);
    return step.len > 0;
}

/* Offers what is held, from memory of exactly its size, until no more of it is taken. */
static void run(int side)
{
    bool taken = true;

    while (taken) {
        size_t len = talk.held_len[side];
        char *copy = mem_array(len + (len == 0), 1);

        assert_non_null(copy);
        memcpy(copy, talk.held[side], len);
        taken = do_step(side, (struct span){copy, len});
        mem_free(copy);
    }
}

static void offer(int side, struct span bytes)
{
    assert_true(bytes.len <= sizeof talk.held[side] - talk.held_len[side]);
    memcpy(talk.held[side] + talk.held_len[side], bytes.ptr, bytes.len);
    talk.held_len[side] += bytes.len;
    run(side);
}

struct line {
    int side;
    struct span bytes;
};

#define C(text)                                                                                    \
    {                                                                                              \
        0,                                                                                         \
        {                                                                                          \
            text, sizeof text - 1                                                                  \
        }                                                                                          \
    }
#define S(text)                                                                                    \
    {                                                                                              \
        1,                                                                                         \
        {                                                                                          \
            text, sizeof text - 1                                                                  \
        }                                                                                          \
    }

/* Offers `first` bytes of each line, then the rest of it in chunks of `step`. */
static void play(const struct line *lines, size_t count, size_t first, size_t step)
{
    talk = (struct talk){.out_len = 0};
    dialog_init(&talk.dialog);
    for (size_t i = 0; i < count; i++) {
        struct span left = lines[i].bytes;
        size_t len = first < left.len ? first : left.len;

        while (left.len > 0) {
            offer(lines[i].side, (struct span){left.ptr, len});
            left = span_after(left, len);
            len = step < left.len ? step : left.len;
        }
        run(0); /* the client may have waited for this line */
    }
}

static void check(const struct line *lines, size_t count, const char *expected, size_t len)
{
    size_t longest = 0;

    for (size_t i = 0; i < count; i++)
        longest = lines[i].bytes.len > longest ? lines[i].bytes.len : longest;
    for (size_t cut = 0; cut <= longest; cut++) {
        play(lines, count, cut, cut == 0 ? 1 : longest); /* 0: octet by octet */
        if (talk.out_len != len || memcmp(talk.out, expected, len) != 0)
            print_error("cut at %zu:\n%s\n", cut, talk.out);
        assert_int_equal(talk.out_len, len);
        assert_memory_equal(talk.out, expected, len);
    }
}

#define CHECK(expected, ...)                                                                       \
    check((const struct line[]){__VA_ARGS__},                                                      \
          sizeof((const struct line[]){__VA_ARGS__}) / sizeof(struct line), expected,              \
          sizeof expected - 1)

#define D (&talk.dialog)

static void plain_commands_pass(void **state)
{
    (void)state;
    CHECK("a1 NOOP\r\na1 OK\r\n", C("a1 NOOP\r\n"), S("a1 OK\r\n"));
    assert_true(dialog_is_quiet(D));
    CHECK("a1 SELECT x\r\na2 FETCH 1 x\r\n* 1 FETCH (X {3}\r\n* B)\r\na1 OK {3}\r\na2 NO\r\n",
          C("a1 SELECT x\r\na2 FETCH 1 x\r\n"),
          S("* 1 FETCH (X {3}\r\n* B)\r\na1 OK {3}\r\na2 NO\r\n"));
    assert_true(dialog_is_quiet(D));
    CHECK("\r\n\0\xff\r\na1\r\nx\n a2 NOOP\n", C("\r\n\0\xff\r\na1\r\nx\n a2 NOOP\n"));
    assert_int_equal(dialog_open_count(D), 3);
    assert_int_equal(dialog_command_count(D), 3);
    assert_true(dialog_client_at_start(D));
    CHECK("a1 LOGI x\r\na2 LOGINX\r\na3 L\r\na4 ID\r\na5 X-LOGIN\r\n",
          C("a1 LOGI x\r\na2 LOGINX\r\na3 L\r\na4 ID\r\na5 X-LOGIN\r\n"));
    CHECK("a1 LIST LOGIN\r\nLOGIN NOOP\r\n", C("a1 LIST LOGIN\r\nLOGIN NOOP\r\n"));
}

static void the_proxys_own_are_refused(void **state)
{
    (void)state;
    CHECK("{a1 BAD}", C("a1 STARTTLS\r\n"));
    assert_true(dialog_is_quiet(D));
    CHECK("{a1 BAD}a2 NOOP\r\n", C("a1 login x y\r\na2 NOOP\r\n"));
    CHECK("a0 NOOP\r\n{a1 BAD}{a2 BAD}{a3 BAD}a4 NOOP\n",
          C("a0 NOOP\r\na1 AUTHENTICATE PLAIN\r\na2 Compress DEFLATE\na3 UNAUTHENTICATE\r\n"
            "a4 NOOP\n"));
    CHECK("{* BAD}{* BAD}{* BAD}", C("a+b STARTTLS\r\n* LOGIN\r\n(( LOGIN x\r\n"));
    CHECK("{a1 BAD}{a2 BAD}{a3 BAD}{a4 BAD}",
          C(" a1 STARTTLS\r\na2  STARTTLS\r\na3\tSTARTTLS\ra4\na4 STARTTLS\0\r\n"));
    CHECK("{A-1.]~ BAD}", C("A-1.]~ STARTTLS\n"));
}

static void refused_literals_are_eaten(void **state)
{
    (void)state;
    CHECK("{a1 BAD}a2 NOOP\r\n",
          C("a1 LOGIN {5+}\r\nx\r\ny {15+}\r\na9 STARTTLS\r\n!\r\na2 NOOP\r\n"));
    CHECK("{a1 BAD}a2 NOOP\r\n", C("a1 LOGIN {3}\r\na2 NOOP\r\n"));
    CHECK("{a1 BAD}a2 NOOP\r\n", C("a1 LOGIN {0+}\r\n {3}\r\na2 NOOP\r\n"));
    CHECK("{a1 BAD}a2 NOOP\r\n", C("a1 LOGIN \"{3}\r\na2 NOOP\r\n"));
    assert_int_equal(dialog_open_count(D), 1);
    assert_int_equal(dialog_command_count(D), 1);
}

static void literals_wait_for_the_verdict(void **state)
{
    (void)state;
    CHECK("a1 APPEND x {14}\r\n", C("a1 APPEND x {14}\r\na1 STARTTLS\r\n!"));
    assert_true(dialog_client_waits(D));
    assert_false(dialog_client_at_start(D));
    CHECK("a1 APPEND x {13}\r\n+\r\na1 STARTTLS\r\n\r\na1 OK\r\n",
          C("a1 APPEND x {13}\r\na1 STARTTLS\r\n\r\n"), S("+\r\n"), S("a1 OK\r\n"));
    assert_true(dialog_is_quiet(D));
    CHECK("a1 APPEND x {13}\r\n* 1 EXISTS\r\n+go {3}\r\na1 STARTTLS\r\n {1}\r\n+ \r\n! {0}\r\n+ "
          "\r\n\r\n{a2 BAD}",
          C("a1 APPEND x {13}\r\n"), S("* 1 EXISTS\r\n+go {3}\r\n"), C("a1 STARTTLS\r\n {1}\r\n"),
          S("+ \r\n"), C("! {0}\r\n"), S("+ \r\n"), C("\r\na2 STARTTLS\r\n"));
    CHECK("a1 APPEND x {13+}\r\na1 STARTTLS\r\n\r\n{a2 BAD}",
          C("a1 APPEND x {13+}\r\na1 STARTTLS\r\n\r\na2 STARTTLS\r\n"));
    CHECK("a1 APPEND x ~{3}\r\n+ \r\n\0\n\xff\r\n", C("a1 APPEND x ~{3}\r\n"), S("+ \r\n"),
          C("\0\n\xff\r\n"));
}

static void a_refused_literal_is_a_new_command(void **state)
{
    (void)state;
    CHECK("a1 APPEND x {100}\r\na1 NO [TRYCREATE] {3}\r\n{a2 BAD}a3 NOOP\r\n",
          C("a1 APPEND x {100}\r\n"), S("a1 NO [TRYCREATE] {3}\r\n"),
          C("a2 STARTTLS\r\na3 NOOP\r\n"));
    assert_int_equal(dialog_open_count(D), 1);
    /* the answers of earlier commands are no verdict */
    CHECK("a1 NOOP\r\na2 APPEND x {9}\r\na1 BAD\r\n", C("a1 NOOP\r\na2 APPEND x {9}\r\n"),
          S("a1 BAD\r\n"), C("a3 NOOP\r\n"));
    assert_true(dialog_client_waits(D));
    /* the server answered before it was asked: no "+" will come */
    CHECK("a1 X {3+}\r\na1 BAD\r\nabc {4}\r\na2 NOOP\r\n", C("a1 X {3+}\r\n"), S("a1 BAD\r\n"),
          C("abc {4}\r\na2 NOOP\r\n"));
    /* one tag twice: OK cannot be about the command that is not complete */
    CHECK("a NOOP\r\na APPEND x {3}\r\na OK\r\n+ \r\nabc\r\n", C("a NOOP\r\na APPEND x {3}\r\n"),
          S("a OK\r\n+ \r\n"), C("abc\r\n"));
}

static void idle(void **state)
{
    (void)state;
    CHECK("a1 IDLE\r\n", C("a1 IDLE\r\n"));
    assert_false(dialog_client_idles(D));
    assert_true(dialog_client_waits(D));
    CHECK("a1 idle\r\n+ idling\r\n", C("a1 idle\r\n"), S("+ idling\r\n"));
    assert_true(dialog_client_idles(D));
    assert_false(dialog_client_waits(D) || dialog_client_at_start(D) || dialog_is_quiet(D));
    CHECK("a1 IDLE\r\n+\r\n* 3 EXISTS\r\nDONE\r\na1 OK\r\n{a2 BAD}", C("a1 IDLE\r\n"),
          S("+\r\n* 3 EXISTS\r\n"), C("DONE\r\n"), S("a1 OK\r\n"), C("a2 STARTTLS\r\n"));
    assert_false(dialog_client_idles(D));
    assert_true(dialog_is_quiet(D));
    /* any line ends it, and opens no literal */
    CHECK("a1 IDLE\r\n+ \r\na2 LOGIN {3}\r\n{a3 BAD}", C("a1 IDLE\r\n"), S("+ \r\n"),
          C("a2 LOGIN {3}\r\na3 LOGIN\r\n"));
    /* refused: the next line is a command */
    CHECK("a1 IDLE x\r\na1 BAD\r\n{a2 BAD}", C("a1 IDLE x\r\na2 UNAUTHENTICATE\r\n"),
          S("a1 BAD\r\n"));
    /* ended by the server */
    CHECK("a1 IDLE\r\n+ \r\na1 NO\r\n{a2 BAD}a3 X {1}\r\n", C("a1 IDLE\r\n"), S("+ \r\na1 NO\r\n"),
          C("a2 LOGIN\r\na3 X {1}\r\n"));
    assert_true(dialog_client_waits(D));
    CHECK("a1 IDLE {2+}\r\na1 BAD\r\nxx\r\n{a2 BAD}", C("a1 IDLE {2+}\r\n"), S("a1 BAD\r\n"),
          C("xx\r\na2 LOGIN\r\n"));
}

static void idle_pipelined(void **state)
{
    (void)state;
    CHECK("a1 IDLE\r\n+ idling\r\nDONE\r\na2 APPEND x {3}\r\na1 OK\r\n+ go\r\nabc\r\na2 OK\r\n",
          C("a1 IDLE\r\nDONE\r\na2 APPEND x {3}\r\nabc\r\n"), S("+ idling\r\n"),
          S("a1 OK\r\n+ go\r\n"), S("a2 OK\r\n"));
    assert_true(dialog_is_quiet(D));
    CHECK("a1 NOOP\r\na2 IDLE\r\na1 OK\r\n+ \r\nDONE\r\na3 IDLE\r\na2 OK\r\n+ \r\nDONE\r\n"
          "{a4 BAD}",
          C("a1 NOOP\r\na2 IDLE\r\nDONE\r\na3 IDLE\r\nDONE\r\na4 LOGIN\r\n"), S("a1 OK\r\n"),
          S("+ \r\n"), S("a2 OK\r\n"), S("+ \r\n"));
}

static void lists_are_rewritten(void **state)
{
    (void)state;
    CHECK("* CAPABILITY <<IMAP4rev1 ID>>\r\n", S("* CAPABILITY IMAP4rev1 ID\r\n"));
    CHECK("* capability <<X>>\n", S("* capability X\n"));
    CHECK("* OK [CAPABILITY <<A B>>] hi {3}\r\n* 1 EXISTS\r\n",
          S("* OK [CAPABILITY A B] hi {3}\r\n* 1 EXISTS\r\n"));
    CHECK("* 1 EXISTS\r\na1 NO [capability <<A>>]\r\na2 BAD [CAPABILITY <<B>>] [CAPABILITY C]\r\n",
          S("* 1 EXISTS\r\na1 NO [capability A]\r\na2 BAD [CAPABILITY B] [CAPABILITY C]\r\n"));
    CHECK("* BYE [CAPABILITY <<A>>]\r\n* PREAUTH [CAPABILITY <<A>>] \"{3}\r\n",
          S("* BYE [CAPABILITY A]\r\n* PREAUTH [CAPABILITY A] \"{3}\r\n"));
    assert_true(dialog_bye_seen(D));
    CHECK("a1 NOOP\r\na1 OK [CAPABILITY <<A>>]\r\n", C("a1 NOOP\r\n"),
          S("a1 OK [CAPABILITY A]\r\n"));
    assert_true(dialog_is_quiet(D));
    CHECK("a1 APPEND {3}\r\na1 NO [CAPABILITY <<A>>]\r\n{a2 BAD}", C("a1 APPEND {3}\r\n"),
          S("a1 NO [CAPABILITY A]\r\n"), C("a2 LOGIN\r\n"));
}

#define SAME(bytes) CHECK(bytes, S(bytes))

static void what_only_looks_like_lists(void **state)
{
    (void)state;
    SAME("* CAPABILITY\r\n* OK [CAPABILITY]\r\n* OK [CAPABILITY ]\r\n* CAPABILITY \r\n");
    SAME("* OK [CAPABILITY A B\r\n* OK] [CAPABILITY A]\r\n* OK x [CAPABILITY A]\r\n");
    SAME("* CAPABILITIES A\r\na1 CAPABILITY A\r\n+ [CAPABILITY A]\r\n*  CAPABILITY A\r\n");
    SAME(" * CAPABILITY A\r\n* OKAY [CAPABILITY A]\r\n* OK [CAPABILITYX A]\r\n* OK  [CAPABILITY "
         "A]\r\n");
    SAME("* CAPABILITY A {30}\r\n* CAPABILITY B\r\n\0\n\xff\r\n234567890\r\n");
    SAME("* 1 FETCH (X {35}\r\n* CAPABILITY A\r\n* BYE\r\na1 OK {900}\r\n Y)\r\n");
    SAME("* LIST () \"/\" \"* {10}\r\n* STATUS {2}\r\n\r\n* OK [CAPABILITY A] x\r\n");
    SAME("* 1 FETCH (X {3}\r\n123\r\n\r\n\n\0\x80\r\n");
    assert_false(dialog_bye_seen(D));
    SAME("abc\r\n\r\n*\r\n* \r\nOK\r\n* byes\r\n");
    assert_false(dialog_bye_seen(D));
    SAME("* BYE\r\n");
    assert_true(dialog_bye_seen(D));
}

static void boundaries(void **state)
{
    (void)state;
    CHECK("", S("* CAPAB"));
    assert_false(dialog_server_at_line_start(D));
    CHECK("* 1 EX", S("* 1 EX"));
    assert_false(dialog_server_at_line_start(D));
    CHECK("* 1 X {3}\r\n12", S("* 1 X {3}\r\n12"));
    assert_false(dialog_server_at_line_start(D));
    CHECK("* 1 X {3}\r\n123)\r\n", S("* 1 X {3}\r\n123)\r\n"));
    assert_true(dialog_server_at_line_start(D));
    CHECK("a1 LOGOUT\r\n* BYE\r\na1 OK\r\n", C("a1 LOGOUT\r\n"), S("* BYE\r\na1 OK\r\n"));
    assert_true(dialog_logout_seen(D) && dialog_bye_seen(D));
    assert_false(dialog_is_quiet(D));
    assert_int_equal(dialog_open_count(D), 0);
    assert_int_equal(dialog_command_count(D), 1);
    /* answers to other commands than ours make nothing clean */
    CHECK("a1 NOOP\r\na2 OK\r\n", C("a1 NOOP\r\n"), S("a2 OK\r\n"));
    assert_int_equal(dialog_open_count(D), 0);
    assert_false(dialog_is_quiet(D));
}

static void limits(void **state)
{
    static char text[3 * DIALOG_LINE_MAX];
    struct dialog d;
    struct dialog_step step;

    (void)state;
    CHECK("a1 X {9223372036854775807+}\r\n{{{", C("a1 X {9223372036854775807+}\r\n{{{"));
    memset(text, 'x', sizeof text);
    memcpy(text, "* CAPABILITY A", 14);
    for (size_t len = DIALOG_LINE_MAX - 1; len <= DIALOG_LINE_MAX + 1; len++) {
        enum dialog_action whole = len > DIALOG_LINE_MAX ? DIALOG_BROKEN : DIALOG_REWRITE;

        text[len - 1] = '\n';
        dialog_init(&d);
        dialog_server(&d, (struct span){text, sizeof text}, &step);
        assert_int_equal(step.action, whole);
        dialog_init(&d);
        dialog_server(&d, (struct span){text, len - 1}, &step);
        assert_int_equal(step.action, len > DIALOG_LINE_MAX ? DIALOG_BROKEN : DIALOG_MORE);
        dialog_server(&d, (struct span){text, len}, &step);
        assert_int_equal(step.action, whole);
        text[len - 1] = 'x';
    }
    dialog_init(&d);
    dialog_client(&d, (struct span){"", 0}, &step);
    assert_int_equal(step.action, DIALOG_MORE);
    dialog_client(&d, span_of("a X\r\nb {9223372036854775808}\r\n"), &step);
    assert_int_equal(step.action, DIALOG_PASS);
    assert_int_equal(step.len, 5);
    for (int again = 0; again < 2; again++) {
        dialog_client(&d, span_of("b {9223372036854775808}\r\n"), &step);
        assert_int_equal(step.action, DIALOG_BROKEN);
    }
}

/* A long line or literal, or many lines, are one step. */
static void bulk_is_one_step(void **state)
{
    static char text[65536];
    struct dialog d;
    struct dialog_step step;

    (void)state;
    for (size_t at = 0; at + 32 <= sizeof text; at += 32)
        memcpy(text + at, "* 12345 FETCH (FLAGS (\\Seen))\r\n\n", 32);
    dialog_init(&d);
    dialog_server(&d, (struct span){text, sizeof text}, &step);
    assert_int_equal(step.action, DIALOG_PASS);
    assert_int_equal(step.len, sizeof text);
    memset(text, ' ', sizeof text);
    memcpy(text, "a1 UID FETCH", 12);
    dialog_client(&d, (struct span){text, sizeof text}, &step);
    assert_int_equal(step.action, DIALOG_PASS);
    assert_int_equal(step.len, sizeof text);
}

static void long_heads(void **state)
{
    char text[400];
    struct dialog d;
    struct dialog_step step;

    (void)state;
    for (size_t tag = DIALOG_TAG_MAX - 1; tag <= DIALOG_TAG_MAX + 1; tag++) {
        for (size_t cut = 0; cut <= tag + 11; cut++) {
            memset(text, 't', tag);
            memcpy(text + tag, " STARTTLS\r\n", 11);
            dialog_init(&d);

            size_t at = 0, end = cut;

            do {
                dialog_client(&d, (struct span){text + at, end - at}, &step);
                at += step.len;
                if (step.len == 0)
                    end = tag + 11;
                assert_int_not_equal(step.action, DIALOG_PASS);
            } while (at < tag + 11);
            assert_int_equal(step.action, DIALOG_REFUSE);
            assert_int_equal(step.tag.len, tag > DIALOG_TAG_MAX ? 1 : tag);
        }
    }
    memset(text, ' ', sizeof text);
    dialog_init(&d);
    dialog_client(&d, (struct span){text, DIALOG_HEAD_MAX - 1}, &step);
    assert_int_equal(step.action, DIALOG_MORE);
    dialog_client(&d, (struct span){text, DIALOG_HEAD_MAX}, &step);
    assert_int_equal(step.action, DIALOG_EAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_commands_pass),
        cmocka_unit_test(the_proxys_own_are_refused),
        cmocka_unit_test(refused_literals_are_eaten),
        cmocka_unit_test(literals_wait_for_the_verdict),
        cmocka_unit_test(a_refused_literal_is_a_new_command),
        cmocka_unit_test(idle),
        cmocka_unit_test(idle_pipelined),
        cmocka_unit_test(lists_are_rewritten),
        cmocka_unit_test(what_only_looks_like_lists),
        cmocka_unit_test(boundaries),
        cmocka_unit_test(limits),
        cmocka_unit_test(bulk_is_one_step),
        cmocka_unit_test(long_heads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
