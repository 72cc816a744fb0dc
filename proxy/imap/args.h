/*
 * Reads the parts of one complete command that lies in memory with its literals in place:
 *
 *     "a1 LOGIN {3}\r\nann {6+}\r\nsecret\r\n"
 *
 * A cursor over borrowed bytes, for login-time commands (RFC 9051 9). Every reader either takes
 * what it names and returns true, or returns false and leaves the cursor where it was. Nothing is
 * skipped silently: spaces are read with args_space. NUL is refused everywhere.
 */
#ifndef IMAPMUX_IMAP_ARGS_H
#define IMAPMUX_IMAP_ARGS_H

#include "proxy/base/span.h"

#define ARGS_DEPTH_MAX 8 /* open lists */

struct args {
    struct span rest; /* not read yet */
    unsigned depth;   /* open lists */
};

enum arg_kind { ARG_ATOM, ARG_QUOTED, ARG_LITERAL, ARG_NIL };

struct arg {
    enum arg_kind kind;
    struct span
        raw; /* a quoted string without its quotes, but still with its backslashes; empty for NIL */
    size_t value_len; /* octets of the value, backslashes undone */
};

/* The final line end may be missing. */
void args_init(struct args *args, struct span command);

/* 1*<any ASTRING-CHAR except "+">; it must stand before a space or the end. */
bool args_tag(struct args *args, struct span *tag_out);

bool args_word(struct args *args,
               struct span *word_out); /* an atom: a command name, a mechanism, base64 */
bool args_space(struct args *args);    /* exactly one space */
bool args_end(struct args *args);      /* the line end, spaces before it allowed; no list open */

bool args_astring(struct args *args,
                  struct arg *arg_out); /* atom (with "]"), quoted or literal; never ARG_NIL */
bool args_string(struct args *args, struct arg *arg_out);  /* quoted or literal */
bool args_nstring(struct args *args, struct arg *arg_out); /* quoted, literal or NIL */

bool args_open(struct args *args);  /* "(", at most ARGS_DEPTH_MAX deep */
bool args_close(struct args *args); /* ")" of an open list */

/*
 * Steps through the parameters of ID (RFC 2971): NIL, or "(" string SP nstring ... ")". Call until
 * it is not ARGS_ID_PAIR; `started` is false for the first call and true for the rest.
 */
enum args_id { ARGS_ID_BAD = -1, ARGS_ID_END, ARGS_ID_PAIR };
enum args_id args_id(struct args *args, bool started, struct arg *name_out, struct arg *value_out);

/*
 * The value, backslashes undone, with a NUL behind it. Returns its length (arg->value_len); if that
 * is not below `size`, nothing but an empty string is written. The caller wipes what is secret.
 */
size_t arg_copy(const struct arg *arg, char *out, size_t size);

/* RFC 9051 "tag". */
bool args_is_tag(struct span text);

#endif
