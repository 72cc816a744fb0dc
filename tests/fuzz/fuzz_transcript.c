/*
 * A stream as lines. The first octet says whose and whether bodies are shown, the second where it
 * is cut. However it is cut, the same lines must come; and of a line no more than is allowed.
 */
#include <assert.h>
#include <stdint.h>

#include "proxy/imap/transcript.h"

#include <string.h>

enum { TOLD_MAX = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct told {
    char text[TOLD_MAX];
    size_t len;
};

static struct told whole, cut;

static void on_line(void *owner, struct span line)
{
    struct told *told = owner;

    assert(line.len <= TRANSCRIPT_LINE_MAX + 32);
    assert(told->len + line.len + 1 <= TOLD_MAX);
    memcpy(told->text + told->len, line.ptr, line.len);
    told->len += line.len;
    told->text[told->len++] = '\n';
}

/* False over a limit of the scanner: then the session is over. */
static bool add(struct told *told, struct transcript *transcript, struct scan *scan,
                struct span bytes)
{
    transcript_add(transcript, scan, bytes, on_line, told);
    while (bytes.len > 0) {
        struct piece piece;
        ptrdiff_t len = scan_next(scan, bytes, &piece);

        if (len <= 0)
            return false;
        bytes = span_after(bytes, (size_t)len);
    }
    return true;
}

static void play(struct told *told, uint8_t mode, struct span bytes, size_t step)
{
    struct transcript transcript;
    struct scan scan;
    bool goes_on = true;

    told->len = 0;
    scan_init(&scan, (mode & 1) != 0 ? SCAN_CLIENT : SCAN_SERVER, 0, 0);
    transcript_init(&transcript, (mode & 2) != 0);
    for (size_t at = 0; goes_on && at < bytes.len; at += step)
        goes_on = add(told, &transcript, &scan,
                      (struct span){bytes.ptr + at, bytes.len - at < step ? bytes.len - at : step});
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3 || size > 8192)
        return 0;

    struct span bytes = {(const char *)data + 2, size - 2};

    play(&whole, data[0], bytes, bytes.len);
    play(&cut, data[0], bytes, 1 + data[1]);
    assert(whole.len == cut.len && memcmp(whole.text, cut.text, whole.len) == 0);
    return 0;
}
