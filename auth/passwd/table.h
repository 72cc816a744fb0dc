/*
 * A password file as it was at one moment: name:hash lines, with hashes as crypt(5) has them; empty
 * lines and those that begin with # do not count. Immutable, so any number of threads may read it.
 */
#ifndef IMAPMUX_AUTH_PASSWD_TABLE_H
#define IMAPMUX_AUTH_PASSWD_TABLE_H

#include "proxy/base/err.h"

#include <stddef.h>

enum { PASSWD_LINE_MAX = 1023, PASSWD_KEY_SIZE = 16 };

struct passwd_table;

/* Random octets that say in which order a table has its users; the same for all of a process. */
struct passwd_key {
    unsigned char octets[PASSWD_KEY_SIZE];
};

/*
 * Reads an open file from where it stands. NULL with *err set: CONFIG, "path:line: what is wrong",
 * of the first line that is; INTERNAL without memory, or when the file cannot be read.
 */
struct passwd_table *passwd_table_read(int fd, const char *path, const struct passwd_key *key,
                                       struct err *err);

/* Wipes and frees, and nulls the pointer; harmless on NULL. */
void passwd_table_close(struct passwd_table **table);

size_t passwd_table_count(const struct passwd_table *table);

/*
 * The hash of `user`, borrowed from the table, and *known_out. For a name that is not there it is
 * the hash of somebody who is, always the same one as long as that one is there: to check it costs
 * what checking a known user's costs, whatever methods the file has. NULL in an empty table.
 */
const char *passwd_table_find(const struct passwd_table *table, const char *user, bool *known_out);

#endif
