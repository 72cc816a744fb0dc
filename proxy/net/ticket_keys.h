/*
 * Keys of session tickets (RFC 5077 4): a public name of 16 octets, by which a ticket tells its
 * key, then a key for HMAC-SHA-256 and one for AES-CBC, of 32 octets each; or, in short ones, of
 * 16.
 */
#ifndef IMAPMUX_NET_TICKET_KEYS_H
#define IMAPMUX_NET_TICKET_KEYS_H

#include "proxy/base/err.h"
#include "proxy/base/secret.h"

enum {
    TICKET_NAME_SIZE = 16,
    TICKET_KEY_SIZE = TICKET_NAME_SIZE + 32 + 32,
    TICKET_KEY_SHORT = TICKET_NAME_SIZE + 16 + 16,
    TICKET_KEY_TEXT = 109, /* one in base64, with its NUL */
    TICKET_KEYS_MAX = 32
};

/* The first one is for new tickets. A zeroed struct holds none. */
struct ticket_keys {
    size_t count;
    struct secret keys[TICKET_KEYS_MAX];
};

/* A new one, of random octets. False with *err set (INTERNAL). */
bool ticket_key_make(struct secret *out, struct err *err);

/* In base64. False with *err set: CONFIG if it is none. */
bool ticket_key_read(struct span text, struct secret *out, struct err *err);
void ticket_key_write(const struct secret *key, char text_out[TICKET_KEY_TEXT]);

/*
 * A file with a key in each line. False with *err set, and *out is empty: CONFIG, naming the file
 * and the line, also if there is no key or more than TICKET_KEYS_MAX.
 */
bool ticket_keys_read(const char *path, struct ticket_keys *out, struct err *err);

/* False without memory; then *out is empty. */
bool ticket_keys_copy(struct ticket_keys *out, const struct ticket_keys *from);

/* Wipes them; it is empty afterwards. */
void ticket_keys_release(struct ticket_keys *keys);

#endif
