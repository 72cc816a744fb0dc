/*
 * Owns how the settings are presented: a sample file and a page of documentation, both from
 * settings.def.
 */
#include "proxy/base/conf_private.h"

#include <string.h>

static void print_sample_row(FILE *out, const struct conf_row *row);
static void print_markdown_row(FILE *out, const struct conf_row *row);
static void print_cell(FILE *out, const char *text);
static const char *written_default(const struct conf_row *row, char out[256]);

/*
 * "# " starts what is a comment for good; "#" before anything else hides a line that could be in
 * force.
 */
void conf_print_defaults(FILE *out)
{
    fputs("# Every setting of imapmux with its default. To change one, take the \"#\" away before "
          "it and\n"
          "# before the first and last line of its section. See docs/configuration.md.\n",
          out);
    for (const struct conf_section *section = conf_sections; section->name != NULL; section++) {
        fprintf(out, "\n# %s%s\n#%s%s {\n", section->help,
                section->many ? " (May be there several times.)" : "", section->name,
                section->many ? " \"name\"" : "");
        for (const struct conf_row *row = section->rows(); row->name != NULL; row++)
            print_sample_row(out, row);
        fputs("#}\n", out);
    }
}

void conf_print_markdown(FILE *out)
{
    fputs(
        "# Settings of proxy.conf\n\n"
        "This page is printed from the table that the parser uses (`imapmux --print-settings`).\n\n"
        "A section is `name { ... }`, one that may be there several times is `name \"title\" { ... "
        "}`. A\n"
        "setting is `name = value`, a list `name = { \"a\", \"b\" }`. Texts with other characters "
        "than\n"
        "letters, digits and `.:-_/` stand in quotes; `\"${NAME}\"` is an environment variable. "
        "Comments are\n"
        "`# ...`, `// ...` and `/* ... */`. `include(\"file\")` between sections reads another "
        "file. Paths\n"
        "start from the folder of the file that was named with `-c`. Durations end in `ms`, `s`, "
        "`m`, `h` or\n"
        "`d`, sizes in `B`, `K`, `M` or `G`. A change counts from the next reload on, unless it is "
        "said that it\n"
        "needs a new process.\n",
        out);
    for (const struct conf_section *section = conf_sections; section->name != NULL; section++) {
        fprintf(out,
                "\n## %s\n\n%s%s\n\n| Setting | Default | Value | Meaning |\n| --- | --- | --- | "
                "--- |\n",
                section->name, section->help,
                section->many ? " May be there several times, each with a title." : "");
        for (const struct conf_row *row = section->rows(); row->name != NULL; row++)
            print_markdown_row(out, row);
    }
}

static void print_sample_row(FILE *out, const struct conf_row *row)
{
    char expected[CONF_EXPECTED_MAX], value[256];

    conf_expected(row, expected);
    fprintf(out, "    # %s (%s)\n", row->help, expected);
    fprintf(out, "    #%s = %s\n", row->name, written_default(row, value));
    if (row->kind == CONF_KIND_SECRET)
        fprintf(out, "    # The same from a file.\n    #%s_file = \"\"\n", row->name);
}

static void print_markdown_row(FILE *out, const struct conf_row *row)
{
    char expected[CONF_EXPECTED_MAX], value[256];

    conf_expected(row, expected);
    fprintf(out, "| `%s` | `%s` | ", row->name, written_default(row, value));
    print_cell(out, expected);
    fputs(" | ", out);
    print_cell(out, row->help);
    fputs(row->change == CONF_RESTART ? " (Needs a new process.) |\n" : " |\n", out);
    if (row->kind == CONF_KIND_SECRET)
        fprintf(out, "| `%s_file` | `\"\"` | a path | File that holds `%s`. |\n", row->name,
                row->name);
}

static void print_cell(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '|')
            fputc('\\', out);
        fputc(*text, out);
    }
}

/* As it would be written in the file. */
static const char *written_default(const struct conf_row *row, char out[256])
{
    const char *text = row->default_text;
    const char *format = "\"%s\"";

    if (row->kind == CONF_KIND_NUMBER || row->kind == CONF_KIND_DURATION ||
        row->kind == CONF_KIND_SIZE || row->kind == CONF_KIND_FLAG || row->kind == CONF_KIND_CHOICE)
        return text;
    if (row->kind == CONF_KIND_WORDS)
        format = *text == '\0' ? "{}" : "{ \"%s\" }";
    size_t before = strcspn(format, "%");
    const char *after = format[before] == '\0' ? "" : format + before + 2;
    snprintf(out, 256, "%.*s%s%s", (int)before, format, text, after);
    return out;
}
