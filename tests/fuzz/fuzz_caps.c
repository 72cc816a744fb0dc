/*
 * Capability lists: the result holds nothing that must not pass, no word twice, only words that
 * were there, in their order, and is its own result. The first line is the list, the second what
 * another store has, if anything.
 */
#include <assert.h>
#include <stdint.h>

#include "proxy/imap/caps.h"

#define LIST_MAX 1024

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const remove_words[] = {"X-*", "NOTIFY"};
static const char *const add_words[] = {"QUOTA", "idle"};

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

/* Up to the next blank, which is taken, too. */
static struct span take_word(struct span *list)
{
    struct span word = {list->ptr, 0};

    while (word.len < list->len && memchr(" \t\r\n", word.ptr[word.len], 4) == NULL)
        word.len++;
    *list = span_after(*list, word.len < list->len ? word.len + 1 : word.len);
    return word;
}

/* Whether the word stands in the list, just so; the list goes on behind it. */
static bool skip_to(struct span *list, struct span word)
{
    while (list->len > 0)
        if (span_equal(take_word(list), word))
            return true;
    return false;
}

/* How often the word stands in the list, in any case. */
static size_t count(struct span list, struct span word)
{
    size_t found = 0;

    while (list.len > 0) {
        struct span other = take_word(&list);

        found += other.len == word.len && strncasecmp(other.ptr, word.ptr, word.len) == 0;
    }
    return found;
}

static bool is_added(struct span word)
{
    return span_is(word, add_words[0]) || span_is(word, add_words[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char out[LIST_MAX + 32], again[LIST_MAX + 32];
    struct span list = {(const char *)data, size}, common = {"", 0};
    const char *line_end = size == 0 ? NULL : memchr(data, '\n', size);

    if (size > LIST_MAX)
        return 0;
    if (line_end != NULL) {
        list.len = (size_t)(line_end - list.ptr);
        common = (struct span){line_end + 1, size - list.len - 1};
    }

    struct caps_filter filter = {.remove = remove_words,
                                 .remove_count = 2,
                                 .add = add_words,
                                 .add_count = 2,
                                 .common = &common,
                                 .common_count = 1};
    ptrdiff_t len = caps_rewrite(list, &filter, out, sizeof out);

    assert(len > 0 && caps_rewrite(list, &filter, again, (size_t)len) == len);
    assert(caps_rewrite(list, &filter, again, (size_t)len - 1) == -1);

    struct span rest = {out, (size_t)len};

    assert(caps_rewrite(rest, &filter, again, sizeof again) == len);
    assert(common.len > 0 ||
           memcmp(out, again, (size_t)len) == 0); /* else `add` moves to the end */
    assert(caps_has(rest, "QUOTA") && caps_has(rest, "IDLE"));
    while (rest.len > 0) {
        struct span word = take_word(&rest), left = list;

        check_word(word);
        assert(count((struct span){out, (size_t)len}, word) == 1);
        assert(common.len == 0 || count(common, word) > 0 || is_added(word));
        if (skip_to(&left, word))
            list = left;
        else
            assert(is_added(word));
    }
    return 0;
}
