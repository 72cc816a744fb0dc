/*
 * A password file that is read again when it changes. One thread looks after it, so no loop ever
 * waits for a disk; any number of threads may ask.
 */
#ifndef IMAPMUX_AUTH_PASSWD_FILE_H
#define IMAPMUX_AUTH_PASSWD_FILE_H

#include "auth/passwd/table.h"

struct passwd_file;

/*
 * Reads the file, here and now; NULL with *err set: see passwd_table_read. From then on a new
 * version that is good replaces the old one whole, within some seconds after the last change to it.
 * One that is not is told in the log, and the old one stays; so it does when the file is gone.
 */
struct passwd_file *passwd_file_open(const char *path, struct err *err);

/* Only reads it, as passwd_file_open would. False with *err set. */
bool passwd_file_check(const char *path, struct err *err);

/* Waits for the thread, and nulls the pointer; harmless on NULL. */
void passwd_file_close(struct passwd_file **file);

/*
 * Copies what passwd_table_find finds, NUL-terminated; false when the file has no users. The copy
 * is the caller's to wipe.
 */
bool passwd_file_find(struct passwd_file *file, const char *user,
                      char hash_out[PASSWD_LINE_MAX + 1], bool *known_out);

#endif
