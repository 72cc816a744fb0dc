/*
 * HMAC-SHA-256 under a random key: tells whether two secrets are the same without keeping either,
 * and nobody who does not have the key can try out guesses on what is kept. For one thread.
 */
#ifndef IMAPMUX_BASE_KEYED_HASH_H
#define IMAPMUX_BASE_KEYED_HASH_H

#include "proxy/base/span.h"

enum { KEYED_HASH_SIZE = 32 };

struct keyed_hash;

/* Makes a key that nobody else has; NULL without memory or random octets. */
struct keyed_hash *keyed_hash_open(void);

/* With a key that others have, too; copied. NULL without memory. */
struct keyed_hash *keyed_hash_open_with(const unsigned char key[KEYED_HASH_SIZE]);

/* Wipes the key, and nulls the pointer; harmless on NULL. */
void keyed_hash_close(struct keyed_hash **hash);

/* Of `count` parts, one behind the other; false when OpenSSL fails. */
bool keyed_hash_of(struct keyed_hash *hash, const struct span *parts, size_t count,
                   unsigned char out[KEYED_HASH_SIZE]);

#endif
