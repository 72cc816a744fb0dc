/*
 * Owns secrets in memory: their copies, their wiping, and the place that core dumps leave out. That
 * is OpenSSL's secure heap, where it has private keys, too; without it secrets lie where all lies.
 */
#include "proxy/base/secret.h"

#include <openssl/crypto.h>
#include <string.h>

enum { SMALLEST = 32, FOR_KEYS = 1 << 20, FOR_SESSION = 256 }; /* octets */

/* It does not grow, and who finds it full fails; so it has room for a handshake in each session. */
bool secret_hide_all(size_t max_sessions)
{
    size_t size = FOR_KEYS;

    while (size < FOR_KEYS + max_sessions * FOR_SESSION)
        size *= 2;
    return CRYPTO_secure_malloc_initialized() == 1 || CRYPTO_secure_malloc_init(size, SMALLEST) > 0;
}

bool secret_set(struct secret *secret, struct span value)
{
    char *copy = OPENSSL_secure_malloc(value.len + 1);

    if (copy == NULL)
        copy = OPENSSL_malloc(value.len + 1); /* a login is worth more */
    secret_release(secret);
    if (copy == NULL)
        return false;
    if (value.len > 0)
        memcpy(copy, value.ptr, value.len);
    copy[value.len] = '\0';
    *secret = (struct secret){copy, value.len};
    return true;
}

void secret_release(struct secret *secret)
{
    OPENSSL_secure_clear_free(secret->bytes, secret->len);
    *secret = (struct secret){0};
}
