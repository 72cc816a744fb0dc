/* The cursor over one complete command. */
#include "proxy/imap/args.h"

#include <assert.h>
#include <stdint.h>

static struct span take(struct args *args, size_t count);
static bool take_char(struct args *args, char ch);
static size_t atom_len(struct span text, const char *also);
static bool is_atom_char(char ch);
static bool read_quoted(struct args *args, struct arg *arg_out);
static bool read_literal(struct args *args, struct arg *arg_out);
static size_t literal_header(struct span text, uint64_t *size_out);

void args_init(struct args *args, struct span command)
{
    *args = (struct args){.rest = command};
}

/* Takes the first `count` octets off the front. */
static struct span take(struct args *args, size_t count)
{
    struct span taken = {args->rest.ptr, count};

    assert(count <= args->rest.len);
    args->rest = span_after(args->rest, count);
    return taken;
}

static bool take_char(struct args *args, char ch)
{
    if (args->rest.len == 0 || args->rest.ptr[0] != ch)
        return false;
    take(args, 1);
    return true;
}

bool args_tag(struct args *args, struct span *tag_out)
{
    struct span rest = args->rest;
    size_t len = 0;

    while (len < rest.len && strchr(" \r\n", rest.ptr[len]) == NULL)
        len++;
    /* strchr finds NUL too, and so the tag ends at one; what follows it is no tag's business */
    if (len < rest.len && rest.ptr[len] == '\0')
        return false;
    if (!args_is_tag((struct span){rest.ptr, len}))
        return false;
    *tag_out = take(args, len);
    return true;
}

bool args_is_tag(struct span text)
{
    return text.len > 0 && atom_len(text, "]") == text.len &&
           memchr(text.ptr, '+', text.len) == NULL;
}

/* How many octets from the front are atom characters, or in `also`. */
static size_t atom_len(struct span text, const char *also)
{
    size_t len = 0;

    while (len < text.len && (is_atom_char(text.ptr[len]) ||
                              (text.ptr[len] != '\0' && strchr(also, text.ptr[len]) != NULL)))
        len++;
    return len;
}

/* RFC 9051 ATOM-CHAR: printable ASCII but for atom-specials. */
static bool is_atom_char(char ch)
{
    return ch > ' ' && ch < 0x7f && strchr("(){%*\"\\]", ch) == NULL;
}

bool args_word(struct args *args, struct span *word_out)
{
    size_t len = atom_len(args->rest, "");

    if (len == 0)
        return false;
    *word_out = take(args, len);
    return true;
}

bool args_space(struct args *args)
{
    return take_char(args, ' ');
}

bool args_end(struct args *args)
{
    struct args at = *args;

    if (args->depth > 0)
        return false;
    while (take_char(&at, ' '))
        ;
    /* a lone CR is no line end, but a caller may have cut the LF off already */
    take_char(&at, '\r');
    take_char(&at, '\n');
    if (at.rest.len > 0)
        return false;
    *args = at;
    return true;
}

bool args_astring(struct args *args, struct arg *arg_out)
{
    size_t len = atom_len(args->rest, "]");

    if (len == 0)
        return args_string(args, arg_out);
    *arg_out = (struct arg){.kind = ARG_ATOM, .raw = take(args, len), .value_len = len};
    return true;
}

bool args_string(struct args *args, struct arg *arg_out)
{
    return read_quoted(args, arg_out) || read_literal(args, arg_out);
}

bool args_nstring(struct args *args, struct arg *arg_out)
{
    size_t len = atom_len(args->rest, "]");

    if (len == 0)
        return args_string(args, arg_out);
    if (!span_is((struct span){args->rest.ptr, len}, "NIL"))
        return false;
    *arg_out = (struct arg){.kind = ARG_NIL, .raw = {take(args, len).ptr, 0}};
    return true;
}

/* A quoted string: no line end or NUL in it, and a backslash only before a quote or a backslash. */
static bool read_quoted(struct args *args, struct arg *arg_out)
{
    struct span rest = args->rest;
    size_t escapes = 0;

    if (rest.len == 0 || rest.ptr[0] != '"')
        return false;
    for (size_t i = 1; i < rest.len; i++) {
        char ch = rest.ptr[i];

        if (ch == '"') {
            take(args, i + 1);
            *arg_out = (struct arg){
                .kind = ARG_QUOTED, .raw = {rest.ptr + 1, i - 1}, .value_len = i - 1 - escapes};
            return true;
        }
        if (ch == '\0' || ch == '\r' || ch == '\n')
            return false;
        if (ch != '\\')
            continue;
        if (++i == rest.len || (rest.ptr[i] != '"' && rest.ptr[i] != '\\'))
            return false;
        escapes++;
    }
    return false;
}

/* A literal with all its octets; "~{n}" is no string. */
static bool read_literal(struct args *args, struct arg *arg_out)
{
    uint64_t size;
    size_t header = literal_header(args->rest, &size);

    if (header == 0 || size > args->rest.len - header)
        return false;

    struct span octets = {args->rest.ptr + header, (size_t)size};

    if (octets.len > 0 && memchr(octets.ptr, '\0', octets.len) != NULL)
        return false;
    take(args, header + octets.len);
    *arg_out = (struct arg){.kind = ARG_LITERAL, .raw = octets, .value_len = octets.len};
    return true;
}

/* Length of "{n}" or "{n+}" with its line end, 0 if there is none at the front. */
static size_t literal_header(struct span text, uint64_t *size_out)
{
    size_t at = 1;
    uint64_t size = 0;

    if (text.len == 0 || text.ptr[0] != '{')
        return 0;
    for (; at < text.len && text.ptr[at] >= '0' && text.ptr[at] <= '9'; at++) {
        if (size > (UINT64_MAX - 9) / 10)
            return 0;
        size = size * 10 + (uint64_t)(text.ptr[at] - '0');
    }
    if (at == 1)
        return 0;
    if (at < text.len && text.ptr[at] == '+')
        at++;
    if (at == text.len || text.ptr[at++] != '}')
        return 0;
    if (at < text.len && text.ptr[at] == '\r')
        at++;
    if (at == text.len || text.ptr[at++] != '\n')
        return 0;
    *size_out = size;
    return at;
}

bool args_open(struct args *args)
{
    if (args->depth == ARGS_DEPTH_MAX || !take_char(args, '('))
        return false;
    args->depth++;
    return true;
}

bool args_close(struct args *args)
{
    if (args->depth == 0 || !take_char(args, ')'))
        return false;
    args->depth--;
    return true;
}

enum args_id args_id(struct args *args, bool started, struct arg *name_out, struct arg *value_out)
{
    struct args at = *args;
    enum args_id found = ARGS_ID_BAD;

    if (!started && args_nstring(&at, value_out) && value_out->kind == ARG_NIL) {
        found = ARGS_ID_END;
    } else {
        at = *args;
        if (!started && !args_open(&at))
            return ARGS_ID_BAD;
        args_space(&at); /* between pairs; some clients put one inside the parentheses too */
        if (args_close(&at))
            found = ARGS_ID_END;
        else if (args_string(&at, name_out) && args_space(&at) && args_nstring(&at, value_out))
            found = ARGS_ID_PAIR;
    }
    if (found != ARGS_ID_BAD)
        *args = at;
    return found;
}

size_t arg_copy(const struct arg *arg, char *out, size_t size)
{
    size_t written = 0;

    if (size > 0)
        out[0] = '\0';
    if (arg->value_len >= size)
        return arg->value_len;
    for (size_t i = 0; i < arg->raw.len; i++) {
        if (arg->kind == ARG_QUOTED && arg->raw.ptr[i] == '\\')
            i++;
        out[written++] = arg->raw.ptr[i];
    }
    assert(written == arg->value_len);
    out[written] = '\0';
    return written;
}
