/* What imapmuxctl says of itself: its help, and its completion for bash, from the table. */
#ifndef IMAPMUX_CTL_USAGE_H
#define IMAPMUX_CTL_USAGE_H

#include "proxy/ctl/command.h"

#include <stdio.h>

/* How to call it, all commands, the options. */
void usage_print(FILE *out);

/* All about one command. */
void usage_print_command(FILE *out, const struct ctl_command *command);

/* One line for each command whose name begins like this, or, if none does, nearly so. */
void usage_print_matching(FILE *out, const char *start);

/* A script for bash. */
void usage_print_completion(FILE *out);

#endif
