/*
 * For the tests of tokens: an issuer with keys that are made here, a web server of one thread that
 * says what it is told to say, and a verifier with its loop.
 */
#ifndef IMAPMUX_TESTS_TOKEN_FIXTURE_H
#define IMAPMUX_TESTS_TOKEN_FIXTURE_H

#include "auth/token/jwks.h"
#include "auth/token/token.h"
#include "proxy/base/mem.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <rhonabwy.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
/* after its friends */
#include <cmocka.h>

enum { TOKEN_TEXT_MAX = 70000, SET_TEXT_MAX = 16384, DEADLINE_SECONDS = 20 };

/* --- the issuer --- */

struct issuer_key {
    const char *kid;
    jwa_alg algorithm;
    jwk_t *private, *public;
};

enum issuer_key_index {
    RSA_KEY,
    P256_KEY,
    P384_KEY,
    P521_KEY,
    ED_KEY,
    NEW_KEY,
    FOREIGN_KEY,
    KEY_COUNT
};

static struct issuer_key issuer[KEY_COUNT] = {
    [RSA_KEY] = {.kid = "rsa", .algorithm = R_JWA_ALG_RS256},
    [P256_KEY] = {.kid = "ec", .algorithm = R_JWA_ALG_ES256},
    [P384_KEY] = {.kid = "p384", .algorithm = R_JWA_ALG_ES384},
    [P521_KEY] = {.kid = "p521", .algorithm = R_JWA_ALG_ES512},
    [ED_KEY] = {.kid = "ed", .algorithm = R_JWA_ALG_EDDSA},
    [NEW_KEY] = {.kid = "new", .algorithm = R_JWA_ALG_ES256},
    [FOREIGN_KEY] = {.kid = "ec", .algorithm = R_JWA_ALG_ES256},
};

static inline int issuer_open(void **state)
{
    static const struct {
        int type;
        unsigned bits;
    } kinds[KEY_COUNT] = {{R_KEY_TYPE_RSA, 2048}, {R_KEY_TYPE_EC, 256},    {R_KEY_TYPE_EC, 384},
                          {R_KEY_TYPE_EC, 521},   {R_KEY_TYPE_EDDSA, 256}, {R_KEY_TYPE_EC, 256},
                          {R_KEY_TYPE_EC, 256}};

    (void)state;
    for (size_t i = 0; i < KEY_COUNT; i++) {
        r_jwk_init(&issuer[i].private);
        r_jwk_init(&issuer[i].public);
        if (r_jwk_generate_key_pair(issuer[i].private, issuer[i].public, kinds[i].type,
                                    kinds[i].bits, issuer[i].kid) != RHN_OK)
            return -1;
    }
    return 0;
}

static inline int issuer_close(void **state)
{
    (void)state;
    for (size_t i = 0; i < KEY_COUNT; i++) {
        r_jwk_free(issuer[i].private);
        r_jwk_free(issuer[i].public);
    }
    return 0;
}

/* A set with the public keys from `first` to `last`. */
static inline const char *issuer_set(enum issuer_key_index first, enum issuer_key_index last)
{
    static char text[SET_TEXT_MAX];
    size_t len = (size_t)snprintf(text, sizeof text, "{\"keys\":[");

    for (size_t i = first; i <= last; i++) {
        char *key = r_jwk_export_to_json_str(issuer[i].public, 0);

        len += (size_t)snprintf(text + len, sizeof text - len, "%s%s", i == first ? "" : ",", key);
        free(key);
    }
    snprintf(text + len, sizeof text - len, "]}");
    return text;
}

/* A good token's claims; whoever gets them may change them, and gives them to issue. */
static inline json_t *good_claims(void)
{
    json_int_t now = (json_int_t)time(NULL);

    return json_pack("{ss ss s[ss] sI sI ss ss}", "iss", "https://issuer.example", "sub", "ann",
                     "aud", "mail", "other", "exp", now + 300, "iat", now, "scope",
                     "openid imap mail", "preferred_username", "ann@example.org");
}

/* Signs, and frees the claims. `header` has what is beside "alg", as JSON. */
static inline const char *issue_as(const struct issuer_key *key, jwa_alg algorithm,
                                   const char *header, json_t *claims)
{
    static char token[TOKEN_TEXT_MAX];
    char *payload = json_dumps(claims, JSON_COMPACT), *made;
    jwk_t *private = r_jwk_copy(key->private);
    jws_t *jws;

    json_decref(claims);
    r_jwk_delete_property_str(private, "kid"); /* it would come into the header */
    r_jws_init(&jws);
    assert_int_equal(r_jws_set_full_header_json_str(jws, header), RHN_OK);
    r_jws_set_alg(jws, algorithm);
    r_jws_set_payload(jws, (const unsigned char *)payload, strlen(payload));
    made = r_jws_serialize(jws, private, 0);
    assert_non_null(made);
    assert_true(strlen(made) < sizeof token);
    memcpy(token, made, strlen(made) + 1);
    free(made);
    free(payload);
    r_jws_free(jws);
    r_jwk_free(private);
    return token;
}

static inline const char *issue(enum issuer_key_index index, json_t *claims)
{
    char header[64];

    snprintf(header, sizeof header, "{\"kid\":\"%s\"}", issuer[index].kid);
    return issue_as(&issuer[index], issuer[index].algorithm, header, claims);
}

/* --- the web server --- */

struct server {
    pthread_t thread;
    pthread_mutex_t lock;
    int listener, stop, port;
    unsigned count; /* of requests */
    char *answer;   /* whole, with its header; NULL: silence */
    size_t answer_len;
    char url[64];
};

static inline void server_say(struct server *server, const char *status, const char *body)
{
    size_t size = strlen(body) + 256;
    char *answer = malloc(size);
    int len = snprintf(answer, size, "HTTP/1.1 %s\r\nConnection: close\r\n\r\n%s", status, body);

    pthread_mutex_lock(&server->lock);
    free(server->answer);
    server->answer = answer;
    server->answer_len = (size_t)len;
    pthread_mutex_unlock(&server->lock);
}

static inline void server_hang(struct server *server)
{
    pthread_mutex_lock(&server->lock);
    free(server->answer);
    server->answer = NULL;
    pthread_mutex_unlock(&server->lock);
}

static inline unsigned server_count(struct server *server)
{
    pthread_mutex_lock(&server->lock);
    unsigned count = server->count;
    pthread_mutex_unlock(&server->lock);
    return count;
}

/* Waits for `fd` or the end; false: it is the end. */
static inline bool server_wait(struct server *server, int fd)
{
    struct pollfd fds[] = {{.fd = fd, .events = POLLIN}, {.fd = server->stop, .events = POLLIN}};

    poll(fds, 2, -1);
    return fds[1].revents == 0;
}

/* One request, one answer, and the end. */
static inline void server_serve(struct server *server, int client)
{
    char request[4096];
    size_t len = 0;

    while (len < sizeof request - 1 && server_wait(server, client)) {
        ssize_t got = read(client, request + len, sizeof request - 1 - len);

        if (got <= 0)
            return;
        len += (size_t)got;
        request[len] = '\0';
        if (strstr(request, "\r\n\r\n") == NULL)
            continue;
        pthread_mutex_lock(&server->lock);
        server->count++;
        size_t answer_len = server->answer == NULL ? 0 : server->answer_len;
        char *answer = mem_copy_text(server->answer, answer_len);
        pthread_mutex_unlock(&server->lock);
        for (size_t sent = 0; sent < answer_len;) {
            ssize_t put = send(client, answer + sent, answer_len - sent, MSG_NOSIGNAL);

            if (put <= 0)
                break;
            sent += (size_t)put;
        }
        mem_free(answer);
        if (answer_len > 0)
            return;
    }
}

static inline void *server_run(void *argument)
{
    struct server *server = argument;

    while (server_wait(server, server->listener)) {
        int client = accept(server->listener, NULL, NULL);

        server_serve(server, client);
        close(client);
    }
    return NULL;
}

/* Takes a port, on which nobody answers before server_start. */
static inline void server_init(struct server *server)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;

    memset(server, 0, sizeof *server);
    pthread_mutex_init(&server->lock, NULL);
    server->stop = eventfd(0, EFD_CLOEXEC);
    server->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(server->listener, (struct sockaddr *)&address, size), 0);
    assert_int_equal(getsockname(server->listener, (struct sockaddr *)&address, &size), 0);
    server->port = ntohs(address.sin_port);
    snprintf(server->url, sizeof server->url, "http://127.0.0.1:%d/keys", server->port);
}

static inline void server_start(struct server *server)
{
    assert_int_equal(listen(server->listener, 64), 0);
    assert_int_equal(pthread_create(&server->thread, NULL, server_run, server), 0);
}

static inline void server_stop(struct server *server)
{
    uint64_t one = 1;

    assert_int_equal(write(server->stop, &one, sizeof one), sizeof one);
    pthread_join(server->thread, NULL);
    close(server->listener);
    close(server->stop);
    free(server->answer);
    pthread_mutex_destroy(&server->lock);
}

/* --- the verifier --- */

struct fixture {
    uv_loop_t loop;
    struct turn turn;
    struct conf conf;
    struct counters counters;
    struct env env;
    struct token_verifier *verifier;
};

static char empty_text[] = "", issuer_name[] = "https://issuer.example", claim_sub[] = "sub";
static char audience_mail[] = "mail", audience_imap[] = "imap.example.org", scope_imap[] = "imap";
static char *audiences[] = {audience_imap, audience_mail}, *scopes[] = {scope_imap};

static inline struct conf_oauth good_conf(void)
{
    return (struct conf_oauth){.keys = empty_text,
                               .keys_ca_file = empty_text,
                               .refresh = 3600000,
                               .issuer = issuer_name,
                               .audience = {audiences, 2},
                               .scope = {scopes, 1},
                               .user_claim = claim_sub,
                               .leeway = 60000};
}

static inline void fixture_init(struct fixture *f, char *keys)
{
    memset(f, 0, sizeof *f);
    uv_loop_init(&f->loop);
    turn_init(&f->turn, &f->loop);
    f->env = (struct env){
        .loop = &f->loop, .turn = &f->turn, .conf = &f->conf, .counters = &f->counters};
    f->conf.oauth = good_conf();
    f->conf.oauth.keys = keys;
}

static inline void fixture_open(struct fixture *f)
{
    struct err err = {0};

    f->verifier = token_open(&f->env, &err);
    assert_string_equal(err.text, "");
    assert_non_null(f->verifier);
}

/* Closes all and runs the loop dry: what is left open or allocated is a bug. */
static inline void fixture_release(struct fixture *f)
{
    token_close(&f->verifier);
    assert_null(f->verifier);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    turn_release(&f->turn);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
}

struct showing {
    struct token_request request;
    struct secret token;
    struct token_identity identity;
    struct err err;
    unsigned answer_count;
};

static inline void showing_answered(struct token_request *request,
                                    const struct token_identity *identity, const struct err *err)
{
    struct showing *showing = request->owner;

    assert_int_equal(identity != NULL, err->kind == ERR_NONE);
    showing->err = *err;
    if (identity != NULL)
        showing->identity = *identity;
    showing->answer_count++;
    secret_release(&showing->token); /* borrowed only until now */
}

static inline void show(struct fixture *f, struct showing *showing, struct span token)
{
    memset(showing, 0, sizeof *showing);
    assert_true(secret_set(&showing->token, token));
    showing->request.token = &showing->token;
    showing->request.on_answer = showing_answered;
    showing->request.owner = showing;
    token_verify(f->verifier, &showing->request);
    assert_int_equal(showing->answer_count, 0);
}

static inline void show_text(struct fixture *f, struct showing *showing, const char *token)
{
    show(f, showing, span_of(token));
}

static inline void showing_wait(struct fixture *f, struct showing *showing)
{
    while (showing->answer_count == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(showing->answer_count, 1);
}

static inline void showing_cancel(struct showing *showing)
{
    token_cancel(&showing->request);
    secret_release(&showing->token);
}

/* "" for a good token, else why it is not. */
static inline const char *result(struct fixture *f, const char *token)
{
    static struct showing showing;

    show_text(f, &showing, token);
    showing_wait(f, &showing);
    assert_true(showing.err.kind == ERR_NONE || showing.err.text[0] != '\0');
    return showing.err.kind == ERR_NONE ? "" : showing.err.text;
}

#endif
