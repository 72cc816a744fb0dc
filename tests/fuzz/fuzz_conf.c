/*
 * Any bytes as proxy.conf: it is read or refused, with a message, and nothing is left over. What is
 * read is written out in full, each setting with its value, and read again: nothing may change.
 */
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "proxy/base/conf.h"
#include "tests/fuzz/scratch_file.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t len);

/* Within single quotes nothing is special but the quote and the backslash. */
static void print_quoted(FILE *out, const char *text, size_t len)
{
    fputc('\'', out);
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\'' || text[i] == '\\')
            fputc('\\', out);
        fputc(text[i], out);
    }
    fputc('\'', out);
}

static void print_words(FILE *out, const struct conf_words *words)
{
    fputc('{', out);
    for (size_t i = 0; i < words->count; i++) {
        fputs(i > 0 ? ", " : "", out);
        print_quoted(out, words->items[i], strlen(words->items[i]));
    }
    fputc('}', out);
}

/* The word with this number of "a|b|c". */
static void print_choice(FILE *out, const char *words, int number)
{
    for (; number > 0; number--)
        words = strchr(words, '|') + 1;
    fprintf(out, "%.*s", (int)strcspn(words, "|"), words);
}

#define PRINT_TEXT(value, words)     print_quoted(out, value, strlen(value))
#define PRINT_PATH(value, words)     print_quoted(out, value, strlen(value))
#define PRINT_SECRET(value, words)   print_quoted(out, value.bytes, value.len)
#define PRINT_WORDS(value, words)    print_words(out, &value)
#define PRINT_FLAG(value, words)     fputs(value ? "yes" : "no", out)
#define PRINT_NUMBER(value, words)   fprintf(out, "%" PRId64, value)
#define PRINT_DURATION(value, words) fprintf(out, "%" PRIu64 "ms", value)
#define PRINT_SIZE(value, words)     fprintf(out, "%zuB", value)
#define PRINT_CHOICE(value, words)   print_choice(out, words, value)
#define PRINT_ROW(kind, name, change, default, min, max, help)                                     \
    fputs("\n    " #name " = ", out);                                                              \
    PRINT_##kind(section->name, min);

#define PRINT_SECTION(name, cardinality, rows, help)                                               \
    static void print_##name(FILE *out, const struct conf_##name *section)                         \
    {                                                                                              \
        fputs(#name " ", out);                                                                     \
        PRINT_TITLE_##cardinality;                                                                 \
        fputs(" {", out);                                                                          \
        rows(PRINT_ROW) fputs("\n}\n", out);                                                       \
    }
#define PRINT_TITLE_ONE  assert(section->title[0] == '\0')
#define PRINT_TITLE_MANY print_quoted(out, section->title, strlen(section->title))
SETTINGS_SECTIONS(PRINT_SECTION)

#define PRINT_EACH_ONE(name) print_##name(out, &conf->name);
#define PRINT_EACH_MANY(name)                                                                      \
    for (size_t i = 0; i < conf->name##_count; i++)                                                \
        print_##name(out, &conf->name##s[i]);
#define PRINT_EACH(name, cardinality, rows, help) PRINT_EACH_##cardinality(name)

/* Returns the text, which the caller frees. */
static char *print(const struct conf *conf, size_t *len_out)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, len_out);

    SETTINGS_SECTIONS(PRINT_EACH)
    fclose(out);
    return text;
}

static void check_round_trip(const struct conf *conf)
{
    size_t len, len_again;
    char *text = print(conf, &len);
    struct err err;
    struct conf *again = conf_open(scratch_file_write(text, len), &err);

    assert(again != NULL);

    char *text_again = print(again, &len_again);

    assert(len == len_again && memcmp(text, text_again, len) == 0);
    conf_close(&again);
    free(text);
    free(text_again);
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t len)
{
    struct err err;

    /* No other files: a device or a FIFO would not end. */
    if (memmem(bytes, len, "include", 7) != NULL || memmem(bytes, len, "_file", 5) != NULL)
        return 0;

    struct conf *conf = conf_open(scratch_file_write(bytes, len), &err);

    assert((conf == NULL) == (err.kind != ERR_NONE));
    assert(conf != NULL || err.text[0] != '\0');
    if (conf != NULL)
        check_round_trip(conf);
    conf_close(&conf);
    return 0;
}
