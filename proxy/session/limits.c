/*
 * Owns the counts, behind one lock: each call holds it for a few look-ups. An entry exists only
 * while something is counted in it, so the table is as large as there are sessions.
 */
#include "proxy/session/limits.h"

#include "proxy/base/hash.h"

#include <assert.h>
#include <stdio.h>
#include <uv.h>

enum { NAME_MAX_BYTES = 255, KEY_MAX = 1 + ADDRESS_TEXT_MAX + 1 + NAME_MAX_BYTES + 1 };

struct limits_entry {
    UT_hash_handle hh;
    uint32_t count;
    /* "u" and a user, "a" and an address, "p" and a pair: "address user"; "w" and an address from
       which somebody has not logged in yet */
    char key[];
};

struct limits {
    uv_mutex_t lock;
    struct conf_limits conf; /* its numbers */
    struct networks trusted;
    struct limits_entry *by_key;
};

/* --- life --- */

struct limits *limits_open(const struct conf_limits *conf, struct err *err)
{
    struct limits *limits = mem_new(sizeof *limits);

    if (limits == NULL || uv_mutex_init(&limits->lock) != 0) {
        mem_free(limits);
        err_set(err, ERR_INTERNAL, "limits: no memory");
        return NULL;
    }
    limits->conf = *conf;
    if (!networks_init(&limits->trusted, &conf->trusted, "limits.trusted", err))
        limits_close(&limits);
    return limits;
}

void limits_close(struct limits **limits)
{
    struct limits *l = *limits;

    *limits = NULL;
    if (l == NULL)
        return;
    assert(l->by_key == NULL);
    networks_release(&l->trusted);
    uv_mutex_destroy(&l->lock);
    mem_free(l);
}

void limits_change(struct limits *limits, const struct conf_limits *conf, struct networks *trusted)
{
    struct networks old;

    uv_mutex_lock(&limits->lock);
    old = limits->trusted;
    limits->conf = *conf;
    limits->trusted = *trusted;
    uv_mutex_unlock(&limits->lock);
    *trusted = old;
}

/* With the lock held. */
static struct limits_numbers numbers_for(const struct limits *limits, const union address *address)
{
    const struct conf_limits *conf = &limits->conf;
    struct limits_numbers numbers = {.user = (uint32_t)conf->per_user};

    if (networks_contain(&limits->trusted, address))
        return numbers;
    numbers.address = (uint32_t)conf->per_address;
    numbers.user_address = (uint32_t)conf->per_user_address;
    return numbers;
}

struct limits_numbers limits_for(struct limits *limits, const union address *address)
{
    uv_mutex_lock(&limits->lock);
    struct limits_numbers numbers = numbers_for(limits, address);
    uv_mutex_unlock(&limits->lock);
    return numbers;
}

/* --- entries --- */

static struct limits_entry *find(struct limits *limits, const char *key)
{
    struct limits_entry *entry;

    HASH_FIND_STR(limits->by_key, key, entry);
    return entry;
}

static struct limits_entry *add(struct limits *limits, const char *key)
{
    size_t len = strlen(key);
    struct limits_entry *entry = mem_new(sizeof *entry + len + 1);

    if (entry == NULL)
        return NULL;
    memcpy(entry->key, key, len);
    HASH_ADD_STR(limits->by_key, key, entry);
    if (entry->hh.tbl != NULL)
        return entry;
    mem_free(entry);
    return NULL;
}

/* Counts one more; `max` of 0 is no limit. NULL with *err set. */
static struct limits_entry *hold(struct limits *limits, const char *key, uint32_t max,
                                 enum err_kind kind, struct err *err)
{
    struct limits_entry *entry = find(limits, key);

    if (entry != NULL && max > 0 && entry->count >= max) {
        err_set(err, kind, "%u are open already", (unsigned)entry->count);
        return NULL;
    }
    if (entry == NULL)
        entry = add(limits, key);
    if (entry == NULL)
        err_set(err, ERR_INTERNAL, "limits: no memory");
    else
        entry->count++;
    return entry;
}

static void drop(struct limits *limits, struct limits_entry *entry)
{
    if (entry == NULL || --entry->count > 0)
        return;
    assert(limits->by_key != NULL);
    HASH_DEL(limits->by_key, entry);
    mem_free(entry);
}

/* Of the entries that the place holds: the key of both together. */
static void pair_key(char key_out[KEY_MAX], const struct limits_place *place)
{
    snprintf(key_out, KEY_MAX, "p%s %s", place->address->key + 1, place->user->key + 1);
}

static bool hold_user(struct limits *limits, struct limits_place *place, const char *user,
                      uint32_t max, struct err *err)
{
    char key[KEY_MAX];

    snprintf(key, sizeof key, "u%s", user);
    place->user = hold(limits, key, max, ERR_USER_LIMIT, err);
    return place->user != NULL;
}

static bool hold_address(struct limits *limits, struct limits_place *place,
                         const union address *address, uint32_t max, struct err *err)
{
    char text[ADDRESS_TEXT_MAX], key[KEY_MAX];

    address_origin_text(address, text);
    snprintf(key, sizeof key, "a%s", text);
    place->address = hold(limits, key, max, ERR_ADDRESS_LIMIT, err);
    return place->address != NULL;
}

static bool hold_pair(struct limits *limits, struct limits_place *place, uint32_t max,
                      struct err *err)
{
    char key[KEY_MAX];

    pair_key(key, place);
    place->pair = hold(limits, key, max, ERR_USER_ADDRESS_LIMIT, err);
    return place->pair != NULL;
}

/* --- sessions --- */

/* A pair needs both of its parts, limited or not. */
static bool enter(struct limits *limits, struct limits_place *place, const char *user,
                  const union address *address, struct err *err)
{
    struct limits_numbers max = numbers_for(limits, address);
    bool by_pair = max.user_address > 0;

    return ((max.user == 0 && !by_pair) || hold_user(limits, place, user, max.user, err)) &&
           ((max.address == 0 && !by_pair) ||
            hold_address(limits, place, address, max.address, err)) &&
           (!by_pair || hold_pair(limits, place, max.user_address, err));
}

bool limits_enter(struct limits *limits, struct limits_place *place, const char *user,
                  const union address *address, struct err *err)
{
    *place = (struct limits_place){0};
    uv_mutex_lock(&limits->lock);
    bool entered = enter(limits, place, user, address, err);
    if (!entered) {
        drop(limits, place->user);
        drop(limits, place->address);
        *place = (struct limits_place){0};
    }
    uv_mutex_unlock(&limits->lock);
    return entered;
}

bool limits_await(struct limits *limits, struct limits_place *place, const union address *address)
{
    char text[ADDRESS_TEXT_MAX], key[KEY_MAX];
    bool entered = true;

    *place = (struct limits_place){0};
    address_origin_text(address, text);
    snprintf(key, sizeof key, "w%s", text);
    uv_mutex_lock(&limits->lock);
    uint32_t max = (uint32_t)limits->conf.before_login;
    if (max > 0 && !networks_contain(&limits->trusted, address)) {
        place->address = hold(limits, key, max, ERR_ADDRESS_LIMIT, NULL);
        entered = place->address != NULL;
    }
    uv_mutex_unlock(&limits->lock);
    return entered;
}

void limits_leave(struct limits *limits, struct limits_place *place)
{
    if (place->user == NULL && place->address == NULL)
        return;
    uv_mutex_lock(&limits->lock);
    drop(limits, place->pair);
    drop(limits, place->user);
    drop(limits, place->address);
    uv_mutex_unlock(&limits->lock);
    *place = (struct limits_place){0};
}
