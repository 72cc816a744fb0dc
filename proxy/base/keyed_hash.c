/* Owns the key, within a context made once: to fetch an algorithm costs more than to use it. */
#include "proxy/base/keyed_hash.h"

#include "proxy/base/mem.h"
#include "proxy/base/secret.h"

#include <openssl/evp.h>
#include <openssl/rand.h>

struct keyed_hash {
    EVP_MAC_CTX *mac;
};

struct keyed_hash *keyed_hash_open(void)
{
    unsigned char key[KEYED_HASH_SIZE];
    struct keyed_hash *hash = RAND_bytes(key, sizeof key) == 1 ? keyed_hash_open_with(key) : NULL;

    secret_wipe(key, sizeof key);
    return hash;
}

static bool set_key(EVP_MAC_CTX *mac, const unsigned char key[KEYED_HASH_SIZE])
{
    char digest[] = "SHA256";
    const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string("digest", digest, 0),
                                 OSSL_PARAM_construct_end()};

    return EVP_MAC_init(mac, key, KEYED_HASH_SIZE, params) == 1;
}

struct keyed_hash *keyed_hash_open_with(const unsigned char key[KEYED_HASH_SIZE])
{
    struct keyed_hash *hash = mem_new(sizeof *hash);
    EVP_MAC *hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);

    if (hash != NULL && hmac != NULL)
        hash->mac = EVP_MAC_CTX_new(hmac);
    EVP_MAC_free(hmac);
    if (hash != NULL && (hash->mac == NULL || !set_key(hash->mac, key)))
        keyed_hash_close(&hash);
    return hash;
}

void keyed_hash_close(struct keyed_hash **hash)
{
    struct keyed_hash *h = *hash;

    *hash = NULL;
    if (h == NULL)
        return;
    EVP_MAC_CTX_free(h->mac);
    mem_free(h);
}

bool keyed_hash_of(struct keyed_hash *hash, const struct span *parts, size_t count,
                   unsigned char out[KEYED_HASH_SIZE])
{
    size_t size = 0;
    bool good = EVP_MAC_init(hash->mac, NULL, 0, NULL) == 1;

    for (size_t i = 0; good && i < count; i++)
        good = EVP_MAC_update(hash->mac, (const unsigned char *)parts[i].ptr, parts[i].len) == 1;
    return good && EVP_MAC_final(hash->mac, out, &size, KEYED_HASH_SIZE) == 1;
}
