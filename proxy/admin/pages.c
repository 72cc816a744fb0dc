/* Owns the way of a page: asked for, read, sent to the client, taken; then the next one. */
#include "proxy/admin/pages.h"

#include "proxy/base/keyed_hash.h"
#include "proxy/base/mem.h"

#include <stdio.h>

enum { SEEN_MIN = 256 };

static void go_on(struct turn_task *task);

/* --- who came already --- */

/* Where this value is, or its free place. */
static uint64_t *find(uint64_t *slots, size_t size, uint64_t value)
{
    size_t at = (size_t)value & (size - 1);

    while (slots[at] != 0 && slots[at] != value)
        at = (at + 1) & (size - 1);
    return &slots[at];
}

static bool grow(struct pages_seen *seen)
{
    size_t size = seen->size == 0 ? SEEN_MIN : 2 * seen->size;
    uint64_t *slots = mem_array(size, sizeof *slots);

    if (slots == NULL)
        return false;
    for (size_t i = 0; i < seen->size; i++)
        if (seen->slots[i] != 0)
            *find(slots, size, seen->slots[i]) = seen->slots[i];
    mem_free(seen->slots);
    seen->slots = slots;
    seen->size = size;
    return true;
}

/* False with *err set; else *is_new_out tells, and the next time it is not. */
static bool see(struct pages_seen *seen, struct span name, bool *is_new_out, struct err *err)
{
    unsigned char hash[KEYED_HASH_SIZE];
    uint64_t value, *slot;

    if (seen->hash == NULL)
        seen->hash = keyed_hash_open();
    if (seen->hash == NULL || !keyed_hash_of(seen->hash, &name, 1, hash) ||
        (seen->count * 2 >= seen->size && !grow(seen)))
        return err_set(err, ERR_INTERNAL, "no memory to remember who came already");
    memcpy(&value, hash, sizeof value);
    value |= 1;
    slot = find(seen->slots, seen->size, value);
    *is_new_out = *slot == 0;
    seen->count += *is_new_out;
    *slot = value;
    return true;
}

static void forget(struct pages_seen *seen)
{
    keyed_hash_close(&seen->hash);
    mem_free(seen->slots);
    *seen = (struct pages_seen){0};
}

/* --- pages --- */

struct span pages_text(const redisReply *row, size_t index)
{
    if (index >= row->elements || row->element[index]->type != REDIS_REPLY_STRING)
        return (struct span){"", 0};
    return (struct span){row->element[index]->str, row->element[index]->len};
}

static bool read_row(struct pages *pages, const redisReply *row)
{
    bool is_new = false;

    if (row->type != REDIS_REPLY_ARRAY)
        return err_set(&pages->err, ERR_UNAVAILABLE, "redis: a page makes no sense");
    if (!see(&pages->seen, pages_text(row, 0), &is_new, &pages->err))
        return false;
    json_t *item = is_new ? pages->make_item(pages, row) : NULL;
    if (item != NULL && json_array_append_new(pages->items, item) != 0)
        err_set(&pages->err, ERR_INTERNAL, "no memory for a page");
    return pages->err.kind == ERR_NONE;
}

static bool read_page(struct pages *pages, const redisReply *reply)
{
    if (reply->type == REDIS_REPLY_ERROR)
        return err_set(&pages->err, ERR_UNAVAILABLE, "redis: %.*s", (int)reply->len, reply->str);

    struct span cursor = pages_text(reply, 0);

    if (reply->type != REDIS_REPLY_ARRAY || cursor.len == 0 || cursor.len >= PAGES_CURSOR_MAX)
        return err_set(&pages->err, ERR_UNAVAILABLE, "redis: a page makes no sense");
    snprintf(pages->cursor, sizeof pages->cursor, "%.*s", SPAN_ARG(cursor));
    for (size_t i = 1; i < reply->elements; i++)
        for (size_t j = 0; j < reply->element[i]->elements; j++)
            if (!read_row(pages, reply->element[i]->element[j]))
                return false;
    return true;
}

/* From hiredis: only noted. */
static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct pages *pages = owner;

    pages->command = NULL;
    if (reply == NULL)
        pages->err = *err;
    else
        read_page(pages, reply);
    turn_post(pages->env->turn, &pages->task);
}

static void ask(struct pages *pages)
{
    struct span arguments[1 + PAGES_ARGUMENTS_MAX] = {span_of(pages->cursor)};

    for (size_t i = 0; i < pages->argument_count; i++)
        arguments[1 + i] = pages->arguments[i];
    pages->command = redis_link_call(pages->env->redis, &pages->script, arguments,
                                     1 + pages->argument_count, 0, on_reply, pages, &pages->err);
    if (pages->command == NULL)
        turn_post(pages->env->turn, &pages->task);
}

static void end(struct pages *pages)
{
    struct err err = pages->err;

    pages_cancel(pages);
    pages->on_end(pages, &err);
}

static void next_page(struct admin_call *call)
{
    struct pages *pages = call->state;

    if (strcmp(pages->cursor, "0") == 0)
        end(pages);
    else
        ask(pages);
}

/* A page has come, or that has failed. */
static void go_on(struct turn_task *task)
{
    struct pages *pages = (struct pages *)((char *)task - offsetof(struct pages, task));
    json_t *item;
    size_t i;

    json_array_foreach(pages->items, i, item)
    {
        admin_item(pages->call, json_incref(item));
    }
    json_array_clear(pages->items);
    if (pages->err.kind != ERR_NONE)
        end(pages);
    else if (admin_queued(pages->call) == 0)
        next_page(pages->call);
}

void pages_start(struct pages *pages)
{
    pages->task.run = go_on;
    pages->call->on_drained = next_page;
    pages->items = json_array();
    snprintf(pages->cursor, sizeof pages->cursor, "0");
    if (pages->items == NULL)
        err_set(&pages->err, ERR_INTERNAL, "no memory for a page");
    if (pages->items != NULL && redis_script_init(&pages->script, pages->script_text, &pages->err))
        ask(pages);
    else
        turn_post(pages->env->turn, &pages->task);
}

void pages_cancel(struct pages *pages)
{
    if (pages->command != NULL)
        redis_command_cancel(pages->command);
    pages->command = NULL;
    turn_cancel(pages->env->turn, &pages->task);
    json_decref(pages->items);
    pages->items = NULL;
    forget(&pages->seen);
}
