/*
 * Owns the chain of sources and the promises of route.h: one answer, in a later turn, within
 * conf->route.timeout. A source may answer whenever it likes; what it says is written into the
 * request and acted upon in the next turn, so no source is ever entered from inside another and no
 * owner from inside a source.
 *
 * What Redis has said is remembered (known.h). It is looked at where Redis would be asked, and
 * where Redis has not answered.
 */
#include "proxy/base/clock.h"
#include "routing/route.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "routing/known.h"
#include "routing/server_check.h"

#include <assert.h>
#include <stdio.h>

enum {
    TRIES_MAX = 3,
    PATIENCE_MS = 500 /* with Redis, where there is a last known route to go on with */
};

struct link {
    const struct route_source *source;
    void *state;
};

struct router {
    const struct env *env; /* held */
    struct router_view view;
    struct known *known; /* held; NULL unless Redis is a source */
    struct server_check check;
    size_t active_count; /* requests under way */
    bool retired;        /* another one has its place: closed after the last request */
    size_t count;
    struct link links[];
};

static const struct route_source *const known_sources[] = {
    &route_source_redis, &route_source_attribute, &route_source_file, &route_source_ring,
    &route_source_default};

static bool open_known(struct router *router, const struct router *before, struct err *err);
static bool open_link(struct router *router, const char *name, struct err *err);
static bool arm_deadline(struct route_request *request);
static void be_patient(struct route_request *request, uint64_t ms);
static void on_deadline(uv_timer_t *timer);
static void timer_closed(uv_handle_t *handle);
static void ask_source(struct turn_task *task);
static void give_answer(struct turn_task *task);
static bool is_outdated(const struct route_request *request, enum route_verdict verdict,
                        const struct route *route);
static bool is_of_another_server(const struct route_request *request, enum route_verdict verdict);
static void ask_again(struct route_request *request);
static bool recall(struct route_request *request, enum known_use use);
static void judge(struct route_request *request, const struct route *found);
static void remember(struct route_request *request, const struct route *found);
static void next_source(struct route_request *request);
static void post(struct route_request *request, void (*run)(struct turn_task *task));
static void leave(struct route_request *request);

static struct route_request *request_of(struct turn_task *task)
{
    return (struct route_request *)((char *)task - offsetof(struct route_request, task));
}

/* The source that is being asked, or was asked last. */
static struct link *link_of(const struct route_request *request)
{
    return &request->router->links[request->source_index];
}

struct router *router_open(const struct env *env, const struct router_view *view, struct err *err)
{
    const struct conf_words *names = &env->conf->route.sources;
    struct router *router;

    if (names->count == 0) {
        err_set(err, ERR_CONFIG, "route: no source is named");
        return NULL;
    }
    router = mem_new(sizeof *router + names->count * sizeof router->links[0]);
    if (router == NULL) {
        err_set(err, ERR_INTERNAL, "route: no memory");
        return NULL;
    }
    router->env = env_copy(env);
    router->view = *view;
    router->view.before = NULL;
    bool good = router->env != NULL;
    if (!good)
        err_set(err, ERR_INTERNAL, "route: no memory");
    good = good && server_check_init(&router->check, router->env, view->freshness, err) &&
           open_known(router, view->before, err);
    for (size_t i = 0; good && i < names->count; i++)
        good = open_link(router, names->items[i], err);
    if (!good)
        router_close(&router);
    return router;
}

/* False with *err set. */
static bool open_known(struct router *router, const struct router *before, struct err *err)
{
    const struct env *env = router->env;

    if (!conf_routes_by_redis(env->conf))
        return true;
    router->known = before != NULL && before->known != NULL
                        ? known_hold(before->known)
                        : known_open(env->conf, &router->view, env->counters, err);
    return router->known != NULL;
}

static bool open_link(struct router *router, const char *name, struct err *err)
{
    struct link *link = &router->links[router->count];

    for (size_t i = 0; i < sizeof known_sources / sizeof known_sources[0]; i++) {
        if (strcmp(known_sources[i]->name, name) != 0)
            continue;
        link->source = known_sources[i];
        link->state = link->source->open(router->env, &router->view, err);
        if (link->state != NULL)
            router->count++;
        return link->state != NULL;
    }
    return err_set(err, ERR_CONFIG, "route: there is no source \"%s\"", name);
}

void router_find(struct router *router, struct route_request *request)
{
    assert(!request->active);
    request->router = router;
    request->source_index = 0;
    request->tries = 0;
    request->operation = NULL;
    request->err = (struct err){0};
    request->task = (struct turn_task){0};
    request->active = true;
    request->found = false;
    router->active_count++;
    if (arm_deadline(request))
        post(request, ask_source);
    else
        post(request, give_answer);
}

void router_cancel(struct route_request *request)
{
    struct link *link;

    if (!request->active)
        return;
    link = link_of(request);
    if (request->task.link == NULL) /* nothing posted: a source is at work */
        link->source->cancel(link->state, request);
    leave(request);
}

void router_close(struct router **router)
{
    struct router *r = *router;

    *router = NULL;
    if (r == NULL)
        return;
    assert(r->active_count == 0);
    server_check_cancel(&r->check);
    for (size_t i = 0; i < r->count; i++)
        r->links[i].source->close(r->links[i].state);
    known_release(&r->known);
    env_release(&r->env);
    mem_free(r);
}

const struct router_view *router_view(const struct router *router)
{
    return &router->view;
}

void router_take_over(struct router *router, struct router **before)
{
    struct router *b = *before;

    *before = NULL;
    if (router->known != NULL)
        known_use(router->known, router->env->conf);
    b->retired = true;
    if (b->active_count == 0)
        router_close(&b);
}

void router_learn(struct router *router, const char *user, uint64_t epoch, enum route_state state)
{
    if (router->known != NULL)
        known_learn(router->known, user, epoch, state);
}

void router_known_each(const struct router *router,
                       void (*visit)(void *owner, const struct known_route *route), void *owner)
{
    if (router->known != NULL)
        known_each(router->known, visit, owner);
}

void router_know(struct router *router, const struct known_route *route)
{
    if (router->known != NULL)
        known_add(router->known, route);
}

void route_source_answer(struct route_request *request, enum route_verdict verdict,
                         const struct route *route, const struct err *err)
{
    struct err elsewhere;

    assert(request->active && request->task.link == NULL);
    if (is_of_another_server(request, verdict)) {
        if (++request->tries < TRIES_MAX) {
            post(request, ask_source);
            return;
        }
        verdict = ROUTE_NO_ANSWER;
        err_set(&elsewhere, ERR_UNAVAILABLE,
                "redis: it is not known to be the server that confirms this proxy");
        err = &elsewhere;
    } else if (is_outdated(request, verdict, route)) {
        ask_again(request);
        return;
    }
    if (verdict == ROUTE_NO_ANSWER && recall(request, KNOWN_LAST))
        return;
    /*
     * Whatever went wrong, the user is told to come back: a failure never looks like "no such
     * user".
     */
    if (verdict == ROUTE_FOUND)
        judge(request, route);
    else if (verdict != ROUTE_UNKNOWN_USER)
        err_set(&request->err, ERR_UNAVAILABLE, "%s", err->text);
    if (verdict != ROUTE_NO_ANSWER)
        remember(request, verdict == ROUTE_FOUND ? route : NULL);
    if (verdict == ROUTE_UNKNOWN_USER)
        next_source(request);
    else
        post(request, give_answer);
}

/* Where Redis is, or would be, asked: is there a remembered route to answer with? Then it is. */
static bool recall(struct route_request *request, enum known_use use)
{
    struct router *router = request->router;
    struct counters *counters = router->env->counters;
    struct route route;

    if (link_of(request)->source != &route_source_redis ||
        !known_find(router->known, request->user, use, &route))
        return false;
    route.stale = use == KNOWN_LAST;
    if (!request->look_only)
        counter_add(route.stale ? &counters->route_cache_stale : &counters->route_cache_hits, 1);
    judge(request, &route);
    post(request, give_answer);
    return true;
}

static bool is_of_redis(const struct route_request *request)
{
    return request->router->known != NULL && link_of(request)->source->is_remembered;
}

static bool is_of_another_server(const struct route_request *request, enum route_verdict verdict)
{
    return is_of_redis(request) && verdict != ROUTE_NO_ANSWER &&
           !server_check_is_good(&request->router->check);
}

/* Of an answer of Redis that is no failure. */
static bool is_outdated(const struct route_request *request, enum route_verdict verdict,
                        const struct route *route)
{
    return is_of_redis(request) && (verdict == ROUTE_FOUND || verdict == ROUTE_UNKNOWN_USER) &&
           known_is_outdated(request->router->known, request->user, request->asked,
                             verdict == ROUTE_FOUND ? route->epoch : 0);
}

static void ask_again(struct route_request *request)
{
    struct log_line line;

    if (++request->tries < TRIES_MAX) {
        post(request, ask_source);
        return;
    }
    err_set(&request->err, ERR_UNAVAILABLE, "redis: it knows less than its events have told");
    log_begin(&line, LOG_LEVEL_WARNING, "redis is behind its events");
    log_text(&line, "user", request->user);
    log_write_limited(&line, NULL);
    post(request, give_answer);
}

/* What Redis has said (NULL: nothing good), after it was judged. */
static void remember(struct route_request *request, const struct route *found)
{
    if (!is_of_redis(request) || request->look_only)
        return;
    if (found == NULL || request->err.kind != ERR_NONE) {
        known_forget(request->router->known, request->user);
        return;
    }
    known_keep(request->router->known, request->user, request->asked, found,
               link_of(request)->source->name);
}

/* Decides what a found route means. A disabled user needs no shard, so that comes first. */
static void judge(struct route_request *request, const struct route *found)
{
    struct route *route = &request->route;
    struct log_line line;

    *route = *found;
    if (route->source == NULL)
        route->source = link_of(request)->source->name;
    request->found = true;
    if (route->backend_user[0] == '\0' &&
        (size_t)snprintf(route->backend_user, sizeof route->backend_user, "%s",
                         request->told_backend_user[0] != '\0'
                             ? request->told_backend_user
                             : request->user) >= sizeof route->backend_user) {
        err_set(&request->err, ERR_UNAVAILABLE, "route: the user's name is too long");
        return;
    }
    if (route->state == ROUTE_DISABLED) {
        err_set(&request->err, ERR_ADMIN, "route: the user is disabled");
        return;
    }
    if (route->state == ROUTE_MOVING || route->state == ROUTE_COMMITTED) {
        err_set(&request->err, ERR_UNAVAILABLE, "route: the user is being moved");
        return;
    }
    if (conf_find_shard(request->router->env->conf, route->shard) != NULL)
        return;
    err_set(&request->err, ERR_UNAVAILABLE, "route: shard %s is not configured", route->shard);
    log_begin(&line, LOG_LEVEL_ERROR, "route to unknown shard");
    log_text(&line, "user", request->user);
    log_text(&line, "shard", route->shard);
    log_write(&line);
}

static void next_source(struct route_request *request)
{
    if (++request->source_index < request->router->count) {
        post(request, ask_source);
        return;
    }
    err_set(&request->err, ERR_ADMIN, "route: no source knows the user");
    post(request, give_answer);
}

static void post(struct route_request *request, void (*run)(struct turn_task *task))
{
    request->task.run = run;
    turn_post(request->router->env->turn, &request->task);
}

/*
 * While Redis does not confirm this process, moves need not wait for it: even what Redis says now,
 * or what its events let us remember, may be another truth a moment later, or that of an old
 * master.
 */
static bool is_fenced_off(const struct route_request *request)
{
    const struct freshness *freshness = request->router->view.freshness;

    return freshness != NULL && is_of_redis(request) &&
           clock_ms() >= atomic_load(&freshness->fence_ms);
}

static void ask_source(struct turn_task *task)
{
    struct route_request *request = request_of(task);
    struct router *router = request->router;
    struct link *link = link_of(request);

    if (is_fenced_off(request)) {
        err_set(&request->err, ERR_UNAVAILABLE, "redis: it has not confirmed this proxy for long");
        post(request, give_answer);
        return;
    }
    if (is_of_redis(request))
        request->asked = known_moment(router->known);
    if (recall(request, KNOWN_FRESH))
        return;
    if (is_of_redis(request))
        server_check_before(&router->check);
    if (link->source == &route_source_redis) {
        be_patient(request, PATIENCE_MS);
        if (!request->look_only)
            counter_add(&router->env->counters->route_cache_misses, 1);
    }
    link->source->find(link->state, request);
}

static void give_answer(struct turn_task *task)
{
    struct route_request *request = request_of(task);

    if (request->err.kind == ERR_NONE && is_outdated(request, ROUTE_FOUND, &request->route)) {
        request->found = false; /* since it was posted */
        ask_again(request);
        return;
    }

    struct route route = request->route; /* copies: the owner may reuse or free the request */
    struct err err = request->err;
    bool tells = err.kind == ERR_NONE || (request->found && route.state != ROUTE_ACTIVE);

    leave(request);
    request->on_answer(request, tells ? &route : NULL, &err);
}

/* The end of a request, answered or cancelled: nothing of ours points at it afterwards. */
static void leave(struct route_request *request)
{
    struct router *router = request->router;

    turn_cancel(router->env->turn, &request->task);
    if (request->deadline != NULL)
        uv_close((uv_handle_t *)request->deadline, timer_closed);
    request->deadline = NULL;
    request->active = false;
    if (--router->active_count == 0 && router->retired)
        router_close(&router);
}

/*
 * The timer is an object of its own because it outlives the request by the turn that uv_close
 * takes.
 */
static bool arm_deadline(struct route_request *request)
{
    const struct env *env = request->router->env;

    request->deadline = mem_new(sizeof *request->deadline);
    if (request->deadline == NULL)
        return err_set(&request->err, ERR_INTERNAL, "route: no memory for a look-up");
    uv_timer_init(env->loop, request->deadline); /* cannot fail */
    request->deadline->data = request;
    request->limit_ms = uv_now(env->loop) + env->conf->route.timeout;
    be_patient(request, env->conf->route.timeout);
    return true;
}

/* So long, but not beyond the limit of the look-up. */
static void be_patient(struct route_request *request, uint64_t ms)
{
    uint64_t now = uv_now(request->router->env->loop);
    uint64_t left = request->limit_ms > now ? request->limit_ms - now : 0;

    uv_timer_start(request->deadline, on_deadline, ms < left ? ms : left, 0);
}

static void timer_closed(uv_handle_t *handle)
{
    mem_free(handle);
}

static void on_deadline(uv_timer_t *timer)
{
    struct route_request *request = timer->data;
    const struct env *env = request->router->env;
    struct link *link = link_of(request);
    bool is_asked = request->task.link == NULL;

    if (!is_asked && request->task.run == give_answer)
        return; /* the answer is already on its way */
    if (is_asked && recall(request, KNOWN_LAST)) {
        link->source->cancel(link->state, request);
        return;
    }
    if (uv_now(env->loop) < request->limit_ms) {
        be_patient(request, env->conf->route.timeout);
        return;
    }
    if (is_asked)
        link->source->cancel(link->state, request);
    err_set(&request->err, ERR_UNAVAILABLE, "route: no answer within %llu ms",
            (unsigned long long)env->conf->route.timeout);
    turn_cancel(env->turn, &request->task);
    post(request, give_answer);
}
