/*
 * What the files of conf share: settings.def as tables that can be walked. A row describes a
 * setting, its `offset` is where the value lies in the section's struct. Nobody else includes this.
 */
#ifndef IMAPMUX_BASE_CONF_PRIVATE_H
#define IMAPMUX_BASE_CONF_PRIVATE_H

#include "proxy/base/conf_change.h"

#include <limits.h>
#include <string.h>

struct cfg_t;

enum conf_kind {
    CONF_KIND_TEXT,
    CONF_KIND_PATH,
    CONF_KIND_WORDS,
    CONF_KIND_FLAG,
    CONF_KIND_NUMBER,
    CONF_KIND_DURATION,
    CONF_KIND_SIZE,
    CONF_KIND_SECRET,
    CONF_KIND_CHOICE
};

/* Whether a reload puts a new value in force, or only a new process does. */
enum conf_change { CONF_RELOAD, CONF_RESTART };

struct conf_row {
    const char *name; /* NULL ends the rows of a section */
    enum conf_kind kind;
    enum conf_change change;
    const char *default_text;
    int64_t min, max;
    const char *words; /* of a CHOICE: "a|b|c" */
    const char *help;
    size_t offset;
};

struct conf_section {
    const char *name;
    const struct conf_row *(*rows)(void);
    const char *help;
    size_t size;         /* of its struct, which starts as struct conf_head */
    size_t offset;       /* in struct conf: of the struct itself, or of the pointer to the array */
    size_t count_offset; /* of the array's count */
    bool many;
};

/* In the order of settings.def; a NULL name ends them. */
extern const struct conf_section conf_sections[];

/* A value of any kind but WORDS; conf_value_release frees what it holds. */
union conf_value {
    char *text;
    bool flag;
    int64_t number;
    uint64_t duration;
    size_t size;
    struct secret secret;
    int choice;
};

enum {
    CONF_EXPECTED_MAX = 128,
    CONF_AMOUNT_MAX = 32,
    CONF_FILE_MAX = 4 * 1024 * 1024,
    CONF_SECRET_FILE_MAX = 4096
};

/*
 * Converts and range-checks. Relative paths start from `folder`. False: it is not what
 * conf_expected says.
 */
bool conf_value_read(const struct conf_row *row, const char *folder, const char *text,
                     union conf_value *value_out);

/*
 * Stores it as the row's member of the section at `section`, which now owns what the value holds.
 */
void conf_value_store(const struct conf_row *row, const union conf_value *value, void *section);
void conf_value_release(const struct conf_row *row, union conf_value *value);

/* A number, flag, choice, duration or size as it is written in the file: a constant, or `out`. */
const char *conf_value_write(const struct conf_row *row, const void *member,
                             char out[CONF_AMOUNT_MAX]);

/* How large a value is that holds nothing else. */
size_t conf_value_size(const struct conf_row *row);

/* Frees what the row's member at `place` holds. */
void conf_row_release(const struct conf_row *row, void *place);

/* `words` has room for one more text, which is copied. False without memory. */
bool conf_words_add(struct conf_words *words, const char *text);
void conf_words_release(struct conf_words *words);

/* Does it hold no control characters? */
bool conf_is_text(const char *text);

/* "a number from 1 to 64", "one of none, starttls, implicit". */
void conf_expected(const struct conf_row *row, char out[CONF_EXPECTED_MAX]);

/* The absolute path in new memory; "" stays "". NULL without memory. */
char *conf_path(const char *folder, const char *path);

/*
 * The whole file, NUL-terminated, in new memory; NULL with errno set, which is EFBIG over `max`
 * bytes. Wipe before freeing.
 */
char *conf_load(const char *path, size_t max, size_t *len_out);

/*
 * Blanks out comments, so that what is left has the same lines. False when libconfuse's lexer would
 * be left in a bad state, with what is wrong in *problem_out (a constant) and the line where.
 */
bool conf_blank_comments(char *text, size_t len, const char **problem_out, int *line_out);

/*
 * Writes that the section has no setting of this name, or, if there is no such section, that the
 * file has no section of this name; and where it belongs, or which name may be meant.
 */
void conf_say_unknown(const char *section_name, const char *name, char *out, size_t size);

/* Where a configuration is being read from, for messages. */
struct conf_reader {
    const char *path;
    char folder[PATH_MAX];
    struct cfg_t *cfg;
    unsigned depth; /* of includes */
    struct conf_words files;
    struct err *err;
};

/*
 * The first failure goes to *reader->err as "file:line: ..."; later ones are its consequences.
 * Always false.
 */
bool conf_fail(struct conf_reader *reader, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The same at the start of the section's `index`th instance; at the file when there is none. */
bool conf_fail_in(struct conf_reader *reader, const char *section, size_t index, const char *format,
                  ...) __attribute__((format(printf, 4, 5)));

/* It was read for this configuration. False without memory. */
bool conf_note_file(struct conf_reader *reader, const char *path);

/* What errno says of a file that could not be opened, or why it was another matter at the start. */
const char *conf_why_unread(const char *path);

/* May this process read and write what the configuration names? */
bool conf_check_paths(struct conf_reader *reader, const struct conf *conf);

/* Notes what the files are that it names, before anybody reads them. False without memory. */
bool conf_see_files(struct conf *conf);
void conf_forget_files(struct conf *conf);

/*
 * Compares, and gives `after` what stays as it was `before`: ids of shards, and values that only a
 * new process can change. False without memory.
 */
bool conf_follow(const struct conf *before, struct conf *after, struct conf_changes *changes);

/* What concerns several settings, or the outside world. */
bool conf_check(struct conf_reader *reader, const struct conf *conf);

static inline bool conf_starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* Its part about who may log in. */
bool conf_check_login(struct conf_reader *reader, const struct conf *conf);

/* Is it there, is it a file, may we read it? What is in it is for its reader to say. */
bool conf_check_file(struct conf_reader *reader, const char *section, size_t index,
                     const char *setting, const char *path);

#endif
