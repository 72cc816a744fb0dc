/* Owns the table of commands, and finding in it. */
#include "proxy/ctl/command.h"

#define ARGUMENT(name, kind, words, presence, level, help)                                         \
    {name, CTL_##kind, words, CTL_##presence, CTL_##level, help},
#define COMMAND(id, name, level, arguments, help)                                                  \
    {name, CTL_##level, (const struct ctl_argument[]){arguments(ARGUMENT){0}}, help},

const struct ctl_command ctl_commands[CTL_ALL_COUNT] = {CTL_COMMANDS(COMMAND)
                                                            CTL_TOOL_COMMANDS(COMMAND)};

const struct ctl_command *ctl_find(const char *name)
{
    for (size_t i = 0; i < CTL_ALL_COUNT; i++)
        if (strcmp(ctl_commands[i].name, name) == 0)
            return &ctl_commands[i];
    return NULL;
}

const struct ctl_argument *ctl_find_argument(const struct ctl_command *command, const char *name)
{
    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++)
        if (strcmp(row->name, name) == 0)
            return row;
    return NULL;
}

bool ctl_is_word(const char *words, const char *word)
{
    for (size_t len; *words != '\0'; words += len + (words[len] == '|')) {
        len = strcspn(words, "|");
        if (strlen(word) == len && memcmp(words, word, len) == 0)
            return true;
    }
    return false;
}
