/*
 * Owns the requests: those that are ready are judged one in each turn of the loop, for a signature
 * takes a while; those that wait for keys become ready with each load. A request is judged from the
 * beginning each time, so nothing of its token is kept between.
 */
#include "auth/token/token.h"

#include "auth/token/jwks_source.h"
#include "proxy/base/mem.h"

#include <assert.h>
#include <time.h>
#include <utlist.h>

struct token_verifier {
    const struct env *env;
    struct jwks_source *source;
    struct token_request *ready, *waiting;
    struct turn_task task; /* judges the first one that is ready */
};

static void keys_loaded(void *owner);
static void make_ready(struct token_request *request);
static void judge_first(struct turn_task *task);
static bool judge(struct token_request *request, struct token_identity *identity_out,
                  struct err *err);
static bool check_signature(struct token_request *request, const struct jws *jws, struct err *err);
static bool await_keys(struct token_request *request, const struct jws *jws, struct err *err);
static void answer(struct token_request *request, const struct token_identity *identity,
                   const struct err *err);

struct token_verifier *token_open(const struct env *env, struct err *err)
{
    struct token_verifier *verifier = mem_new(sizeof *verifier);

    if (verifier == NULL) {
        err_set(err, ERR_INTERNAL, "oauth: no memory");
        return NULL;
    }
    jwt_prepare();
    verifier->env = env;
    verifier->task.run = judge_first;
    verifier->source = jwks_source_open(env, keys_loaded, verifier, err);
    if (verifier->source == NULL)
        token_close(&verifier);
    return verifier;
}

static void keys_loaded(void *owner)
{
    struct token_verifier *verifier = owner;
    struct token_request *request, *next;

    DL_FOREACH_SAFE(verifier->waiting, request, next)
    {
        DL_DELETE(verifier->waiting, request);
        make_ready(request);
    }
}

void token_verify(struct token_verifier *verifier, struct token_request *request)
{
    assert(request->verifier == NULL);
    request->verifier = verifier;
    request->asked_ns = uv_hrtime();
    make_ready(request);
}

static void make_ready(struct token_request *request)
{
    struct token_verifier *verifier = request->verifier;

    request->waiting = false;
    DL_APPEND(verifier->ready, request);
    turn_post(verifier->env->turn, &verifier->task);
}

static void judge_first(struct turn_task *task)
{
    struct token_verifier *verifier =
        (struct token_verifier *)((char *)task - offsetof(struct token_verifier, task));
    struct token_request *request = verifier->ready;
    struct token_identity identity;
    struct err err = {0};

    DL_DELETE(verifier->ready, request);
    if (verifier->ready != NULL)
        turn_post(verifier->env->turn, task);
    if (judge(request, &identity, &err)) {
        answer(request, &identity, &err);
        return;
    }
    request->waiting = true;
    DL_APPEND(verifier->waiting, request);
}

/* False: it must wait for keys. Else the answer stands in *err. */
static bool judge(struct token_request *request, struct token_identity *identity_out,
                  struct err *err)
{
    const struct conf_oauth *conf = &request->verifier->env->conf->oauth;
    struct span token = secret_span(request->token);
    struct jwt jwt;
    /* What it says comes first: for what is no good anyway, no key is asked for. */
    bool decided = !jwt_read(&jwt, token, conf, (uint64_t)time(NULL), err) ||
                   check_signature(request, &jwt.jws, err);

    *identity_out = jwt.identity;
    jwt_release(&jwt);
    return decided;
}

static bool check_signature(struct token_request *request, const struct jws *jws, struct err *err)
{
    const struct jwks *keys = jwks_source_keys(request->verifier->source);
    char shown[JWT_SHOWN_MAX];

    switch (keys == NULL ? JWS_UNKNOWN_KEY : jwks_verify(keys, jws)) {
    case JWS_GOOD:
        return true;
    case JWS_BAD:
        err_set(err, ERR_CREDENTIALS, "token: not signed (%s) by its key \"%s\"", jws->algorithm,
                jwt_shown(jws->kid, shown));
        return true;
    case JWS_FAILED:
        err_set(err, ERR_INTERNAL, "token: no memory for its signature");
        return true;
    default:
        return await_keys(request, jws, err);
    }
}

/* The issuer may have a new key. */
static bool await_keys(struct token_request *request, const struct jws *jws, struct err *err)
{
    char shown[JWT_SHOWN_MAX];

    switch (jwks_source_ask(request->verifier->source, request->asked_ns, err)) {
    case JWKS_NEWS_SOON:
        return false;
    case JWKS_NEWS_FAIL:
        return true;
    default:
        if (jws->kid == NULL)
            err_set(err, ERR_CREDENTIALS, "token: not signed (%s) by any key", jws->algorithm);
        else
            err_set(err, ERR_CREDENTIALS, "token: signed (%s) by an unknown key \"%s\"",
                    jws->algorithm, jwt_shown(jws->kid, shown));
        return true;
    }
}

static void answer(struct token_request *request, const struct token_identity *identity,
                   const struct err *err)
{
    struct counters *counters = request->verifier->env->counters;

    counter_add(err->kind == ERR_NONE          ? &counters->tokens_verified
                : err->kind == ERR_CREDENTIALS ? &counters->tokens_refused
                                               : &counters->tokens_undecided,
                1);
    request->verifier = NULL;
    request->on_answer(request, err->kind == ERR_NONE ? identity : NULL, err);
}

void token_cancel(struct token_request *request)
{
    struct token_verifier *verifier = request->verifier;

    if (verifier == NULL)
        return;
    if (request->waiting)
        DL_DELETE(verifier->waiting, request);
    else
        DL_DELETE(verifier->ready, request);
    if (verifier->ready == NULL)
        turn_cancel(verifier->env->turn, &verifier->task);
    request->verifier = NULL;
}

void token_close(struct token_verifier **verifier)
{
    struct token_verifier *v = *verifier;

    *verifier = NULL;
    if (v == NULL)
        return;
    assert(v->ready == NULL && v->waiting == NULL);
    jwks_source_close(&v->source);
    mem_free(v);
}
