/* Owns the ticket keys in force, and what OpenSSL does with them. */
#include "proxy/net/tickets.h"

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <string.h>

/* OpenSSL's callback brings no argument; and keys belong to the process. */
static struct {
    pthread_rwlock_t lock;
    struct ticket_keys keys;
} in_force = {.lock = PTHREAD_RWLOCK_INITIALIZER};

void tickets_use(struct ticket_keys *keys)
{
    struct ticket_keys old;

    pthread_rwlock_wrlock(&in_force.lock);
    old = in_force.keys;
    in_force.keys = *keys;
    pthread_rwlock_unlock(&in_force.lock);
    *keys = (struct ticket_keys){0};
    ticket_keys_release(&old);
}

void tickets_forget(void)
{
    struct ticket_keys none = {0};

    tickets_use(&none);
}

/* Both are set up with a key's halves: for HMAC first, then for AES. */
static bool set_up(const struct secret *key, const unsigned char *iv, EVP_CIPHER_CTX *cipher,
                   EVP_MAC_CTX *mac, int encrypt)
{
    size_t half = (key->len - TICKET_NAME_SIZE) / 2;
    unsigned char *bytes = (unsigned char *)key->bytes + TICKET_NAME_SIZE;
    const EVP_CIPHER *aes = half == 32 ? EVP_aes_256_cbc() : EVP_aes_128_cbc();
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, bytes, half),
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char[]){"SHA256"}, 0),
        OSSL_PARAM_construct_end()};

    return EVP_MAC_CTX_set_params(mac, params) == 1 &&
           EVP_CipherInit_ex2(cipher, aes, bytes + half, iv, encrypt, NULL) == 1;
}

/* What the callback answers. */
enum { FAILED = -1, UNKNOWN = 0, USED = 1, TO_BE_RENEWED = 2 };

static int seal(unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac)
{
    const struct secret *key = &in_force.keys.keys[0];

    if (in_force.keys.count == 0 ||
        RAND_bytes(iv, EVP_CIPHER_get_iv_length(EVP_aes_256_cbc())) != 1)
        return FAILED;
    memcpy(name, key->bytes, TICKET_NAME_SIZE);
    return set_up(key, iv, cipher, mac, 1) ? USED : FAILED;
}

/* In TLS 1.3 each resumption gives a new ticket: one that is used twice can be recognised. */
static int unseal(const SSL *client, const unsigned char *name, const unsigned char *iv,
                  EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac)
{
    for (size_t i = 0; i < in_force.keys.count; i++) {
        const struct secret *key = &in_force.keys.keys[i];

        if (memcmp(key->bytes, name, TICKET_NAME_SIZE) != 0)
            continue;
        if (!set_up(key, iv, cipher, mac, 0))
            return FAILED;
        return i > 0 || SSL_version(client) == TLS1_3_VERSION ? TO_BE_RENEWED : USED;
    }
    return UNKNOWN;
}

static int on_ticket(SSL *client, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher,
                     EVP_MAC_CTX *mac, int encrypt)
{
    pthread_rwlock_rdlock(&in_force.lock);

    int result = encrypt ? seal(name, iv, cipher, mac) : unseal(client, name, iv, cipher, mac);

    pthread_rwlock_unlock(&in_force.lock);
    return result;
}

bool tickets_serve(SSL_CTX *context)
{
    return SSL_CTX_set_tlsext_ticket_key_evp_cb(context, on_ticket) == 1;
}
