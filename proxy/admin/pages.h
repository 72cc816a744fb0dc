/*
 * A long result that Redis gives page by page, each by one call of a script: as items, as fast as
 * the client takes them. For handlers.
 *
 * The script's text begins with PAGES_HEAD. It gets the cursor as ARGV[1], "0" at first, and the
 * owner's arguments behind it; it returns pages(cursor, rows), where a row is a list that begins
 * with a name, and the cursor is "0" at the end. A name that comes again is left out, as SCAN may
 * give one several times.
 */
#ifndef IMAPMUX_ADMIN_PAGES_H
#define IMAPMUX_ADMIN_PAGES_H

#include "proxy/admin/admin.h"
#include "proxy/net/redis_link.h"

enum { PAGES_ARGUMENTS_MAX = 4, PAGES_CURSOR_MAX = 24 };

/* A reply has 64 elements at the most, so rows come in groups. */
#define PAGES_HEAD                                                                                 \
    "local function pages(cursor, rows)\n"                                                         \
    "  local reply = {cursor}\n"                                                                   \
    "  for i, row in ipairs(rows) do\n"                                                            \
    "    if i % 50 == 1 then reply[#reply + 1] = {} end\n"                                         \
    "    local group = reply[#reply]\n"                                                            \
    "    group[#group + 1] = row\n"                                                                \
    "  end\n"                                                                                      \
    "  return reply\n"                                                                             \
    "end\n"

struct pages;

/* Who came already, by 64 bits of a keyed hash of the name. */
struct pages_seen {
    struct keyed_hash *hash;
    uint64_t *slots; /* 0 is an empty one */
    size_t size, count;
};

struct pages {
    /* Set by the owner; borrowed until the end. */
    struct admin_call *call;
    const struct env *env;
    const char *script_text;
    struct span arguments[PAGES_ARGUMENTS_MAX];
    size_t argument_count;
    /* NULL: this row is none; or, with `err` set, there was no memory for it. */
    json_t *(*make_item)(struct pages *pages, const redisReply *row);
    /* All has been taken, or not (*err): the owner answers the call. Later, once. */
    void (*on_end)(struct pages *pages, const struct err *err);

    /* Private. */
    struct redis_script script;
    struct redis_command *command;
    struct turn_task task;
    struct pages_seen seen;
    char cursor[PAGES_CURSOR_MAX];
    json_t *items;
    struct err err;
};

/* Uses the call's on_drained; the call's state is the pages' owner, whose first member they are. */
void pages_start(struct pages *pages);

/* After this there is no on_end. */
void pages_cancel(struct pages *pages);

/* A text of a row; "" when it is absent. */
struct span pages_text(const redisReply *row, size_t index);

#endif
