/*
 * Owns how a token is taken apart, and what its header and its claims must be. What is not
 * understood is refused, never skipped, where it could change what the token means.
 */
#include "auth/token/jwt.h"

#include "auth/sasl.h"
#include "proxy/base/mem.h"

#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>

enum { PARTS = 3, JWE_PARTS = 5, TIME_MAX = 1LL << 53 };

/*
 * Without memory jansson finds the JSON bad, or even reads it with a character missing, so what it
 * asks for is watched.
 */
static _Thread_local bool no_memory;

static void watch_memory(void);
static void *json_allocate(size_t size);
static size_t split(struct span token, struct span parts_out[PARTS]);
static bool decode(struct span part, const char *what, struct buf *out, struct err *err);
static bool to_base64(struct span part, char *text_out);
static json_t *read_object(struct span part, const char *what, struct err *err);
static bool check_header(struct jwt *jwt, const struct conf_oauth *conf, struct err *err);
static bool is_allowed(const struct conf_words *algorithms, const char *name);
static bool check_claims(struct jwt *jwt, const json_t *claims, const struct conf_oauth *conf,
                         uint64_t now_s, struct err *err);
static bool check_times(struct jwt *jwt, const json_t *claims, uint64_t leeway_s, uint64_t now_s,
                        struct err *err);
static bool read_time(const json_t *claims, const char *name, uint64_t *time_out, bool *absent_out);
static bool check_issuer(const json_t *claims, const char *issuer, struct err *err);
static bool check_audience(const json_t *claims, const struct conf_words *audience,
                           struct err *err);
static bool check_scope(const json_t *claims, const struct conf_words *scope, struct err *err);
static bool list_holds(const json_t *list, const char *word);
static bool text_holds(const char *text, const char *word);
static bool take_user(struct jwt *jwt, const json_t *claims, const char *name, struct err *err);

void jwt_prepare(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, watch_memory);
}

static void watch_memory(void)
{
    json_set_alloc_funcs(json_allocate, mem_free);
}

static void *json_allocate(size_t size)
{
    void *block = mem_resize(NULL, size);

    no_memory = no_memory || block == NULL;
    return block;
}

bool jwt_read(struct jwt *jwt, struct span token, const struct conf_oauth *conf, uint64_t now_s,
              struct err *err)
{
    struct span parts[PARTS] = {{0}};
    size_t count = token.len > JWT_MAX ? 0 : split(token, parts);

    *jwt = (struct jwt){0};
    buf_init(&jwt->signature, JWT_MAX);
    if (token.len > JWT_MAX)
        return err_set(err, ERR_CREDENTIALS, "token: longer than %d octets", JWT_MAX);
    if (count == JWE_PARTS)
        return err_set(err, ERR_CREDENTIALS, "token: encrypted (JWE), it must be signed (JWS)");
    if (count != PARTS)
        return err_set(err, ERR_CREDENTIALS, "token: no JWT, it has %zu parts instead of 3", count);
    jwt->header = read_object(parts[0], "header", err);
    if (jwt->header == NULL || !check_header(jwt, conf, err) ||
        !decode(parts[2], "signature", &jwt->signature, err))
        return false;
    jwt->jws.signature = buf_span(&jwt->signature);
    jwt->jws.text = (struct span){token.ptr, parts[0].len + 1 + parts[1].len};

    json_t *claims = read_object(parts[1], "payload", err);
    bool ok = claims != NULL && check_claims(jwt, claims, conf, now_s, err);

    json_decref(claims);
    return ok;
}

void jwt_release(struct jwt *jwt)
{
    json_decref(jwt->header);
    buf_release(&jwt->signature);
    *jwt = (struct jwt){0};
}

const char *jwt_shown(const char *text, char out[JWT_SHOWN_MAX])
{
    size_t len = 0;

    for (; len < JWT_SHOWN_MAX - 4 && text[len] != '\0'; len++) {
        bool plain = text[len] >= ' ' && text[len] <= '~' && text[len] != '"' && text[len] != '\\';

        out[len] = plain ? text[len] : '?';
    }
    memcpy(out + len, text[len] == '\0' ? "" : "...", text[len] == '\0' ? 1 : 4);
    return out;
}

/* --- the form (RFC 7515 7.1) --- */

/* How many parts there are; the first three of them. */
static size_t split(struct span token, struct span parts_out[PARTS])
{
    size_t count = 0;

    for (size_t start = 0, i = 0; i <= token.len; i++) {
        if (i < token.len && token.ptr[i] != '.')
            continue;
        if (count < PARTS)
            parts_out[count] = (struct span){token.ptr + start, i - start};
        count++;
        start = i + 1;
    }
    return count;
}

/* base64url without padding (RFC 7515 2), and no second way to write the same octets. */
static bool decode(struct span part, const char *what, struct buf *out, struct err *err)
{
    size_t text_len = (part.len + 3) / 4 * 4;
    struct buf scratch;
    bool ok = true;

    buf_init(&scratch, JWT_MAX + 4);

    char *text = buf_reserve(&scratch, text_len + 1);

    if (text == NULL || buf_reserve(out, text_len / 4 * 3 + 1) == NULL)
        ok = err_set(err, ERR_INTERNAL, "token: no memory");
    else if (!to_base64(part, text) || !sasl_decode_base64((struct span){text, text_len}, out))
        ok = err_set(err, ERR_CREDENTIALS, "token: its %s is no base64url", what);
    if (text != NULL)
        secret_wipe(text, text_len);
    buf_release(&scratch);
    return ok;
}

/* The other alphabet, padded. */
static bool to_base64(struct span part, char *text_out)
{
    size_t i = 0;

    for (; i < part.len; i++) {
        char ch = part.ptr[i];

        if (ch == '+' || ch == '/' || ch == '=')
            return false;
        text_out[i] = ch;
        if (ch == '-')
            text_out[i] = '+';
        else if (ch == '_')
            text_out[i] = '/';
    }
    for (; i % 4 != 0; i++)
        text_out[i] = '=';
    return true;
}

static json_t *read_object(struct span part, const char *what, struct err *err)
{
    struct buf octets;
    json_t *object = NULL;

    buf_init(&octets, JWT_MAX);
    if (decode(part, what, &octets, err)) {
        struct span json = buf_span(&octets);

        no_memory = false;
        object = json_loadb(json.ptr, json.len, JSON_REJECT_DUPLICATES, NULL);
        if (no_memory)
            err_set(err, ERR_INTERNAL, "token: no memory");
        else if (!json_is_object(object))
            err_set(err, ERR_CREDENTIALS, "token: its %s is no JSON object", what);
    }
    buf_release(&octets);
    if (json_is_object(object) && !no_memory)
        return object;
    json_decref(object);
    return NULL;
}

/* --- the header --- */

static bool check_header(struct jwt *jwt, const struct conf_oauth *conf, struct err *err)
{
    const json_t *kid = json_object_get(jwt->header, "kid");
    const json_t *typ = json_object_get(jwt->header, "typ");
    const char *type = typ == NULL ? "JWT" : json_string_value(typ);
    char shown[JWT_SHOWN_MAX];

    jwt->jws.algorithm = json_string_value(json_object_get(jwt->header, "alg"));
    jwt->jws.kid = json_string_value(kid);
    if (jwt->jws.algorithm == NULL)
        return err_set(err, ERR_CREDENTIALS, "token: it names no algorithm");
    if (!is_allowed(&conf->algorithms, jwt->jws.algorithm))
        return err_set(err, ERR_CREDENTIALS, "token: the algorithm \"%s\" is not allowed",
                       jwt_shown(jwt->jws.algorithm, shown));
    if (json_object_get(jwt->header, "crit") != NULL)
        return err_set(err, ERR_CREDENTIALS,
                       "token: it has critical extensions, and none is known here");
    if (kid != NULL && jwt->jws.kid == NULL)
        return err_set(err, ERR_CREDENTIALS, "token: the name of its key is no text");
    /* So that no JWT made for something else is taken for a token (RFC 8725 3.11). */
    if (type == NULL || (strcasecmp(type, "JWT") != 0 && strcasecmp(type, "at+jwt") != 0 &&
                         strcasecmp(type, "application/at+jwt") != 0))
        return err_set(err, ERR_CREDENTIALS, "token: its type is neither at+jwt nor JWT");
    return true;
}

static bool is_allowed(const struct conf_words *algorithms, const char *name)
{
    bool listed = algorithms->count == 0;

    for (size_t i = 0; i < algorithms->count; i++)
        listed = listed || strcmp(algorithms->items[i], name) == 0;
    return listed && jws_algorithm_is_known(name);
}

/* --- the claims --- */

static bool check_claims(struct jwt *jwt, const json_t *claims, const struct conf_oauth *conf,
                         uint64_t now_s, struct err *err)
{
    if (!check_issuer(claims, conf->issuer, err) || !check_audience(claims, &conf->audience, err) ||
        !check_times(jwt, claims, conf->leeway / 1000, now_s, err) ||
        !check_scope(claims, &conf->scope, err))
        return false;
    /* Whoever shows it must prove to hold a key (RFC 7800), which IMAP has no way for. */
    if (json_object_get(claims, "cnf") != NULL)
        return err_set(err, ERR_CREDENTIALS, "token: it is bound to a key, and no bearer token");
    return take_user(jwt, claims, conf->user_claim, err);
}

static bool check_issuer(const json_t *claims, const char *issuer, struct err *err)
{
    const char *found = json_string_value(json_object_get(claims, "iss"));
    char shown[JWT_SHOWN_MAX];

    if (found == NULL)
        return err_set(err, ERR_CREDENTIALS, "token: it names no issuer");
    return strcmp(found, issuer) == 0 ||
           err_set(err, ERR_CREDENTIALS, "token: by another issuer, \"%s\"",
                   jwt_shown(found, shown));
}

static bool check_audience(const json_t *claims, const struct conf_words *audience, struct err *err)
{
    const json_t *found = json_object_get(claims, "aud");
    const char *text = json_string_value(found);

    for (size_t i = 0; i < audience->count; i++) {
        if (list_holds(found, audience->items[i]) ||
            (text != NULL && strcmp(text, audience->items[i]) == 0))
            return true;
    }
    return err_set(err, ERR_CREDENTIALS, "token: for another audience");
}

static bool check_times(struct jwt *jwt, const json_t *claims, uint64_t leeway_s, uint64_t now_s,
                        struct err *err)
{
    static const char *const beginnings[] = {"nbf", "iat"};
    uint64_t time_s;
    bool absent;

    if (!read_time(claims, "exp", &jwt->identity.expires_at, &absent))
        return err_set(err, ERR_CREDENTIALS, "token: it does not say when it expires");
    if (jwt->identity.expires_at + leeway_s <= now_s)
        return err_set(err, ERR_CREDENTIALS, "token: expired %" PRIu64 " s ago",
                       now_s - jwt->identity.expires_at);
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++) {
        bool ok = read_time(claims, beginnings[i], &time_s, &absent);

        if (!ok && !absent)
            return err_set(err, ERR_CREDENTIALS, "token: \"%s\" is no time", beginnings[i]);
        if (ok && time_s > now_s + leeway_s)
            return err_set(err, ERR_CREDENTIALS, "token: valid only in %" PRIu64 " s (%s)",
                           time_s - now_s, beginnings[i]);
    }
    return true;
}

/* NumericDate (RFC 7519 2): seconds since 1970, with or without a fraction. */
static bool read_time(const json_t *claims, const char *name, uint64_t *time_out, bool *absent_out)
{
    const json_t *value = json_object_get(claims, name);
    double number = json_number_value(value);

    *absent_out = value == NULL;
    if (!json_is_number(value) || !(number >= 0 && number < (double)TIME_MAX))
        return false;
    *time_out = (uint64_t)number;
    return true;
}

/* RFC 8693 4.2 has a string of words; some issuers have "scp", as a string or a list. */
static bool check_scope(const json_t *claims, const struct conf_words *scope, struct err *err)
{
    const json_t *words = json_object_get(claims, "scope"), *list = json_object_get(claims, "scp");

    for (size_t i = 0; i < scope->count; i++) {
        const char *word = scope->items[i];

        if (!text_holds(json_string_value(words), word) &&
            !text_holds(json_string_value(list), word) && !list_holds(list, word))
            return err_set(err, ERR_CREDENTIALS, "token: not for the scope \"%.64s\"", word);
    }
    return true;
}

static bool list_holds(const json_t *list, const char *word)
{
    const json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        if (json_is_string(item) && strcmp(json_string_value(item), word) == 0)
            return true;
    }
    return false;
}

/* Is it one of the words, with blanks between? */
static bool text_holds(const char *text, const char *word)
{
    size_t word_len = strlen(word);

    while (text != NULL && *text != '\0') {
        size_t len = strcspn(text, " ");

        if (len == word_len && memcmp(text, word, len) == 0)
            return true;
        text += len + strspn(text + len, " ");
    }
    return false;
}

static bool take_user(struct jwt *jwt, const json_t *claims, const char *name, struct err *err)
{
    const json_t *value = json_object_get(claims, name);
    const json_t *verified = json_object_get(claims, "email_verified");
    const char *user = json_string_value(value);
    size_t len = json_string_length(value);

    if (user == NULL || len == 0)
        return err_set(err, ERR_CREDENTIALS, "token: no text in the claim \"%.64s\"", name);
    if (len > TOKEN_USER_MAX)
        return err_set(err, ERR_CREDENTIALS, "token: the user's name is too long");
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)user[i] < ' ' || user[i] == 0x7f)
            return err_set(err, ERR_CREDENTIALS, "token: control characters in the user's name");
    }
    /* Where users may enter any address, it is theirs only when the issuer has seen to that. */
    if (strcmp(name, "email") == 0 && verified != NULL && !json_is_true(verified) &&
        !text_holds(json_string_value(verified), "true")) /* some issuers write it so */
        return err_set(err, ERR_CREDENTIALS, "token: the address of the user is not verified");
    memcpy(jwt->identity.user, user, len + 1);
    return true;
}
