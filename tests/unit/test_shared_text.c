/* Who holds which copy of a text. */
#include "proxy/base/shared_text.h"

#include <setjmp.h>
#include <stdarg.h>
/* after its friends */
#include <cmocka.h>

static void the_same_is_kept_once(void **state)
{
    struct shared_text *latest = NULL;
    struct shared_text *first = shared_text_of(span_of("OK"), &latest);
    struct shared_text *second = shared_text_of(span_of("OK"), &latest);

    (void)state;
    assert_non_null(first);
    assert_ptr_equal(first, second);
    shared_text_release(&first);
    assert_null(first);
    assert_true(span_equal(shared_text_span(second), span_of("OK")));
    shared_text_release(&second);
    assert_true(span_equal(shared_text_span(latest), span_of("OK")));
    shared_text_release(&latest);
}

static void another_one_leaves_the_first_alone(void **state)
{
    struct shared_text *latest = NULL;
    struct shared_text *first = shared_text_of(span_of("IMAP4rev1"), &latest);
    struct shared_text *second = shared_text_of(span_of("IMAP4rev1 IDLE"), &latest);

    (void)state;
    assert_ptr_equal(latest, second);
    assert_true(span_equal(shared_text_span(first), span_of("IMAP4rev1")));
    assert_true(span_equal(shared_text_span(second), span_of("IMAP4rev1 IDLE")));
    shared_text_release(&first);
    shared_text_release(&second);
    shared_text_release(&latest);
}

static void nothing_is_empty(void **state)
{
    struct shared_text *latest = NULL;
    struct shared_text *empty = shared_text_of(span_of(""), &latest);

    (void)state;
    assert_int_equal(shared_text_span(empty).len, 0);
    assert_int_equal(shared_text_span(NULL).len, 0);
    shared_text_release(&empty);
    shared_text_release(&empty);
    shared_text_release(&latest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_is_kept_once),
        cmocka_unit_test(another_one_leaves_the_first_alone),
        cmocka_unit_test(nothing_is_empty),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
