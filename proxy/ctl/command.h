/*
 * The commands of administration as a table, made from commands.def: what imapmuxctl offers and
 * imapmux carries out. Both programs have it compiled in.
 */
#ifndef IMAPMUX_CTL_COMMAND_H
#define IMAPMUX_CTL_COMMAND_H

#include "proxy/base/span.h"
#include "proxy/ctl/commands.def"

/* Where imapmuxctl looks for the process unless it is told otherwise. */
#define CTL_SOCKET "/run/imapmux/admin.sock"

/* What somebody may do; each includes the one before. */
enum ctl_level { CTL_NOTHING, CTL_READ, CTL_OPERATE };

enum ctl_kind { CTL_TEXT, CTL_TEXTS, CTL_CHOICE, CTL_FLAG };
enum ctl_presence { CTL_OPTIONAL, CTL_REQUIRED, CTL_NAMED };

struct ctl_argument {
    const char *name; /* NULL ends the arguments of a command */
    enum ctl_kind kind;
    const char *words; /* of a CHOICE: "a|b|c"; of others: what help calls the value, or "" */
    enum ctl_presence presence;
    enum ctl_level level;
    const char *help;
};

struct ctl_command {
    const char *name; /* words with one blank between them */
    enum ctl_level level;
    const struct ctl_argument *arguments;
    const char *help;
};

/* The places in ctl_commands: what imapmux is asked for, then what imapmuxctl does itself. */
enum ctl_id {
#define X(id, ...) CTL_ID_##id,
    CTL_COMMANDS(X) CTL_COMMAND_COUNT,
    CTL_BEFORE_TOOL = CTL_COMMAND_COUNT - 1,
    CTL_TOOL_COMMANDS(X) CTL_ALL_COUNT
#undef X
};

enum {
    CTL_WORDS_MAX = 3,      /* of a command's name */
    CTL_ARGUMENTS_MAX = 16, /* of a command */
    CTL_NAME_MAX = 64
};

/* The value of a FLAG in a request. */
#define CTL_SET "yes"

extern const struct ctl_command ctl_commands[CTL_ALL_COUNT];

/* The command of this name, or NULL. */
const struct ctl_command *ctl_find(const char *name);

/* Is it one that imapmuxctl carries out itself? */
static inline bool ctl_is_of_tool(const struct ctl_command *command)
{
    return command >= ctl_commands + CTL_COMMAND_COUNT;
}

/* Does a word without a name fill it, in its turn? */
static inline bool ctl_has_place(const struct ctl_argument *row)
{
    return row->presence != CTL_NAMED && row->kind != CTL_FLAG;
}

/* The command's argument of this name, or NULL. */
const struct ctl_argument *ctl_find_argument(const struct ctl_command *command, const char *name);

/* Is it one of the words of "a|b|c"? */
bool ctl_is_word(const char *words, const char *word);

#endif
