/* Filters capability lists. */
#include "proxy/imap/caps.h"

/* Only meant between the proxy and the store, or before a login. */
static const char *const never_passed[] = {
    "STARTTLS",       "LOGINDISABLED",   "AUTH=*",     "SASL-IR",
    "UNAUTHENTICATE", "LOGIN-REFERRALS", "COMPRESS=*",
};

/* A list being written. */
struct list {
    char *out;
    size_t size, len;
};

static bool next_word(struct span *list, struct span *word_out);
static bool has_word(struct span list, struct span word);
static bool is_blank(char ch);
static bool matches_any(struct span word, const char *const *patterns, size_t count);
static bool in_all(struct span word, const struct span *lists, size_t count);
static bool matches(struct span word, const char *pattern);
static bool add_word(struct list *list, struct span word);

bool caps_has(struct span list, const char *name)
{
    return has_word(list, span_of(name));
}

ptrdiff_t caps_rewrite(struct span list, const struct caps_filter *filter, char *out, size_t size)
{
    static const struct caps_filter no_filter;
    struct list written = {.out = out, .size = size};
    struct span word;

    if (filter == NULL)
        filter = &no_filter;
    while (next_word(&list, &word)) {
        if (matches_any(word, never_passed, sizeof never_passed / sizeof never_passed[0]) ||
            matches_any(word, filter->remove, filter->remove_count) ||
            !in_all(word, filter->common, filter->common_count))
            continue;
        if (!add_word(&written, word))
            return -1;
    }
    for (size_t i = 0; i < filter->add_count; i++) {
        if (!add_word(&written, span_of(filter->add[i])))
            return -1;
    }
    return (ptrdiff_t)written.len;
}

/* Takes the next word off the front of the list; false at the end. */
static bool next_word(struct span *list, struct span *word_out)
{
    size_t start = 0;

    while (start < list->len && is_blank(list->ptr[start]))
        start++;

    size_t end = start;

    while (end < list->len && !is_blank(list->ptr[end]))
        end++;
    if (end == start)
        return false;
    *word_out = (struct span){list->ptr + start, end - start};
    *list = span_after(*list, end);
    return true;
}

static bool is_blank(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\r' || ch == '\n';
}

static bool matches_any(struct span word, const char *const *patterns, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (matches(word, patterns[i]))
            return true;
    }
    return false;
}

static bool in_all(struct span word, const struct span *lists, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (lists[i].len > 0 && !has_word(lists[i], word))
            return false;
    }
    return true;
}

static bool matches(struct span word, const char *pattern)
{
    size_t len = strlen(pattern);

    if (len == 0 || pattern[len - 1] != '*')
        return span_is(word, pattern);
    return word.len >= len - 1 && strncasecmp(word.ptr, pattern, len - 1) == 0;
}

/* Appends the word unless it is there; false without room. */
static bool add_word(struct list *list, struct span word)
{
    size_t space = list->len > 0;

    if (word.len == 0 || has_word((struct span){list->out, list->len}, word))
        return true;
    if (list->size - list->len < space || list->size - list->len - space < word.len)
        return false;
    if (space > 0)
        list->out[list->len++] = ' ';
    memcpy(list->out + list->len, word.ptr, word.len);
    list->len += word.len;
    return true;
}

static bool has_word(struct span list, struct span word)
{
    struct span other;

    while (next_word(&list, &other)) {
        if (other.len == word.len && strncasecmp(other.ptr, word.ptr, word.len) == 0)
            return true;
    }
    return false;
}
