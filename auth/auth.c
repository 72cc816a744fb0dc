/*
 * Owns the order in which cache, throttle and sources are asked, the deadline of each request, and
 * the promise of auth.h: what a source says is acted upon in a later turn, so no answer is given
 * inside auth_verify and no source runs inside another. A request that is being asked has a
 * deadline timer; what comes next once its source has spoken is task.run.
 */
#include "auth/auth.h"

#include "proxy/base/mem.h"

#include <assert.h>

struct auth {
    const struct env *env;
    struct throttle *throttle;
    struct auth_cache *cache; /* NULL where nothing shall be remembered */
    size_t count;
    struct {
        const struct auth_source *source;
        void *state;
    } entries[];
};

static const struct auth_source *const known_sources[] = {&auth_source_passwd, &auth_source_ldap};

static bool open_cache(struct auth *auth, struct err *err);
static const struct auth_source *find_source(const char *name);
static enum cache_verdict ask_cache(struct auth_request *request);
static bool open_timer(struct auth_request *request);
static bool pass_throttle(struct auth_request *request);
static void delay_over(uv_timer_t *timer);
static void begin(struct auth_request *request);
static void ask(struct auth_request *request);
static void ask_next(struct turn_task *task);
static void answer_now(struct turn_task *task);
static void deadline_passed(uv_timer_t *timer);
static void cancel_source(struct auth_request *request);
static void end(struct auth_request *request, enum throttle_outcome outcome);
static void timer_closed(uv_handle_t *handle);

struct auth *auth_open(const struct env *env, struct throttle *throttle, struct err *err)
{
    const struct conf_words *names = &env->conf->auth.sources;
    struct auth *auth = mem_new(sizeof *auth + names->count * sizeof auth->entries[0]);

    if (auth == NULL) {
        err_set(err, ERR_INTERNAL, "auth: no memory");
        return NULL;
    }
    auth->env = env;
    auth->throttle = throttle;
    if (!open_cache(auth, err)) {
        auth_close(&auth);
        return NULL;
    }
    for (size_t i = 0; i < names->count; i++) {
        const struct auth_source *source = find_source(names->items[i]);
        void *state = NULL;

        if (source == NULL)
            err_set(err, ERR_CONFIG, "auth.sources: there is no source \"%s\"", names->items[i]);
        else
            state = source->open(env, err);
        if (state == NULL) {
            auth_close(&auth);
            return NULL;
        }
        auth->entries[auth->count].source = source;
        auth->entries[auth->count++].state = state;
    }
    return auth;
}

static bool open_cache(struct auth *auth, struct err *err)
{
    const struct conf_auth_cache *conf = &auth->env->conf->auth_cache;

    if (conf->ttl == 0 && conf->negative_ttl == 0)
        return true;
    auth->cache = auth_cache_open(conf, err);
    return auth->cache != NULL;
}

static const struct auth_source *find_source(const char *name)
{
    for (size_t i = 0; i < sizeof known_sources / sizeof known_sources[0]; i++)
        if (strcmp(known_sources[i]->name, name) == 0)
            return known_sources[i];
    return NULL;
}

void auth_verify(struct auth *auth, struct auth_request *request)
{
    assert(!request->active && request->password->len > 0);
    request->auth = auth;
    request->source_index = 0;
    request->err = (struct err){0};
    request->task = (struct turn_task){0};
    request->operation = NULL;
    request->active = true;
    request->has_digest = false;
    request->counted = false;
    request->deadline = NULL;
    /* Who is known to be right is not kept waiting by those who guess. */
    if (ask_cache(request) != CACHE_VERIFIED && open_timer(request) && pass_throttle(request))
        return;
    request->task.run = answer_now;
    turn_post(auth->env->turn, &request->task);
}

/* What the cache knows, counted. */
static enum cache_verdict ask_cache(struct auth_request *request)
{
    struct auth *auth = request->auth;
    struct counters *counters = auth->env->counters;

    request->cached = CACHE_UNKNOWN;
    if (auth->cache == NULL ||
        !auth_cache_digest(auth->cache, request->user, request->password, &request->digest))
        return CACHE_UNKNOWN;
    request->cached = (uint8_t)auth_cache_find(auth->cache, request->user, &request->digest,
                                               uv_now(auth->env->loop));
    counter_add(request->cached == CACHE_VERIFIED  ? &counters->auth_cache_hits
                : request->cached == CACHE_REFUSED ? &counters->auth_cache_negative
                                                   : &counters->auth_cache_misses,
                1);
    /* What the sources decide is to be remembered, if they are asked. */
    request->has_digest = request->cached == CACHE_STALE || request->cached == CACHE_UNKNOWN;
    return (enum cache_verdict)request->cached;
}

static bool open_timer(struct auth_request *request)
{
    request->deadline = mem_new(sizeof *request->deadline);
    if (request->deadline == NULL)
        return err_set(&request->err, ERR_INTERNAL, "auth: no memory");
    uv_timer_init(request->auth->env->loop, request->deadline);
    request->deadline->data = request;
    return true;
}

static uint64_t clock_ms(void)
{
    return uv_hrtime() / 1000000; /* the same for all workers */
}

/* Goes on at once or after a while; false when it is refused. */
static bool pass_throttle(struct auth_request *request)
{
    const struct auth *auth = request->auth;
    uint64_t delay = 0;

    request->counted = throttle_begin(auth->throttle, &request->attempt, request->address,
                                      request->user, request->password, clock_ms(), &delay);
    if (!request->counted) {
        counter_add(&auth->env->counters->throttle_refusals, 1);
        return err_set(&request->err, ERR_LIMIT, "throttle: too many logins at once");
    }
    if (delay == 0) {
        begin(request);
        return true;
    }
    counter_add(&auth->env->counters->throttle_delays, 1);
    uv_timer_start(request->deadline, delay_over, delay, 0);
    return true;
}

static void delay_over(uv_timer_t *timer)
{
    begin(timer->data);
}

/* The password is looked at. */
static void begin(struct auth_request *request)
{
    const struct env *env = request->auth->env;

    if (request->cached == CACHE_REFUSED) {
        err_set(&request->err, ERR_CREDENTIALS, "refused before");
        request->task.run = answer_now;
        turn_post(env->turn, &request->task);
        return;
    }
    uv_timer_start(request->deadline, deadline_passed, env->conf->auth.timeout, 0);
    ask(request);
}

/*
 * Asks the source whose turn it is; after the last one, the answer is what is remembered or "who?".
 */
static void ask(struct auth_request *request)
{
    struct auth *auth = request->auth;

    if (request->source_index < auth->count) {
        size_t i = request->source_index;

        auth->entries[i].source->verify(auth->entries[i].state, request);
        return;
    }
    if (request->err.kind == ERR_NONE)
        err_set(&request->err, ERR_CREDENTIALS, "no source knows the user");
    request->task.run = answer_now;
    turn_post(auth->env->turn, &request->task);
}

void auth_source_answer(struct auth_request *request, enum auth_verdict verdict,
                        const struct err *err)
{
    assert(request->active);
    assert((verdict != AUTH_REFUSED && verdict != AUTH_FAILED) || err->kind != ERR_NONE);
    request->operation = NULL;
    request->task.run = ask_next;
    if (verdict == AUTH_VERIFIED)
        request->err.kind = ERR_NONE;
    /* The first failure is the one to tell, unless a later source decides. */
    if (verdict == AUTH_REFUSED || (verdict == AUTH_FAILED && request->err.kind == ERR_NONE))
        request->err = *err;
    if (verdict == AUTH_VERIFIED || verdict == AUTH_REFUSED)
        request->task.run = answer_now;
    turn_post(request->auth->env->turn, &request->task);
}

static void ask_next(struct turn_task *task)
{
    struct auth_request *request =
        (struct auth_request *)((char *)task - offsetof(struct auth_request, task));

    request->source_index++;
    ask(request);
}

/* The sources have spoken: the cache learns from them, or stands in for them. */
static void consult_cache(struct auth_request *request)
{
    struct auth *auth = request->auth;
    uint64_t now = uv_now(auth->env->loop);

    if (!request->has_digest)
        return;
    switch (request->err.kind) {
    case ERR_NONE:
        auth_cache_verified(auth->cache, request->user, &request->digest, now);
        break;
    case ERR_CREDENTIALS:
        auth_cache_refused(auth->cache, request->user, &request->digest, now);
        break;
    case ERR_EXPIRED:
    case ERR_ADMIN:
        auth_cache_forget(auth->cache, request->user);
        break;
    case ERR_UNAVAILABLE:
        if (request->cached != CACHE_STALE)
            break;
        request->err = (struct err){0};
        counter_add(&auth->env->counters->auth_cache_stale, 1);
        break;
    default:
        break;
    }
}

static void answer_now(struct turn_task *task)
{
    struct auth_request *request =
        (struct auth_request *)((char *)task - offsetof(struct auth_request, task));

    consult_cache(request);
    struct err err = request->err; /* the owner may free the request while it reads the answer */
    end(request, err.kind == ERR_NONE          ? THROTTLE_VERIFIED
                 : err.kind == ERR_CREDENTIALS ? THROTTLE_REFUSED
                                               : THROTTLE_UNKNOWN);
    request->on_answer(request, &err);
}

static void deadline_passed(uv_timer_t *timer)
{
    struct auth_request *request = timer->data;
    const struct auth *auth = request->auth;
    const char *name = request->source_index < auth->count
                           ? auth->entries[request->source_index].source->name
                           : "chain";

    cancel_source(request);
    turn_cancel(auth->env->turn, &request->task);
    err_set(&request->err, ERR_UNAVAILABLE, "%s: no answer within auth.timeout", name);
    answer_now(&request->task);
}

static void cancel_source(struct auth_request *request)
{
    const struct auth *auth = request->auth;

    if (request->operation != NULL && request->source_index < auth->count) {
        size_t i = request->source_index;

        auth->entries[i].source->cancel(auth->entries[i].state, request);
    }
    request->operation = NULL;
}

void auth_cancel(struct auth_request *request)
{
    if (!request->active)
        return;
    cancel_source(request);
    turn_cancel(request->auth->env->turn, &request->task);
    end(request, THROTTLE_UNKNOWN);
}

/* The request is under way no more. */
static void end(struct auth_request *request, enum throttle_outcome outcome)
{
    uv_timer_t *deadline = request->deadline;

    if (request->counted)
        throttle_end(request->auth->throttle, &request->attempt, outcome, clock_ms());
    request->counted = false;
    request->active = false;
    request->deadline = NULL;
    if (deadline != NULL)
        uv_close((uv_handle_t *)deadline, timer_closed);
}

static void timer_closed(uv_handle_t *handle)
{
    mem_free(handle);
}

void auth_close(struct auth **auth)
{
    struct auth *a = *auth;

    *auth = NULL;
    if (a == NULL)
        return;
    for (size_t i = 0; i < a->count; i++)
        a->entries[i].source->close(a->entries[i].state);
    auth_cache_close(&a->cache);
    mem_free(a);
}
