/*
 * Server lines: the kind is that of the second word, what is found lies in the line and in order,
 * and does not depend on the line end.
 */
#include <assert.h>
#include <stdint.h>

#include "proxy/imap/reply.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_order(struct span first, struct span second)
{
    assert(first.ptr + first.len <= second.ptr || second.len == 0 || first.len == 0);
}

static void check_inside(struct span part, struct span line)
{
    assert(part.ptr >= line.ptr && part.ptr + part.len <= line.ptr + line.len);
    assert(part.len == 0 || memchr(part.ptr, '\0', part.len) == NULL);
}

/* By what stands between the first two spaces; only statuses may be tagged. */
static enum reply_kind expected_kind(struct span line)
{
    static const char *const words[] = {"OK", "NO", "BAD", "BYE", "PREAUTH", "CAPABILITY", "ID"};
    size_t tag_len = 0, len = 0;

    line.len -= line.len > 0 && line.ptr[line.len - 1] == '\n';
    line.len -= line.len > 0 && line.ptr[line.len - 1] == '\r';
    if (line.len > 0 && line.ptr[0] == '+')
        return REPLY_CONTINUE;
    while (tag_len < line.len && line.ptr[tag_len] != ' ')
        tag_len++;
    if (tag_len == line.len)
        return REPLY_OTHER;

    struct span rest = span_after(line, tag_len + 1);

    while (len < rest.len && rest.ptr[len] != ' ')
        len++;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (span_is((struct span){rest.ptr, len}, words[i]) && (i < 5 || line.ptr[0] == '*'))
            return (enum reply_kind)(REPLY_OK + i);
    return REPLY_OTHER;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct span line = {(const char *)data, size};
    struct reply reply, bare;

    if (!reply_parse(line, &reply))
        return 0;
    check_inside(reply.tag, line);
    check_inside(reply.code, line);
    check_inside(reply.code_args, line);
    check_inside(reply.text, line);
    check_order(reply.tag, reply.code);
    check_order(reply.code, reply.code_args);
    check_order(reply.code_args, reply.text);
    assert(reply.tag.len > 0);
    assert(reply.kind == expected_kind(line));
    assert((reply.kind == REPLY_CONTINUE) == (line.ptr[0] == '+'));
    assert(reply.code.len == 0 || reply.kind <= REPLY_PREAUTH);
    if (size > 1 && line.ptr[size - 1] == '\n') {
        line.len -= line.ptr[size - 2] == '\r' ? 2 : 1;
        /* "\r" before the line end stays text, but a line end of its own if it is last */
        if (line.len > 0 && line.ptr[line.len - 1] != '\r' && line.ptr[line.len - 1] != '\n') {
            assert(reply_parse(line, &bare));
            assert(bare.kind == reply.kind && span_equal(bare.text, reply.text));
        }
    }
    return 0;
}
