/* Owns the texts of help and completion; what they say of commands comes from the table. */
#include "proxy/ctl/usage.h"

#include "proxy/base/nearest.h"

#include <ctype.h>

static const char head[] =
    "Usage: imapmuxctl [-s SOCKET] [-a] [-j] [--timeout TIME] COMMAND [ARGUMENT...]\n"
    "       imapmuxctl help [COMMAND]\n"
    "       imapmuxctl --print-completion | --print-man <TEMPLATE | --version | --help\n"
    "\n"
    "Looks after an imapmux that runs.\n"
    "\n"
    "Commands:\n";

static const char tail[] =
    "\n"
    "Options, before the command or behind it:\n"
    "  -s, --socket SOCKET     where imapmux listens, its setting admin.socket (default: the\n"
    "                          environment's IMAPMUX_SOCKET, else " CTL_SOCKET ")\n"
    "      --timeout TIME      give up when imapmux says nothing for so long (default: 30s for\n"
    "                          commands that only look, for others none)\n"
    "  -a, --all               ask each process of this host: after an upgrade those that still\n"
    "                          have sessions, too; what they say comes with their numbers\n"
    "  -j, --json              print results as JSON, one in a line\n"
    "  -h, --help              print this help, or that of the command\n"
    "  -V, --version           print the version of imapmuxctl\n"
    "      --print-completion  print a completion for bash\n"
    "      --print-man         print the manual page, of a template that is read\n"
    "\n"
    "Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no connection or no\n"
    "answer in time.\n";

enum { NAME_COLUMN = 2, HELP_COLUMN = 26 };

/* --- help --- */

/* "USER", "red|green", "COUNT/min", or nothing for a flag. Returns the width. */
static int print_value(FILE *out, const struct ctl_argument *row)
{
    int width = 0;

    if (row->kind == CTL_FLAG)
        return 0;
    if (*row->words != '\0')
        return fprintf(out, "%s", row->words);
    for (const char *at = row->name; *at != '\0'; at++, width++)
        fputc(toupper((unsigned char)*at), out);
    return width + (row->kind == CTL_TEXTS ? fprintf(out, "...") : 0);
}

/* "--name VALUE" */
static int print_named(FILE *out, const struct ctl_argument *row)
{
    int width = fprintf(out, row->kind == CTL_FLAG ? "--%s" : "--%s ", row->name);

    return width + print_value(out, row);
}

static const struct ctl_argument *first_named(const struct ctl_command *command)
{
    const struct ctl_argument *row = command->arguments;

    while (row->name != NULL && ctl_has_place(row))
        row++;
    return row->name == NULL ? NULL : row;
}

static int print_synopsis(FILE *out, const struct ctl_command *command)
{
    int width = fprintf(out, "%s", command->name);

    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++) {
        bool optional = row->presence == CTL_OPTIONAL;

        if (!ctl_has_place(row))
            continue;
        width += fprintf(out, optional ? " [" : " ");
        width += print_value(out, row);
        width += fprintf(out, optional ? "]" : "");
    }
    return width + (first_named(command) != NULL ? fprintf(out, " [OPTION...]") : 0);
}

/* Goes to the column of helps, in the next line if this one is too long. */
static void print_help(FILE *out, int width, const char *help)
{
    if (width + 2 > HELP_COLUMN) {
        fputc('\n', out);
        width = 0;
    }
    fprintf(out, "%*s%s\n", HELP_COLUMN - width, "", help);
}

static void print_line(FILE *out, const struct ctl_command *command)
{
    fprintf(out, "%*s", NAME_COLUMN, "");
    print_help(out, NAME_COLUMN + print_synopsis(out, command), command->help);
}

void usage_print(FILE *out)
{
    fputs(head, out);
    for (size_t i = 0; i < CTL_ALL_COUNT; i++)
        print_line(out, &ctl_commands[i]);
    fputs(tail, out);
}

void usage_print_matching(FILE *out, const char *start)
{
    size_t len = strlen(start);
    struct nearest nearest;
    bool found = false;

    nearest_init(&nearest, span_of(start));
    for (size_t i = 0; i < CTL_ALL_COUNT; i++) {
        const char *name = ctl_commands[i].name;

        found = found || strncmp(name, start, len) == 0;
        nearest_offer(&nearest, (struct span){name, strcspn(name, " ")});
    }
    if (!found && nearest.word.len > 0) {
        start = nearest.word.ptr;
        len = nearest.word.len;
    }
    for (size_t i = 0; i < CTL_ALL_COUNT; i++)
        if (strncmp(ctl_commands[i].name, start, len) == 0)
            print_line(out, &ctl_commands[i]);
}

/* Those that have a place, or those that have none. */
static void print_arguments(FILE *out, const struct ctl_command *command, bool with_place)
{
    const char *head_of_them =
        with_place ? "\nArguments, in this order or by name:\n" : "\nOptions of this command:\n";

    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++) {
        if (ctl_has_place(row) != with_place)
            continue;
        fputs(head_of_them, out);
        head_of_them = "";
        print_help(out, fprintf(out, "%*s", NAME_COLUMN, "") + print_named(out, row), row->help);
        if (row->level > command->level)
            print_help(out, 0, "For operators only.");
    }
}

void usage_print_command(FILE *out, const struct ctl_command *command)
{
    fputs("Usage: imapmuxctl [OPTION...] ", out);
    print_synopsis(out, command);
    fprintf(out, "\n\n%s\n", command->help);
    if (command->level == CTL_OPERATE)
        fputs("For operators only.\n", out);
    print_arguments(out, command, true);
    print_arguments(out, command, false);
}

/* --- completion --- */

/*
 * Names are asked of imapmux, which may not answer; then there are none. Those with other
 * characters are left out, for bash would expand them.
 */
static const char script_head[] =
    "# Completion of imapmuxctl for bash, printed by imapmuxctl --print-completion.\n"
    "_imapmuxctl_names()\n"
    "{\n"
    "    [[ $word == -* ]] && return\n"
    "    \"${COMP_WORDS[0]}\" \"${socket[@]}\" --timeout 1s --json \"${@:2}\" 2>/dev/null |\n"
    "        grep -o \"\\\"$1\\\":\\\"[A-Za-z0-9@._+-]*\\\"\" | cut -d '\"' -f 4\n"
    "}\n"
    "_imapmuxctl()\n"
    "{\n"
    "    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}\n"
    "    local typed= next= files= socket=() i\n"
    "    case $previous in\n"
    "        -s | --socket) COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n"
    "    esac\n"
    "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
    "        case ${COMP_WORDS[i]} in\n"
    "            -s | --socket) ((i++)); socket=(-s \"${COMP_WORDS[i]}\") ;;\n"
    "            --timeout) ((i++)) ;;\n"
    "            -*) ;;\n"
    "            *) typed+=\"${COMP_WORDS[i]} \" ;;\n"
    "        esac\n"
    "    done\n"
    "    case ${typed#help } in\n";

static const char script_tail[] =
    "    esac\n"
    "    COMPREPLY=($(compgen ${files:+-f} -W \"$next\" -- \"$word\"))\n"
    "}\n"
    "complete -F _imapmuxctl imapmuxctl\n";

/* Is this the first command whose name begins with so many octets of its own? */
static bool is_first(const struct ctl_command *command, size_t len)
{
    for (const struct ctl_command *other = ctl_commands; other < command; other++)
        if (strncmp(other->name, command->name, len) == 0)
            return false;
    return true;
}

/* The words that may follow on the first `len` octets of this command's name. */
static void print_next_words(FILE *out, const struct ctl_command *like, size_t len)
{
    for (size_t i = 0; i < CTL_ALL_COUNT; i++) {
        const char *name = ctl_commands[i].name;

        if (strncmp(name, like->name, len) != 0)
            continue;
        size_t word_len = strcspn(name + len, " ");
        if (is_first(&ctl_commands[i], len + word_len + 1)) /* with the blank or the NUL behind */
            fprintf(out, " %.*s", (int)word_len, name + len);
    }
}

static void print_case(FILE *out, const struct ctl_command *like, size_t len)
{
    fprintf(out, "        \"%.*s\") next=\"", (int)len, like->name);
    print_next_words(out, like, len);
    fputs(len == 0 ? " help --all --json --socket --timeout --help\" ;;\n" : "\" ;;\n", out);
}

/* What a value of this argument may be, as words within double quotes. */
static void print_values(FILE *out, const struct ctl_argument *row)
{
    static const char *const shards[] = {"shard", "to", "from"};

    for (const char *at = row->kind == CTL_CHOICE ? row->words : ""; *at != '\0'; at++)
        fprintf(out, "%s%c", at == row->words ? " " : "", *at == '|' ? ' ' : *at);
    if (strcmp(row->name, "user") == 0)
        fputs(" $(_imapmuxctl_names user users --limit 200)", out);
    for (size_t i = 0; i < sizeof shards / sizeof *shards; i++)
        if (strcmp(row->name, shards[i]) == 0)
            fputs(" $(_imapmuxctl_names shard shard list)", out);
}

static bool is_file(const struct ctl_argument *row)
{
    return row->kind == CTL_TEXT && strcmp(row->words, "FILE") == 0;
}

/* After the name of an option its values; else names of options, and values that have a place. */
static void print_argument_case(FILE *out, const struct ctl_command *command)
{
    bool files = false;

    fprintf(out, "        \"%s \"*) case $previous in\n", command->name);
    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++) {
        if (row->kind == CTL_FLAG)
            continue;
        fprintf(out, "            --%s) next=\"", row->name);
        print_values(out, row);
        fputs(is_file(row) ? "\" files=yes ;;\n" : "\" ;;\n", out);
    }
    fputs("            *) next=\"", out);
    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++) {
        fprintf(out, " --%s", row->name);
        if (ctl_has_place(row))
            print_values(out, row);
        files = files || (ctl_has_place(row) && is_file(row));
    }
    fputs(files ? "\" files=yes ;;\n        esac ;;\n" : "\" ;;\n        esac ;;\n", out);
}

void usage_print_completion(FILE *out)
{
    fputs(script_head, out);
    print_case(out, ctl_commands, 0);
    for (size_t i = 0; i < CTL_ALL_COUNT; i++) {
        const struct ctl_command *command = &ctl_commands[i];

        for (size_t at = 0; command->name[at] != '\0'; at++)
            if (command->name[at] == ' ' && is_first(command, at + 1))
                print_case(out, command, at + 1);
        print_argument_case(out, command);
    }
    fputs(script_tail, out);
}
