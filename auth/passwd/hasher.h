/*
 * Checks passwords against hashes as crypt(5) has them, which is slow by design. Threads of its own
 * do that, as many as there are cores: so neither a loop nor what else blocks (names, a directory)
 * waits behind a flood of logins. First come, first served. One for the process.
 */
#ifndef IMAPMUX_AUTH_HASHER_H
#define IMAPMUX_AUTH_HASHER_H

#include "proxy/base/err.h"
#include "proxy/base/inbox.h"
#include "proxy/base/secret.h"

struct hasher;

enum hash_verdict { HASH_NOT_COMPUTED, HASH_DIFFERS, HASH_EQUAL };

/* Embedded in its owner, who leaves it alone from hasher_put until it comes back. */
struct hash_job {
    const char *hash; /* of the right password */
    const struct secret *password;
    struct inbox *inbox;  /* where the letter goes when `verdict` is set */
    struct letter letter; /* with the owner's `deliver` */
    enum hash_verdict verdict;
    struct hash_job *prev, *next; /* private */
};

/* NULL with *err set. */
struct hasher *hasher_open(struct err *err);

/* No job may be under way. Nulls the pointer; harmless on NULL. */
void hasher_close(struct hasher **hasher);

/* From any thread. False, and nothing happens, when `queue_max` or more wait already. */
bool hasher_put(struct hasher *hasher, struct hash_job *job, size_t queue_max);

/* Whether it has not begun: then the job is back, and no letter comes. */
bool hasher_withdraw(struct hasher *hasher, struct hash_job *job);

#endif
