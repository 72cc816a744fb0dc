/*
 * Capability lists: the result holds nothing that must not pass, no word twice, and is its own
 * result.
 */
#include <assert.h>
#include <stdint.h>

#include "proxy/imap/caps.h"

#define LIST_MAX 1024

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const remove_words[] = {"X-*", "NOTIFY"};
static const char *const add_words[] = {"QUOTA", "idle"};
static const struct caps_filter filter = {
    .remove = remove_words, .remove_count = 2, .add = add_words, .add_count = 2};

static bool begins(struct span word, const char *prefix)
{
    return word.len >= strlen(prefix) && strncasecmp(word.ptr, prefix, strlen(prefix)) == 0;
}

static void check_word(struct span word)
{
    static const char *const gone[] = {"STARTTLS",       "LOGINDISABLED",   "SASL-IR",
                                       "UNAUTHENTICATE", "LOGIN-REFERRALS", "NOTIFY"};

    assert(word.len > 0);
    assert(!begins(word, "AUTH=") && !begins(word, "COMPRESS=") && !begins(word, "X-"));
    for (size_t i = 0; i < sizeof gone / sizeof gone[0]; i++)
        assert(!span_is(word, gone[i]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char out[LIST_MAX + 32], again[LIST_MAX + 32];
    struct span list = {(const char *)data, size};

    if (size > LIST_MAX)
        return 0;

    ptrdiff_t len = caps_rewrite(list, &filter, out, sizeof out);

    assert(len > 0 && caps_rewrite(list, &filter, again, (size_t)len) == len);
    assert(caps_rewrite(list, &filter, again, (size_t)len - 1) == -1);

    struct span rest = {out, (size_t)len};

    assert(caps_rewrite(rest, &filter, again, sizeof again) == len);
    assert(memcmp(out, again, (size_t)len) == 0);
    assert(caps_has(rest, "QUOTA") && caps_has(rest, "IDLE"));
    for (;;) {
        const char *space = memchr(rest.ptr, ' ', rest.len);
        struct span word = {rest.ptr, space == NULL ? rest.len : (size_t)(space - rest.ptr)};

        check_word(word);
        if (space == NULL)
            return 0;
        rest = span_after(rest, word.len + 1);
    }
}
