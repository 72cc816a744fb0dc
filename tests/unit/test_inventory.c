/* What stores tell of their mailboxes, and how two of them differ. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/store/inventory.h"

#include <stdio.h>

static struct inventory one, other;
static struct inventory_comparison found;

static int clean(void **state)
{
    (void)state;
    inventory_release(&one);
    inventory_release(&other);
    return 0;
}

static void take(struct inventory *inventory, const char *response)
{
    struct err err = {0};

    assert_true(inventory_take(inventory, span_of(response), &err));
}

static void senseless(const char *response)
{
    struct err err = {0};

    assert_false(inventory_take(&one, span_of(response), &err));
    assert_int_equal(err.kind, ERR_PEER);
}

/* Lists a mailbox, and tells its STATUS. */
static void tell(struct inventory *inventory, const char *separator, const char *name,
                 const char *numbers)
{
    char response[256];

    snprintf(response, sizeof response, "* LIST () %s %s\r\n", separator, name);
    take(inventory, response);
    snprintf(response, sizeof response, "* STATUS %s (%s)\r\n", name, numbers);
    take(inventory, response);
}

static void compare(size_t mailboxes, uint64_t messages, size_t differences)
{
    assert_true(inventory_compare(&one, &other, "one", "other", &found));
    assert_int_equal(found.mailboxes, mailboxes);
    assert_int_equal(found.messages, messages);
    assert_int_equal(found.difference_count, differences);
}

static void expect(size_t index, const char *mailbox, const char *what)
{
    assert_string_equal(found.differences[index].mailbox, mailbox);
    assert_string_equal(found.differences[index].what, what);
}

#define SAME "MESSAGES 2 UIDNEXT 3 UIDVALIDITY 9"

static void test_names_are_paths(void **state)
{
    (void)state;
    take(&one, "* NAMESPACE ((\"INBOX.\" \".\")) ((\"user.\" \".\")) ((\"shared.\" \".\"))\r\n");
    tell(&one, "\".\"", "INBOX", SAME);
    tell(&one, "\".\"", "INBOX.a.b", SAME);
    tell(&one, "\".\"", "user.bob", SAME);
    tell(&one, "\".\"", "{11}\r\nshared.team", SAME);
    take(&other, "* namespace NIL NIL NIL\r\n");
    tell(&other, "\"/\"", "inbox", SAME);
    tell(&other, "\"/\"", "\"a/b\"", SAME);
    compare(2, 4, 0);
    tell(&other, "NIL", "\"a.b\"", SAME); /* without a hierarchy a dot is none */
    compare(2, 4, 1);
    expect(0, "a.b", "only at other");
}

static void test_in_whatever_order(void **state)
{
    (void)state;
    take(&one, "* STATUS \"INBOX\" (UIDVALIDITY 9 HIGHESTMODSEQ 7 MESSAGES 2 UIDNEXT 3)\r\n");
    take(&one, "* LIST (\\HasNoChildren $x) \"/\" inbox (\"CHILDINFO\" (\"SUBSCRIBED\"))\r\n");
    take(&one, "* LIST (\\NoSelect) \"/\" top\r\n");
    take(&one, "* LIST (\\nonexistent \\HasChildren) \"/\" old\r\n");
    take(&one, "* 7 EXISTS\r\n");
    take(&one, "* OK [ALERT] * LIST rubbish\r\n");
    tell(&other, "\"/\"", "INBOX", SAME);
    compare(1, 2, 0);
}

static void test_each_number(void **state)
{
    (void)state;
    tell(&one, "\"/\"", "a", SAME);
    tell(&one, "\"/\"", "b", SAME);
    tell(&one, "\"/\"", "c", SAME);
    tell(&one, "\"/\"", "d", SAME);
    take(&one, "* LIST () \"/\" e\r\n");
    tell(&other, "\"/\"", "b", "MESSAGES 1 UIDNEXT 4 UIDVALIDITY 8");
    tell(&other, "\"/\"", "c", "MESSAGES 1 UIDNEXT 4 UIDVALIDITY 9");
    tell(&other, "\"/\"", "d", "MESSAGES 1 UIDNEXT 3 UIDVALIDITY 9");
    tell(&other, "\"/\"", "e", SAME);
    tell(&other, "\"/\"", "f", SAME);
    compare(0, 0, 6);
    expect(0, "a", "only at one");
    expect(1, "b", "UIDVALIDITY is 9 at one, 8 at other");
    expect(2, "c", "UIDNEXT is 3 at one, 4 at other");
    expect(3, "d", "MESSAGES is 2 at one, 1 at other");
    expect(4, "e", "one tells no STATUS of it");
    expect(5, "f", "only at other");
}

/* Where there never was a message UIDVALIDITY is that of whoever looked first. */
static void test_without_any_mail_ever(void **state)
{
    (void)state;
    tell(&one, "\"/\"", "a", "MESSAGES 0 UIDNEXT 1 UIDVALIDITY 9");
    tell(&one, "\"/\"", "b", "MESSAGES 0 UIDNEXT 2 UIDVALIDITY 9");
    tell(&one, "\"/\"", "c", "MESSAGES 0 UIDNEXT 1 UIDVALIDITY 9");
    tell(&one, "\"/\"", "d", "MESSAGES 0 UIDNEXT 1 UIDVALIDITY 9");
    tell(&other, "\"/\"", "a", "MESSAGES 0 UIDNEXT 1 UIDVALIDITY 8");
    tell(&other, "\"/\"", "b", "MESSAGES 0 UIDNEXT 2 UIDVALIDITY 8");
    tell(&other, "\"/\"", "c", "MESSAGES 1 UIDNEXT 2 UIDVALIDITY 8");
    tell(&other, "\"/\"", "d", "MESSAGES 0 UIDNEXT 2 UIDVALIDITY 9");
    compare(1, 0, 3);
    expect(0, "b", "UIDVALIDITY is 9 at one, 8 at other");
    expect(1, "c", "UIDVALIDITY is 9 at one, 8 at other");
    expect(2, "d", "UIDNEXT is 1 at one, 2 at other");
}

static void test_ten_are_told(void **state)
{
    char name[8];

    (void)state;
    for (int i = 99; i >= 0; i--) {
        snprintf(name, sizeof name, "m/%02d", i);
        tell(&one, "\"/\"", name, SAME);
    }
    compare(0, 0, 100);
    expect(0, "m/00", "only at one");
    expect(9, "m/09", "only at one");
}

static void test_what_makes_no_sense(void **state)
{
    (void)state;
    senseless("* LIST\x20");
    senseless("* LIST () \"/\"");
    senseless("* LIST (\\) \"/\" a");
    senseless("* LIST () \"//\" a");
    senseless("* LIST () \"\" a");
    senseless("* LIST ( \"/\" a");
    senseless("* STATUS a");
    senseless("* STATUS a (MESSAGES)");
    senseless("* STATUS a (MESSAGES -1)");
    senseless("* STATUS a (MESSAGES 12345678901234567890)");
    senseless("* NAMESPACE ");
    senseless("* NAMESPACE NIL NIL");
    senseless("* NAMESPACE ((\"\")) NIL NIL");
    senseless("* NAMESPACE ((\"\" \"/\" \"X\")) NIL NIL");
    assert_int_equal(one.own_count, 0);
}

static void test_too_many(void **state)
{
    struct err err = {0};
    char response[64];

    (void)state;
    for (int i = 0; i < INVENTORY_MAILBOXES_MAX; i++) {
        snprintf(response, sizeof response, "* LIST () NIL %d\r\n", i);
        take(&one, response);
    }
    assert_false(inventory_take(&one, span_of("* LIST () NIL x\r\n"), &err));
    take(&one, "* LIST () NIL 7\r\n");
}

#define CASE(name) cmocka_unit_test_teardown(name, clean)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_names_are_paths), CASE(test_in_whatever_order),
        CASE(test_each_number),     CASE(test_without_any_mail_ever),
        CASE(test_ten_are_told),    CASE(test_what_makes_no_sense),
        CASE(test_too_many),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
