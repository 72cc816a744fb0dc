/*
 * What one command leaves behind, against a slow, obvious reader that has all of it before it. The
 * first octet chooses what kind of command it is, the second how it is cut.
 */
#include <assert.h>
#include <stdint.h>

#include "proxy/imap/taint.h"

#define COMMAND_MAX 1024

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool is_letter(char ch)
{
    return ch != '\0' && (strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789", ch) != NULL ||
                          strchr("abcdefghijklmnopqrstuvwxyz", ch) != NULL);
}

static bool is_blank(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\r' || ch == '\n';
}

/* The text without backslashes: words are read as if there were none. */
static struct span strip(struct span text, char out[COMMAND_MAX])
{
    size_t len = 0;

    for (size_t i = 0; i < text.len; i++)
        if (text.ptr[i] != '\\')
            out[len++] = text.ptr[i];
    return (struct span){out, len};
}

/* Whether a sticky word stands in the text, whole, with something behind it. */
static bool has_sticky_word(struct span text)
{
    static const char *const words[] = {
        "MODSEQ",        "CONDSTORE", "QRESYNC",  "CHANGEDSINCE", "UNCHANGEDSINCE",
        "HIGHESTMODSEQ", "VANISHED",  "SAVE",     "UPDATE",       "CONTEXT",
        "UTF8",          "KEYWORD",   "UNKEYWORD"};
    char bare[COMMAND_MAX];

    text = strip(text, bare);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        size_t len = strlen(words[i]);

        for (size_t at = 0; at + len < text.len; at++)
            if ((at == 0 || !is_letter(text.ptr[at - 1])) && !is_letter(text.ptr[at + len]) &&
                strncasecmp(text.ptr + at, words[i], len) == 0)
                return true;
    }
    return false;
}

/* The field with this number, from 0; empty at the end when there are fewer. */
static struct span field(struct span text, unsigned number)
{
    for (size_t at = 0;; number--) {
        while (at < text.len && is_blank(text.ptr[at]))
            at++;

        size_t start = at;

        while (at < text.len && !is_blank(text.ptr[at]))
            at++;
        if (number == 0 || at == text.len)
            return number == 0 ? (struct span){text.ptr + start, at - start}
                               : span_after(text, text.len);
    }
}

/* Whether "UID STORE" stands there: of the field only what a store could take for its name. */
static bool is_uid_store(struct span text)
{
    char bare[COMMAND_MAX];
    struct span name = field(text, 2), tail = strip(name, bare);
    size_t start = tail.len;

    while (start > 0 && is_letter(tail.ptr[start - 1]))
        start--;
    return name.ptr + name.len < text.ptr + text.len && span_is(span_after(tail, start), "STORE");
}

/* Whether the flags of a STORE, from this field on, hold what does not begin with a backslash. */
static bool has_keyword(struct span text, unsigned first)
{
    struct span item = field(text, first - 1), flags = field(text, first);
    const char *open = item.len == 0 ? NULL : memchr(item.ptr, '(', item.len);
    const char *end = text.ptr + text.len;
    bool begins = true;

    for (const char *at = open != NULL ? open : flags.ptr; at < end; at++) {
        bool between = is_blank(*at) || *at == '(' || *at == ')';

        if (begins && !between && *at != '\\')
            return true;
        begins = between;
    }
    return false;
}

static bool is_tainting(enum effect effect, struct span text)
{
    if (effect == EFFECT_UNKNOWN || effect == EFFECT_BULK)
        return effect == EFFECT_UNKNOWN;
    if (effect == EFFECT_SELECTS && text.len > 0 && memchr(text.ptr, '(', text.len) != NULL)
        return true;
    if (effect == EFFECT_STORES && has_keyword(text, 4))
        return true;
    if (effect == EFFECT_UID && is_uid_store(text) && has_keyword(text, 5))
        return true;
    return has_sticky_word(text);
}

static struct taint read_in_pieces(enum effect effect, struct span text, size_t step)
{
    struct taint taint = {.tainted = false};

    taint_command(&taint, effect, true);
    while (text.len > 0) {
        struct span piece = {text.ptr, step < text.len ? step : text.len};

        taint_octets(&taint, piece);
        text = span_after(text, piece.len);
    }
    return taint;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > COMMAND_MAX)
        return 0;

    enum effect effect = data[0] % EFFECT_ENDS;
    struct span text = {(const char *)data + 2, size - 2};
    struct taint taint = read_in_pieces(effect, text, 1 + data[1] % 16);

    assert(taint.tainted == is_tainting(effect, text));
    assert(taint.selected == (effect == EFFECT_SELECTS));

    bool tainted = taint.tainted;

    taint_answer(&taint, true, true);
    assert(taint.tainted == tainted && !taint.unselecting);
    taint_answer(&taint, false, false);
    assert(taint.tainted);
    return 0;
}
