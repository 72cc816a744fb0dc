/*
 * Users who have been moved since a snapshot: a file of lines
 *     <number> TAB <user> TAB <epoch>
 * each of which is on the disk before the move goes on. A snapshot bears the number of the last
 * line that it makes superfluous, so it is no matter whether the journal is emptied before or after
 * a crash. For one thread.
 */
#ifndef IMAPMUX_ROUTING_JOURNAL_H
#define IMAPMUX_ROUTING_JOURNAL_H

#include "proxy/base/err.h"

#include <stdint.h>

enum { JOURNAL_USER_MAX = 511 };

struct journal;
struct moved; /* users, by name */

/*
 * Opens or makes the file; further lines have greater numbers than `number`, and than those that
 * are there. A line without its end is dropped: whoever wrote it never heard that it was done. NULL
 * with *err set (UNAVAILABLE).
 */
struct journal *journal_open(const char *path, uint64_t number, struct err *err);

/* Nulls the pointer; harmless on NULL. */
void journal_close(struct journal **journal);

/* Of the last line. */
uint64_t journal_number(const struct journal *journal);

/* On the disk when it returns true. A name with control characters is in no snapshot, nor here. */
bool journal_append(struct journal *journal, const char *user, uint64_t epoch, struct err *err);

/* Empties it, if nothing has been appended since. */
void journal_clear(struct journal *journal, uint64_t number);

/*
 * The users of lines with greater numbers, for moved_free; NULL is nobody. False with *err set
 * (CONFIG): a line makes no sense, so nobody can tell who has been moved; or memory is short.
 */
bool journal_read(const struct journal *journal, uint64_t number, struct moved **moved_out,
                  struct err *err);
bool moved_has(const struct moved *moved, const char *user);
void moved_free(struct moved **moved);

#endif
