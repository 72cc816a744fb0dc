/*
 * Owns how single values are written: numbers, durations, sizes, words, paths; and how their ranges
 * are told.
 */
#include "proxy/base/conf_private.h"

#include "proxy/base/mem.h"

#include <inttypes.h>
#include <string.h>
#include <strings.h>

struct unit {
    const char *name;
    int64_t factor;
};

/* Smallest first, each a multiple of the one before. */
static const struct unit duration_units[] = {
    {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000}};
static const struct unit size_units[] = {{"B", 1}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}};

enum { DURATION_UNITS = 5, SIZE_UNITS = 4 };

static bool read_flag(const char *text, bool *flag_out);
static bool read_choice(const char *words, const char *text, int *choice_out);
static bool read_amount(const struct conf_row *row, const struct unit *units, size_t count,
                        const char *text, int64_t *amount_out);
static const char *read_digits(const char *text, int64_t *number_out);
static void amount_text(int64_t amount, const struct unit *units, size_t count,
                        char out[CONF_AMOUNT_MAX]);
static void choice_text(const char *words, char out[CONF_EXPECTED_MAX]);

bool conf_value_read(const struct conf_row *row, const char *folder, const char *text,
                     union conf_value *value_out)
{
    int64_t amount = 0;
    bool ok = false;

    *value_out = (union conf_value){0};
    switch (row->kind) {
    case CONF_KIND_TEXT:
        return conf_is_text(text) && (value_out->text = mem_copy_text(text, strlen(text))) != NULL;
    case CONF_KIND_PATH:
        return conf_is_text(text) && (value_out->text = conf_path(folder, text)) != NULL;
    case CONF_KIND_SECRET:
        return secret_set(&value_out->secret, span_of(text));
    case CONF_KIND_FLAG:
        return read_flag(text, &value_out->flag);
    case CONF_KIND_CHOICE:
        return read_choice(row->words, text, &value_out->choice);
    case CONF_KIND_NUMBER:
        return read_amount(row, NULL, 0, text, &value_out->number);
    case CONF_KIND_DURATION:
        ok = read_amount(row, duration_units, DURATION_UNITS, text, &amount);
        value_out->duration = (uint64_t)amount;
        return ok;
    case CONF_KIND_SIZE:
        ok = read_amount(row, size_units, SIZE_UNITS, text, &amount);
        value_out->size = (size_t)amount;
        return ok;
    case CONF_KIND_WORDS:
        break; /* a list: its items are checked with conf_is_text */
    }
    return false;
}

bool conf_read_duration(const char *text, uint64_t max_ms, uint64_t *ms_out)
{
    const struct conf_row row = {.kind = CONF_KIND_DURATION, .max = (int64_t)max_ms};
    union conf_value value;
    bool ok = conf_value_read(&row, "", text, &value);

    *ms_out = value.duration;
    return ok;
}

size_t conf_value_size(const struct conf_row *row)
{
    static const size_t sizes[] = {
        [CONF_KIND_TEXT] = sizeof(CONF_TYPE_TEXT),
        [CONF_KIND_PATH] = sizeof(CONF_TYPE_PATH),
        [CONF_KIND_FLAG] = sizeof(CONF_TYPE_FLAG),
        [CONF_KIND_NUMBER] = sizeof(CONF_TYPE_NUMBER),
        [CONF_KIND_SIZE] = sizeof(CONF_TYPE_SIZE),
        [CONF_KIND_DURATION] = sizeof(CONF_TYPE_DURATION),
        [CONF_KIND_SECRET] = sizeof(CONF_TYPE_SECRET),
        [CONF_KIND_CHOICE] = sizeof(CONF_TYPE_CHOICE),
    };

    return sizes[row->kind];
}

void conf_value_store(const struct conf_row *row, const union conf_value *value, void *section)
{
    memcpy((char *)section + row->offset, value, conf_value_size(row));
}

const char *conf_value_write(const struct conf_row *row, const void *member,
                             char out[CONF_AMOUNT_MAX])
{
    const char *words = row->words;

    switch (row->kind) {
    case CONF_KIND_FLAG:
        return *(const bool *)member ? "yes" : "no";
    case CONF_KIND_CHOICE:
        for (int i = *(const int *)member; i > 0; i--)
            words += strcspn(words, "|") + 1;
        snprintf(out, CONF_AMOUNT_MAX, "%.*s", (int)strcspn(words, "|"), words);
        break;
    case CONF_KIND_DURATION:
        amount_text((int64_t) * (const CONF_TYPE_DURATION *)member, duration_units, DURATION_UNITS,
                    out);
        if (*(const CONF_TYPE_DURATION *)member == 0)
            return "0s";
        break;
    case CONF_KIND_SIZE:
        amount_text((int64_t) * (const CONF_TYPE_SIZE *)member, size_units, SIZE_UNITS, out);
        break;
    default:
        snprintf(out, CONF_AMOUNT_MAX, "%" PRId64, *(const CONF_TYPE_NUMBER *)member);
    }
    return out;
}

void conf_value_release(const struct conf_row *row, union conf_value *value)
{
    if (row->kind == CONF_KIND_TEXT || row->kind == CONF_KIND_PATH)
        mem_free(value->text);
    if (row->kind == CONF_KIND_SECRET)
        secret_release(&value->secret);
}

void conf_row_release(const struct conf_row *row, void *place)
{
    if (row->kind == CONF_KIND_WORDS)
        conf_words_release(place);
    else if (row->kind == CONF_KIND_TEXT || row->kind == CONF_KIND_PATH)
        mem_free(*(char **)place);
    else if (row->kind == CONF_KIND_SECRET)
        secret_release(place);
}

bool conf_words_add(struct conf_words *words, const char *text)
{
    char *copy = mem_copy_text(text, strlen(text));

    if (copy != NULL)
        words->items[words->count++] = copy;
    return copy != NULL;
}

void conf_words_release(struct conf_words *words)
{
    for (size_t i = 0; i < words->count; i++)
        mem_free(words->items[i]);
    mem_free(words->items);
}

bool conf_is_text(const char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            return false;
    }
    return true;
}

void conf_expected(const struct conf_row *row, char out[CONF_EXPECTED_MAX])
{
    char min[CONF_AMOUNT_MAX], max[CONF_AMOUNT_MAX];
    const char *what = "text without control characters";

    switch (row->kind) {
    case CONF_KIND_CHOICE:
        choice_text(row->words, out);
        return;
    case CONF_KIND_NUMBER:
        snprintf(out, CONF_EXPECTED_MAX, "a number from %" PRId64 " to %" PRId64, row->min,
                 row->max);
        return;
    case CONF_KIND_DURATION:
        amount_text(row->min, duration_units, DURATION_UNITS, min);
        amount_text(row->max, duration_units, DURATION_UNITS, max);
        snprintf(out, CONF_EXPECTED_MAX, "a duration from %s to %s", min, max);
        return;
    case CONF_KIND_SIZE:
        amount_text(row->min, size_units, SIZE_UNITS, min);
        amount_text(row->max, size_units, SIZE_UNITS, max);
        snprintf(out, CONF_EXPECTED_MAX, "a size from %s to %s", min, max);
        return;
    case CONF_KIND_FLAG:
        what = "yes or no";
        break;
    case CONF_KIND_PATH:
        what = "a path";
        break;
    case CONF_KIND_WORDS:
        what = "a list of texts";
        break;
    case CONF_KIND_SECRET:
        what = "a secret";
        break;
    case CONF_KIND_TEXT:
        break;
    }
    snprintf(out, CONF_EXPECTED_MAX, "%s", what);
}

char *conf_path(const char *folder, const char *path)
{
    size_t folder_len = strlen(folder), path_len = strlen(path);

    if (*path == '\0' || *path == '/')
        return mem_copy_text(path, path_len);
    char *whole = mem_new(folder_len + 1 + path_len + 1);
    if (whole != NULL)
        snprintf(whole, folder_len + 1 + path_len + 1, "%s/%s", folder, path);
    return whole;
}

static bool read_flag(const char *text, bool *flag_out)
{
    static const char *const names[] = {"no", "yes", "false", "true", "off", "on"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcasecmp(text, names[i]) == 0) {
            *flag_out = i % 2 == 1;
            return true;
        }
    }
    return false;
}

static bool read_choice(const char *words, const char *text, int *choice_out)
{
    size_t text_len = strlen(text);

    for (int i = 0;; i++) {
        size_t len = strcspn(words, "|");

        if (len == text_len && memcmp(words, text, len) == 0) {
            *choice_out = i;
            return true;
        }
        if (words[len] == '\0')
            return false;
        words += len + 1;
    }
}

/*
 * Digits and a unit. Without units only digits; sizes may leave "B" out; durations may not leave
 * their unit out, for nobody could tell which was meant, except for 0.
 */
static bool read_amount(const struct conf_row *row, const struct unit *units, size_t count,
                        const char *text, int64_t *amount_out)
{
    int64_t number, factor = 0;
    const char *unit = read_digits(text, &number);

    if (unit == NULL)
        return false;
    if (*unit == '\0' && (row->kind != CONF_KIND_DURATION || number == 0))
        factor = 1;
    for (size_t i = 0; i < count; i++) {
        if (strcasecmp(unit, units[i].name) == 0)
            factor = units[i].factor;
    }
    if (factor == 0 || number > INT64_MAX / factor)
        return false;
    *amount_out = number * factor;
    return *amount_out >= row->min && *amount_out <= row->max;
}

/* Returns where the digits end; NULL when there are none or too many. */
static const char *read_digits(const char *text, int64_t *number_out)
{
    const char *end = text;

    for (*number_out = 0; *end >= '0' && *end <= '9'; end++) {
        if (*number_out > (INT64_MAX - 9) / 10)
            return NULL;
        *number_out = *number_out * 10 + (*end - '0');
    }
    return end == text ? NULL : end;
}

/* In the largest unit that leaves no fraction. */
static void amount_text(int64_t amount, const struct unit *units, size_t count,
                        char out[CONF_AMOUNT_MAX])
{
    size_t best = 0;

    for (size_t i = 1; i < count; i++) {
        if (amount % units[i].factor == 0)
            best = i;
    }
    snprintf(out, CONF_AMOUNT_MAX, "%" PRId64 "%s", amount / units[best].factor,
             amount == 0 ? "" : units[best].name);
}

static void choice_text(const char *words, char out[CONF_EXPECTED_MAX])
{
    size_t len = (size_t)snprintf(out, CONF_EXPECTED_MAX, "one of ");

    for (; *words != '\0' && len + 3 < CONF_EXPECTED_MAX; words++) {
        out[len++] = *words == '|' ? ',' : *words;
        if (*words == '|')
            out[len++] = ' ';
    }
    out[len] = '\0';
}
