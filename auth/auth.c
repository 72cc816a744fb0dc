/*
 * Owns the way of a request: throttle, proof, what the sources know of the user, and whether one
 * may log in as another. The answer is always given in a later turn, by task.run.
 */
#include "auth/auth.h"

#include "auth/chain.h"
#include "auth/username.h"
#include "proxy/base/clock.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"

#include <assert.h>
#include <stdio.h>

struct auth {
    const struct env *env; /* held */
    size_t active_count;   /* requests under way */
    bool retired;
    struct throttle *throttle;
    struct shared_throttle *shared; /* NULL where proxies do not share it */
    struct token_verifier *tokens;  /* NULL where none are taken */
    struct chain *chain;
};

/* --- life --- */

/* False with *err set. */
static bool open_parts(struct auth *auth, const struct env *env, struct err *err)
{
    const struct conf *conf = env->conf;

    auth->env = env_copy(env);
    if (auth->env == NULL)
        return err_set(err, ERR_INTERNAL, "auth: no memory");
    if (conf->throttle.shared && (auth->shared = shared_throttle_open(auth->env, err)) == NULL)
        return false;
    if (conf->oauth.keys[0] != '\0' && (auth->tokens = token_open(auth->env, err)) == NULL)
        return false;
    auth->chain = chain_open(auth->env, err);
    return auth->chain != NULL;
}

struct auth *auth_open(const struct env *env, struct throttle *throttle, struct err *err)
{
    struct auth *auth = mem_new(sizeof *auth);

    if (auth == NULL) {
        err_set(err, ERR_INTERNAL, "auth: no memory");
        return NULL;
    }
    auth->throttle = throttle;
    if (!open_parts(auth, env, err))
        auth_close(&auth);
    return auth;
}

void auth_close(struct auth **auth)
{
    struct auth *a = *auth;

    *auth = NULL;
    if (a == NULL)
        return;
    chain_close(&a->chain);
    token_close(&a->tokens);
    shared_throttle_close(&a->shared);
    env_release(&a->env);
    mem_free(a);
}

void auth_retire(struct auth **auth)
{
    struct auth *a = *auth;

    *auth = NULL;
    a->retired = true;
    if (a->active_count == 0)
        auth_close(&a);
}

void auth_enter(struct auth *auth)
{
    auth->active_count++;
}

void auth_leave(struct auth *auth)
{
    if (--auth->active_count == 0 && auth->retired)
        auth_close(&auth);
}

void auth_forget(struct auth *auth, const char *user)
{
    chain_forget(auth->chain, user);
}

const struct env *auth_env(const struct auth *auth)
{
    return auth->env;
}

struct chain *auth_chain(const struct auth *auth)
{
    return auth->chain;
}

struct throttle *auth_throttle(const struct auth *auth)
{
    return auth->throttle;
}

static void on_decided(struct auth_question *question);

/* --- the end of a request --- */

static void timer_closed(uv_handle_t *handle)
{
    mem_free(handle);
}

/* The request is under way no more. */
static void end(struct auth_request *request, enum throttle_outcome outcome)
{
    uv_timer_t *timer = request->timer;

    shared_throttle_cancel(&request->shared);
    token_cancel(&request->token);
    if (request->counted && request->auth->shared != NULL && !request->known)
        shared_throttle_report(request->auth->shared, request->address, request->user,
                               request->secret, outcome);
    if (request->counted)
        throttle_end(request->auth->throttle, &request->attempt, outcome, clock_ms());
    request->counted = false;
    request->active = false;
    request->timer = NULL;
    if (timer != NULL)
        uv_close((uv_handle_t *)timer, timer_closed);
    auth_leave(request->auth);
}

/*
 * Where nobody has decided, the cache may still know that it was a guess. The password of one who
 * may not log in as another was right.
 */
static enum throttle_outcome outcome_of(const struct auth_request *request)
{
    const struct auth_question *question = &request->question;

    switch (request->err.kind) {
    case ERR_NONE:
    case ERR_AUTHORIZATION:
        return THROTTLE_VERIFIED;
    case ERR_CREDENTIALS:
        return THROTTLE_REFUSED;
    case ERR_UNAVAILABLE:
        return question->key.contradicted || question->stood_in ? THROTTLE_REFUSED
                                                                : THROTTLE_UNKNOWN;
    default:
        return THROTTLE_UNKNOWN;
    }
}

static void answer(struct turn_task *task)
{
    struct auth_request *request =
        (struct auth_request *)((char *)task - offsetof(struct auth_request, task));
    /* The owner may free the request while it reads the answer. */
    struct auth_facts *facts = auth_facts_hold(request->question.facts);
    struct err err = request->err;
    char who[USERNAME_MAX + 1], master[USERNAME_MAX + 1];

    memcpy(who, request->who[0] != '\0' ? request->who : request->claimed, sizeof who);
    memcpy(master, request->master, sizeof master);
    enum throttle_outcome outcome = outcome_of(request);
    chain_cancel(&request->question);
    end(request, outcome);

    struct auth_identity identity = {
        .user = who,
        .backend_user = facts == NULL ? "" : facts->backend_user,
        .shard = facts == NULL ? "" : facts->shard,
        .master = master[0] == '\0' ? NULL : master,
    };

    request->on_answer(request, &identity, &err);
    auth_facts_release(&facts);
}

static void answer_later(struct auth_request *request)
{
    if (request->timer != NULL)
        uv_timer_stop(request->timer);
    request->task.run = answer;
    turn_post(request->auth->env->turn, &request->task);
}

void auth_cancel(struct auth_request *request)
{
    if (!request->active)
        return;
    /* Whoever gives up because no OK comes at once has learned something. */
    bool guessed = request->question.key.contradicted;
    chain_cancel(&request->question);
    turn_cancel(request->auth->env->turn, &request->task);
    end(request, guessed ? THROTTLE_REFUSED : THROTTLE_UNKNOWN);
}

/* --- the time that it takes --- */

static void deadline_passed(uv_timer_t *timer)
{
    struct auth_request *request = timer->data;

    if (request->token.verifier != NULL) {
        token_cancel(&request->token);
        err_set(&request->err, ERR_UNAVAILABLE, "token: no answer within auth.timeout");
        answer_later(request);
    } else {
        chain_give_up(&request->question);
        on_decided(&request->question);
    }
}

/* Somebody must be waited for: false, with the failure told, when that cannot be bounded. */
static bool open_timer(struct auth_request *request)
{
    if (request->timer != NULL)
        return true;
    request->timer = mem_new(sizeof *request->timer);
    if (request->timer == NULL)
        return err_set(&request->err, ERR_INTERNAL, "auth: no memory");
    uv_timer_init(request->auth->env->loop, request->timer);
    request->timer->data = request;
    return true;
}

/* Whoever is asked from now on has auth.timeout in all. */
static bool start_deadline(struct auth_request *request)
{
    if (!open_timer(request))
        return false;
    if (!uv_is_active((uv_handle_t *)request->timer))
        uv_timer_start(request->timer, deadline_passed, request->auth->env->conf->auth.timeout, 0);
    return true;
}

static void ask(struct auth_request *request)
{
    if (start_deadline(request))
        chain_ask(&request->question);
    else
        answer_later(request);
}

/* --- proof --- */

/* The throttle has let it pass. */
static void go_on(struct auth_request *request)
{
    if (request->known)
        on_decided(&request->question);
    else
        ask(request);
}

static void delay_over(uv_timer_t *timer)
{
    go_on(timer->data);
}

static void wait_or_ask(struct auth_request *request)
{
    if (request->delay_ms == 0) {
        go_on(request);
    } else if (open_timer(request)) {
        counter_add(&request->auth->env->counters->throttle_delays, 1);
        uv_timer_start(request->timer, delay_over, request->delay_ms, 0);
    } else {
        answer_later(request);
    }
}

/* The other proxies may have seen more. */
static void on_shared_delay(struct shared_throttle_request *shared, uint64_t delay_ms)
{
    struct auth_request *request = shared->owner;

    if (delay_ms > request->delay_ms)
        request->delay_ms = delay_ms;
    wait_or_ask(request);
}

/*
 * Goes on at once, or after a while, or is refused. Who is known to be right is not kept waiting by
 * those who guess elsewhere; but a guesser must not learn from a quick OK, so who has failed at
 * this very address counts in any case.
 */
static void pass_throttle(struct auth_request *request)
{
    const struct auth *auth = request->auth;

    request->counted = throttle_begin(auth->throttle, &request->attempt, request->address,
                                      request->known ? NULL : request->user, request->secret,
                                      clock_ms(), &request->delay_ms);
    if (!request->counted) {
        counter_add(&auth->env->counters->throttle_refusals, 1);
        err_set(&request->err, ERR_LIMIT, "throttle: too many logins at once");
        answer_later(request);
    } else if (auth->shared == NULL || request->known) {
        wait_or_ask(request);
    } else {
        request->shared = (struct shared_throttle_request){.address = request->address,
                                                           .user = request->user,
                                                           .on_answer = on_shared_delay,
                                                           .owner = request};
        shared_throttle_ask(auth->shared, &request->shared);
    }
}

/* Begins a question; true when the cache has the answer. */
static bool begin_question(struct auth_request *request, const char *user,
                           const struct secret *password)
{
    request->question.user = user;
    request->question.password = password;
    request->question.on_answer = on_decided;
    request->question.owner = request;
    return chain_recall(request->auth->chain, &request->question) == CACHE_VERIFIED;
}

/* Whoever has a right password at a wrong place must not hear so from a quick answer. */
static void check_password(struct auth_request *request)
{
    request->known = begin_question(request, request->user, request->secret) &&
                     auth_facts_allow(request->question.facts, request->address);
    pass_throttle(request);
}

/* What the sources know of one who was proven otherwise. */
static void look_up(struct auth_request *request, const char *user)
{
    if (begin_question(request, user, NULL) || !request->auth->env->conf->auth.look_up)
        on_decided(&request->question);
    else
        ask(request);
}

static void on_token(struct token_request *token, const struct token_identity *identity,
                     const struct err *err)
{
    struct auth_request *request = token->owner;

    request->err = *err;
    if (err->kind == ERR_NONE && !username_normalise(&request->auth->env->conf->username,
                                                     span_of(identity->user), request->claimed)) {
        request->claimed[0] = '\0';
        err_set(&request->err, ERR_CREDENTIALS, "token: the name in it is not allowed");
    }
    if (request->err.kind == ERR_NONE)
        look_up(request, request->claimed);
    else
        answer_later(request);
}

/* Tokens cannot be guessed, so there is nothing to slow down. */
static void check_token(struct auth_request *request)
{
    request->token.token = request->secret;
    request->token.on_answer = on_token;
    request->token.owner = request;
    if (request->auth->tokens == NULL) { /* they were taken when the connection was greeted */
        err_set(&request->err, ERR_CREDENTIALS, "token: none is taken any more");
        answer_later(request);
    } else if (start_deadline(request)) {
        token_verify(request->auth->tokens, &request->token);
    } else {
        answer_later(request);
    }
}

void auth_verify(struct auth *auth, struct auth_request *request)
{
    assert(!request->active);
    request->auth = auth;
    request->question = (struct auth_question){0};
    request->shared = (struct shared_throttle_request){0};
    request->token = (struct token_request){0};
    request->timer = NULL;
    request->task = (struct turn_task){0};
    request->err = (struct err){0};
    request->claimed[0] = request->who[0] = request->master[0] = '\0';
    request->counted = request->known = false;
    request->active = true;
    auth_enter(auth);
    switch (request->proof) {
    case AUTH_BY_PASSWORD:
        check_password(request);
        break;
    case AUTH_BY_CERTIFICATE:
        look_up(request, request->user);
        break;
    case AUTH_BY_TOKEN:
        check_token(request);
        break;
    }
}

/* --- what the sources know --- */

/* The name that a source has for the user counts from here on, if it is one. */
static bool take_name(struct auth_request *request)
{
    const struct auth_facts *facts = request->question.facts;
    const char *asked = request->question.user;

    if (facts == NULL || facts->user[0] == '\0') {
        snprintf(request->who, sizeof request->who, "%s", asked);
        return true;
    }
    if (username_normalise(&request->auth->env->conf->username, span_of(facts->user), request->who))
        return true;
    log_event(LOG_LEVEL_ERROR, "auth", "the source's name for user \"%s\" is not allowed", asked);
    return err_set(&request->err, ERR_INTERNAL, "the source's name for the user is not allowed");
}

/* Their names are written in the configuration as users would give them. */
static bool is_master(const struct conf *conf, const char *user)
{
    const struct conf_words *masters = &conf->auth.master_users;
    char master[USERNAME_MAX + 1];

    for (size_t i = 0; i < masters->count; i++)
        if (username_normalise(&conf->username, span_of(masters->items[i]), master) &&
            strcmp(master, user) == 0)
            return true;
    return false;
}

/* Who has been proven, `who`, wants to be somebody else, or has another name of its own. */
static void look_up_other(struct auth_request *request)
{
    memcpy(request->master, request->who, sizeof request->master);
    /* Who is no master must not learn from the time it takes who is remembered. */
    request->question.uncached = !is_master(request->auth->env->conf, request->master);
    look_up(request, request->login_as);
}

/* Of whoever `login_as` is. Who may not be another does not hear what is the matter with it. */
static void decide_other(struct auth_request *request)
{
    bool named = request->err.kind == ERR_NONE && take_name(request);

    if (named && strcmp(request->who, request->master) == 0)
        request->master[0] = '\0'; /* itself */
    else if (request->err.kind != ERR_UNAVAILABLE &&
             !is_master(request->auth->env->conf, request->master))
        err_set(&request->err, ERR_AUTHORIZATION, "not a master user");
    else if (request->err.kind == ERR_CREDENTIALS)
        err_set(&request->err, ERR_AUTHORIZATION, "there is no such user to log in as");
    answer_later(request);
}

/* Of whoever has brought a proof. */
static void decide_user(struct auth_request *request)
{
    if (request->err.kind == ERR_NONE &&
        !auth_facts_allow(request->question.facts, request->address))
        err_set(&request->err, request->question.stood_in ? ERR_UNAVAILABLE : ERR_CREDENTIALS,
                "the user may not come from this address");
    if (request->err.kind != ERR_NONE || !take_name(request) || request->login_as[0] == '\0' ||
        strcmp(request->login_as, request->who) == 0)
        answer_later(request);
    else
        look_up_other(request);
}

/* The sources, or the cache, have spoken. */
static void on_decided(struct auth_question *question)
{
    struct auth_request *request = question->owner;

    request->err = question->err;
    if (request->master[0] != '\0')
        decide_other(request);
    else
        decide_user(request);
}
