/*
 * Owns what is remembered of addresses and users that failed, behind one lock: each call holds it
 * for a few look-ups. An entry is held while an attempt is under way, and else rests; the one that
 * has rested for longest makes room.
 */
#include "auth/throttle.h"

#include "proxy/base/hash.h"
#include "proxy/base/keyed_hash.h"
#include "proxy/base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <utlist.h>
#include <uv.h>

enum {
    GUESSES = 8,    /* the latest wrong passwords, of an address or for a user */
    LEVEL_MAX = 32, /* who goes on for ever is forgiven as soon as who has stopped here */
    KEY_MAX = 264
};

struct throttle_entry {
    UT_hash_handle hh;
    struct throttle_entry *prev, *next; /* at rest: who came last is first */
    unsigned level;                     /* failures, less what time has forgiven */
    unsigned under_way;
    uint64_t failed_ms; /* from when on time forgives */
    uint64_t guesses[GUESSES];
    unsigned guess_next;
    char key[];
};

struct throttle {
    struct keyed_hash *hash;
    uv_mutex_t lock;
    struct conf_throttle conf; /* its numbers */
    struct networks trusted;
    struct throttle_entry *by_key, *resting;
};

/* --- life --- */

struct throttle *throttle_open(const struct conf_throttle *conf, struct err *err)
{
    struct throttle *throttle = mem_new(sizeof *throttle);

    if (throttle == NULL || uv_mutex_init(&throttle->lock) != 0) {
        mem_free(throttle);
        err_set(err, ERR_INTERNAL, "throttle: no memory");
        return NULL;
    }
    throttle->conf = *conf;
    throttle->hash = keyed_hash_open();
    if (throttle->hash == NULL)
        err_set(err, ERR_INTERNAL, "throttle: no memory or no random octets");
    if (throttle->hash == NULL ||
        !networks_init(&throttle->trusted, &conf->trusted, "throttle.trusted", err))
        throttle_close(&throttle);
    return throttle;
}

static void drop(struct throttle *throttle, struct throttle_entry *entry)
{
    assert(throttle->by_key != NULL);
    HASH_DEL(throttle->by_key, entry);
    DL_DELETE(throttle->resting, entry);
    mem_free(entry);
}

void throttle_close(struct throttle **throttle)
{
    struct throttle *t = *throttle;

    *throttle = NULL;
    if (t == NULL)
        return;
    while (t->resting != NULL)
        drop(t, t->resting);
    keyed_hash_close(&t->hash);
    networks_release(&t->trusted);
    uv_mutex_destroy(&t->lock);
    mem_free(t);
}

void throttle_change(struct throttle *throttle, const struct conf_throttle *conf,
                     struct networks *trusted)
{
    struct networks old;

    uv_mutex_lock(&throttle->lock);
    old = throttle->trusted;
    throttle->conf = *conf;
    throttle->trusted = *trusted;
    uv_mutex_unlock(&throttle->lock);
    *trusted = old;
}

/* --- entries --- */

static void make_room(struct throttle *throttle)
{
    if (throttle->resting != NULL &&
        HASH_COUNT(throttle->by_key) >= (unsigned)throttle->conf.max_entries)
        drop(throttle, throttle->resting->prev); /* the head's prev is the tail */
}

static struct throttle_entry *add(struct throttle *throttle, const char *key)
{
    size_t len = strlen(key);
    struct throttle_entry *entry;

    make_room(throttle);
    entry = mem_new(sizeof *entry + len + 1);
    if (entry == NULL)
        return NULL;
    memcpy(entry->key, key, len);
    HASH_ADD_STR(throttle->by_key, key, entry);
    if (entry->hh.tbl != NULL)
        return entry;
    mem_free(entry);
    return NULL;
}

/* The entry, made if need be; NULL without memory. */
static struct throttle_entry *hold(struct throttle *throttle, const char *key)
{
    struct throttle_entry *entry;

    HASH_FIND_STR(throttle->by_key, key, entry);
    if (entry == NULL)
        entry = add(throttle, key);
    else if (entry->under_way == 0)
        DL_DELETE(throttle->resting, entry);
    if (entry != NULL)
        entry->under_way++;
    return entry;
}

static void let_go(struct throttle *throttle, struct throttle_entry *entry)
{
    if (entry != NULL && --entry->under_way == 0)
        DL_PREPEND(throttle->resting, entry);
}

static struct throttle_entry *hold_user(struct throttle *throttle, const char *user)
{
    char key[KEY_MAX];

    snprintf(key, sizeof key, "user %s", user);
    return hold(throttle, key);
}

static struct throttle_entry *hold_address(struct throttle *throttle, const union address *address)
{
    char text[ADDRESS_TEXT_MAX], key[KEY_MAX];

    address_origin_text(address, text);
    snprintf(key, sizeof key, "address %s", text);
    return hold(throttle, key);
}

/* --- levels --- */

/*
 * Time forgives a failure for each `forget`. Another worker may have looked at the clock later and
 * been here before.
 */
static void forgive(struct throttle_entry *entry, uint64_t forget_ms, uint64_t now_ms)
{
    uint64_t steps = now_ms > entry->failed_ms ? (now_ms - entry->failed_ms) / forget_ms : 0;

    entry->level = steps < entry->level ? entry->level - (unsigned)steps : 0;
    entry->failed_ms += steps * forget_ms;
}

/* Doubles with each failure beyond the free ones, from `delay` to `max`. */
static uint64_t delay_of(const struct throttle *throttle, struct throttle_entry *entry,
                         uint64_t max_ms, uint64_t now_ms)
{
    unsigned free_count = (unsigned)throttle->conf.free_failures;
    uint64_t delay = throttle->conf.delay;

    if (entry == NULL)
        return 0;
    forgive(entry, throttle->conf.forget, now_ms);
    if (entry->level <= free_count)
        return 0;
    for (unsigned i = free_count + 1; i < entry->level && delay < max_ms; i++)
        delay *= 2;
    return delay < max_ms ? delay : max_ms;
}

static bool has_guessed(const struct throttle_entry *entry, uint64_t guess)
{
    for (size_t i = 0; i < GUESSES; i++)
        if (entry->guesses[i] == guess)
            return true;
    return false;
}

static void fail(struct throttle_entry *entry, uint64_t guess, uint64_t now_ms)
{
    if (has_guessed(entry, guess))
        return;
    entry->guesses[entry->guess_next++ % GUESSES] = guess;
    if (entry->level == 0)
        entry->failed_ms = now_ms;
    if (entry->level < LEVEL_MAX)
        entry->level++;
}

/* --- attempts --- */

static uint64_t guess_of(struct throttle *throttle, const char *user, const struct secret *password)
{
    const struct span parts[] = {{user, strlen(user) + 1}, secret_span(password)};
    unsigned char full[KEYED_HASH_SIZE];
    uint64_t guess = 0; /* counts as one that was made before */

    if (keyed_hash_of(throttle->hash, parts, 2, full))
        memcpy(&guess, full, sizeof guess);
    return guess;
}

static bool begin(struct throttle *throttle, struct throttle_attempt *attempt,
                  const union address *address, const char *user, uint64_t now_ms,
                  uint64_t *delay_ms_out)
{
    const struct conf_throttle *conf = &throttle->conf;
    struct throttle_entry *from = hold_address(throttle, address);

    if (from != NULL && from->under_way > (unsigned)conf->max_parallel) {
        let_go(throttle, from);
        return false;
    }
    attempt->address = from;
    attempt->user = user == NULL ? NULL : hold_user(throttle, user);

    uint64_t of_address = delay_of(throttle, from, conf->max_delay, now_ms);
    uint64_t of_user = delay_of(throttle, attempt->user, conf->max_user_delay, now_ms);
    *delay_ms_out = of_address > of_user ? of_address : of_user;
    return true;
}

bool throttle_begin(struct throttle *throttle, struct throttle_attempt *attempt,
                    const union address *address, const char *user, const struct secret *password,
                    uint64_t now_ms, uint64_t *delay_ms_out)
{
    bool may = true;

    *attempt = (struct throttle_attempt){0};
    *delay_ms_out = 0;
    uv_mutex_lock(&throttle->lock);
    if (!networks_contain(&throttle->trusted, address)) {
        attempt->guess = user == NULL ? 0 : guess_of(throttle, user, password);
        may = begin(throttle, attempt, address, user, now_ms, delay_ms_out);
    }
    uv_mutex_unlock(&throttle->lock);
    return may;
}

void throttle_end(struct throttle *throttle, struct throttle_attempt *attempt,
                  enum throttle_outcome outcome, uint64_t now_ms)
{
    uv_mutex_lock(&throttle->lock);
    if (outcome == THROTTLE_REFUSED && attempt->address != NULL)
        fail(attempt->address, attempt->guess, now_ms);
    if (outcome == THROTTLE_REFUSED && attempt->user != NULL)
        fail(attempt->user, attempt->guess, now_ms);
    if (outcome == THROTTLE_VERIFIED && attempt->user != NULL)
        attempt->user->level = 0;
    let_go(throttle, attempt->address);
    let_go(throttle, attempt->user);
    uv_mutex_unlock(&throttle->lock);
    *attempt = (struct throttle_attempt){0};
}

unsigned throttle_look(struct throttle *throttle, const char *user, uint64_t now_ms,
                       uint64_t *delay_ms_out)
{
    struct throttle_entry copy = {.level = 0};
    const struct throttle_entry *entry;
    char key[KEY_MAX];

    snprintf(key, sizeof key, "user %s", user);
    uv_mutex_lock(&throttle->lock);
    HASH_FIND_STR(throttle->by_key, key, entry);
    if (entry != NULL)
        copy = (struct throttle_entry){.level = entry->level, .failed_ms = entry->failed_ms};
    *delay_ms_out = delay_of(throttle, &copy, throttle->conf.max_user_delay, now_ms);
    uv_mutex_unlock(&throttle->lock);
    return copy.level;
}
