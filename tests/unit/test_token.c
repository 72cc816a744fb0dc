/* Which tokens are good, and why others are not. The keys are in a file that does not change. */
#include "tests/unit/token_fixture.h"

#include "auth/sasl.h"

#include <openssl/hmac.h>

static char path[] = "/tmp/test_token.XXXXXX";

static int make_keys(void **state)
{
    int fd = mkstemp(path);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");

    if (file == NULL || issuer_open(state) != 0)
        return -1;
    fputs(issuer_set(RSA_KEY, ED_KEY), file);
    return fclose(file);
}

static int remove_keys(void **state)
{
    return unlink(path) + issuer_close(state);
}

static void setup(struct fixture *f)
{
    fixture_init(f, path);
    fixture_open(f);
}

static void assert_starts(const char *text, const char *start)
{
    if (strncmp(text, start, strlen(start)) != 0)
        fail_msg("found \"%s\", expected \"%s...\"", text, start);
}

/* The unpadded base64url of any octets; in one of a few places in turn. */
static const char *base64url(const void *octets, size_t len)
{
    static char places[4][TOKEN_TEXT_MAX];
    static unsigned count;
    char *text = places[count++ % 4];
    struct buf buf;

    buf_init(&buf, TOKEN_TEXT_MAX);
    assert_true(sasl_encode_base64((struct span){octets, len}, &buf));
    struct span made = buf_span(&buf);
    size_t i = 0;
    for (; i < made.len && made.ptr[i] != '='; i++)
        text[i] = made.ptr[i] == '+' ? '-' : made.ptr[i] == '/' ? '_' : made.ptr[i];
    text[i] = '\0';
    buf_release(&buf);
    return text;
}

/* A token that is not signed, but could be. */
static const char *made_of(const char *header, const char *payload)
{
    static char token[TOKEN_TEXT_MAX];

    snprintf(token, sizeof token, "%s.%s.%s", base64url(header, strlen(header)),
             base64url(payload, strlen(payload)), base64url("no signature", 12));
    return token;
}

static const char *good_payload(void)
{
    static char text[1024];
    json_t *claims = good_claims();
    char *made = json_dumps(claims, JSON_COMPACT);

    snprintf(text, sizeof text, "%s", made);
    free(made);
    json_decref(claims);
    return text;
}

/* --- good ones --- */

static void all_algorithms(void **state)
{
    static const struct {
        enum issuer_key_index key;
        jwa_alg algorithm;
    } all[] = {{RSA_KEY, R_JWA_ALG_RS256},  {RSA_KEY, R_JWA_ALG_RS384},
               {RSA_KEY, R_JWA_ALG_RS512},  {RSA_KEY, R_JWA_ALG_PS256},
               {RSA_KEY, R_JWA_ALG_PS384},  {RSA_KEY, R_JWA_ALG_PS512},
               {P256_KEY, R_JWA_ALG_ES256}, {P384_KEY, R_JWA_ALG_ES384},
               {P521_KEY, R_JWA_ALG_ES512}, {ED_KEY, R_JWA_ALG_EDDSA}};
    struct fixture f;

    (void)state;
    setup(&f);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const struct issuer_key *key = &issuer[all[i].key];
        char header[64];

        assert_string_equal(result(&f, issue_as(key, all[i].algorithm, "{}", good_claims())), "");
        snprintf(header, sizeof header, "{\"kid\":\"%s\",\"typ\":\"at+jwt\"}", key->kid);
        assert_string_equal(result(&f, issue_as(key, all[i].algorithm, header, good_claims())), "");
    }
    assert_int_equal(f.counters.tokens_verified, 20);
    fixture_release(&f);
}

/* r and s begin with zeros, or with a bit that DER reads as a sign, now and then. */
static void many_signatures_of_ecdsa(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    for (size_t i = 0; i < 600; i++)
        assert_string_equal(result(&f, issue(i % 10 == 0 ? P521_KEY : P256_KEY, good_claims())),
                            "");
    fixture_release(&f);
}

static void who_it_is(void **state)
{
    static char email[] = "email", preferred[] = "preferred_username";
    struct fixture f;
    struct showing showing;
    json_t *claims = good_claims();

    (void)state;
    setup(&f);
    json_object_set_new(claims, "exp", json_real(4102444800.75));
    show_text(&f, &showing, issue(P256_KEY, claims));
    showing_wait(&f, &showing);
    assert_string_equal(showing.identity.user, "ann");
    assert_int_equal(showing.identity.expires_at, 4102444800);

    f.conf.oauth.user_claim = preferred;
    show_text(&f, &showing, issue(P256_KEY, good_claims()));
    showing_wait(&f, &showing);
    assert_string_equal(showing.identity.user, "ann@example.org");

    f.conf.oauth.user_claim = email;
    claims = good_claims();
    json_object_set_new(claims, "email", json_string("Zo\xc3\xab@example.org"));
    json_object_set_new(claims, "email_verified", json_true());
    show_text(&f, &showing, issue(P256_KEY, claims));
    showing_wait(&f, &showing);
    assert_string_equal(showing.identity.user, "Zo\xc3\xab@example.org");
    fixture_release(&f);
}

/* --- claims --- */

struct claim_case {
    const char *name, *value; /* JSON; NULL: the claim is missing */
    const char *error;        /* "" when it is good */
};

static void check_claims(struct fixture *f, const struct claim_case *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        json_t *claims = good_claims();

        if (cases[i].value == NULL)
            json_object_del(claims, cases[i].name);
        else
            json_object_set_new(claims, cases[i].name,
                                json_loads(cases[i].value, JSON_DECODE_ANY, NULL));

        const char *error = result(f, issue(P256_KEY, claims));

        if (strcmp(error, cases[i].error) != 0)
            fail_msg("%s=%s: found \"%s\", expected \"%s\"", cases[i].name, cases[i].value, error,
                     cases[i].error);
    }
}

static void every_claim(void **state)
{
#define LATE   "token: it does not say when it expires"
#define FOR    "token: for another audience"
#define SCOPE  "token: not for the scope \"imap\""
#define NOBODY "token: no text in the claim \"sub\""
    static const struct claim_case cases[] = {
        {"iss", NULL, "token: it names no issuer"},
        {"iss", "[\"https://issuer.example\"]", "token: it names no issuer"},
        {"iss", "\"https://issuer.example/\"",
         "token: by another issuer, \"https://issuer.example/\""},
        {"iss", "\"https://Issuer.example\"",
         "token: by another issuer, \"https://Issuer.example\""},
        {"iss", "\"a\\\"b\\n\\\\\\u00e4\"", "token: by another issuer, \"a?b????\""},
        {"aud", NULL, FOR},
        {"aud", "\"mail\"", ""},
        {"aud", "[\"imap.example.org\"]", ""},
        {"aud", "\"mail other\"", FOR},
        {"aud", "[[\"mail\"], {\"mail\": \"mail\"}, 1, \"mai\"]", FOR},
        {"aud", "{\"mail\": \"mail\"}", FOR},
        {"aud", "[]", FOR},
        {"exp", NULL, LATE},
        {"exp", "\"4102444800\"", LATE},
        {"exp", "null", LATE},
        {"exp", "-1", LATE},
        {"exp", "1e300", LATE},
        {"exp", "9223372036854775807", LATE},
        {"exp", "4102444800", ""},
        {"exp", "4102444800.5", ""},
        {"nbf", "1", ""},
        {"nbf", "\"1\"", "token: \"nbf\" is no time"},
        {"iat", NULL, ""},
        {"iat", "true", "token: \"iat\" is no time"},
        {"scope", NULL, SCOPE},
        {"scope", "\"imap\"", ""},
        {"scope", "\" mail  imap \"", ""},
        {"scope", "\"imaps xmap IMAP\"", SCOPE},
        {"scope", "[\"imap\"]", SCOPE},
        {"scope", "\"\"", SCOPE},
        {"scp", "\"nothing\"", ""},
        {"sub", NULL, NOBODY},
        {"sub", "\"\"", NOBODY},
        {"sub", "17", NOBODY},
        {"sub", "[\"ann\"]", NOBODY},
        {"sub", "\"ann\\n\"", "token: control characters in the user's name"},
        {"sub", "\"a\\u007fnn\"", "token: control characters in the user's name"},
        {"cnf", "{\"jkt\": \"x\"}", "token: it is bound to a key, and no bearer token"},
        {"email_verified", "false", ""},
    };
#undef LATE
#undef FOR
#undef SCOPE
#undef NOBODY
    struct fixture f;

    (void)state;
    setup(&f);
    check_claims(&f, cases, sizeof cases / sizeof *cases);
    fixture_release(&f);
}

static void scope_as_some_write_it(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    for (size_t i = 0; i < 2; i++) {
        json_t *claims = good_claims();

        json_object_del(claims, "scope");
        json_object_set_new(claims, "scp",
                            i == 0 ? json_string("a imap") : json_pack("[ss]", "a", "imap"));
        assert_string_equal(result(&f, issue(P256_KEY, claims)), "");
    }
    f.conf.oauth.scope.count = 0;
    json_t *claims = good_claims();
    json_object_del(claims, "scope");
    assert_string_equal(result(&f, issue(P256_KEY, claims)), "");
    fixture_release(&f);
}

static void addresses_that_are_not_verified(void **state)
{
    static char email[] = "email";
    static const struct claim_case cases[] = {
        {"email_verified", NULL, ""},
        {"email_verified", "true", ""},
        {"email_verified", "\"true\"", ""},
        {"email_verified", "false", "token: the address of the user is not verified"},
        {"email_verified", "\"false\"", "token: the address of the user is not verified"},
        {"email_verified", "1", "token: the address of the user is not verified"},
    };
    struct fixture f;

    (void)state;
    setup(&f);
    f.conf.oauth.user_claim = email;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *claims = good_claims();

        json_object_set_new(claims, "email", json_string("ann@example.org"));
        if (cases[i].value != NULL)
            json_object_set_new(claims, "email_verified",
                                json_loads(cases[i].value, JSON_DECODE_ANY, NULL));
        assert_string_equal(result(&f, issue(P256_KEY, claims)), cases[i].error);
    }
    fixture_release(&f);
}

static void long_names(void **state)
{
    char name[TOKEN_USER_MAX + 2];
    struct fixture f;

    (void)state;
    setup(&f);
    memset(name, 'x', sizeof name);
    for (size_t len = TOKEN_USER_MAX; len <= TOKEN_USER_MAX + 1; len++) {
        json_t *claims = good_claims();

        json_object_set_new(claims, "sub", json_stringn(name, len));
        assert_string_equal(result(&f, issue(P256_KEY, claims)),
                            len == TOKEN_USER_MAX ? "" : "token: the user's name is too long");
    }
    fixture_release(&f);
}

/* With a leeway of a minute; half a minute is how slow this test may be. */
static void times(void **state)
{
    static const struct {
        const char *name;
        int offset;
        const char *error;
    } cases[] = {
        {"exp", -30, ""},
        {"exp", -60, "token: expired 6"},
        {"exp", -1000, "token: expired 10"},
        {"nbf", 60, ""},
        {"nbf", 100, "token: valid only in "},
        {"iat", 60, ""},
        {"iat", 100, "token: valid only in "},
    };
    struct fixture f;

    (void)state;
    setup(&f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *claims = good_claims();

        json_object_set_new(claims, cases[i].name, json_integer(time(NULL) + cases[i].offset));
        const char *error = result(&f, issue(P256_KEY, claims));
        if (*cases[i].error == '\0')
            assert_string_equal(error, "");
        assert_starts(error, cases[i].error);
    }
    fixture_release(&f);
}

/* At a time that stands still. */
static void times_to_the_second(void **state)
{
    const json_int_t now = 1700000000;
    struct conf_oauth conf = good_conf();
    static const struct {
        const char *name;
        int offset;
        bool good;
    } cases[] = {{"exp", -60, false}, {"exp", -59, true}, {"nbf", 60, true}, {"nbf", 61, false},
                 {"iat", 60, true},   {"iat", 61, false}, {"exp", 0, true},  {"exp", 300, true}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *claims = good_claims();
        struct jwt jwt;
        struct err err = {0};

        json_object_set_new(claims, "iat", json_integer(now));
        json_object_set_new(claims, "exp", json_integer(now + 300));
        json_object_set_new(claims, cases[i].name, json_integer(now + cases[i].offset));
        assert_int_equal(
            jwt_read(&jwt, span_of(issue(P256_KEY, claims)), &conf, (uint64_t)now, &err),
            cases[i].good);
        jwt_release(&jwt);
    }
}

/* --- headers and keys --- */

static void headers(void **state)
{
#define NOT_ALLOWED(name) "token: the algorithm \"" name "\" is not allowed"
    static const char type[] = "token: its type is neither at+jwt nor JWT";
    static const char object[] = "token: its header is no JSON object";
    static const struct {
        const char *header, *error;
    } cases[] = {
        {"{}", "token: it names no algorithm"},
        {"{\"alg\":null}", "token: it names no algorithm"},
        {"{\"alg\":[\"ES256\"]}", "token: it names no algorithm"},
        {"{\"alg\":\"none\"}", NOT_ALLOWED("none")},
        {"{\"alg\":\"None\"}", NOT_ALLOWED("None")},
        {"{\"alg\":\"\"}", NOT_ALLOWED("")},
        {"{\"alg\":\"HS256\",\"kid\":\"rsa\"}", NOT_ALLOWED("HS256")},
        {"{\"alg\":\"HS512\"}", NOT_ALLOWED("HS512")},
        {"{\"alg\":\"es256\"}", NOT_ALLOWED("es256")},
        {"{\"alg\":\"ES256K\"}", NOT_ALLOWED("ES256K")},
        {"{\"alg\":\"RSA-OAEP\"}", NOT_ALLOWED("RSA-OAEP")},
        {"{\"alg\":\"ES256\",\"crit\":[\"exp\"]}",
         "token: it has critical extensions, and none is known here"},
        {"{\"alg\":\"ES256\",\"crit\":[\"b64\"],\"b64\":false}",
         "token: it has critical extensions, and none is known here"},
        {"{\"alg\":\"ES256\",\"kid\":1}", "token: the name of its key is no text"},
        {"{\"alg\":\"ES256\",\"typ\":\"dpop+jwt\"}", type},
        {"{\"alg\":\"ES256\",\"typ\":null}", type},
        {"{\"alg\":\"ES256\",\"typ\":\"JWT\\u0020\"}", type},
        {"{\"alg\":\"none\",\"alg\":\"ES256\"}", object},
        {"{\"alg\":\"ES256\"} ", "token: not signed (ES256) by any key"},
        {"{\"alg\":\"ES256\",\"typ\":\"jwt\"}", "token: not signed (ES256) by any key"},
        {"{\"alg\":\"ES256\",\"typ\":\"application/AT+JWT\"}",
         "token: not signed (ES256) by any key"},
        {"{\"alg\":\"ES256\",\"kid\":\"ec\"}", "token: not signed (ES256) by its key \"ec\""},
        {"{\"alg\":\"RS256\",\"kid\":\"ec\"}", "token: not signed (RS256) by its key \"ec\""},
        {"{\"alg\":\"ES256\",\"kid\":\"e\\u0007c\"}",
         "token: signed (ES256) by an unknown key \"e?c\""},
        {"{\"alg\":\"ES256\"}x", object},
        {"{\"alg\":\"ES256\"", object},
        {"{\"alg\":\"ES256\",}", object},
        {"[\"ES256\"]", object},
        {"\"ES256\"", object},
        {"", object},
        {"{\"alg\":\"ES256\",\"kid\":\"\\u0000\"}", object},
        {"{\"alg\":\"ES256\",\"kid\":\"\xff\"}", object},
        {"{\"alg\":\"ES256\",\"x\":1e999}", object},
    };
    struct fixture f;

    (void)state;
    setup(&f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(result(&f, made_of(cases[i].header, good_payload())), cases[i].error);
    fixture_release(&f);
}

static void payloads(void **state)
{
    static const char *const bad[] = {
        "",
        "x",
        "[]",
        "null",
        "{\"iss\":\"https://issuer.example\",\"iss\":\"x\"}",
        "{}x",
        "{\"a\":{\"b\":1,\"b\":1}}",
    };
    char deep[30000];
    struct fixture f;

    (void)state;
    setup(&f);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_string_equal(result(&f, made_of("{\"alg\":\"ES256\"}", bad[i])),
                            "token: its payload is no JSON object");
    memset(deep, '[', sizeof deep - 1);
    memcpy(deep, "{\"a\":", 5);
    deep[sizeof deep - 1] = '\0';
    assert_string_equal(result(&f, made_of("{\"alg\":\"ES256\"}", deep)),
                        "token: its payload is no JSON object");
    fixture_release(&f);
}

/* The public key is known to all. Who takes it for the secret of an HMAC lets anybody in. */
static void a_public_key_is_no_secret(void **state)
{
    unsigned char pem[2048], digest[32];
    size_t pem_len = sizeof pem;
    char token[TOKEN_TEXT_MAX];
    struct fixture f;

    (void)state;
    setup(&f);
    assert_int_equal(
        r_jwk_export_to_pem_der(issuer[RSA_KEY].public, R_FORMAT_PEM, pem, &pem_len, 0), RHN_OK);
    for (size_t i = 0; i < 2; i++) {
        const char *header = i == 0 ? "{\"alg\":\"HS256\",\"kid\":\"rsa\"}" : "{\"alg\":\"HS256\"}";
        int len = snprintf(token, sizeof token, "%s.%s", base64url(header, strlen(header)),
                           base64url(good_payload(), strlen(good_payload())));

        HMAC(EVP_sha256(), pem, (int)pem_len, (const unsigned char *)token, (size_t)len, digest,
             NULL);
        snprintf(token + len, sizeof token - (size_t)len, ".%s", base64url(digest, sizeof digest));
        assert_string_equal(result(&f, token), "token: the algorithm \"HS256\" is not allowed");
    }
    fixture_release(&f);
}

static void a_key_serves_its_own_algorithms_only(void **state)
{
    static char es256[] = "ES256", none[] = "none", hs256[] = "HS256";
    static char *only[] = {es256, none, hs256};
    struct fixture f;

    (void)state;
    setup(&f);
    /* the signer's key is another one than the name says */
    assert_string_equal(result(&f, issue_as(&issuer[P256_KEY], R_JWA_ALG_ES256, "{\"kid\":\"rsa\"}",
                                            good_claims())),
                        "token: not signed (ES256) by its key \"rsa\"");
    assert_string_equal(result(&f, issue_as(&issuer[P256_KEY], R_JWA_ALG_ES256,
                                            "{\"kid\":\"p384\"}", good_claims())),
                        "token: not signed (ES256) by its key \"p384\"");
    /* SHA-256 with P-384, which there is no name for */
    assert_starts(result(&f, issue_as(&issuer[P384_KEY], R_JWA_ALG_ES256, "{\"kid\":\"p384\"}",
                                      good_claims())),
                  "token: not signed (ES256)");
    f.conf.oauth.algorithms = (struct conf_words){only, 3};
    assert_string_equal(result(&f, issue(P256_KEY, good_claims())), "");
    assert_string_equal(result(&f, issue(RSA_KEY, good_claims())),
                        "token: the algorithm \"RS256\" is not allowed");
    assert_string_equal(result(&f, made_of("{\"alg\":\"none\"}", good_payload())),
                        "token: the algorithm \"none\" is not allowed");
    fixture_release(&f);
}

/* A token brings its own key along, in each of the ways that there are. */
static void keys_in_the_token_count_for_nothing(void **state)
{
    static const char *const ways[] = {"{\"jwk\":%s}", "{\"kid\":\"ec\",\"jwk\":%s}",
                                       "{\"jku\":\"%2$s\"}", "{\"x5u\":\"%2$s\"}",
                                       "{\"kid\":\"%2$s\"}"};
    char *key = r_jwk_export_to_json_str(issuer[FOREIGN_KEY].public, 0);
    char header[1024];
    struct server server;
    struct fixture f;

    (void)state;
    setup(&f);
    server_init(&server);
    server_say(&server, "200 OK", issuer_set(FOREIGN_KEY, FOREIGN_KEY));
    server_start(&server);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const char *percent = strchr(ways[i], '%');

        snprintf(header, sizeof header, "%.*s%s%s", (int)(percent - ways[i]), ways[i],
                 percent[1] == 's' ? key : server.url, percent + (percent[1] == 's' ? 2 : 4));
        assert_string_not_equal(
            result(&f, issue_as(&issuer[FOREIGN_KEY], R_JWA_ALG_ES256, header, good_claims())), "");
    }
    assert_int_equal(server_count(&server), 0);
    server_stop(&server);
    free(key);
    fixture_release(&f);
}

/* --- the form --- */

static void shapes(void **state)
{
    static char large[JWT_MAX + 2];
    static const struct {
        const char *token, *error;
    } cases[] = {
        {"opaque", "token: no JWT, it has 1 parts instead of 3"},
        {".", "token: no JWT, it has 2 parts instead of 3"},
        {"a.b.c.d", "token: no JWT, it has 4 parts instead of 3"},
        {"a.b.c.d.e", "token: encrypted (JWE), it must be signed (JWS)"},
        {"a.b.c.d.e.f", "token: no JWT, it has 6 parts instead of 3"},
        {"..", "token: its header is no JSON object"},
        {"e30.e30.e30", "token: it names no algorithm"},
        {"e30=.e30.e30", "token: its header is no base64url"},
        {"e31.e30.e30", "token: its header is no base64url"}, /* a bit that no octet has */
        {" e30.e30.e30", "token: its header is no base64url"},
        {"e30.e30.e30\r\n", "token: it names no algorithm"},
        {"e.e30.e30", "token: its header is no base64url"},
        {large, "token: longer than 49152 octets"},
        {large + 1, "token: no JWT, it has 1 parts instead of 3"},
    };
    struct fixture f;

    (void)state;
    memset(large, 'x', JWT_MAX + 1);
    setup(&f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(result(&f, cases[i].token), cases[i].error);
    fixture_release(&f);
}

static void the_longest_token(void **state)
{
    char *padding = malloc(JWT_MAX);
    struct fixture f;

    (void)state;
    setup(&f);
    memset(padding, 'x', JWT_MAX);
    for (size_t len = 36000;; len++) {
        json_t *claims = good_claims();

        json_object_set_new(claims, "padding", json_stringn(padding, len));
        const char *token = issue(P256_KEY, claims);
        size_t token_len = strlen(token);
        if (token_len < JWT_MAX - 3)
            continue;
        assert_string_equal(result(&f, token),
                            token_len > JWT_MAX ? "token: longer than 49152 octets" : "");
        if (token_len > JWT_MAX)
            break;
    }
    free(padding);
    fixture_release(&f);
}

/* Not one character may be another one, be absent, or be one too many. */
static void every_character_counts(void **state)
{
    static const char others[] = "A.=+ \n_";
    struct fixture f;
    char token[2048], changed[2048];
    struct showing showing;

    (void)state;
    setup(&f);
    f.conf.oauth.leeway = 0;
    snprintf(token, sizeof token, "%s", issue(P256_KEY, good_claims()));
    size_t len = strlen(token);
    for (size_t i = 0; i < len; i++) {
        show(&f, &showing, (struct span){token, i});
        showing_wait(&f, &showing);
        assert_int_equal(showing.err.kind, ERR_CREDENTIALS);
        for (size_t j = 0; j < sizeof others; j++) { /* NUL, too */
            memcpy(changed, token, len);
            changed[i] = others[j];
            show(&f, &showing, (struct span){changed, len});
            showing_wait(&f, &showing);
            assert_int_equal(showing.err.kind, changed[i] == token[i] ? ERR_NONE : ERR_CREDENTIALS);
        }
    }
    for (size_t j = 0; j < sizeof others; j++) {
        memcpy(changed, token, len);
        changed[len] = others[j];
        show(&f, &showing, (struct span){changed, len + 1});
        showing_wait(&f, &showing);
        assert_int_equal(showing.err.kind, ERR_CREDENTIALS);
    }
    assert_string_equal(result(&f, token), "");
    fixture_release(&f);
}

/* Octets that no signature is made of are a bad signature, and nothing worse. */
static void strange_signatures(void **state)
{
    static const struct {
        const char *header;
        size_t len;
    } cases[] = {
        {"{\"alg\":\"RS256\",\"kid\":\"rsa\"}", 256}, {"{\"alg\":\"PS256\",\"kid\":\"rsa\"}", 256},
        {"{\"alg\":\"PS512\",\"kid\":\"rsa\"}", 256}, {"{\"alg\":\"ES256\",\"kid\":\"ec\"}", 64},
        {"{\"alg\":\"ES384\",\"kid\":\"p384\"}", 96}, {"{\"alg\":\"ES512\",\"kid\":\"p521\"}", 132},
        {"{\"alg\":\"EdDSA\",\"kid\":\"ed\"}", 64},
    };
    static const unsigned char fills[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    unsigned char octets[600];
    char token[TOKEN_TEXT_MAX];
    struct fixture f;
    struct showing showing;

    (void)state;
    setup(&f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t lengths[] = {0, 1, cases[i].len - 1, cases[i].len, cases[i].len + 1, 600};

        for (size_t j = 0; j < sizeof fills * 6; j++) {
            memset(octets, fills[j / 6], sizeof octets);
            snprintf(token, sizeof token, "%s.%s.%s",
                     base64url(cases[i].header, strlen(cases[i].header)),
                     base64url(good_payload(), strlen(good_payload())),
                     base64url(octets, lengths[j % 6]));
            show_text(&f, &showing, token);
            showing_wait(&f, &showing);
            assert_int_equal(showing.err.kind, ERR_CREDENTIALS);
            assert_non_null(strstr(showing.err.text, "by its key"));
        }
    }
    fixture_release(&f);
}

/* --- requests --- */

static void many_at_once_some_cancelled(void **state)
{
    enum { MANY = 50 };
    struct fixture f;
    struct showing showings[MANY];

    (void)state;
    setup(&f);
    for (size_t i = 0; i < MANY; i++)
        show_text(&f, &showings[i], i % 3 == 0 ? "x.y.z" : issue(P256_KEY, good_claims()));
    for (size_t i = 0; i < MANY; i += 5)
        showing_cancel(&showings[i]);
    showing_wait(&f, &showings[3]);
    for (size_t i = 0; i < MANY; i++) {
        if (i % 5 != 0 && i % 7 == 0 && showings[i].answer_count == 0)
            showing_cancel(&showings[i]);
        else if (i % 5 != 0)
            showing_wait(&f, &showings[i]);
    }
    for (size_t i = 0; i < MANY; i++) {
        if (showings[i].answer_count == 1)
            assert_int_equal(showings[i].err.kind, i % 3 == 0 ? ERR_CREDENTIALS : ERR_NONE);
        token_cancel(&showings[i].request); /* harmless now */
    }
    fixture_release(&f);
}

static struct showing second, third;

static void answered_with_more(struct token_request *request, const struct token_identity *identity,
                               const struct err *err)
{
    struct fixture *f = request->owner;

    assert_non_null(identity);
    assert_int_equal(err->kind, ERR_NONE);
    showing_cancel(&second);
    show_text(f, &third, "x.y.z");
}

static void an_owner_goes_on_in_its_answer(void **state)
{
    struct fixture f;
    struct secret token = {0};
    struct token_request first = {.token = &token, .on_answer = answered_with_more, .owner = &f};

    (void)state;
    setup(&f);
    assert_true(secret_set(&token, span_of(issue(P256_KEY, good_claims()))));
    token_verify(f.verifier, &first);
    show_text(&f, &second, "x.y.z");
    while (third.answer_count == 0)
        uv_run(&f.loop, UV_RUN_ONCE);
    assert_int_equal(second.answer_count, 0);
    secret_release(&token);
    fixture_release(&f);
}

/* --- key sets --- */

static void what_is_no_set(void **state)
{
    static const struct {
        const char *json, *error;
    } cases[] = {
        {"", "this is no JSON object with an array \"keys\""},
        {"<html>", "this is no JSON object with an array \"keys\""},
        {"[]", "this is no JSON object with an array \"keys\""},
        {"{\"keys\":{}}", "this is no JSON object with an array \"keys\""},
        {"{\"keys\":[],\"keys\":[]}", "this is no JSON object with an array \"keys\""},
        {"{\"keys\":[]}", "none of 0 keys can verify signatures"},
        {"{\"keys\":[1,null,[],{}]}", "none of 4 keys can verify signatures"},
        {"{\"keys\":[{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}]}",
         "none of 1 keys can verify signatures"},
        {"{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"AA\"}]}",
         "none of 1 keys can verify signatures"},
        {"{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"AA\",\"y\":1}]}",
         "none of 1 keys can verify signatures"},
        {"{\"keys\":[{\"kty\":\"RSA\",\"n\":\"!\",\"e\":\"AQAB\"}]}",
         "none of 1 keys can verify signatures"},
        {"{\"keys\":[{\"kty\":\"RSA\",\"n\":\"AQAB\",\"e\":\"AQAB\"}]}",
         "none of 1 keys can verify signatures"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};

        assert_null(jwks_parse(span_of(cases[i].json), &err));
        assert_string_equal(err.text, cases[i].error);
        assert_int_equal(err.kind, ERR_UNAVAILABLE);
    }
}

/* The set of one key, changed in one member; what becomes of a token that the key has signed. */
static void what_a_key_is_for(void **state)
{
    static const struct {
        const char *name, *value; /* JSON; NULL: the member is missing */
        bool is_key;
        enum jws_verdict verdict;
    } cases[] = {
        {"use", "\"sig\"", true, JWS_GOOD},
        {"use", "\"enc\"", false, JWS_BAD},
        {"use", "1", false, JWS_BAD},
        {"key_ops", "[\"verify\"]", true, JWS_GOOD},
        {"key_ops", "[\"sign\"]", false, JWS_BAD},
        {"key_ops", "[]", false, JWS_BAD},
        {"alg", "\"ES256\"", true, JWS_GOOD},
        {"alg", "\"ES384\"", true, JWS_BAD},
        {"alg", "\"none\"", true, JWS_BAD},
        {"alg", "1", false, JWS_BAD},
        {"kid", "\"ec2\"", true, JWS_UNKNOWN_KEY},
        {"kid", NULL, true, JWS_GOOD},
        {"kid", "1", false, JWS_BAD},
        {"kty", "\"RSA\"", false, JWS_BAD},
        {"kty", NULL, false, JWS_BAD},
        {"crv", "\"P-384\"", false, JWS_BAD}, /* no point on that curve */
        {"crv", "\"P-256K\"", false, JWS_BAD},
        {"y", NULL, false, JWS_BAD},
        {"x5u", "\"http://127.0.0.1:1/\"", true, JWS_GOOD},
        {"x5c", "[\"AAAA\"]", true, JWS_GOOD},
        {"d", "\"AAAA\"", true, JWS_GOOD},
    };
    struct conf_oauth conf = good_conf();
    struct jwt jwt;
    struct err err = {0};
    const char *token = issue(P256_KEY, good_claims());

    (void)state;
    assert_true(jwt_read(&jwt, span_of(token), &conf, (uint64_t)time(NULL), &err));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *key = json_deep_copy(issuer[P256_KEY].public);

        if (cases[i].value == NULL)
            json_object_del(key, cases[i].name);
        else
            json_object_set_new(key, cases[i].name,
                                json_loads(cases[i].value, JSON_DECODE_ANY, NULL));
        json_t *set = json_pack("{s[o]}", "keys", key);
        char *text = json_dumps(set, 0);
        struct jwks *jwks = jwks_parse(span_of(text), &err);

        if ((jwks != NULL) != cases[i].is_key)
            fail_msg("%s: %s", cases[i].name, cases[i].value);
        if (jwks != NULL && jwks_verify(jwks, &jwt.jws) != cases[i].verdict)
            fail_msg("%s: %s: verdict %d", cases[i].name, cases[i].value,
                     (int)jwks_verify(jwks, &jwt.jws));
        jwks_close(&jwks);
        free(text);
        json_decref(set);
    }
    jwt_release(&jwt);
}

static void weak_keys_are_left_out(void **state)
{
    jwk_t *private, *public;
    struct err err = {0};

    (void)state;
    for (unsigned bits = 1024; bits <= 2048; bits += 1024) {
        r_jwk_init(&private);
        r_jwk_init(&public);
        assert_int_equal(r_jwk_generate_key_pair(private, public, R_KEY_TYPE_RSA, bits, "k"),
                         RHN_OK);
        json_t *set = json_pack("{s[O]}", "keys", public);
        char *text = json_dumps(set, 0);
        struct jwks *jwks = jwks_parse(span_of(text), &err);

        assert_int_equal(jwks != NULL, bits == 2048);
        jwks_close(&jwks);
        free(text);
        json_decref(set);
        r_jwk_free(private);
        r_jwk_free(public);
    }
}

/* A set of `count` keys of strangers, and one more; what becomes of a token by that one. */
static enum jws_verdict last_of(size_t count, const char *token, size_t *kept_out)
{
    json_t *keys = json_array(), *set = json_pack("{so}", "keys", keys);
    struct conf_oauth conf = good_conf();
    struct err err = {0};
    struct jwt jwt;

    for (size_t i = 0; i < count; i++)
        json_array_append(keys, issuer[FOREIGN_KEY].public);
    json_array_append(keys, issuer[NEW_KEY].public);
    char *text = json_dumps(set, 0);
    struct jwks *jwks = jwks_parse(span_of(text), &err);

    assert_non_null(jwks);
    assert_true(jwt_read(&jwt, span_of(token), &conf, (uint64_t)time(NULL), &err));
    *kept_out = jwks_count(jwks);
    enum jws_verdict verdict = jwks_verify(jwks, &jwt.jws);
    jwt_release(&jwt);
    jwks_close(&jwks);
    free(text);
    json_decref(set);
    return verdict;
}

/* Of very many keys some are kept, and for a token that names none a few are tried. */
static void large_sets(void **state)
{
    char nameless[2048];
    const char *named;
    size_t kept;

    (void)state;
    snprintf(nameless, sizeof nameless, "%s",
             issue_as(&issuer[NEW_KEY], R_JWA_ALG_ES256, "{}", good_claims()));
    named = issue(NEW_KEY, good_claims());
    assert_int_equal(last_of(3, nameless, &kept), JWS_GOOD);
    assert_int_equal(last_of(4, nameless, &kept), JWS_UNKNOWN_KEY);
    assert_int_equal(last_of(63, named, &kept), JWS_GOOD);
    assert_int_equal(kept, 64);
    assert_int_equal(last_of(2000, named, &kept), JWS_UNKNOWN_KEY);
    assert_int_equal(kept, 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_algorithms),
        cmocka_unit_test(many_signatures_of_ecdsa),
        cmocka_unit_test(who_it_is),
        cmocka_unit_test(every_claim),
        cmocka_unit_test(scope_as_some_write_it),
        cmocka_unit_test(addresses_that_are_not_verified),
        cmocka_unit_test(long_names),
        cmocka_unit_test(times),
        cmocka_unit_test(times_to_the_second),
        cmocka_unit_test(headers),
        cmocka_unit_test(payloads),
        cmocka_unit_test(a_public_key_is_no_secret),
        cmocka_unit_test(a_key_serves_its_own_algorithms_only),
        cmocka_unit_test(keys_in_the_token_count_for_nothing),
        cmocka_unit_test(shapes),
        cmocka_unit_test(the_longest_token),
        cmocka_unit_test(every_character_counts),
        cmocka_unit_test(strange_signatures),
        cmocka_unit_test(many_at_once_some_cancelled),
        cmocka_unit_test(an_owner_goes_on_in_its_answer),
        cmocka_unit_test(what_is_no_set),
        cmocka_unit_test(what_a_key_is_for),
        cmocka_unit_test(weak_keys_are_left_out),
        cmocka_unit_test(large_sets),
    };

    return cmocka_run_group_tests(tests, make_keys, remove_keys);
}
