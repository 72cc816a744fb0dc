/*
 * Owns the keys of a set, and which of them may verify what. librhonabwy reads a key, only from the
 * members that make it up, so that it finds nothing to fetch (x5u) or to keep secret (d). OpenSSL
 * verifies, on the octets that were signed.
 */
#include "auth/token/jwks.h"

#include "proxy/base/mem.h"

#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <rhonabwy.h>

enum {
    KEYS_MAX = 64,       /* of a set; further ones are left out */
    TRIES_MAX = 4,       /* for a token that names no key */
    RSA_BITS_MIN = 2048, /* RFC 7518 3.3 */
    RSA_BITS_MAX = 8192, /* larger ones would keep the loop waiting */
    DER_MAX = 2048,      /* of such a key, with some to spare */
    ECDSA_DER_MAX = 160  /* of a signature with P-521 */
};

enum key_type { KEY_RSA, KEY_P256, KEY_P384, KEY_P521, KEY_ED25519, KEY_TYPES };

static const struct {
    const char *kty, *crv;
} key_types[KEY_TYPES] = {[KEY_RSA] = {"RSA", NULL},
                          [KEY_P256] = {"EC", "P-256"},
                          [KEY_P384] = {"EC", "P-384"},
                          [KEY_P521] = {"EC", "P-521"},
                          [KEY_ED25519] = {"OKP", "Ed25519"}};

static const struct algorithm {
    const char *name, *digest; /* NULL where the algorithm has its own */
    size_t ecdsa_len;          /* of r and s side by side (RFC 7518 3.4); 0: it is not ECDSA */
    enum key_type type;
    bool is_pss;
} algorithms[] = {
    {"RS256", "SHA256", 0, KEY_RSA, false},    {"RS384", "SHA384", 0, KEY_RSA, false},
    {"RS512", "SHA512", 0, KEY_RSA, false},    {"PS256", "SHA256", 0, KEY_RSA, true},
    {"PS384", "SHA384", 0, KEY_RSA, true},     {"PS512", "SHA512", 0, KEY_RSA, true},
    {"ES256", "SHA256", 64, KEY_P256, false},  {"ES384", "SHA384", 96, KEY_P384, false},
    {"ES512", "SHA512", 132, KEY_P521, false}, {"EdDSA", NULL, 0, KEY_ED25519, false},
};

struct key {
    EVP_PKEY *public;
    enum key_type type;
    char *kid, *algorithm; /* NULL where the set does not say */
};

struct jwks {
    size_t count;
    struct key keys[KEYS_MAX];
};

static bool read_key(const json_t *member, struct key *key_out);
static bool is_for_signatures(const json_t *member);
static bool find_type(const json_t *member, enum key_type *type_out);
static EVP_PKEY *import(const json_t *member);
static bool is_strong(const struct key *key);
static char *copy_member(const json_t *object, const char *name);
static void release_key(struct key *key);
static const struct algorithm *find_algorithm(const char *name);
static enum jws_verdict try_key(EVP_PKEY *key, const struct algorithm *algorithm,
                                const struct jws *jws);
static bool set_padding(EVP_PKEY_CTX *context, const struct algorithm *algorithm);
static struct span ecdsa_der(struct span signature, unsigned char out[ECDSA_DER_MAX]);
static bool memory_was_short(void);

/* --- the set --- */

struct jwks *jwks_parse(struct span json, struct err *err)
{
    json_t *set = json_loadb(json.ptr, json.len, JSON_REJECT_DUPLICATES, NULL);
    const json_t *members = json_object_get(set, "keys"), *member;
    struct jwks *jwks = json_is_array(members) ? mem_new(sizeof *jwks) : NULL;
    size_t i;

    if (!json_is_array(members))
        err_set(err, ERR_UNAVAILABLE, "this is no JSON object with an array \"keys\"");
    else if (jwks == NULL)
        err_set(err, ERR_INTERNAL, "no memory for keys");
    json_array_foreach(members, i, member)
    {
        if (jwks != NULL && jwks->count < KEYS_MAX && read_key(member, &jwks->keys[jwks->count]))
            jwks->count++;
    }
    if (jwks != NULL && jwks->count == 0) {
        err_set(err, ERR_UNAVAILABLE, "none of %zu keys can verify signatures", i);
        jwks_close(&jwks);
    }
    json_decref(set);
    return jwks;
}

static bool read_key(const json_t *member, struct key *key_out)
{
    struct key key = {0};

    if (!is_for_signatures(member) || !find_type(member, &key.type))
        return false;
    key.kid = copy_member(member, "kid");
    key.algorithm = copy_member(member, "alg");
    key.public = import(member);
    if (key.public == NULL || !is_strong(&key) ||
        (key.kid == NULL) != (json_object_get(member, "kid") == NULL) ||
        (key.algorithm == NULL) != (json_object_get(member, "alg") == NULL)) {
        release_key(&key);
        return false;
    }
    *key_out = key;
    return true;
}

/* RFC 7517 4.2, 4.3: what does not say anything is for everything. */
static bool is_for_signatures(const json_t *member)
{
    const json_t *use = json_object_get(member, "use"), *operation;
    const json_t *operations = json_object_get(member, "key_ops");
    size_t i;

    if (use != NULL && (!json_is_string(use) || strcmp(json_string_value(use), "sig") != 0))
        return false;
    if (operations == NULL)
        return true;
    json_array_foreach(operations, i, operation)
    {
        if (json_is_string(operation) && strcmp(json_string_value(operation), "verify") == 0)
            return true;
    }
    return false;
}

static bool find_type(const json_t *member, enum key_type *type_out)
{
    const char *kty = json_string_value(json_object_get(member, "kty"));
    const char *crv = json_string_value(json_object_get(member, "crv"));

    for (size_t i = 0; kty != NULL && i < KEY_TYPES; i++) {
        if (strcmp(kty, key_types[i].kty) == 0 &&
            (key_types[i].crv == NULL || (crv != NULL && strcmp(crv, key_types[i].crv) == 0))) {
            *type_out = (enum key_type)i;
            return true;
        }
    }
    return false;
}

/* NULL when it is malformed. */
static EVP_PKEY *import(const json_t *member)
{
    static const char *const names[] = {"kty", "crv", "n", "e", "x", "y"};
    json_t *public = json_object();
    jwk_t *jwk = NULL;
    unsigned char der[DER_MAX];
    const unsigned char *at = der;
    size_t len = sizeof der;
    EVP_PKEY *key = NULL;

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        json_t *value = json_object_get(member, names[i]);

        if (json_is_string(value))
            (void)json_object_set(public, names[i], value); /* what is missing is malformed */
    }
    if (public != NULL && r_jwk_init(&jwk) == RHN_OK &&
        r_jwk_import_from_json_t(jwk, public) == RHN_OK &&
        r_jwk_export_to_pem_der(jwk, R_FORMAT_DER, der, &len, R_FLAG_IGNORE_REMOTE) == RHN_OK)
        key = d2i_PUBKEY(NULL, &at, (long)len);
    ERR_clear_error();
    r_jwk_free(jwk);
    json_decref(public);
    return key;
}

static bool is_strong(const struct key *key)
{
    int bits = EVP_PKEY_get_bits(key->public);

    return key->type != KEY_RSA || (bits >= RSA_BITS_MIN && bits <= RSA_BITS_MAX);
}

/* NULL when it is absent, no string, or memory is short. */
static char *copy_member(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);

    return json_is_string(value)
               ? mem_copy_text(json_string_value(value), json_string_length(value))
               : NULL;
}

static void release_key(struct key *key)
{
    EVP_PKEY_free(key->public);
    mem_free(key->kid);
    mem_free(key->algorithm);
}

size_t jwks_count(const struct jwks *jwks)
{
    return jwks->count;
}

void jwks_close(struct jwks **jwks)
{
    for (size_t i = 0; *jwks != NULL && i < (*jwks)->count; i++)
        release_key(&(*jwks)->keys[i]);
    mem_free(*jwks);
    *jwks = NULL;
}

/* --- signatures --- */

bool jws_algorithm_is_known(const char *name)
{
    return find_algorithm(name) != NULL;
}

static const struct algorithm *find_algorithm(const char *name)
{
    for (size_t i = 0; i < sizeof algorithms / sizeof *algorithms; i++) {
        if (strcmp(algorithms[i].name, name) == 0)
            return &algorithms[i];
    }
    return NULL;
}

enum jws_verdict jwks_verify(const struct jwks *jwks, const struct jws *jws)
{
    const struct algorithm *algorithm = find_algorithm(jws->algorithm);
    enum jws_verdict verdict = JWS_UNKNOWN_KEY;

    for (size_t i = 0, tries = 0; algorithm != NULL && i < jwks->count && tries < TRIES_MAX; i++) {
        const struct key *key = &jwks->keys[i];
        bool named = key->kid != NULL && jws->kid != NULL;

        if (named && strcmp(key->kid, jws->kid) != 0)
            continue;
        if (named)
            verdict = JWS_BAD; /* unless this or another one of that name has made it */
        if (key->type != algorithm->type ||
            (key->algorithm != NULL && strcmp(key->algorithm, algorithm->name) != 0))
            continue;

        enum jws_verdict tried = try_key(key->public, algorithm, jws);

        tries++;
        if (tried != JWS_BAD)
            return tried;
    }
    return verdict;
}

/* Good, bad or failed. */
static enum jws_verdict try_key(EVP_PKEY *key, const struct algorithm *algorithm,
                                const struct jws *jws)
{
    unsigned char der[ECDSA_DER_MAX];
    struct span signature = jws->signature;

    if (algorithm->ecdsa_len > 0) {
        if (signature.len != algorithm->ecdsa_len)
            return JWS_BAD;
        signature = ecdsa_der(signature, der);
    }

    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    EVP_PKEY_CTX *context = NULL; /* goes with `digest` */
    enum jws_verdict verdict = JWS_FAILED;

    ERR_clear_error();
    if (signature.ptr != NULL && digest != NULL &&
        EVP_DigestVerifyInit_ex(digest, &context, algorithm->digest, NULL, NULL, key, NULL) == 1 &&
        set_padding(context, algorithm)) {
        /* It is used once: the copy that would be made for the end might want for memory. */
        EVP_MD_CTX_set_flags(digest, EVP_MD_CTX_FLAG_FINALISE);

        int code = EVP_DigestVerify(digest, (const unsigned char *)signature.ptr, signature.len,
                                    (const unsigned char *)jws->text.ptr, jws->text.len);

        verdict = code == 1 ? JWS_GOOD : code < 0 || memory_was_short() ? JWS_FAILED : JWS_BAD;
    }
    EVP_MD_CTX_free(digest);
    ERR_clear_error();
    return verdict;
}

/* RFC 7518 3.5: the salt is as long as the digest. */
static bool set_padding(EVP_PKEY_CTX *context, const struct algorithm *algorithm)
{
    return !algorithm->is_pss ||
           (EVP_PKEY_CTX_set_rsa_padding(context, RSA_PKCS1_PSS_PADDING) == 1 &&
            EVP_PKEY_CTX_set_rsa_pss_saltlen(context, RSA_PSS_SALTLEN_DIGEST) == 1);
}

/* r and s as OpenSSL wants them; a NULL pointer without memory. */
static struct span ecdsa_der(struct span signature, unsigned char out[ECDSA_DER_MAX])
{
    const unsigned char *octets = (const unsigned char *)signature.ptr;
    int half = (int)signature.len / 2, len = -1;
    ECDSA_SIG *pair = ECDSA_SIG_new();
    BIGNUM *r = BN_bin2bn(octets, half, NULL), *s = BN_bin2bn(octets + half, half, NULL);

    if (pair != NULL && r != NULL && s != NULL && ECDSA_SIG_set0(pair, r, s) == 1) {
        unsigned char *at = out;

        len = i2d_ECDSA_SIG(pair, &at);
    } else {
        BN_free(r);
        BN_free(s);
    }
    ECDSA_SIG_free(pair);
    return (struct span){len < 0 ? NULL : (const char *)out, len < 0 ? 0 : (size_t)len};
}

/* Does OpenSSL say so, among what it says? */
static bool memory_was_short(void)
{
    unsigned long error;

    do
        error = ERR_get_error();
    while (error != 0 && ERR_GET_REASON(error) != ERR_R_MALLOC_FAILURE);
    return error != 0;
}
