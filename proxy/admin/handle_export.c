/* Owns the handler that tells all routes that Redis has. */
#include "proxy/admin/handlers.h"
#include "proxy/admin/pages.h"

#include "proxy/base/mem.h"
#include "proxy/process/control.h"

#include <stdlib.h>

/*
 * ARGV: cursor, the pattern of users' keys, how many octets stand before the name, a shard or "".
 * What is no hash, or has neither shard nor state, is no route.
 */
static const char script[] = PAGES_HEAD
    "local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 50)\n"
    "local rows = {}\n"
    "for _, key in ipairs(found[2]) do\n"
    "  local route = redis.pcall('HMGET', key, 'shard', 'state', 'backend_user', 'epoch')\n"
    "  if not route.err and (route[1] or route[2]) and (ARGV[4] == '' or ARGV[4] == route[1]) "
    "then\n"
    "    table.insert(route, 1, string.sub(key, ARGV[3] + 1, -2))\n"
    "    rows[#rows + 1] = route\n"
    "  end\n"
    "end\n"
    "return pages(found[1], rows)\n";

enum { ROW_USER, ROW_SHARD, ROW_STATE, ROW_BACKEND_USER, ROW_EPOCH };

struct export
{
    struct pages pages;
    const char *shard; /* the only one wanted; NULL: all */
    bool found;
    char pattern[2 * REDIS_KEY_MAX], skipped[24];
};

/* A row that is no text in UTF-8 is none of ours; else it is memory that is wanting. */
static json_t *make_item(struct pages *pages, const redisReply *row)
{
    struct span user = pages_text(row, ROW_USER), shard = pages_text(row, ROW_SHARD),
                state = pages_text(row, ROW_STATE), name = pages_text(row, ROW_BACKEND_USER);
    /* what hiredis has read ends with a NUL */
    unsigned long long epoch = strtoull(pages_text(row, ROW_EPOCH).ptr, NULL, 10);
    json_error_t error;

    ((struct export *)pages)->found = true;
    if (state.len == 0)
        state = span_of("active");
    json_t *item =
        json_pack_ex(&error, 0, "{s:s%, s:s%, s:s%, s:s%, s:I}", "user", user.ptr, user.len,
                     "shard", shard.ptr, shard.len, "state", state.ptr, state.len, "backend_user",
                     name.ptr, name.len, "epoch", (json_int_t)epoch);
    if (item == NULL && json_error_code(&error) != json_error_invalid_utf8)
        err_set(&pages->err, ERR_INTERNAL, "no memory for a page");
    return item;
}

static void cancel(struct admin_call *call)
{
    struct export *export = call->state;

    pages_cancel(&export->pages);
    mem_free(export);
}

static void on_end(struct pages *pages, const struct err *err)
{
    struct export *export = (struct export *)pages;
    const char *shard = export->shard;

    if (err->kind != ERR_NONE)
        admin_refuse(pages->call, "%s", err->text);
    else if (shard != NULL && !export->found && conf_find_shard(pages->env->conf, shard) == NULL)
        admin_refuse(pages->call, "there is no shard \"%.63s\"", shard);
    else
        admin_answer(pages->call, json_null());
    mem_free(export);
}

/* What a prefix holds is meant as it is. */
static bool write_pattern(struct export *export, const struct conf_redis *redis)
{
    char key[REDIS_KEY_MAX], *out = export->pattern;

    if (!redis_key(key, redis, "user", ""))
        return false;
    for (const char *at = key; *at != '\0'; at++) {
        if (strchr("*?[]\\", *at) != NULL)
            *out++ = '\\';
        if (*at == '}')
            *out++ = '*';
        *out++ = *at;
    }
    *out = '\0';
    snprintf(export->skipped, sizeof export->skipped, "%zu", strlen(key) - 1);
    return true;
}

void run_routes_export(struct admin_call *call)
{
    struct control *control = call->context;
    const char *shard = admin_argument(call, "shard");
    struct export *export = mem_new(sizeof *export);

    if (export == NULL || control->env.redis == NULL ||
        !write_pattern(export, &control->env.conf->redis)) {
        admin_refuse(call, export == NULL ? "out of memory" : "the configuration has no Redis");
        mem_free(export);
        return;
    }
    export->pages = (struct pages){.call = call,
                                   .env = &control->env,
                                   .script_text = script,
                                   .arguments = {span_of(export->pattern), span_of(export->skipped),
                                                 span_of(shard == NULL ? "" : shard)},
                                   .argument_count = 3,
                                   .make_item = make_item,
                                   .on_end = on_end};
    export->shard = shard;
    call->state = export;
    call->cancel = cancel;
    pages_start(&export->pages);
}
