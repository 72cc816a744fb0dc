/*
 * Owns the steps of a reload. Read in a pool thread; then prepared here and by every worker, each
 * of which opens what it needs; then committed by all, or, if anybody has failed, discarded by all.
 * The letters for that are there before the first step, so nothing can fail after the decision.
 */
#include "proxy/process/reload.h"

#include "auth/ldap/tls.h"
#include "auth/passwd/shared.h"
#include "auth/throttle.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/notify.h"
#include "proxy/process/certificates.h"
#include "proxy/process/listeners.h"
#include "proxy/process/orders.h"
#include "proxy/process/worker_change.h"
#include "proxy/session/limits.h"
#include "routing/route.h"

#include <assert.h>

enum { LIST_MAX = 512 };

/* To a worker and back, once for each step. */
struct visit {
    struct letter letter; /* first member */
    struct reload *reload;
    struct err err; /* of the worker's part */
};

struct reload {
    struct control *control;
    void (*on_change)(void *owner, const struct conf *before);
    void *owner;
    bool busy, reading, closing;
    bool again; /* another one is wanted after this one */

    /* The one under way. */
    struct reload_request *request; /* NULL: nobody waits for it */
    uv_work_t work;
    const struct conf *before; /* held */
    struct conf *conf;
    const struct tls *tls;
    bool has_directory;              /* its TLS is there for the workers */
    struct passwd_shared *passwords; /* the password file, for the workers; NULL: none is read */
    void *routes;                    /* the file of routes, for all routers; NULL: none is read */
    struct conf_changes changes;
    struct err err;
    struct router *router;
    struct listeners *listeners;                  /* the new ones; once committed, the old ones */
    struct networks unthrottled, unlimited;       /* the same */
    void (*visit)(struct visit *, struct home *); /* the step that workers take */
    void (*all_back)(struct reload *);
    struct visit *visits; /* for each worker */
    size_t outstanding;
};

static void start(struct reload *reload);

/* --- the end of a reload --- */

static void join_words(const struct conf_words *words, char out[LIST_MAX])
{
    size_t len = 0;

    out[0] = '\0';
    for (size_t i = 0; i < words->count && len < LIST_MAX; i++)
        len +=
            (size_t)snprintf(out + len, LIST_MAX - len, "%s%s", i > 0 ? ", " : "", words->items[i]);
}

static void log_outcome(const struct reload *reload)
{
    bool good = reload->err.kind == ERR_NONE;
    char changed[LIST_MAX], needs_restart[LIST_MAX];
    struct log_line line;

    join_words(&reload->changes.changed, changed);
    join_words(&reload->changes.needs_restart, needs_restart);
    log_begin(&line, good ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR, good ? "reloaded" : "reload failed");
    if (good) {
        log_text(&line, "changed", changed);
        log_text(&line, "needs_restart", needs_restart);
    } else {
        log_text(&line, "detail", reload->err.text);
    }
    log_write(&line);
}

/* What is not in force is not kept. */
static void release(struct reload *reload)
{
    conf_changes_release(&reload->changes);
    networks_release(&reload->unthrottled);
    networks_release(&reload->unlimited);
    router_close(&reload->router);
    listeners_close(&reload->listeners);
    mem_free(reload->visits);
    reload->visits = NULL;
    tls_release(&reload->tls);
    if (reload->has_directory)
        ldap_tls_leave(&reload->conf->ldap);
    reload->has_directory = false;
    passwd_shared_leave(&reload->passwords);
    if (reload->routes != NULL)
        route_source_file.close(reload->routes);
    reload->routes = NULL;
    conf_close(&reload->conf);
    conf_release(&reload->before);
}

static void finish(struct reload *reload)
{
    struct reload_request *request = reload->request;

    log_outcome(reload);
    notify_ready();
    reload->request = NULL;
    if (request != NULL)
        request->on_done(request, &reload->changes, &reload->err);
    release(reload);
    reload->busy = false;
    if (!reload->again || reload->closing)
        return;
    reload->again = false;
    reload_wanted(reload);
}

/* --- workers --- */

/* On the control thread. */
static void come_back(struct letter *letter, void *receiver)
{
    struct reload *reload = ((struct visit *)letter)->reload;

    (void)receiver;
    if (--reload->outstanding == 0)
        reload->all_back(reload);
}

/* On the worker's thread. */
static void arrive(struct letter *letter, void *receiver)
{
    struct visit *visit = (struct visit *)letter;
    struct reload *reload = visit->reload;

    reload->visit(visit, receiver);
    letter->deliver = come_back;
    bool posted = inbox_post(&reload->control->inbox, letter);
    assert(posted);
    (void)posted;
}

static void visit_all(struct reload *reload, void (*visit)(struct visit *, struct home *),
                      void (*all_back)(struct reload *))
{
    struct workers *workers = reload->control->workers;

    reload->visit = visit;
    reload->all_back = all_back;
    reload->outstanding = workers_count(workers);
    for (size_t i = 0; i < workers_count(workers); i++) {
        reload->visits[i].letter.deliver = arrive;
        workers_post(workers, i, &reload->visits[i].letter);
    }
}

static void prepare_worker(struct visit *visit, struct home *home)
{
    const struct reload *reload = visit->reload;

    if (worker_prepare(home, reload->conf, reload->tls, &visit->err) &&
        !worker_prepare_listeners(home, reload->listeners, &visit->err))
        worker_discard(home);
}

static void commit_worker(struct visit *visit, struct home *home)
{
    (void)visit;
    worker_commit(home);
    worker_use_listeners(home); /* in the same turn: these are of the new configuration */
}

static void discard_worker(struct visit *visit, struct home *home)
{
    if (visit->err.kind != ERR_NONE)
        return;
    worker_drop_listeners(home);
    worker_discard(home);
}

/* --- discard --- */

static void discard_own(struct reload *reload)
{
    struct control *control = reload->control;

    if (control->workers != NULL)
        stores_discard(workers_stores(control->workers), control->env.conf);
    finish(reload);
}

/* --- commit --- */

/* What an operator has said about the level counts until the file says something else. */
static void change_log(const struct conf *before, const struct conf *conf)
{
    struct conf_log log = conf->log;

    if (before->log.level == log.level)
        log.level = (int)log_level();
    log_configure(&log);
}

static void commit_shared(struct reload *reload)
{
    struct workers *workers = reload->control->workers;

    stores_commit(workers_stores(workers), reload->conf);
    throttle_change(workers_throttle(workers), &reload->conf->throttle, &reload->unthrottled);
    limits_change(workers_limits(workers), &reload->conf->limits, &reload->unlimited);
}

static void commit_own(struct reload *reload)
{
    struct control *control = reload->control;
    const struct conf *before = control->env.conf;
    struct listeners *old = control->listeners;

    control->env.conf = conf_hold(reload->conf);
    commit_shared(reload);
    router_take_over(reload->router, &control->router);
    control->router = reload->router;
    reload->router = NULL;
    control->listeners = reload->listeners;
    reload->listeners = old; /* until workers accept from the new ones */
    orders_commit(control->orders);
    health_commit(control->health, reload->conf, reload->tls);
    certificates_follow(control->certificates, reload->tls);
    change_log(before, reload->conf);
    reload->on_change(reload->owner, before);
    conf_release(&before);
}

/* --- prepare --- */

static const struct err *first_failure(const struct reload *reload)
{
    for (size_t i = 0; i < workers_count(reload->control->workers); i++)
        if (reload->visits[i].err.kind != ERR_NONE)
            return &reload->visits[i].err;
    return NULL;
}

static void all_prepared(struct reload *reload)
{
    struct control *control = reload->control;
    const struct err *failure = control->workers == NULL ? NULL : first_failure(reload);

    if (control->stopping)
        err_set(&reload->err, ERR_UNAVAILABLE, "the process is about to end");
    else if (failure != NULL)
        reload->err = *failure;
    else if (listeners_listen(reload->listeners, &reload->err)) {
        commit_own(reload);
        visit_all(reload, commit_worker, finish);
        return;
    }
    if (control->workers == NULL) /* their part went with them */
        discard_own(reload);
    else
        visit_all(reload, discard_worker, discard_own);
}

static bool open_router(struct reload *reload)
{
    struct control *control = reload->control;
    struct router_view view = *router_view(control->router);
    struct env next = control->env;

    next.conf = reload->conf;
    view.before = control->router;
    reload->router = router_open(&next, &view, &reload->err);
    return reload->router != NULL;
}

static bool write_letters(struct reload *reload)
{
    size_t count = workers_count(reload->control->workers);

    reload->visits = mem_array(count, sizeof *reload->visits);
    for (size_t i = 0; reload->visits != NULL && i < count; i++)
        reload->visits[i].reload = reload;
    return reload->visits != NULL;
}

/* False with reload->err set. */
static bool prepare_own(struct reload *reload)
{
    struct control *control = reload->control;
    const struct conf *conf = reload->conf;
    struct err *err = &reload->err;

    if (control->stopping)
        return err_set(err, ERR_UNAVAILABLE, "the process is about to end");
    if (!write_letters(reload) || !stores_prepare(workers_stores(control->workers), conf) ||
        !orders_prepare(control->orders, conf) || !health_prepare(control->health, conf))
        return err_set(err, ERR_INTERNAL, "no memory");
    if (!networks_init(&reload->unthrottled, &conf->throttle.trusted, "throttle.trusted", err) ||
        !networks_init(&reload->unlimited, &conf->limits.trusted, "limits.trusted", err) ||
        !open_router(reload))
        return false;
    reload->listeners = listeners_prepare(control->listeners, conf, err);
    return reload->listeners != NULL;
}

/* --- read --- */

/* What all workers would wait for: authorities are read. False with reload->err set. */
static bool open_directory(struct reload *reload)
{
    const struct conf *conf = reload->conf;

    if (!conf_has_word(&conf->auth.sources, "ldap") || conf_same_auth(reload->before, conf))
        return true;
    reload->has_directory = ldap_tls_join(&conf->ldap, &reload->err);
    return reload->has_directory || conf_blame(&conf->ldap, &reload->err);
}

/* The same: the password file, if it is another one. */
static bool open_passwords(struct reload *reload)
{
    const struct conf *conf = reload->conf;

    if (!conf_has_word(&conf->auth.sources, "passwd") || conf_same_auth(reload->before, conf))
        return true;
    reload->passwords = passwd_shared_join(conf->passwd.file, &reload->err);
    return reload->passwords != NULL;
}

/* The same: what the routers would read, each on a loop. */
static bool open_routes(struct reload *reload)
{
    const struct env env = {.conf = reload->conf};

    if (!conf_has_word(&reload->conf->route.sources, route_source_file.name))
        return true;
    reload->routes = route_source_file.open(&env, NULL, &reload->err);
    return reload->routes != NULL;
}

/* In a pool thread. */
static void read_file(uv_work_t *work)
{
    struct reload *reload = work->data;

    reload->conf =
        conf_reopen(reload->control->conf_path, reload->before, &reload->changes, &reload->err);
    if (reload->conf != NULL && open_directory(reload) && open_passwords(reload) &&
        open_routes(reload))
        reload->tls = tls_open(reload->conf, &reload->err);
}

static void on_read(uv_work_t *work, int status)
{
    struct reload *reload = work->data;

    reload->reading = false;
    if (reload->closing) {
        release(reload);
        mem_free(reload);
    } else if (status != 0 || reload->tls == NULL) {
        finish(reload);
    } else if (prepare_own(reload)) {
        visit_all(reload, prepare_worker, all_prepared);
    } else {
        discard_own(reload);
    }
}

static void start(struct reload *reload)
{
    notify_reloading();
    reload->busy = reload->reading = true;
    reload->err = (struct err){0};
    reload->before = conf_hold(reload->control->env.conf);
    /* fails only without a callback */
    uv_queue_work(reload->control->env.loop, &reload->work, read_file, on_read);
}

bool reload_start(struct reload *reload, struct reload_request *request, struct err *err)
{
    const struct control *control = reload->control;

    if (control->stopping)
        return err_set(err, ERR_PEER, "the process is about to end");
    if (control->handover != NULL)
        return err_set(err, ERR_UNAVAILABLE, "another process is about to take the place of this");
    if (!control->serving)
        return err_set(err, ERR_UNAVAILABLE, "the process is not ready yet");
    if (reload->busy)
        return err_set(err, ERR_UNAVAILABLE, "a reload is under way");
    reload->request = request;
    start(reload);
    return true;
}

bool reload_is_under_way(const struct reload *reload)
{
    return reload->busy;
}

void reload_wanted(struct reload *reload)
{
    struct err err = {0};

    if (reload->busy)
        reload->again = true;
    else if (!reload_start(reload, NULL, &err))
        log_event(LOG_LEVEL_ERROR, "reload failed", "%s", err.text);
}

/* --- life --- */

struct reload *reload_open(struct control *control,
                           void (*on_change)(void *owner, const struct conf *before), void *owner)
{
    struct reload *reload = mem_new(sizeof *reload);

    if (reload == NULL)
        return NULL;
    reload->control = control;
    reload->on_change = on_change;
    reload->owner = owner;
    reload->work.data = reload;
    return reload;
}

void reload_close(struct reload **reload)
{
    struct reload *r = *reload;

    *reload = NULL;
    if (r == NULL)
        return;
    assert(!r->busy || r->reading);
    if (!r->reading) {
        mem_free(r);
        return;
    }
    r->closing = true;
    (void)uv_cancel((uv_req_t *)&r->work); /* on_read comes either way */
    if (r->request != NULL) {
        err_set(&r->err, ERR_UNAVAILABLE, "the process ends");
        r->request->on_done(r->request, &r->changes, &r->err);
    }
}
