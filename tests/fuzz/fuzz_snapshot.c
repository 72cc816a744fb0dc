/*
 * The reader of snapshots and journals. The input is a snapshot and a journal, with an octet 0xff
 * between; if its first octet is even, the snapshot gets its right checksum, which nobody would
 * find. Whatever is in them, all is refused, or each route is one that could be written, and what
 * was given comes back when it is written again. A slow, obvious reader of the journal says who must
 * not be among them.
 */
#include <assert.h>

#include "proxy/base/mem.h"
#include "routing/snapshot.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { INPUT_MAX = 8192, NOW = 1000 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static const char *beside(const char *suffix)
{
    static char name[80];

    snprintf(name, sizeof name, "%s%s", path, suffix);
    return name;
}

static void remove_files(void)
{
    static const char *const suffixes[] = {"", ".moved", ".lock", ".new"};

    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        unlink(beside(suffixes[i]));
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    snprintf(path, sizeof path, "/dev/shm/imapmux-fuzz-snapshot-%ld", (long)getpid());
    atexit(remove_files);
    return 0;
}

static void put(const char *name, struct span text, bool is_signed)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    FILE *file = fopen(name, "we");

    if (file == NULL || fwrite(text.ptr, 1, text.len, file) != text.len)
        abort();
    if (is_signed) {
        EVP_Digest(text.ptr, text.len, digest, NULL, EVP_sha256(), NULL);
        fputs("sha256 ", file);
        for (int i = 0; i < 32; i++)
            fprintf(file, "%02x", digest[i]);
        fputs("\n", file);
    }
    if (fclose(file) != 0)
        abort();
}

/* What was given, as snapshot_add writes it, and the journal that it was given in spite of. */
struct given {
    struct buf routes;
    struct span journal;
    uint64_t mark;
};

/* Is there a line "<number> TAB <user> TAB ..." with a number above the mark? */
static bool is_moved(const struct given *given, const char *user)
{
    struct span rest = given->journal;
    size_t len = strlen(user);

    for (;;) {
        const char *end = rest.len == 0 ? NULL : memchr(rest.ptr, '\n', rest.len);
        char *after;

        if (end == NULL)
            return false;
        if (strtoull(rest.ptr, &after, 10) > given->mark && *after == '\t' &&
            (size_t)(end - after) > len + 1 && memcmp(after + 1, user, len) == 0 &&
            after[1 + len] == '\t')
            return true;
        rest = span_after(rest, (size_t)(end - rest.ptr) + 1);
    }
}

static void check_text(const char *text, size_t min, size_t max)
{
    size_t len = strlen(text);

    assert(len >= min && len <= max);
    for (size_t i = 0; i < len; i++)
        assert((unsigned char)text[i] >= ' ' && text[i] != 0x7f);
}

static void on_route(void *owner, const struct known_route *route)
{
    struct given *given = owner;

    check_text(route->user, 1, 511);
    check_text(route->shard, 1, SHARD_NAME_MAX);
    check_text(route->backend_user, 0, BACKEND_USER_MAX);
    snapshot_add(&given->routes, route);
}

static void check_not_moved(void *owner, const struct known_route *route)
{
    assert(!is_moved(owner, route->user));
}

static bool read_files(struct snapshot_head *head_out,
                       void (*visit)(void *, const struct known_route *), void *owner)
{
    struct err err = {0};
    struct snapshot *snapshot = snapshot_open(path, &err);
    bool good;

    assert(snapshot != NULL);
    good = snapshot_read(snapshot, NOW, head_out, visit, owner, &err);
    assert(good == (err.kind == ERR_NONE) && (good || head_out->fence_ms == 0));
    snapshot_close(&snapshot);
    return good;
}

/* What was given is written again by this process, and read by the next. */
static void check_again(struct given *given, struct snapshot_head head)
{
    struct err err = {0};
    struct snapshot *snapshot = snapshot_open(path, &err);
    struct given again = {.mark = 0};
    const struct span part = buf_span(&given->routes);

    buf_init(&again.routes, BUF_CEILING_MAX);
    head.mark = snapshot_mark(snapshot);
    head.written_ms = NOW; /* so that nothing grows older */
    assert(snapshot_write(snapshot, &head, &part, 1, &err));
    snapshot_written(snapshot, &head);
    assert(snapshot_add_moved(snapshot, "nobody at all", 1, &err));
    snapshot_close(&snapshot);
    assert(read_files(&head, on_route, &again));
    assert(span_equal(buf_span(&again.routes), buf_span(&given->routes)));
    buf_release(&again.routes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct given given = {.mark = 0};
    struct snapshot_head head;
    const char *text = (const char *)data + 1, *split;
    struct span first, second = {"", 0};

    if (size < 1 || size > INPUT_MAX)
        return 0;
    split = memchr(text, 0xff, size - 1);
    first = (struct span){text, split == NULL ? size - 1 : (size_t)(split - text)};
    if (split != NULL)
        second = span_after((struct span){text, size - 1}, first.len + 1);
    put(path, first, data[0] % 2 == 0);
    put(beside(".moved"), second, false);
    buf_init(&given.routes, BUF_CEILING_MAX);

    bool good = read_files(&head, on_route, &given);

    /* A copy that ends in a NUL, for strtoull. */
    given.journal = (struct span){mem_copy_text(second.ptr, second.len), second.len};
    given.mark = head.mark;
    if (good)
        read_files(&head, check_not_moved, &given);
    else
        assert(buf_len(&given.routes) == 0);
    if (good && head.fence_ms > NOW)
        check_again(&given, head);
    mem_free((void *)given.journal.ptr);
    buf_release(&given.routes);
    return 0;
}
