/* The commands of administration: the table, requests held against it, and how results look. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/ctl/request.h"
#include "proxy/ctl/show.h"
#include "proxy/ctl/usage.h"

#include <stdlib.h>

/* --- the table --- */

static size_t words_of(const char *name)
{
    size_t count = 1;

    for (; *name != '\0'; name++)
        count += *name == ' ';
    return count;
}

static void check_arguments(const struct ctl_command *command)
{
    static const char *const taken[] = {"socket", "json", "help", "version", "print-completion"};
    bool optional = false, last = false;
    size_t count = 0;

    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++, count++) {
        assert_ptr_equal(ctl_find_argument(command, row->name), row); /* once */
        assert_true(row->kind != CTL_CHOICE || *row->words != '\0');
        assert_true(row->kind != CTL_FLAG || *row->words == '\0');
        if (ctl_has_place(row)) { /* places are told by order */
            assert_false(last);
            assert_true(row->presence == CTL_OPTIONAL || !optional);
            optional = row->presence == CTL_OPTIONAL;
            last = row->kind == CTL_TEXTS;
        }
        for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
            assert_string_not_equal(row->name, taken[i]);
    }
    assert_true(count <= CTL_ARGUMENTS_MAX);
}

static void the_table_is_sound(void **state)
{
    (void)state;
    for (size_t i = 0; i < CTL_ALL_COUNT; i++) {
        const struct ctl_command *command = &ctl_commands[i];

        assert_ptr_equal(ctl_find(command->name), command);
        assert_true(words_of(command->name) <= CTL_WORDS_MAX);
        assert_true(strlen(command->name) < CTL_NAME_MAX);
        assert_true(command->level != CTL_NOTHING);
        assert_int_equal(command->help[strlen(command->help) - 1], '.');
        assert_string_not_equal(command->name, "help");
        assert_true(ctl_is_of_tool(command) == (i >= CTL_COMMAND_COUNT));
        check_arguments(command);
    }
    assert_null(ctl_find("cache"));
    assert_null(ctl_find("cache flush "));
    assert_null(ctl_find(""));
}

static void a_word_is_one_of_several(void **state)
{
    (void)state;
    assert_true(ctl_is_word("red|green|blue", "red"));
    assert_true(ctl_is_word("red|green|blue", "blue"));
    assert_false(ctl_is_word("red|green|blue", "re"));
    assert_false(ctl_is_word("red|green|blue", "red|green"));
    assert_false(ctl_is_word("red|green|blue", ""));
    assert_false(ctl_is_word("", ""));
}

/* --- requests --- */

static void good_requests_are_read(void **state)
{
    struct ctl_request request;
    struct err err = {0};

    (void)state;
    assert_true(ctl_request_read(&request, span_of("{\"command\":\"status\"}\r\n"), &err));
    assert_ptr_equal(request.command, &ctl_commands[CTL_ID_status]);
    assert_int_equal(ctl_request_level(&request), CTL_READ);
    ctl_request_release(&request);

    assert_true(ctl_request_read(
        &request, span_of(" { \"arguments\" : {\"user\" : \"ann\"}, \"command\":\"cache flush\"}"),
        &err));
    assert_string_equal(ctl_request_argument(&request, "user"), "ann");
    assert_int_equal(ctl_request_level(&request), CTL_OPERATE);
    ctl_request_release(&request);
    ctl_request_release(&request);
}

static void an_argument_may_need_more_than_its_command(void **state)
{
    struct ctl_request request;

    (void)state;
    assert_true(ctl_request_read(&request, span_of("{\"command\":\"log level\"}"), NULL));
    assert_null(ctl_request_argument(&request, "level"));
    assert_int_equal(ctl_request_level(&request), CTL_READ);
    ctl_request_release(&request);
    assert_true(ctl_request_read(
        &request, span_of("{\"command\":\"log level\",\"arguments\":{\"level\":\"info\"}}"), NULL));
    assert_int_equal(ctl_request_level(&request), CTL_OPERATE);
    ctl_request_release(&request);
}

static void bad_requests_are_refused(void **state)
{
    static const char *const cases[][2] = {
        {"", "no JSON object"},
        {"GET / HTTP/1.1", "no JSON object"},
        {"{\"command\":\"status\"", "no JSON object"},
        {"{\"command\":\"status\"}{\"command\":\"status\"}", "no JSON object"},
        {"{\"command\":\"status\",\"command\":\"version\"}", "no JSON object"},
        {"{\"command\":\"sta\\u0000tus\"}", "no JSON object"},
        {"{\"command\":\"\xff\"}", "no JSON object"},
        {"[\"status\"]", "has no \"command\""},
        {"{}", "has no \"command\""},
        {"{\"command\":7}", "has no \"command\""},
        {"{\"command\":\"sing\"}", "there is no command \"sing\""},
        {"{\"command\":\"status\",\"more\":1}", "more than \"command\""},
        {"{\"command\":\"status\",\"arguments\":null}", "\"arguments\" are no JSON object"},
        {"{\"command\":\"status\",\"arguments\":[]}", "\"arguments\" are no JSON object"},
        {"{\"command\":\"status\",\"arguments\":{\"user\":\"ann\"}}",
         "\"status\" takes no \"user\""},
        {"{\"command\":\"cache flush\",\"arguments\":{\"user\":7}}", "\"user\" is no text"},
        {"{\"command\":\"move\",\"arguments\":{\"user\":[\"ann\"]}}",
         "there is no command \"move\""},
        {"{\"command\":\"log level\",\"arguments\":{\"level\":\"loud\"}}",
         "expected one of error|"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ctl_request request;
        struct err err = {0};

        assert_false(ctl_request_read(&request, span_of(cases[i][0]), &err));
        assert_null(request.arguments);
        assert_int_equal(err.kind, ERR_PEER);
        if (strstr(err.text, cases[i][1]) == NULL)
            fail_msg("%s: %s", cases[i][0], err.text);
    }
}

/* Of a command that imapmuxctl carries out itself. */
static void flags_and_lists_have_their_values(void **state)
{
    static const char *const cases[][2] = {
        {"{\"user\":[\"ann\",\"bob\"],\"to\":\"green\",\"dry-run\":\"yes\"}", NULL},
        {"{\"dry-run\":\"no\"}", "\"dry-run\" is \"no\", expected one of yes"},
        {"{\"dry-run\":true}", "\"dry-run\" is no text"},
        {"{\"user\":\"ann\"}", "\"user\" is no list of texts"},
        {"{\"user\":[]}", "\"user\" is no list of texts"},
        {"{\"user\":[\"ann\",7]}", "\"user\" is no list of texts"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *arguments = json_loads(cases[i][0], 0, NULL);
        struct err err = {0};

        assert_true(ctl_check_arguments(ctl_find("move"), arguments, &err) ==
                    (cases[i][1] == NULL));
        assert_string_equal(err.text, cases[i][1] == NULL ? "" : cases[i][1]);
        json_decref(arguments);
    }
}

static void deep_nesting_is_refused(void **state)
{
    char deep[60000];
    struct ctl_request request;
    struct err err = {0};

    (void)state;
    memset(deep, '[', sizeof deep);
    assert_false(ctl_request_read(&request, (struct span){deep, sizeof deep}, &err));
}

/* --- results --- */

static void assert_shown(const char *json, const char *expected)
{
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    json_t *result = json_loads(json, JSON_DECODE_ANY, NULL);

    assert_non_null(result);
    show_result(out, result);
    fclose(out);
    assert_string_equal(text, expected);
    json_decref(result);
    free(text);
}

static void results_have_their_shapes(void **state)
{
    (void)state;
    assert_shown("null", "");
    assert_shown("\"one\\ntwo\\t3\"", "one\ntwo\t3\n");
    assert_shown("\"ended\\n\"", "ended\n");
    assert_shown("7", "7\n");
    assert_shown("[]", "");
    assert_shown("[\"a\", 2, true]", "a\n2\nyes\n");
    assert_shown("{\"short\":1,\"much_longer\":[\"a\",\"b\"],\"none\":null}",
                 "short        1\nmuch longer  a, b\nnone         \n");
    assert_shown("[{\"user\":\"ann\",\"bytes\":7},{\"user\":\"j\\u00fcrgen\",\"bytes\":1234}]",
                 "user    bytes\nann         7\nj\xc3\xbcrgen   1234\n");
    assert_shown("[{\"n\":1,\"last\":\"x\"},{\"n\":22,\"last\":\"longer\"}, {\"n\":3}]",
                 " n  last\n 1  x\n22  longer\n 3  \n");
    assert_shown("[{\"n\":1},{\"n\":2,\"why\":\"late\"}]", "n  why\n1  \n2  late\n");
}

static void durations_are_for_people(void **state)
{
    (void)state;
    assert_shown("{\"t_seconds\":0}", "t  0s\n");
    assert_shown("{\"t_seconds\":59}", "t  59s\n");
    assert_shown("{\"t_seconds\":60}", "t  1m 0s\n");
    assert_shown("{\"t_seconds\":273012}", "t  3d 3h\n");
    assert_shown("{\"t_seconds\":\"soon\"}", "t seconds  soon\n");
    assert_shown("[{\"t_seconds\":3661}]", "    t\n1h 1m\n");
}

static void nothing_reaches_the_terminal(void **state)
{
    (void)state;
    assert_shown("\"\\u001b[2J\\u009b2J\\u007f\\r\"", "\\x1b[2J\\xc2\\x9b2J\\x7f\\x0d\n");
    assert_shown("{\"name\":\"a\\nb\\tc\"}", "name  a\\x0ab\\x09c\n");
}

/* --- what imapmuxctl says of itself --- */

static void help_and_completion_know_all_commands(void **state)
{
    char *text = NULL;
    size_t len;

    (void)state;
    for (int completion = 0; completion < 2; completion++) {
        FILE *out = open_memstream(&text, &len);

        (completion ? usage_print_completion : usage_print)(out);
        fclose(out);
        for (size_t i = 0; i < CTL_ALL_COUNT; i++)
            assert_non_null(strstr(text, ctl_commands[i].name));
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_is_sound),
        cmocka_unit_test(a_word_is_one_of_several),
        cmocka_unit_test(good_requests_are_read),
        cmocka_unit_test(an_argument_may_need_more_than_its_command),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(flags_and_lists_have_their_values),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(results_have_their_shapes),
        cmocka_unit_test(durations_are_for_people),
        cmocka_unit_test(nothing_reaches_the_terminal),
        cmocka_unit_test(help_and_completion_know_all_commands),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
