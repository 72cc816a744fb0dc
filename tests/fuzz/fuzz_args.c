/*
 * The argument reader: never outside its bytes, and a reader that fails takes nothing. Any text is
 * read back as it was, quoted or as a literal.
 */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>

#include "proxy/imap/args.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_arg(const struct arg *arg, struct span in)
{
    char value[4096];
    size_t len = arg_copy(arg, value, sizeof value);

    assert(len == arg->value_len && len <= arg->raw.len);
    assert(arg->raw.ptr >= in.ptr && arg->raw.ptr + arg->raw.len <= in.ptr + in.len);
    if (len < sizeof value)
        assert(strlen(value) == len); /* no NUL within */
    assert(arg_copy(arg, value, len) == len);
    assert(arg_copy(arg, value, len + 1 < sizeof value ? len + 1 : 0) == len);
}

/* Lets reader number `which` try. */
static bool read_one(struct args *args, unsigned which, struct span in)
{
    struct arg arg, name;
    struct span word = {"", 0};
    bool taken = false, has_arg = false;

    switch (which % 10) {
    case 0:
        taken = args_tag(args, &word);
        assert(!taken || args_is_tag(word));
        break;
    case 1:
        taken = args_word(args, &word);
        assert(!taken || word.len > 0);
        break;
    case 2:
        return args_space(args);
    case 3:
        return args_end(args) && in.len > 0 && args->rest.len > 0;
    case 4:
        has_arg = taken = args_astring(args, &arg);
        break;
    case 5:
        has_arg = taken = args_string(args, &arg);
        break;
    case 6:
        has_arg = taken = args_nstring(args, &arg);
        break;
    case 7:
        return args_open(args);
    case 8:
        return args_close(args);
    default:
        has_arg = taken = args_id(args, which & 16, &name, &arg) == ARGS_ID_PAIR;
        if (taken)
            check_arg(&name, in);
        break;
    }
    if (has_arg)
        check_arg(&arg, in);
    return taken;
}

static void check_string(const char *written, size_t len, struct span text)
{
    char value[1024];
    struct args args;
    struct arg arg;

    args_init(&args, (struct span){written, len});
    assert(args_string(&args, &arg) && args_end(&args) && args.rest.len <= 2);
    assert(arg_copy(&arg, value, sizeof value) == text.len);
    assert(span_equal((struct span){value, text.len}, text));
}

/* No string holds a NUL, and no quoted one a line end. */
static void check_round_trip(struct span text)
{
    char quoted[2048], literal[1100];
    size_t at = 0;

    if (text.len >= 1000 || (text.len > 0 && memchr(text.ptr, '\0', text.len) != NULL))
        return;
    quoted[at++] = '"';
    for (size_t i = 0; i < text.len; i++) {
        if (text.ptr[i] == '"' || text.ptr[i] == '\\')
            quoted[at++] = '\\';
        quoted[at++] = text.ptr[i];
    }
    quoted[at++] = '"';
    if (memchr(quoted, '\r', at) == NULL && memchr(quoted, '\n', at) == NULL)
        check_string(quoted, at, text);

    int header = snprintf(literal, sizeof literal, "{%zu%s}\r\n", text.len, at % 2 ? "+" : "");

    memcpy(literal + header, text.ptr, text.len);
    check_string(literal, (size_t)header + text.len, text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 8)
        return 0;

    struct span in = {(const char *)data + 8, size - 8};
    struct args args;

    check_round_trip(in);
    args_init(&args, in);
    for (unsigned turn = 0, failed = 0; failed < 18; turn++) {
        struct args before = args;
        bool taken = read_one(&args, turn < 8 ? data[turn] : turn, in);

        assert(args.rest.len <= before.rest.len && args.depth <= ARGS_DEPTH_MAX);
        assert(args.rest.ptr + args.rest.len == in.ptr + in.len);
        assert(!taken || args.rest.len < before.rest.len);
        failed = taken ? 0 : failed + 1;
    }
    return 0;
}
