/* When something that expires is told of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/process/expiry.h"

enum { DAY = 24 * 60 * 60 };

static void the_last_quarter_is_soon_but_not_more_than_two_weeks(void **state)
{
    (void)state;
    assert_int_equal(expiry_state(0, 8 * DAY, 6 * DAY - 1), EXPIRY_FAR);
    assert_int_equal(expiry_state(0, 8 * DAY, 6 * DAY), EXPIRY_SOON);
    assert_int_equal(expiry_state(0, 8 * DAY, 8 * DAY - 1), EXPIRY_SOON);
    assert_int_equal(expiry_state(0, 8 * DAY, 8 * DAY), EXPIRY_PAST);
    assert_int_equal(expiry_state(0, 400 * DAY, 386 * DAY - 1), EXPIRY_FAR);
    assert_int_equal(expiry_state(0, 400 * DAY, 386 * DAY), EXPIRY_SOON);
}

static void what_does_not_expire_is_never_told_of(void **state)
{
    (void)state;
    assert_int_equal(expiry_state(0, INT64_MAX, INT64_C(4000000000)), EXPIRY_FAR);
    assert_int_equal(expiry_state(1700000000, INT64_MAX, INT64_C(4000000000)), EXPIRY_FAR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_quarter_is_soon_but_not_more_than_two_weeks),
        cmocka_unit_test(what_does_not_expire_is_never_told_of),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
