/* Capability lists. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proxy/imap/caps.h"

static void words_are_whole(void **state)
{
    struct span list = span_of(" IMAP4rev1 idle  AUTH=PLAIN UNSELECT\r\n");

    (void)state;
    assert_true(caps_has(list, "IMAP4REV1"));
    assert_true(caps_has(list, "IDLE"));
    assert_true(caps_has(list, "AUTH=plain"));
    assert_true(caps_has(list, "UNSELECT"));
    assert_false(caps_has(list, "SELECT"));
    assert_false(caps_has(list, "AUTH="));
    assert_false(caps_has(list, "IMAP4"));
    assert_false(caps_has(list, "IMAP4rev12"));
    assert_false(caps_has(list, ""));
    assert_false(caps_has((struct span){NULL, 0}, "IDLE"));
}

static void check(const char *list, const struct caps_filter *filter, const char *expected)
{
    char out[200];
    size_t len = strlen(expected);

    assert_int_equal(caps_rewrite(span_of(list), filter, out, sizeof out), len);
    assert_memory_equal(out, expected, len);
    assert_int_equal(caps_rewrite(span_of(list), filter, out, len), len); /* fits exactly */
    if (len > 0)
        assert_int_equal(caps_rewrite(span_of(list), filter, out, len - 1), -1);
}

static void what_all_have(void **state)
{
    struct span lists[] = {{"IMAP4rev1 idle X-A", 18}, {"", 0}, {"X-A IMAP4rev1 X-B", 17}};
    const char *const add[] = {"X-ADDED"};
    struct caps_filter filter = {.common = lists, .common_count = 3, .add = add, .add_count = 1};

    (void)state;
    check("IMAP4rev1 IDLE X-A X-B", &filter, "IMAP4rev1 X-A X-ADDED");
    filter.common_count = 2;
    check("IMAP4rev1 IDLE X-A X-B", &filter, "IMAP4rev1 IDLE X-A X-ADDED");
}

static void what_never_passes(void **state)
{
    (void)state;
    check("IMAP4rev1 STARTTLS LoginDisabled AUTH=PLAIN auth=X SASL-IR IDLE UNAUTHENTICATE "
          "LOGIN-REFERRALS COMPRESS=DEFLATE COMPRESS SASL-IRX AUTH ID",
          NULL, "IMAP4rev1 IDLE COMPRESS SASL-IRX AUTH ID");
    check("STARTTLS", NULL, "");
    check("", NULL, "");
    check("  \r\n", NULL, "");
}

static void order_and_duplicates(void **state)
{
    (void)state;
    check(" B  A\tb a C ", NULL, "B A C");
}

static void filters(void **state)
{
    static const char *const remove[] = {"X-*", "notify", "*IDLE", ""};
    static const char *const add[] = {"idle", "X-NEW", "x-new", "QUOTA"};
    struct caps_filter filter = {.remove = remove, .remove_count = 4, .add = add, .add_count = 4};

    (void)state;
    check("IMAP4rev1 IDLE X-GM NOTIFY NOTIFYING x- QUOTA", &filter,
          "IMAP4rev1 IDLE NOTIFYING QUOTA X-NEW");
    check("", &filter, "idle X-NEW QUOTA");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_are_whole),   cmocka_unit_test(what_all_have),
        cmocka_unit_test(what_never_passes), cmocka_unit_test(order_and_duplicates),
        cmocka_unit_test(filters),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
