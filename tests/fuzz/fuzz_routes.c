/*
 * A route file against a slow, obvious reader of the same lines: it is taken or refused alike, and
 * each name in it, and one that is not, leads where its line says.
 */
#include <assert.h>

#include "routing/route.h"
#include "tests/fuzz/scratch_file.h"

enum { FILE_MAX = 4096, ENTRIES_MAX = 256, LINE_MAX_OCTETS = 1023 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct entry {
    struct span name, shard, backend_user;
};

/* What the reader makes of the file. */
struct table {
    struct entry entries[ENTRIES_MAX];
    size_t count;
};

static char blue[] = "blue", green[] = "green", file[] = "file";
static char *sources[] = {file};

static const struct entry *find(const struct table *table, struct span name)
{
    for (size_t i = 0; i < table->count; i++)
        if (span_equal(table->entries[i].name, name))
            return &table->entries[i];
    return NULL;
}

/* The next word of a line; empty when there is none, or a comment begins. */
static struct span take_word(struct span *line)
{
    size_t len = 0;

    while (line->len > 0 && strchr(" \t\r", line->ptr[0]) != NULL)
        *line = span_after(*line, 1);
    while (len < line->len && strchr(" \t\r", line->ptr[len]) == NULL)
        len++;

    struct span word = {line->ptr, len};

    *line = span_after(*line, len);
    if (word.len > 0 && word.ptr[0] == '#')
        *line = word = span_after(*line, line->len);
    return word;
}

static bool take_line(struct table *table, struct span line)
{
    struct entry entry;

    if (line.len > LINE_MAX_OCTETS || memchr(line.ptr, '\0', line.len) != NULL)
        return false;
    entry.name = take_word(&line);
    entry.shard = take_word(&line);
    entry.backend_user = take_word(&line);
    if (entry.name.len == 0)
        return true;
    if (entry.backend_user.len > BACKEND_USER_MAX || take_word(&line).len > 0 ||
        find(table, entry.name) != NULL)
        return false;
    table->entries[table->count++] = entry;
    return span_equal(entry.shard, span_of("blue")) || span_equal(entry.shard, span_of("green"));
}

static bool read_table(struct table *table, struct span text)
{
    table->count = 0;
    while (text.len > 0) {
        const char *end = memchr(text.ptr, '\n', text.len);
        size_t len = end == NULL ? text.len : (size_t)(end - text.ptr);

        if (!take_line(table, (struct span){text.ptr, len}))
            return false;
        text = span_after(text, end == NULL ? len : len + 1);
    }
    return true;
}

struct question {
    struct route_request request;
    const struct entry *expected;
    bool answered;
};

static void on_answer(struct route_request *request, const struct route *route,
                      const struct err *err)
{
    struct question *question = request->owner;
    const struct entry *expected = question->expected;

    question->answered = true;
    assert(err->kind == (expected == NULL ? ERR_ADMIN : ERR_NONE));
    if (expected == NULL)
        return;
    assert(span_equal(span_of(route->shard), expected->shard));
    assert(span_equal(span_of(route->backend_user), expected->backend_user.len > 0
                                                        ? expected->backend_user
                                                        : span_of(request->user)));
}

static void ask(uv_loop_t *loop, struct router *router, const struct table *table, struct span name)
{
    char user[BACKEND_USER_MAX + 1];
    struct question question = {
        .request = {
            .user = user, .told_shard = "", .told_backend_user = "", .on_answer = on_answer}};

    if (name.len > BACKEND_USER_MAX)
        return;
    memcpy(user, name.ptr, name.len);
    user[name.len] = '\0';
    question.request.owner = &question;
    question.expected = find(table, name);
    if (question.expected == NULL)
        question.expected = find(table, span_of("*"));
    router_find(router, &question.request);
    while (!question.answered)
        uv_run(loop, UV_RUN_ONCE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uv_loop_t loop;
    static struct turn turn;
    static struct counters counters;
    static struct table table;
    struct conf_shard shards[] = {{.title = blue}, {.title = green, .id = 1}};
    struct conf conf = {
        .shards = shards,
        .shard_count = 2,
        .route = {.sources = {sources, 1}, .timeout = 5000},
    };
    struct env env = {.loop = &loop, .turn = &turn, .conf = &conf, .counters = &counters};
    struct err err = {0};

    if (size > FILE_MAX)
        return 0;
    conf.route.file = (char *)scratch_file_write(data, size);
    uv_loop_init(&loop);
    turn_init(&turn, &loop);

    bool good = read_table(&table, (struct span){(const char *)data, size});
    struct router *router = router_open(&env, &(struct router_view){0}, &err);

    assert((router != NULL) == good && (good || err.kind == ERR_CONFIG));
    for (size_t i = 0; good && i < table.count; i++)
        ask(&loop, router, &table, table.entries[i].name);
    if (good)
        ask(&loop, router, &table, span_of("nobody"));
    router_close(&router);
    turn_release(&turn);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert(uv_loop_close(&loop) == 0);
    return 0;
}
