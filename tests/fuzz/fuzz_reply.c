/*
 * Server lines: what is found lies in the line and in order, and does not depend on the line end.
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
