/* Owns how a configuration that was read is written as the text of a proxy.conf again. */
#include "proxy/base/conf_private.h"

#include "proxy/base/mem.h"

static const char mask[] = "********";

/* --- what differs from the default --- */

static bool words_are_default(const struct conf_row *row, const struct conf_words *words)
{
    if (*row->default_text == '\0' || words->count != 1)
        return words->count == 0 && *row->default_text == '\0';
    return strcmp(words->items[0], row->default_text) == 0;
}

static bool is_default(const struct conf_row *row, const void *member)
{
    union conf_value value;
    char is[CONF_AMOUNT_MAX], would_be[CONF_AMOUNT_MAX];

    switch (row->kind) {
    case CONF_KIND_WORDS:
        return words_are_default(row, member);
    case CONF_KIND_SECRET:
        return ((const struct secret *)member)->len == 0;
    case CONF_KIND_TEXT:
    case CONF_KIND_PATH:
        return strcmp(*(char *const *)member, row->default_text) == 0;
    default:
        conf_value_read(row, "", row->default_text, &value); /* it is good: the parser reads it */
        return strcmp(conf_value_write(row, member, is), conf_value_write(row, &value, would_be)) ==
               0;
    }
}

static bool any_differs(const struct conf_section *section, const void *values)
{
    for (const struct conf_row *row = section->rows(); row->name != NULL; row++)
        if (!is_default(row, (const char *)values + row->offset))
            return true;
    return false;
}

/* --- as it would be written --- */

/* In quotes; "${NAME}" would be a variable. */
static void print_text(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text != '\0'; text++) {
        if (strchr("\"\\$", *text) != NULL)
            fputc('\\', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void print_words(FILE *out, const struct conf_words *words)
{
    fputc('{', out);
    for (size_t i = 0; i < words->count; i++) {
        fputs(i > 0 ? ", " : "", out);
        print_text(out, words->items[i]);
    }
    fputc('}', out);
}

static void print_value(FILE *out, const struct conf_row *row, const void *member)
{
    char text[CONF_AMOUNT_MAX];

    switch (row->kind) {
    case CONF_KIND_WORDS:
        print_words(out, member);
        break;
    case CONF_KIND_SECRET:
        print_text(out, ((const struct secret *)member)->len == 0 ? "" : mask);
        break;
    case CONF_KIND_TEXT:
    case CONF_KIND_PATH:
        print_text(out, *(char *const *)member);
        break;
    default:
        fputs(conf_value_write(row, member, text), out);
    }
}

static void print_section(FILE *out, const struct conf_section *section, const void *values,
                          bool all)
{
    fputs(section->name, out);
    if (section->many) {
        fputc(' ', out);
        print_text(out, ((const struct conf_head *)values)->title);
    }
    fputs(" {\n", out);
    for (const struct conf_row *row = section->rows(); row->name != NULL; row++) {
        const void *member = (const char *)values + row->offset;

        if (!all && is_default(row, member))
            continue;
        fprintf(out, "    %s = ", row->name);
        print_value(out, row, member);
        fputc('\n', out);
    }
    fputs("}\n", out);
}

static const struct conf_section *find(const char *name)
{
    const struct conf_section *section = conf_sections;

    while (section->name != NULL && strcmp(section->name, name) != 0)
        section++;
    return section->name == NULL ? NULL : section;
}

bool conf_has_section(const char *name)
{
    return find(name) != NULL;
}

void conf_print(FILE *out, const struct conf *conf, const char *only, bool all)
{
    for (const struct conf_section *section = conf_sections; section->name != NULL; section++) {
        const char *field = (const char *)conf + section->offset, *values = field;
        size_t count = 1;

        if (only != NULL && strcmp(only, section->name) != 0)
            continue;
        if (section->many) {
            memcpy(&count, (const char *)conf + section->count_offset, sizeof count);
            memcpy(&values, field, sizeof values);
        }
        for (size_t i = 0; i < count; i++, values += section->size)
            if (all || ((const struct conf_head *)values)->line > 0 || any_differs(section, values))
                print_section(out, section, values, all);
    }
}
