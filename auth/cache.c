/*
 * Owns three tables of entries: for verified passwords, for users known by their name alone, and
 * for refused passwords. An attacker who fills the last one with made-up users displaces nobody
 * from the others.
 */
#include "auth/cache.h"

#include "proxy/base/hash.h"
#include "proxy/base/mem.h"

#include <assert.h>
#include <openssl/crypto.h>
#include <string.h>
#include <utlist.h>

struct entry {
    UT_hash_handle hh;
    struct entry *prev, *next; /* who came last is first */
    uint64_t decided_ms;
    struct auth_facts *facts;
    unsigned char digest[KEYED_HASH_SIZE]; /* zero for a name alone */
    char user[];
};

struct table {
    struct entry *by_user, *recent;
    uint64_t kept_ms; /* an entry older than this is of no use; 0: there are none */
};

struct auth_cache {
    const struct conf_auth_cache *conf;
    struct keyed_hash *hash;
    struct table verified, named, refused;
};

/* --- life --- */

struct auth_cache *auth_cache_open(const struct conf_auth_cache *conf, struct err *err)
{
    struct auth_cache *cache = mem_new(sizeof *cache);

    if (cache != NULL)
        cache->hash = keyed_hash_open();
    if (cache == NULL || cache->hash == NULL) {
        err_set(err, ERR_INTERNAL, "auth_cache: no memory or no random octets");
        auth_cache_close(&cache);
        return NULL;
    }
    cache->conf = conf;
    cache->verified.kept_ms = conf->ttl == 0 ? 0 : conf->ttl + conf->stale_while_down;
    cache->named.kept_ms = cache->verified.kept_ms;
    cache->refused.kept_ms = conf->negative_ttl;
    return cache;
}

static void drop(struct table *table, struct entry *entry)
{
    assert(table->by_user != NULL);
    HASH_DEL(table->by_user, entry);
    DL_DELETE(table->recent, entry);
    auth_facts_release(&entry->facts);
    mem_free(entry);
}

static void drop_all(struct table *table)
{
    while (table->recent != NULL)
        drop(table, table->recent);
}

void auth_cache_close(struct auth_cache **cache)
{
    struct auth_cache *c = *cache;

    *cache = NULL;
    if (c == NULL)
        return;
    drop_all(&c->verified);
    drop_all(&c->named);
    drop_all(&c->refused);
    keyed_hash_close(&c->hash);
    mem_free(c);
}

/* --- looking --- */

/* The NUL behind the name keeps "ab" with "c" apart from "a" with "bc". */
bool auth_cache_key(struct auth_cache *cache, const char *user, const struct secret *password,
                    struct cache_key *key_out)
{
    *key_out = (struct cache_key){.user = user, .by_name = password == NULL};
    if (password != NULL) {
        const struct span parts[] = {{user, strlen(user) + 1}, secret_span(password)};

        key_out->usable = keyed_hash_of(cache->hash, parts, 2, key_out->digest);
    } else {
        key_out->usable = true;
    }
    return key_out->usable;
}

static struct table *positive(struct auth_cache *cache, const struct cache_key *key)
{
    return key->by_name ? &cache->named : &cache->verified;
}

static struct entry *find(const struct table *table, const char *user)
{
    struct entry *entry;

    HASH_FIND_STR(table->by_user, user, entry);
    return entry;
}

/* The entry of this very password, which becomes the most recent one; NULL without. */
static struct entry *find_key(struct table *table, const struct cache_key *key)
{
    struct entry *entry = find(table, key->user);

    if (entry == NULL || CRYPTO_memcmp(entry->digest, key->digest, sizeof key->digest) != 0)
        return NULL;
    DL_DELETE(table->recent, entry);
    DL_PREPEND(table->recent, entry);
    return entry;
}

enum cache_verdict auth_cache_find(struct auth_cache *cache, struct cache_key *key, uint64_t now_ms,
                                   struct auth_facts **facts_out)
{
    const struct table *table = positive(cache, key);
    const struct entry *entry = find_key(positive(cache, key), key);

    *facts_out = NULL;
    if (entry != NULL && now_ms - entry->decided_ms < table->kept_ms) {
        *facts_out = auth_facts_hold(entry->facts);
        return now_ms - entry->decided_ms < cache->conf->ttl ? CACHE_VERIFIED : CACHE_STALE;
    }
    if (key->by_name)
        return CACHE_UNKNOWN;
    entry = find(&cache->verified, key->user);
    key->contradicted = entry != NULL && now_ms - entry->decided_ms < table->kept_ms;
    entry = find_key(&cache->refused, key);
    if (entry != NULL && now_ms - entry->decided_ms < cache->refused.kept_ms)
        return CACHE_REFUSED;
    return CACHE_UNKNOWN;
}

enum cache_verdict auth_cache_remembers(const struct auth_cache *cache, const char *user,
                                        uint64_t now_ms, uint64_t *age_ms_out)
{
    const struct entry *entry = find(&cache->verified, user);

    *age_ms_out = entry == NULL ? 0 : now_ms - entry->decided_ms;
    return entry == NULL || *age_ms_out >= cache->verified.kept_ms ? CACHE_UNKNOWN
           : *age_ms_out < cache->conf->ttl                        ? CACHE_VERIFIED
                                                                   : CACHE_STALE;
}

/* --- learning --- */

/* Remembers, or does not: without memory the next login asks again. */
static void learn(struct auth_cache *cache, struct table *table, const struct cache_key *key,
                  struct auth_facts *facts, uint64_t now_ms)
{
    struct entry *entry = find(table, key->user);
    size_t len = strlen(key->user);

    if (entry != NULL)
        drop(table, entry);
    if (table->kept_ms == 0)
        return;
    if (HASH_COUNT(table->by_user) >= (unsigned)cache->conf->max_entries)
        drop(table, table->recent->prev); /* the head's prev is the tail */
    entry = mem_new(sizeof *entry + len + 1);
    if (entry == NULL)
        return;
    memcpy(entry->user, key->user, len);
    HASH_ADD_STR(table->by_user, user, entry);
    if (entry->hh.tbl == NULL) {
        mem_free(entry);
        return;
    }
    DL_PREPEND(table->recent, entry);
    memcpy(entry->digest, key->digest, sizeof entry->digest);
    entry->facts = auth_facts_hold(facts);
    entry->decided_ms = now_ms;
}

static void forget_key(struct table *table, const struct cache_key *key)
{
    struct entry *entry = find_key(table, key);

    if (entry != NULL)
        drop(table, entry);
}

void auth_cache_verified(struct auth_cache *cache, const struct cache_key *key,
                         struct auth_facts *facts, uint64_t now_ms)
{
    if (!key->by_name)
        forget_key(&cache->refused, key);
    learn(cache, positive(cache, key), key, facts, now_ms);
}

void auth_cache_refused(struct auth_cache *cache, const struct cache_key *key, uint64_t now_ms)
{
    forget_key(positive(cache, key), key);
    if (!key->by_name)
        learn(cache, &cache->refused, key, NULL, now_ms);
}

static void forget_user(struct table *table, const char *user)
{
    struct entry *entry = user == NULL ? NULL : find(table, user);

    if (user == NULL)
        drop_all(table);
    else if (entry != NULL)
        drop(table, entry);
}

void auth_cache_forget(struct auth_cache *cache, const char *user)
{
    forget_user(&cache->verified, user);
    forget_user(&cache->named, user);
    forget_user(&cache->refused, user);
}
