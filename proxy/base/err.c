/* Owns the table of failure kinds. */
#include "proxy/base/err.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

static const struct {
    const char *name, *code, *text;
} kinds[ERR_KIND_COUNT] = {
    [ERR_NONE] = {"ok", "", ""},
#define X(kind, name, code, text) [ERR_##kind] = {name, code, text},
#include "proxy/base/err.def"
#undef X
};

bool err_set(struct err *err, enum err_kind kind, const char *format, ...)
{
    va_list args;

    if (err == NULL)
        return false;
    err->kind = kind;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    return false;
}

const char *err_name(enum err_kind kind)
{
    return kinds[kind].name;
}

const char *err_response_code(enum err_kind kind)
{
    assert(kind != ERR_NONE);
    return kinds[kind].code;
}

const char *err_user_text(enum err_kind kind)
{
    assert(kind != ERR_NONE);
    return kinds[kind].text;
}
