/* Files of names, one in a line, for moves. */
#ifndef IMAPMUX_CTL_USERS_FILE_H
#define IMAPMUX_CTL_USERS_FILE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

/* Can this be the name of a user, as far as can be told without imapmux? */
bool users_is_name(const char *name);

/*
 * Reads names from `in`; "#" begins a comment, empty lines do not count. An object with the names
 * as its members, each once, in the order of the file; their values are empty objects. NULL when
 * something is wrong: `complaints` has been told what, with the file's `name` and the line.
 */
json_t *users_read(FILE *in, const char *name, FILE *complaints);

#endif
