/* The argument reader, on commands in memory of exactly their size. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proxy/base/mem.h"
#include "proxy/imap/args.h"

static char *memory;

/* The bytes in memory of exactly their size, so that the sanitizer sees a read past the end. */
static struct args args_of(const char *bytes, size_t len)
{
    struct args args;

    mem_free(memory);
    memory = mem_array(len + (len == 0), 1);
    assert_non_null(memory);
    memcpy(memory, bytes, len);
    args_init(&args, (struct span){memory, len});
    return args;
}

#define ARGS(bytes) args_of(bytes, sizeof bytes - 1)

static int forget(void **state)
{
    (void)state;
    mem_free(memory);
    memory = NULL;
    return 0;
}

static void check_arg(const struct arg *arg, enum arg_kind kind, const char *value)
{
    char text[100];

    assert_int_equal(arg->kind, kind);
    assert_int_equal(arg_copy(arg, text, sizeof text), strlen(value));
    assert_string_equal(text, value);
}

static void login_with_literals(void **state)
{
    struct args args = ARGS("a1 LOGIN {3}\r\nann {6+}\r\nsecret\r\n");
    struct span tag, word;
    struct arg user, password;

    (void)state;
    assert_true(args_tag(&args, &tag) && span_is(tag, "a1"));
    assert_true(args_space(&args));
    assert_true(args_word(&args, &word) && span_is(word, "login"));
    assert_false(args_end(&args));
    assert_true(args_space(&args));
    assert_true(args_astring(&args, &user) && args_space(&args));
    assert_true(args_astring(&args, &password) && args_end(&args));
    check_arg(&user, ARG_LITERAL, "ann");
    check_arg(&password, ARG_LITERAL, "secret");
}

/*
 * A command cut anywhere is never taken for a whole one with another meaning, and nothing is read
 * past its end.
 */
static void cut_anywhere(void **state)
{
    static const char command[] = "a1 LOGIN {3}\r\nann {6+}\r\nsec\\et \"q\\\"\" (x)";

    (void)state;
    for (size_t len = 0; len < sizeof command; len++) {
        struct args args = args_of(command, len);
        struct span word;
        struct arg arg;
        bool all = args_tag(&args, &word) && args_space(&args) && args_word(&args, &word) &&
                   args_space(&args) && args_astring(&args, &arg) && args_space(&args) &&
                   args_astring(&args, &arg);

        assert_int_equal(all, len >= strlen("a1 LOGIN {3}\r\nann {6+}\r\nsec\\et"));
    }
}

static void tags(void **state)
{
    struct span tag;

    (void)state;
    struct args args = ARGS("A.1-]!#$&',/:;<=>?@[^_`|}~ x");
    assert_true(args_tag(&args, &tag));
    assert_int_equal(tag.len, 26);
    args = ARGS("a+1 x");
    assert_false(args_tag(&args, &tag));
    args = ARGS("a(1 x");
    assert_false(args_tag(&args, &tag));
    args = ARGS(" a1 x");
    assert_false(args_tag(&args, &tag));
    args = ARGS("a\0b x");
    assert_false(args_tag(&args, &tag));
    args = ARGS("a\0");
    assert_false(args_tag(&args, &tag));
    args = ARGS("a\xe4 x");
    assert_false(args_tag(&args, &tag));
    args = ARGS("* x");
    assert_false(args_tag(&args, &tag));
    args = ARGS("");
    assert_false(args_tag(&args, &tag));
    args = ARGS("a1\r\n");
    assert_true(args_tag(&args, &tag) && args_end(&args));
}

static void quoted(void **state)
{
    struct arg arg;
    char small[4];

    (void)state;
    struct args args = ARGS("\"a\\\"b\\\\c\xc3\xa4\"\r\n");
    assert_true(args_astring(&args, &arg));
    check_arg(&arg, ARG_QUOTED, "a\"b\\c\xc3\xa4");
    assert_int_equal(arg_copy(&arg, small, sizeof small), 7);
    assert_string_equal(small, "");
    assert_int_equal(arg_copy(&arg, NULL, 0), 7);
    assert_true(args_end(&args));
    args = ARGS("\"abc\"");
    assert_true(args_astring(&args, &arg));
    assert_int_equal(arg_copy(&arg, small, sizeof small), 3);
    assert_string_equal(small, "abc");
    args = ARGS("\"\"");
    assert_true(args_astring(&args, &arg));
    check_arg(&arg, ARG_QUOTED, "");

#define REFUSED(bytes)                                                                             \
    do {                                                                                           \
        args = ARGS(bytes);                                                                        \
        struct span before = args.rest;                                                            \
        assert_false(args_astring(&args, &arg));                                                   \
        assert_true(span_equal(before, args.rest));                                                \
    } while (0)

    REFUSED("\"abc");
    REFUSED("\"");
    REFUSED("\"\\");
    REFUSED("\"\\\"");
    REFUSED("\"\\n\"");
    REFUSED("\"a\0b\"");
    REFUSED("\"a\r\nb\"");
    REFUSED("\"a\nb\"");
}

static void literals(void **state)
{
    struct arg arg;

    (void)state;
    struct args args = ARGS("{0}\r\n x");
    assert_true(args_astring(&args, &arg));
    check_arg(&arg, ARG_LITERAL, "");
    args = ARGS("{5}\n{3}\r\n");
    assert_true(args_astring(&args, &arg) && args.rest.len == 0);
    check_arg(&arg, ARG_LITERAL, "{3}\r\n");
    REFUSED("{3}\r\nab");
    REFUSED("{3}");
    REFUSED("{3}\r");
    REFUSED("{3}abc");
    REFUSED("{}\r\n");
    REFUSED("{+}\r\n");
    REFUSED("{3-}\r\nabc");
    REFUSED("{3");
    REFUSED("{");
    REFUSED("{3+");
    args = ARGS("~{3}\r\nabc"); /* "~" alone is an atom; what follows it then fits nowhere */
    assert_true(args_astring(&args, &arg) && !args_space(&args) && !args_end(&args));
    args = ARGS("~{3}\r\nabc");
    assert_false(args_string(&args, &arg));
    REFUSED("{3}\r\na\0c");
    REFUSED("{18446744073709551615}\r\nabc");
    REFUSED("{18446744073709551619}\r\nabc");
}

static void atoms(void **state)
{
    struct arg arg;
    struct span word;

    (void)state;
    struct args args = ARGS("ann@example.org]+ x");
    assert_true(args_astring(&args, &arg));
    check_arg(&arg, ARG_ATOM, "ann@example.org]+");
    args = ARGS("NIL");
    assert_true(args_astring(&args, &arg));
    check_arg(&arg, ARG_ATOM, "NIL");
    args = ARGS("dGVzdA==\r\n");
    assert_true(args_word(&args, &word) && span_is(word, "dGVzdA==") && args_end(&args));
    args = ARGS("a  \r\n");
    assert_true(args_word(&args, &word) && args_end(&args));
    args = ARGS("a\r\nb");
    assert_true(args_word(&args, &word) && !args_end(&args));
    REFUSED("");
    REFUSED(" x");
    REFUSED("%x");
    REFUSED("*");
    REFUSED("\xe4");
    REFUSED("\0");
    REFUSED("\x7f");
}

static size_t id_pairs(struct args args)
{
    struct arg name, value;
    size_t count = 0;

    for (;;) {
        switch (args_id(&args, count > 0, &name, &value)) {
        case ARGS_ID_PAIR:
            assert_int_not_equal(name.kind, ARG_NIL);
            count++;
            break;
        case ARGS_ID_END:
            return args_end(&args) ? count : SIZE_MAX;
        case ARGS_ID_BAD:
            return SIZE_MAX;
        }
    }
}

static void id_lists(void **state)
{
    struct args args = ARGS("(\"name\" \"x \\\"y\" \"version\" NIL)\r\n");
    struct arg name, value;

    (void)state;
    assert_int_equal(args_id(&args, false, &name, &value), ARGS_ID_PAIR);
    check_arg(&name, ARG_QUOTED, "name");
    check_arg(&value, ARG_QUOTED, "x \"y");
    assert_int_equal(args_id(&args, true, &name, &value), ARGS_ID_PAIR);
    check_arg(&name, ARG_QUOTED, "version");
    check_arg(&value, ARG_NIL, "");
    assert_int_equal(args_id(&args, true, &name, &value), ARGS_ID_END);
    assert_true(args_end(&args));

    assert_int_equal(id_pairs(ARGS("NIL\r\n")), 0);
    assert_int_equal(id_pairs(ARGS("nil")), 0);
    assert_int_equal(id_pairs(ARGS("()\r\n")), 0);
    assert_int_equal(id_pairs(ARGS("( \"a\" {1}\r\nb )\r\n")), 1);
    assert_int_equal(id_pairs(ARGS("(\"a\")\r\n")), SIZE_MAX);
    assert_int_equal(id_pairs(ARGS("(\"a\" b)\r\n")), SIZE_MAX);
    assert_int_equal(id_pairs(ARGS("(NIL \"b\")\r\n")), SIZE_MAX);
    assert_int_equal(id_pairs(ARGS("(\"a\" (\"b\"))\r\n")), SIZE_MAX);
    assert_int_equal(id_pairs(ARGS("(\"a\" \"b\"\r\n")), SIZE_MAX);
    assert_int_equal(id_pairs(ARGS("\"a\" \"b\"\r\n")), SIZE_MAX);
    assert_int_equal(id_pairs(ARGS("")), SIZE_MAX);
}

static void lists_nest_so_deep(void **state)
{
    struct args args = ARGS("((((((((((");

    (void)state;
    for (int i = 0; i < ARGS_DEPTH_MAX; i++)
        assert_true(args_open(&args));
    assert_false(args_open(&args));
    args = ARGS("(()))");
    assert_true(args_open(&args) && args_open(&args) && args_close(&args));
    assert_false(args_end(&args));
    assert_true(args_close(&args));
    assert_false(args_close(&args));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(login_with_literals),
        cmocka_unit_test(cut_anywhere),
        cmocka_unit_test(tags),
        cmocka_unit_test(quoted),
        cmocka_unit_test(literals),
        cmocka_unit_test(atoms),
        cmocka_unit_test(id_lists),
        cmocka_unit_test(lists_nest_so_deep),
    };

    return cmocka_run_group_tests(tests, NULL, forget);
}
