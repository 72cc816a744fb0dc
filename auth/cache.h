/*
 * What a worker remembers of passwords that its sources have verified or refused, so that the next
 * login with the same one asks nobody. A password is kept only as a keyed hash. Bounded: who has
 * not come for longest makes room.
 */
#ifndef IMAPMUX_AUTH_CACHE_H
#define IMAPMUX_AUTH_CACHE_H

#include "proxy/base/conf.h"
#include "proxy/base/err.h"
#include "proxy/base/keyed_hash.h"
#include "proxy/base/secret.h"

/* A user and a password, as the cache knows them. */
struct cache_digest {
    unsigned char bytes[KEYED_HASH_SIZE];
};

enum cache_verdict {
    CACHE_UNKNOWN,  /* ask */
    CACHE_VERIFIED, /* within `ttl` */
    CACHE_STALE,    /* was verified longer ago, and may count while nobody can be asked */
    CACHE_REFUSED   /* within `negative_ttl` */
};

struct auth_cache;

/* NULL with *err set. The configuration is borrowed. */
struct auth_cache *auth_cache_open(const struct conf_auth_cache *conf, struct err *err);

/* Forgets all, and nulls the pointer; harmless on NULL. */
void auth_cache_close(struct auth_cache **cache);

/* Makes the digest that the other calls take; false when OpenSSL fails. */
bool auth_cache_digest(struct auth_cache *cache, const char *user, const struct secret *password,
                       struct cache_digest *digest_out);

/* What is known at `now_ms`, on a clock that only goes forward. */
enum cache_verdict auth_cache_find(struct auth_cache *cache, const char *user,
                                   const struct cache_digest *digest, uint64_t now_ms);

/*
 * A source has decided. A verified password takes the place of the one before, which has been
 * changed, it seems; a refused one is verified no more. One of each kind is kept for a user.
 */
void auth_cache_verified(struct auth_cache *cache, const char *user,
                         const struct cache_digest *digest, uint64_t now_ms);
void auth_cache_refused(struct auth_cache *cache, const char *user,
                        const struct cache_digest *digest, uint64_t now_ms);

/* The user may not log in, whatever the password. */
void auth_cache_forget(struct auth_cache *cache, const char *user);

#endif
