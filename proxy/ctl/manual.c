/* Owns what mdoc(7) is made of the table of commands. */
#include "proxy/ctl/manual.h"

#include "proxy/base/mem.h"
#include "proxy/ctl/command.h"

enum { OPTIONS_MAX = 3 /* more are only counted among "option ..." in the head of an entry */ };

struct manual {
    FILE *out;
    const struct ctl_command *command; /* whose entry is being written; NULL: none */
    bool told[CTL_ALL_COUNT];
};

/* --- arguments --- */

/* The words of a choice stand apart, as those of a macro do: "a | b | c". */
static void print_choice(FILE *out, const char *words)
{
    fputs(" Cm ", out);
    for (; *words != '\0'; words++)
        fprintf(out, *words == '|' ? " | " : "%c", *words);
}

/* " Ar user", " Cm error | warning", or nothing for a flag. */
static void print_value(FILE *out, const struct ctl_argument *row)
{
    if (row->kind == CTL_CHOICE)
        print_choice(out, row->words);
    else if (row->kind != CTL_FLAG)
        fprintf(out, " Ar %s%s", *row->words == '\0' ? row->name : row->words,
                row->kind == CTL_TEXTS ? " ..." : "");
}

/* " Fl -shard Ar shard", or only the value where it has a place. */
static void print_argument(FILE *out, const struct ctl_argument *row)
{
    if (!ctl_has_place(row))
        fprintf(out, " Fl -%s", row->name);
    print_value(out, row);
}

static size_t count_options(const struct ctl_command *command)
{
    size_t count = 0;

    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++)
        count += !ctl_has_place(row);
    return count;
}

static void print_head(FILE *out, const struct ctl_command *command)
{
    size_t options = count_options(command);

    fprintf(out, ".It Ic %s", command->name);
    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++) {
        if (!ctl_has_place(row) && options > OPTIONS_MAX)
            continue;
        fputs(row->presence == CTL_REQUIRED ? "" : " Oo", out);
        print_argument(out, row);
        fputs(row->presence == CTL_REQUIRED ? "" : " Oc", out);
    }
    fputs(options > OPTIONS_MAX ? " Oo Ar option ... Oc\n" : "\n", out);
}

/* --- entries --- */

static void begin_entry(struct manual *manual, const struct ctl_command *command)
{
    manual->command = command;
    manual->told[command - ctl_commands] = true;
    print_head(manual->out, command);
    fprintf(manual->out, "%s\n", command->help);
}

static void end_entry(struct manual *manual)
{
    const struct ctl_command *command = manual->command;
    FILE *out = manual->out;

    manual->command = NULL;
    if (command == NULL)
        return;
    if (command->level == CTL_OPERATE)
        fputs("For operators.\n", out);
    if (command->arguments->name == NULL)
        return;
    fputs(".Bl -tag -width Ds -compact\n", out);
    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++) {
        fputs(".It", out);
        print_argument(out, row);
        fprintf(out, "\n%s\n", row->help);
    }
    fputs(".El\n", out);
}

/* A line that begins with "@"; its end has been taken off. */
static bool take_directive(struct manual *manual, const char *line, struct err *err)
{
    static const char start[] = "@command ";
    const struct ctl_command *command = NULL;

    end_entry(manual);
    if (strcmp(line, "@end") == 0)
        return true;
    if (strncmp(line, start, sizeof start - 1) == 0)
        command = ctl_find(line + sizeof start - 1);
    if (command == NULL || manual->told[command - ctl_commands])
        return err_set(err, ERR_CONFIG, "\"%.60s\" is no command, or there twice", line);
    begin_entry(manual, command);
    return true;
}

bool manual_print(FILE *template, FILE *out, struct err *err)
{
    struct manual manual = {.out = out};
    char *line = NULL;
    size_t size = 0;
    bool good = true;

    while (good && getline(&line, &size, template) >= 0) {
        if (*line != '@') {
            fputs(line, out);
            continue;
        }
        line[strcspn(line, "\n")] = '\0';
        good = take_directive(&manual, line, err);
    }
    mem_free(line);
    for (size_t i = 0; good && i < CTL_ALL_COUNT; i++)
        if (!manual.told[i])
            good = err_set(err, ERR_CONFIG, "\"%s\" is left out", ctl_commands[i].name);
    return good;
}
