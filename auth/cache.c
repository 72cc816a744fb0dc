/*
 * Owns two tables of entries, one for verified and one for refused passwords: an attacker who fills
 * the second one with made-up users displaces nobody from the first.
 */
#include "auth/cache.h"

#include "proxy/base/hash.h"
#include "proxy/base/mem.h"

#include <openssl/crypto.h>
#include <string.h>
#include <utlist.h>

struct entry {
    UT_hash_handle hh;
    struct entry *prev, *next; /* who came last is first */
    uint64_t decided_ms;
    struct cache_digest digest;
    char user[];
};

struct table {
    struct entry *by_user, *recent;
    uint64_t kept_ms; /* an entry older than this is of no use; 0: there are none */
};

struct auth_cache {
    const struct conf_auth_cache *conf;
    struct keyed_hash *hash;
    struct table verified, refused;
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
    cache->refused.kept_ms = conf->negative_ttl;
    return cache;
}

static void drop(struct table *table, struct entry *entry)
{
    HASH_DEL(table->by_user, entry);
    DL_DELETE(table->recent, entry);
    mem_free(entry);
}

void auth_cache_close(struct auth_cache **cache)
{
    struct auth_cache *c = *cache;

    *cache = NULL;
    if (c == NULL)
        return;
    while (c->verified.recent != NULL)
        drop(&c->verified, c->verified.recent);
    while (c->refused.recent != NULL)
        drop(&c->refused, c->refused.recent);
    keyed_hash_close(&c->hash);
    mem_free(c);
}

/* --- looking --- */

/* The NUL behind the name keeps "ab" with "c" apart from "a" with "bc". */
bool auth_cache_digest(struct auth_cache *cache, const char *user, const struct secret *password,
                       struct cache_digest *digest_out)
{
    const struct span parts[] = {{user, strlen(user) + 1}, secret_span(password)};

    return keyed_hash_of(cache->hash, parts, 2, digest_out->bytes);
}

static struct entry *find(struct table *table, const char *user)
{
    struct entry *entry;

    HASH_FIND_STR(table->by_user, user, entry);
    return entry;
}

/* The entry of this very password, which becomes the most recent one; NULL without. */
static struct entry *find_password(struct table *table, const char *user,
                                   const struct cache_digest *digest)
{
    struct entry *entry = find(table, user);

    if (entry == NULL || CRYPTO_memcmp(&entry->digest, digest, sizeof *digest) != 0)
        return NULL;
    DL_DELETE(table->recent, entry);
    DL_PREPEND(table->recent, entry);
    return entry;
}

enum cache_verdict auth_cache_find(struct auth_cache *cache, const char *user,
                                   const struct cache_digest *digest, uint64_t now_ms)
{
    const struct entry *entry = find_password(&cache->verified, user, digest);

    if (entry != NULL && now_ms - entry->decided_ms < cache->conf->ttl)
        return CACHE_VERIFIED;
    if (entry != NULL && now_ms - entry->decided_ms < cache->verified.kept_ms)
        return CACHE_STALE;
    entry = find_password(&cache->refused, user, digest);
    if (entry != NULL && now_ms - entry->decided_ms < cache->refused.kept_ms)
        return CACHE_REFUSED;
    return CACHE_UNKNOWN;
}

/* --- learning --- */

/* Remembers, or does not: without memory the next login asks again. */
static void learn(struct auth_cache *cache, struct table *table, const char *user,
                  const struct cache_digest *digest, uint64_t now_ms)
{
    struct entry *entry = find(table, user);
    size_t len = strlen(user);

    if (entry != NULL)
        drop(table, entry);
    if (table->kept_ms == 0)
        return;
    if (HASH_COUNT(table->by_user) >= (unsigned)cache->conf->max_entries)
        drop(table, table->recent->prev); /* the head's prev is the tail */
    entry = mem_new(sizeof *entry + len + 1);
    if (entry == NULL)
        return;
    memcpy(entry->user, user, len);
    HASH_ADD_STR(table->by_user, user, entry);
    if (entry->hh.tbl == NULL) {
        mem_free(entry);
        return;
    }
    DL_PREPEND(table->recent, entry);
    entry->digest = *digest;
    entry->decided_ms = now_ms;
}

static void forget_password(struct table *table, const char *user,
                            const struct cache_digest *digest)
{
    struct entry *entry = find_password(table, user, digest);

    if (entry != NULL)
        drop(table, entry);
}

void auth_cache_verified(struct auth_cache *cache, const char *user,
                         const struct cache_digest *digest, uint64_t now_ms)
{
    forget_password(&cache->refused, user, digest);
    learn(cache, &cache->verified, user, digest, now_ms);
}

void auth_cache_refused(struct auth_cache *cache, const char *user,
                        const struct cache_digest *digest, uint64_t now_ms)
{
    forget_password(&cache->verified, user, digest);
    learn(cache, &cache->refused, user, digest, now_ms);
}

void auth_cache_forget(struct auth_cache *cache, const char *user)
{
    struct entry *entry = find(&cache->verified, user);

    if (entry != NULL)
        drop(&cache->verified, entry);
}
