/*
 * A failure, told once by the lowest layer that knows: its kind (err.def) decides what the user
 * hears and how it is logged, its text is for the admin. A zeroed struct err is "no failure".
 */
#ifndef IMAPMUX_BASE_ERR_H
#define IMAPMUX_BASE_ERR_H

#include <stdbool.h>

enum err_kind {
    ERR_NONE,
#define X(kind, name, code, text) ERR_##kind,
#include "proxy/base/err.def"
#undef X
    ERR_KIND_COUNT
};

struct err {
    enum err_kind kind;
    char text[240]; /* for logs; cut when longer */
};

/*
 * Fills *err (which may be NULL) and returns false, so that a failing function can end with `return
 * err_set(...)`.
 */
bool err_set(struct err *err, enum err_kind kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The kind's word in logs and metrics ("credentials"); "ok" for ERR_NONE. */
const char *err_name(enum err_kind kind);

/* RFC 5530 response code without brackets, and the sentence for the user. Not for ERR_NONE. */
const char *err_response_code(enum err_kind kind);
const char *err_user_text(enum err_kind kind);

#endif
