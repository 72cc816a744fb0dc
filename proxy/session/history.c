/* Owns what is remembered of users, in two tables: of ended sessions, and of refused logins. */
#include "proxy/session/history.h"

#include "proxy/base/hash.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <utlist.h>

struct entry {
    UT_hash_handle hh;
    struct entry *prev, *next; /* who was heard of last is first */
    union {
        struct {
            struct history_end ends[HISTORY_ENDS]; /* a ring */
            unsigned count;                        /* of all that there have been */
        };
        struct history_refusal refusal;
    };
    char user[];
};

struct table {
    struct entry *by_user, *recent;
};

struct history {
    struct table ends, refusals;
};

struct history *history_open(void)
{
    return mem_new(sizeof(struct history));
}

static void drop(struct table *table, struct entry *entry)
{
    assert(table->by_user != NULL);
    HASH_DEL(table->by_user, entry);
    DL_DELETE(table->recent, entry);
    mem_free(entry);
}

void history_close(struct history **history)
{
    struct history *h = *history;

    *history = NULL;
    if (h == NULL)
        return;
    while (h->ends.recent != NULL)
        drop(&h->ends, h->ends.recent);
    while (h->refusals.recent != NULL)
        drop(&h->refusals, h->refusals.recent);
    mem_free(h);
}

static struct entry *find(const struct table *table, const char *user)
{
    struct entry *entry;

    HASH_FIND_STR(table->by_user, user, entry);
    return entry;
}

static struct entry *add(struct table *table, const char *user)
{
    size_t len = strlen(user);
    struct entry *entry;

    if (HASH_COUNT(table->by_user) >= HISTORY_USERS)
        drop(table, table->recent->prev); /* the head's prev is the tail */
    entry = mem_new(sizeof *entry + len + 1);
    if (entry == NULL)
        return NULL;
    memcpy(entry->user, user, len);
    HASH_ADD_STR(table->by_user, user, entry);
    if (entry->hh.tbl != NULL)
        return entry;
    mem_free(entry);
    return NULL;
}

/* The user's entry, which becomes the most recent one; NULL without memory. */
static struct entry *touch(struct table *table, const char *user)
{
    struct entry *entry = find(table, user);

    if (entry != NULL)
        DL_DELETE(table->recent, entry);
    else
        entry = add(table, user);
    if (entry != NULL)
        DL_PREPEND(table->recent, entry);
    return entry;
}

void history_ended(struct history *history, const char *user, const union address *peer,
                   const char *shard, uint64_t seconds, const char *why)
{
    struct entry *entry = touch(&history->ends, user);

    if (entry == NULL)
        return;

    struct history_end *end = &entry->ends[entry->count++ % HISTORY_ENDS];

    *end =
        (struct history_end){.at = time(NULL), .seconds = seconds, .peer = *peer, .shard = shard};
    snprintf(end->why, sizeof end->why, "%.*s", HISTORY_WHY_MAX - 1, why);
}

void history_refused(struct history *history, const char *user, const union address *peer,
                     const char *shard, const struct err *err)
{
    struct entry *entry = touch(&history->refusals, user);

    if (entry == NULL)
        return;
    entry->refusal = (struct history_refusal){
        .at = time(NULL), .peer = *peer, .shard = shard, .kind = err->kind};
    snprintf(entry->refusal.text, sizeof entry->refusal.text, "%.*s", HISTORY_TEXT_MAX - 1,
             err->text);
}

size_t history_of(const struct history *history, const char *user,
                  struct history_end ends_out[HISTORY_ENDS], struct history_refusal *refusal_out)
{
    const struct entry *ended = find(&history->ends, user);
    const struct entry *refused = find(&history->refusals, user);
    size_t count = 0;

    *refusal_out = (struct history_refusal){.at = 0};
    if (refused != NULL)
        *refusal_out = refused->refusal;
    while (ended != NULL && count < HISTORY_ENDS && count < ended->count) {
        ends_out[count] = ended->ends[(ended->count - 1 - count) % HISTORY_ENDS];
        count++;
    }
    return count;
}
