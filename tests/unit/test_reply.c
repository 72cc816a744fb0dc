/* Server lines, with and without their line end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proxy/imap/reply.h"

static void check(const char *line, enum reply_kind kind, const char *tag, const char *code,
                  const char *code_args, const char *text)
{
    static const char *const ends[] = {"", "\n", "\r\n"};

    for (size_t i = 0; i < 3; i++) {
        char bytes[200] = "";
        size_t len = strlen(line);
        struct reply reply;

        memcpy(bytes, line, len);
        memcpy(bytes + len, ends[i], strlen(ends[i]));
        assert_true(reply_parse(span_of(bytes), &reply));
        assert_int_equal(reply.kind, kind);
        assert_true(span_equal(reply.tag, span_of(tag)));
        assert_true(span_equal(reply.code, span_of(code)));
        assert_true(span_equal(reply.code_args, span_of(code_args)));
        assert_true(span_equal(reply.text, span_of(text)));
        assert_int_equal(reply_is_untagged(&reply), tag[0] == '*');
    }
}

static void statuses(void **state)
{
    (void)state;
    check("* OK ready", REPLY_OK, "*", "", "", "ready");
    check("a1 no Sorry [really]", REPLY_NO, "a1", "", "", "Sorry [really]");
    check("a1 BAD", REPLY_BAD, "a1", "", "", "");
    check("* bye", REPLY_BYE, "*", "", "", "");
    check("* PREAUTH hi", REPLY_PREAUTH, "*", "", "", "hi");
    check("a1 OKAY x", REPLY_OTHER, "a1", "", "", "OKAY x");
}

static void codes(void **state)
{
    (void)state;
    check("* OK [CAPABILITY IMAP4rev1 ID] hi", REPLY_OK, "*", "CAPABILITY", "IMAP4rev1 ID", "hi");
    check("a1 NO [AUTHENTICATIONFAILED] No", REPLY_NO, "a1", "AUTHENTICATIONFAILED", "", "No");
    check("a1 NO [UNAVAILABLE]", REPLY_NO, "a1", "UNAVAILABLE", "", "");
    check("a1 OK [X]y", REPLY_OK, "a1", "X", "", "y");
    check("a1 NO [REFERRAL imap://[::1]/x] go", REPLY_NO, "a1", "REFERRAL", "imap://[::1]/x", "go");
    check("a1 NO [BADCHARSET (\"]\\\"]\")] x", REPLY_NO, "a1", "BADCHARSET", "(\"]\\\"]\")", "x");
    check("a1 NO [ALERT \"open] x", REPLY_NO, "a1", "ALERT", "\"open", "x");
    check("a1 NO [A [b] x", REPLY_NO, "a1", "A", "[b", "x");
    check("a1 NO [open", REPLY_NO, "a1", "", "", "[open");
    check("a1 NO []", REPLY_NO, "a1", "", "", "");
    check("a1 NO [", REPLY_NO, "a1", "", "", "[");
}

static void data(void **state)
{
    (void)state;
    check("* CAPABILITY IMAP4rev1 ID", REPLY_CAPABILITY, "*", "", "", "IMAP4rev1 ID");
    check("* capability", REPLY_CAPABILITY, "*", "", "", "");
    check("a1 CAPABILITY x", REPLY_OTHER, "a1", "", "", "CAPABILITY x");
    check("* ID NIL", REPLY_ID, "*", "", "", "NIL");
    check("* 3 EXISTS", REPLY_OTHER, "*", "", "", "3 EXISTS");
    check("*", REPLY_OTHER, "*", "", "", "");
}

static void continuations(void **state)
{
    (void)state;
    check("+", REPLY_CONTINUE, "+", "", "", "");
    check("+ ", REPLY_CONTINUE, "+", "", "", "");
    check("+ idling", REPLY_CONTINUE, "+", "", "", "idling");
    check("+dGVzdA==", REPLY_CONTINUE, "+", "", "", "dGVzdA==");
}

static void refused(void **state)
{
    struct reply reply;

    (void)state;
    assert_false(reply_parse(span_of(""), &reply));
    assert_false(reply_parse(span_of("\r\n"), &reply));
    assert_false(reply_parse(span_of(" OK x"), &reply));
    assert_false(reply_parse(span_of("a(b OK x"), &reply));
    assert_false(reply_parse((struct span){"* OK \0", 6}, &reply));
    assert_false(reply_parse(span_of("\x16\x03\x01 TLS"), &reply));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(statuses),      cmocka_unit_test(codes),   cmocka_unit_test(data),
        cmocka_unit_test(continuations), cmocka_unit_test(refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
