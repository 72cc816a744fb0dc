/*
 * What a worker remembers of passwords that its sources have verified or refused, so that the next
 * login with the same one asks nobody. A password is kept only as a keyed hash. Bounded: who has
 * not come for longest makes room.
 */
#ifndef IMAPMUX_AUTH_CACHE_H
#define IMAPMUX_AUTH_CACHE_H

#include "auth/facts.h"
#include "proxy/base/conf.h"
#include "proxy/base/err.h"
#include "proxy/base/keyed_hash.h"
#include "proxy/base/secret.h"

/* A user, and a password if one was given, as the cache knows them. */
struct cache_key {
    const char *user; /* borrowed */
    unsigned char digest[KEYED_HASH_SIZE];
    bool by_name;      /* without a password */
    bool contradicted; /* auth_cache_find: it knows another password to be right */
    bool usable;
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

/* Makes the key that the other calls take; `password` may be NULL. False when OpenSSL fails. */
bool auth_cache_key(struct auth_cache *cache, const char *user, const struct secret *password,
                    struct cache_key *key_out);

/*
 * What is known at `now_ms`, on a clock that only goes forward. With VERIFIED and STALE come the
 * user's facts, held for the caller; they may be NULL.
 */
enum cache_verdict auth_cache_find(struct auth_cache *cache, struct cache_key *key, uint64_t now_ms,
                                   struct auth_facts **facts_out);

/*
 * Whether a password of this user is known to be right, whichever it is: VERIFIED, STALE, or
 * UNKNOWN; and for how long. Changes nothing.
 */
enum cache_verdict auth_cache_remembers(const struct auth_cache *cache, const char *user,
                                        uint64_t now_ms, uint64_t *age_ms_out);

/*
 * A source has decided. A verified password takes the place of the one before, which has been
 * changed, it seems; a refused one is verified no more. One of each kind is kept for a user. Who is
 * unknown by name alone is not remembered.
 */
void auth_cache_verified(struct auth_cache *cache, const struct cache_key *key,
                         struct auth_facts *facts, uint64_t now_ms);
void auth_cache_refused(struct auth_cache *cache, const struct cache_key *key, uint64_t now_ms);

/* Nothing is known of the user any more; with NULL, of nobody. */
void auth_cache_forget(struct auth_cache *cache, const char *user);

#endif
