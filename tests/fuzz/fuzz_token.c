/*
 * Any bytes as a token, as what is in a token, and as a key set; the first one says which.
 * A token is good only if it is one of those that the keys below have signed. What jwt_read takes,
 * a slow and obvious reader takes, too; what it refuses, it explains in printable words.
 */
#include <assert.h>
#include <rhonabwy.h>

#include "auth/token/jwt.h"
#include "auth/sasl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { NOW = 1700000000, INPUT_MAX = 8192 };

/* The private keys are gone. */
static const char key_set[] =
    "{\"keys\":[{\"kty\":\"RSA\",\"n\":\"mF-XnP_ejB8DVkCDTYylsIg7EipyBtHiHKBrbLPDGvVbpLbgo6i6rbn1_"
    "IeyT0gypvq8t7xIMkvGmKTeZFzljjDeeAI_gMxrgDomCXRV_KR5xp9YcjZQlypjkAJFT_w3NgGmg-7VOz_Mq"
    "9eJWacqiFB7lhHCKHydB_9o0gKxZMTDr5jpwBzIOfv8HclcjSNo9h3RnCUyQE8aL1VJpWehSEtqsdgso2SWw"
    "uKVzyQXsdwsyp2Me3ZgmivbRWL2Rz9xJ4kP1yZ4KQLIJOx79AZHnqlOEFHQEFLjrhJhsZeche0PKtUW4AZGm"
    "0LlO6tCj4LUwfMyYVZ40BMH-sOijl0Mgw\",\"e\":\"AQAB\",\"kid\":\"rsa\"},{\"kty\":\"EC\",\"x\":"
    "\"Z5kz1IG3"
    "w04ZmSZMmBEBVAMGbMfmVMWdrzVGRvIULPI\",\"y\":\"7WXe5NbjI9VgPX0Tg4JXma8i86FSnpo0gwUnmhwrh8"
    "Q\",\"crv\":\"P-256\",\"kid\":\"ec\"},{\"kty\":\"OKP\",\"x\":\"Yq9NKt4Tjt1IhZ4Ls69xy57fzdiidv-"
    "B_xejj"
    "-MnMZU\",\"crv\":\"Ed25519\",\"kid\":\"ed\"}]}";

static const char *const genuine[] = {
    "eyJraWQiOiJyc2EiLCJ0eXAiOiJhdCtqd3QiLCJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2kuZXh"
    "hbXBsZSIsImF1ZCI6Im1haWwiLCJzdWIiOiJhbm4iLCJleHAiOjQxMDI0NDQ4MDAsInNjb3BlIjoiaW1hcCJ"
    "9.J__Y4IKbE-SBZFDoLP7KHg9qSKA0zqYDy0BSx5yjJoWNdo_6meRRdP6oDFN36gnZUCCPfaVjZLVGf02Rpa"
    "rFDy6pFi9KY6Z-cqDjdeXmD0dkwOvsVh8YfBsoqb2xbpkzgI_YLG5LJFNJTrsdLI8s5wfoIss5bdh0FQ0Hm1"
    "_McS793qay5kjp8FRbChhnqbYLfJ_S_OhnoFn0O1LjrSWngPvyUu_Ltti6QPbr7fsR35gUu9eHf9HCJBbi6M"
    "a047sbjZhhW0sQSe8grlGruNnTbxqxJ9qjvMa1QQC2WfdD7R1cGlZMi8MnH7oMDJqD3rWDyEe035TXu3Cl3M"
    "wYbnVueQ",
    "eyJraWQiOiJlYyIsImFsZyI6IkVTMjU2In0.eyJpc3MiOiJodHRwczovL2kuZXhhbXBsZSIsImF1ZCI6Im1h"
    "aWwiLCJzdWIiOiJhbm4iLCJleHAiOjQxMDI0NDQ4MDAsInNjb3BlIjoiaW1hcCJ9.Mf2J5KkS9JiT95hsk8e"
    "xpFnHGTQGRRtcjb918undqsKM-4vdXDW7BwEqK9O2x4j1nZyXwgHl6MAAGC5In5wDbw",
    "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJodHRwczovL2kuZXhhbXBsZSIsImF1ZCI6Im1haWwiLCJzdWIiOiJ"
    "hbm4iLCJleHAiOjQxMDI0NDQ4MDAsInNjb3BlIjoiaW1hcCJ9.sZyi_lmVi6k2LlpmuZAzK57JiPjrQ6vmfH"
    "hDjICC2Xg9iH6QaTg1hd2Oj8gtse4lLge3GqloGtBnUiLzqDIRDA",
};

static char empty[] = "", issuer[] = "https://i.example", sub[] = "sub", mail[] = "mail";
static char scope[] = "imap";
static char *audiences[] = {mail}, *scopes[] = {scope};
static const struct conf_oauth conf = {.keys = empty,
                                       .issuer = issuer,
                                       .audience = {audiences, 1},
                                       .scope = {scopes, 1},
                                       .user_claim = sub,
                                       .leeway = 60000};

static void check_refusal(const struct err *err)
{
    assert(err->kind == ERR_CREDENTIALS && err->text[0] != '\0');
    for (const char *at = err->text; *at != '\0'; at++)
        assert(*at >= ' ' && *at <= '~');
}

static bool is_genuine(struct span token)
{
    for (size_t i = 0; i < sizeof genuine / sizeof *genuine; i++)
        if (span_equal(token, span_of(genuine[i])))
            return true;
    return false;
}

static void check_token(const struct jwks *keys, struct span token)
{
    struct jwt jwt;
    struct err err = {0};
    bool good = jwt_read(&jwt, token, &conf, NOW, &err);

    if (!good)
        check_refusal(&err);
    enum jws_verdict verdict = good ? jwks_verify(keys, &jwt.jws) : JWS_BAD;
    assert((verdict == JWS_GOOD) == is_genuine(token) && verdict != JWS_FAILED);
    jwt_release(&jwt);
}

static void append_base64url(struct buf *out, struct span octets)
{
    struct buf text;

    buf_init(&text, 2 * INPUT_MAX);
    assert(sasl_encode_base64(octets, &text));
    for (size_t i = 0; i < buf_len(&text); i++) {
        char ch = buf_span(&text).ptr[i];

        ch = (char)(ch == '+' ? '-' : ch == '/' ? '_' : ch);
        if (ch != '=')
            assert(buf_append(out, (struct span){&ch, 1}));
    }
    buf_release(&text);
}

static bool text_is(const json_t *value, const char *text)
{
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

/* What must hold of each good token; not all that must. */
static void check_obvious(const struct jwt *jwt, struct span header, struct span payload)
{
    json_t *head = json_loadb(header.ptr, header.len, 0, NULL);
    json_t *claims = json_loadb(payload.ptr, payload.len, 0, NULL);
    const json_t *audience = json_object_get(claims, "aud"), *item;
    bool for_us = text_is(audience, mail);
    size_t i;

    json_array_foreach(audience, i, item) for_us = for_us || text_is(item, mail);
    assert(for_us && text_is(json_object_get(claims, "iss"), issuer));
    assert(json_is_number(json_object_get(claims, "exp")));
    assert(json_number_value(json_object_get(claims, "exp")) > NOW - 61);
    assert(json_number_value(json_object_get(claims, "nbf")) < NOW + 61);
    assert(json_object_get(head, "crit") == NULL && json_object_get(claims, "cnf") == NULL);
    assert(text_is(json_object_get(claims, sub), jwt->identity.user));
    assert(jwt->identity.user[0] != '\0');
    assert(text_is(json_object_get(head, "alg"), jwt->jws.algorithm));
    assert(strchr("REP", jwt->jws.algorithm[0]) != NULL);
    json_decref(head);
    json_decref(claims);
}

/* Header and payload, with a line end between. */
static void check_content(const struct jwks *keys, struct span content)
{
    const char *end = content.len == 0 ? NULL : memchr(content.ptr, '\n', content.len);
    struct span header = {content.ptr, end == NULL ? content.len : (size_t)(end - content.ptr)};
    struct span payload = span_after(content, end == NULL ? content.len : header.len + 1);
    struct buf token;
    struct jwt jwt;
    struct err err = {0};

    buf_init(&token, 4 * INPUT_MAX);
    append_base64url(&token, header);
    assert(buf_append_text(&token, "."));
    append_base64url(&token, payload);
    assert(buf_append_text(&token, ".bm90aGluZw"));
    if (jwt_read(&jwt, buf_span(&token), &conf, NOW, &err)) {
        check_obvious(&jwt, header, payload);
        enum jws_verdict verdict = jwks_verify(keys, &jwt.jws);
        assert(verdict == JWS_BAD || verdict == JWS_UNKNOWN_KEY);
    } else {
        check_refusal(&err);
    }
    jwt_release(&jwt);
    buf_release(&token);
}

static void check_set(struct span json)
{
    struct err err = {0};
    struct jwt jwt;
    struct jwks *keys = jwks_parse(json, &err);

    assert(keys == NULL || jwks_count(keys) > 0);
    assert(keys != NULL || (err.kind == ERR_UNAVAILABLE && err.text[0] != '\0'));
    for (size_t i = 0; keys != NULL && i < sizeof genuine / sizeof *genuine; i++) {
        assert(jwt_read(&jwt, span_of(genuine[i]), &conf, NOW, &err));
        assert(jwks_verify(keys, &jwt.jws) != JWS_FAILED);
        jwt_release(&jwt);
    }
    jwks_close(&keys);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct jwks *keys;
    struct span input = {(const char *)data, size};

    if (keys == NULL)
        keys = jwks_parse(span_of(key_set), NULL);
    assert(keys != NULL && jwks_count(keys) == 3);
    if (size == 0 || size > INPUT_MAX)
        return 0;
    input = span_after(input, 1);
    if (data[0] == 'T')
        check_token(keys, input);
    else if (data[0] == 'K')
        check_set(input);
    else
        check_content(keys, input);
    return 0;
}
