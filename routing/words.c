/* Owns how words are taken from a line. */
#include "routing/words.h"

bool words_is_number(struct span word, uint64_t *number_out)
{
    *number_out = 0;
    for (size_t i = 0; i < word.len; i++) {
        unsigned digit = (unsigned)(unsigned char)word.ptr[i] - '0';

        if (digit > 9 || *number_out > (UINT64_MAX - digit) / 10)
            return false;
        *number_out = *number_out * 10 + digit;
    }
    return word.len > 0;
}

bool words_is_name(struct span word, size_t min, size_t max)
{
    for (size_t i = 0; i < word.len; i++)
        if ((unsigned char)word.ptr[i] < ' ' || word.ptr[i] == 0x7f)
            return false;
    return word.len >= min && word.len <= max;
}

bool words_take(struct span *rest, char end, struct span *word_out)
{
    const char *at = rest->len == 0 ? NULL : memchr(rest->ptr, end, rest->len);

    if (at == NULL)
        return false;
    *word_out = (struct span){rest->ptr, (size_t)(at - rest->ptr)};
    *rest = span_after(*rest, word_out->len + 1);
    return true;
}

bool words_take_number(struct span *rest, char end, uint64_t *number_out)
{
    struct span word;

    return words_take(rest, end, &word) && words_is_number(word, number_out);
}

bool words_take_name(struct span *rest, char end, size_t min, size_t max, char *name_out)
{
    struct span word;

    if (!words_take(rest, end, &word) || !words_is_name(word, min, max))
        return false;
    memcpy(name_out, word.ptr, word.len);
    name_out[word.len] = '\0';
    return true;
}
