/*
 * Owns reading files whole, and the comments of proxy.conf. libconfuse 3.3 counts lines wrongly
 * after a comment and takes none within a list; an unfinished string leaves its lexer unfit for the
 * next file, and an unfinished section at the end of a file passes for a whole one. So it is given
 * text without comments whose strings and braces all end.
 */
#include "proxy/base/conf_private.h"

#include "proxy/base/mem.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

/* A place in the text that is being cleaned. */
struct cursor {
    char *at, *end;
    int line;
    int depth, open_line; /* braces that are open, and where the outermost is */
    const char *problem;
};

static size_t room_for(FILE *file, size_t max);
static void count_brace(struct cursor *cursor);
static void blank_line(struct cursor *cursor);
static bool blank_block(struct cursor *cursor);
static bool skip_string(struct cursor *cursor, char quote);
static bool skip_variable(struct cursor *cursor);
static void step(struct cursor *cursor);

char *conf_load(const char *path, size_t max, size_t *len_out)
{
    FILE *file = fopen(path, "re");
    size_t room = file == NULL ? 0 : room_for(file, max);
    char *text = file == NULL ? NULL : mem_new(room + 1);
    int failure = errno;

    if (text != NULL) {
        *len_out = fread(text, 1, room, file);
        failure = ferror(file) ? errno : fgetc(file) != EOF ? EFBIG : 0;
        text[*len_out] = '\0';
    }
    if (file != NULL)
        fclose(file);
    if (text != NULL && failure != 0) {
        secret_wipe(text, *len_out);
        mem_free(text);
        text = NULL;
    }
    errno = failure;
    return text;
}

/* As much as a file on a disk holds: each thread that has ever read one keeps the room. */
static size_t room_for(FILE *file, size_t max)
{
    struct stat status;

    if (fstat(fileno(file), &status) < 0 || !S_ISREG(status.st_mode) || status.st_size == 0)
        return max;
    return (uintmax_t)status.st_size < max ? (size_t)status.st_size : max;
}

bool conf_blank_comments(char *text, size_t len, const char **problem_out, int *line_out)
{
    struct cursor cursor = {.at = text, .end = text + len, .line = 1};
    bool ok = true, in_word = false; /* "//" within a word starts no comment: ldap://host */

    while (ok && cursor.at < cursor.end) {
        char ch = *cursor.at, next = cursor.at[1]; /* a NUL stands behind the text */

        *line_out = cursor.line;
        if (ch == '\0') {
            cursor.problem = "there is a NUL byte";
            ok = false;
        } else if (ch == '#' || (!in_word && ch == '/' && next == '/')) {
            blank_line(&cursor);
        } else if (!in_word && ch == '/' && next == '*') {
            ok = blank_block(&cursor);
        } else if (ch == '"' || ch == '\'') {
            ok = skip_string(&cursor, ch);
        } else if (ch != '$' || !skip_variable(&cursor)) {
            count_brace(&cursor);
            step(&cursor);
        }
        in_word = strchr(" \t\r\n\"'={}()+,", ch) == NULL;
    }
    if (ok && cursor.depth > 0) {
        cursor.problem = "the brace that opens here is not closed";
        *line_out = cursor.open_line;
        ok = false;
    }
    *problem_out = cursor.problem;
    return ok;
}

static void count_brace(struct cursor *cursor)
{
    if (*cursor->at == '{' && cursor->depth++ == 0)
        cursor->open_line = cursor->line;
    if (*cursor->at == '}')
        cursor->depth--; /* one too many is libconfuse's to find */
}

static void blank_line(struct cursor *cursor)
{
    while (cursor->at < cursor->end && *cursor->at != '\n')
        *cursor->at++ = ' ';
}

static bool blank_block(struct cursor *cursor)
{
    char *close = memmem(cursor->at + 2, (size_t)(cursor->end - cursor->at) - 2, "*/", 2);

    if (close == NULL) {
        cursor->problem = "the comment that starts here does not end";
        return false;
    }
    while (cursor->at < close + 2) {
        char *blank = cursor->at;

        step(cursor);
        if (*blank != '\n')
            *blank = ' ';
    }
    return true;
}

static bool skip_string(struct cursor *cursor, char quote)
{
    for (step(cursor); cursor->at < cursor->end && *cursor->at != '\0'; step(cursor)) {
        if (*cursor->at == quote) {
            step(cursor);
            return true;
        }
        if (quote == '"' && *cursor->at == '$' && skip_variable(cursor))
            cursor->at--; /* the loop steps over the brace */
        else if (*cursor->at == '\\' && cursor->at + 1 < cursor->end) {
            step(cursor);
            if (quote == '"' && *cursor->at >= '0' && *cursor->at <= '9') {
                cursor->problem = "write \\xNN instead of an octal escape";
                return false;
            }
        }
    }
    cursor->problem = "the string that starts here does not end";
    return false;
}

/* Over "${NAME}", whatever stands between the braces. False when it is none. */
static bool skip_variable(struct cursor *cursor)
{
    char *brace = NULL;

    if (cursor->at[1] == '{')
        brace = memchr(cursor->at, '}', (size_t)(cursor->end - cursor->at));
    if (brace == NULL)
        return false;
    while (cursor->at <= brace)
        step(cursor);
    return true;
}

static void step(struct cursor *cursor)
{
    if (*cursor->at++ == '\n')
        cursor->line++;
}
