/*
 * A password file against a slow, obvious reader of the same lines: it is taken or refused alike,
 * and a refusal names the first line that is bad.
 */
#include <assert.h>
#include <crypt.h>

#include "auth/auth.h"
#include "tests/fuzz/scratch_file.h"

enum { FILE_MAX = 4096, LINES_MAX = FILE_MAX / 2, LINE_MAX_OCTETS = 1023 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char passwd[] = "passwd";
static char *sources[] = {passwd};

struct names {
    struct span all[LINES_MAX];
    size_t count;
};

static bool is_new(struct names *names, struct span name)
{
    for (size_t i = 0; i < names->count; i++)
        if (span_equal(names->all[i], name))
            return false;
    names->all[names->count++] = name;
    return true;
}

static bool is_hash(struct span text)
{
    char hash[LINE_MAX_OCTETS + 1];

    memcpy(hash, text.ptr, text.len);
    hash[text.len] = '\0';

    int salt = crypt_checksalt(hash);

    return strpbrk(hash, ": \t\r") == NULL && salt != CRYPT_SALT_INVALID &&
           salt != CRYPT_SALT_METHOD_DISABLED;
}

static bool is_good(struct names *names, struct span line)
{
    if (line.len > LINE_MAX_OCTETS || memchr(line.ptr, '\0', line.len) != NULL)
        return false;
    if (line.len == 0 || line.ptr[0] == '#')
        return true;

    const char *colon = memchr(line.ptr, ':', line.len);
    struct span name = {line.ptr, colon == NULL ? 0 : (size_t)(colon - line.ptr)};

    return name.len > 0 && name.len <= USERNAME_MAX && is_hash(span_after(line, name.len + 1)) &&
           is_new(names, name);
}

/* The number of the first bad line; 0 if all are good. */
static unsigned first_bad_line(struct span text)
{
    static struct names names;

    names.count = 0;
    for (unsigned number = 1; text.len > 0; number++) {
        const char *end = memchr(text.ptr, '\n', text.len);
        size_t len = end == NULL ? text.len : (size_t)(end - text.ptr);

        if (!is_good(&names, (struct span){text.ptr, len}))
            return number;
        text = span_after(text, end == NULL ? len : len + 1);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uv_loop_t loop;
    static struct turn turn;
    static struct counters counters;
    struct conf conf = {.auth = {.sources = {sources, 1}, .timeout = 5000}};
    struct env env = {&loop, &turn, &conf, &counters};
    struct err err = {0};
    char expected[64];

    if (size > FILE_MAX)
        return 0;
    conf.passwd.file = (char *)scratch_file_write(data, size);
    uv_loop_init(&loop);
    turn_init(&turn, &loop);

    unsigned bad = first_bad_line((struct span){(const char *)data, size});
    struct auth *auth = auth_open(&env, NULL, &err);

    assert((auth != NULL) == (bad == 0));
    snprintf(expected, sizeof expected, "%s:%u: ", conf.passwd.file, bad);
    assert(bad == 0 || (err.kind == ERR_CONFIG && strstr(err.text, expected) != NULL));
    auth_close(&auth);
    turn_release(&turn);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert(uv_loop_close(&loop) == 0);
    return 0;
}
