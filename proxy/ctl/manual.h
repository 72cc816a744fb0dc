/*
 * The manual page of imapmuxctl, made of a template and the table of commands. In the template
 *     @command cache flush
 * stands for the head of an entry: the command, its arguments, its help. Lines behind it say more;
 * then comes what each argument is. `@end` ends the last entry.
 */
#ifndef IMAPMUX_CTL_MANUAL_H
#define IMAPMUX_CTL_MANUAL_H

#include "proxy/base/err.h"

#include <stdio.h>

/* False with *err set: the template names a command that is none, or leaves one out. */
bool manual_print(FILE *template, FILE *out, struct err *err);

#endif
