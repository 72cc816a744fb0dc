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

enum ctl_kind { CTL_TEXT, CTL_CHOICE };
enum ctl_presence { CTL_OPTIONAL, CTL_REQUIRED };

struct ctl_argument {
    const char *name; /* NULL ends the arguments of a command */
    enum ctl_kind kind;
    const char *words; /* of a CHOICE: "a|b|c" */
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

/* The places in ctl_commands. */
enum ctl_id {
#define X(id, ...) CTL_ID_##id,
    CTL_COMMANDS(X)
#undef X
        CTL_COMMAND_COUNT
};

enum {
    CTL_WORDS_MAX = 3,     /* of a command's name */
    CTL_ARGUMENTS_MAX = 8, /* of a command */
    CTL_NAME_MAX = 64
};

extern const struct ctl_command ctl_commands[CTL_COMMAND_COUNT];

/* The command of this name, or NULL. */
const struct ctl_command *ctl_find(const char *name);

/* The command's argument of this name, or NULL. */
const struct ctl_argument *ctl_find_argument(const struct ctl_command *command, const char *name);

/* Is it one of the words of "a|b|c"? */
bool ctl_is_word(const char *words, const char *word);

#endif
