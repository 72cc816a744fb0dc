/* Owns the worker threads: what each one opens, how they find one another, and how they stop. */
#include "proxy/process/worker.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/process_metrics.h"
#include "proxy/net/listener.h"
#include "proxy/net/redis_link.h"
#include "proxy/process/listeners.h"
#include "proxy/process/worker_change.h"
#include "proxy/session/inquiry.h"
#include "proxy/session/relay.h"
#include "proxy/session/session.h"
#include "proxy/session/traces.h"
#include "proxy/session/users.h"
#include "proxy/store/pool_change.h"
#include "proxy/store/store_metrics.h"

#include <assert.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* What accepts clients: from each socket of a set that is this worker's. */
struct accepting {
    struct listener **listeners;
    size_t count;
};

struct worker {
    struct home home; /* first member: home_of casts */
    struct workers *all;
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    uv_thread_t thread;
    struct accepting now, next; /* next: prepared */
    struct letter accept, drain, stop, end;
    bool loop_open, inbox_open, running, accepts_no_more;
};

struct workers {
    struct stores *stores;
    struct throttle *throttle;
    struct limits *limits;
    struct workers_view view;
    struct worker *list;
    size_t count;
    time_t started_at;
    _Atomic size_t session_count;
    _Atomic size_t accepting; /* workers that may still get clients, once `closing` is set */
    _Atomic bool closing;
};

/* --- what sessions ask of their worker --- */

/* FNV-1a: spreads names evenly, and every process agrees on it. */
static uint64_t hash_name(const char *name)
{
    uint64_t hash = UINT64_C(14695981039346656037);

    for (; *name != '\0'; name++)
        hash = (hash ^ (unsigned char)*name) * UINT64_C(1099511628211);
    return hash ^ hash >> 32;
}

static struct home *home_of(struct home *home, const char *user)
{
    struct workers *all = ((struct worker *)home)->all;

    return &all->list[workers_number_of(all, user)].home;
}

/* Whoever makes the last of the counts 0 sees both so. */
static void tell_if_idle(struct workers *all)
{
    if (atomic_load(&all->closing) && atomic_load(&all->accepting) == 0 &&
        atomic_load(&all->session_count) == 0)
        all->view.on_idle(all->view.owner);
}

static void on_session_gone(struct home *home)
{
    struct workers *all = ((struct worker *)home)->all;

    if (atomic_fetch_sub(&all->session_count, 1) == 1)
        tell_if_idle(all);
}

static void on_held(struct home *home, const char *user, uint64_t epoch)
{
    const struct workers_view *view = &((struct worker *)home)->all->view;

    view->on_held(view->owner, user, epoch);
}

static const char full_bye[] =
    "* BYE [UNAVAILABLE] Too many connections, please try again later.\r\n";

static void on_accept(void *owner, int fd, const union address *peer,
                      const struct conf_listener *listener)
{
    struct worker *w = owner;
    size_t count = atomic_fetch_add(&w->all->session_count, 1);

    pool_relieve(w->home.pool, fd);
    if (count < (size_t)w->home.env.conf->process.max_sessions &&
        session_accept(&w->home, fd, peer, listener))
        return;
    if (count >= (size_t)w->home.env.conf->process.max_sessions) {
        counter_add(&w->counters.sessions_refused, 1);
        if (listener->tls != TLS_IMPLICIT &&
            send(fd, full_bye, sizeof full_bye - 1, MSG_NOSIGNAL) < 0)
            log_event(LOG_LEVEL_DEBUG, "refused", "client left first");
        close(fd);
    }
    on_session_gone(&w->home);
}

/* --- the thread --- */

static void close_listeners(struct accepting *accepting)
{
    for (size_t i = 0; i < accepting->count; i++)
        listener_close(&accepting->listeners[i]);
    mem_free(accepting->listeners);
    *accepting = (struct accepting){0};
}

static bool open_listener(void *owner, int fd, const struct conf_listener *conf)
{
    struct worker *w = owner;
    struct accepting *next = &w->next;
    struct listener **listeners =
        mem_resize(next->listeners, (next->count + 1) * sizeof *listeners);
    int own = listeners == NULL ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);

    if (listeners != NULL)
        next->listeners = listeners;
    if (own < 0 ||
        (listeners[next->count] = listener_open(&w->home.env, own, conf, on_accept, w)) == NULL)
        return false;
    next->count++;
    return true;
}

bool worker_prepare_listeners(struct home *home, const struct listeners *listeners, struct err *err)
{
    struct worker *w = (struct worker *)home;

    if (listeners_each(listeners, (size_t)(w - w->all->list), open_listener, w))
        return true;
    close_listeners(&w->next);
    return err_set(err, ERR_INTERNAL, "no memory or descriptors for a listener");
}

void worker_drop_listeners(struct home *home)
{
    close_listeners(&((struct worker *)home)->next);
}

void worker_use_listeners(struct home *home)
{
    struct worker *w = (struct worker *)home;
    struct accepting old = w->now;

    w->now = w->next;
    w->next = (struct accepting){0};
    for (size_t i = 0; i < w->now.count; i++)
        listener_start(w->now.listeners[i]);
    close_listeners(&old);
}

static void on_may_accept(struct letter *letter, void *receiver)
{
    (void)letter;
    worker_use_listeners(receiver);
}

static void stop_accepting(struct worker *w)
{
    close_listeners(&w->now);
    close_listeners(&w->next);
    if (!w->accepts_no_more)
        atomic_fetch_sub(&w->all->accepting, 1);
    w->accepts_no_more = true;
}

static void on_drain(struct letter *letter, void *receiver)
{
    struct worker *w = receiver;

    (void)letter;
    stop_accepting(w);
    pool_retire(w->home.pool);
    tell_if_idle(w->all);
}

static void on_stop(struct letter *letter, void *receiver)
{
    struct worker *w = receiver;

    (void)letter;
    stop_accepting(w);
    sessions_stop(&w->home);
    tell_if_idle(w->all);
}

static void end_loop(void *owner)
{
    struct worker *w = owner;

    uv_stop(&w->loop);
}

static void on_end(struct letter *letter, void *receiver)
{
    struct worker *w = receiver;

    (void)letter;
    stop_accepting(w);
    w->home.stopping = true;
    sessions_cut_off(&w->home);
    inquiries_end(&w->home);
    if (w->home.registry == NULL || !registry_retire(w->home.registry, end_loop, w))
        end_loop(w);
}

static void run(void *argument)
{
    struct worker *w = argument;

    (void)prctl(PR_SET_NAME, "worker"); /* for top -H */
    uv_run(&w->loop, UV_RUN_DEFAULT);
}

/* --- opening and closing --- */

/* What sessions ask, and the connection to Redis that it shares. */
static bool open_services(struct worker *w, size_t worker_count, struct err *err)
{
    struct home *home = &w->home;
    const struct conf *conf = home->env.conf;
    const struct router_view view = {.freshness = w->all->view.freshness,
                                     .ring_weight = store_ring_weight,
                                     .owner = w->all->stores,
                                     .worker_count = worker_count};

    if (conf_uses_redis(conf)) {
        home->env.redis = redis_link_open(&home->env, err);
        if (home->env.redis == NULL)
            return false;
    }
    if (conf->limits.shared) {
        home->registry = registry_open(&home->env, err);
        if (home->registry == NULL)
            return false;
    }
    home->admission = admission_open(&home->env, w->all->limits, home->registry);
    if (home->admission == NULL)
        return err_set(err, ERR_INTERNAL, "no memory for a worker");
    home->auth = auth_open(&home->env, w->all->throttle, err);
    home->router = home->auth == NULL ? NULL : router_open(&home->env, &view, err);
    if (home->env.redis != NULL && (home->corrector = corrector_open(&home->env, err)) == NULL)
        return false;
    return home->router != NULL;
}

static bool open_worker(struct worker *w, struct workers *all, const struct conf *conf,
                        const struct tls *tls, const struct listeners *listeners, struct err *err)
{
    struct home *home = &w->home;

    w->all = all;
    atomic_fetch_add(&all->accepting, 1);
    home->scratch_size = RELAY_SCRATCH_MIN;
    home->scratch = mem_new(home->scratch_size);
    w->loop_open = uv_loop_init(&w->loop) == 0;
    if (w->loop_open)
        turn_init(&w->turn, &w->loop);
    if (!w->loop_open || home->scratch == NULL)
        return err_set(err, ERR_INTERNAL, "no memory or descriptors for a worker");
    w->inbox_open = inbox_open(&home->inbox, &w->loop, home);
    if (!w->inbox_open)
        return err_set(err, ERR_INTERNAL, "no descriptors for a worker");
    home->env = (struct env){.loop = &w->loop,
                             .turn = &w->turn,
                             .conf = conf_hold(conf),
                             .counters = &w->counters,
                             .freshness = all->view.freshness};
    home->phases = session_phases();
    home->tls = tls_hold(tls);
    home->shard_count = conf->shard_titles.count;
    home->shard_capabilities = mem_array(home->shard_count, sizeof(struct span));
    if (home->shard_capabilities == NULL)
        return err_set(err, ERR_INTERNAL, "no memory for a worker");
    worker_set_filter(home);
    home->home_of = home_of;
    home->on_session_gone = on_session_gone;
    home->on_held = on_held;
    home->users = users_open(home);
    home->history = history_open();
    home->traces = traces_open(home);
    if (home->users == NULL || home->history == NULL || home->traces == NULL)
        return err_set(err, ERR_INTERNAL, "no memory for a worker");
    home->pool = pool_open(&home->env, tls, all->stores, (size_t)(w - all->list));
    if (home->pool == NULL)
        return err_set(err, ERR_INTERNAL, "no memory for a pool");
    return open_services(w, all->stores->worker_count, err) &&
           worker_prepare_listeners(home, listeners, err);
}

/* Sessions that were on their way to a worker that has ended: they arrive, only to be cut off. */
static void empty_inbox(struct worker *w)
{
    struct letter *next;

    if (!w->inbox_open)
        return;
    w->home.stopping = true;
    for (struct letter *letter = inbox_close(&w->home.inbox); letter != NULL; letter = next) {
        next = letter->next;
        letter->deliver(letter, &w->home);
    }
    sessions_cut_off(&w->home);
}

/* After its thread has ended (or never ran): closes what is open, lets the loop run out, frees. */
static void close_worker(struct worker *w)
{
    if (w->loop_open) {
        worker_discard(&w->home);
        stop_accepting(w);
        if (w->home.router != NULL)
            router_close(&w->home.router);
        if (w->home.auth != NULL)
            auth_close(&w->home.auth);
        uv_run(&w->loop, UV_RUN_NOWAIT); /* who was about to move arrives here instead */
        sessions_cut_off(&w->home);
        users_close(&w->home.users);
        history_close(&w->home.history);
        traces_close(&w->home.traces);
        pool_close(&w->home.pool);
        admission_close(&w->home.admission);
        registry_close(&w->home.registry);
        redis_link_close(&w->home.env.redis);
        corrector_close(&w->home.corrector);
        uv_run(&w->loop,
               UV_RUN_DEFAULT); /* sessions and look-ups end; the idle handle is not active */
        turn_release(&w->turn);
        uv_run(&w->loop, UV_RUN_DEFAULT);
        if (uv_loop_close(&w->loop) != 0)
            log_event(LOG_LEVEL_ERROR, "stop", "a worker's loop still has handles");
    }
    tls_release(&w->home.tls);
    conf_release(&w->home.env.conf);
    for (size_t i = 0; w->home.shard_capabilities != NULL && i < w->home.shard_count; i++)
        mem_free((void *)w->home.shard_capabilities[i].ptr);
    mem_free(w->home.shard_capabilities);
    mem_free(w->home.scratch);
}

size_t workers_wanted(const struct conf *conf)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);

    return conf->process.workers > 0 ? (size_t)conf->process.workers
           : cores > 0               ? (size_t)cores
                                     : 1;
}

static bool start_threads(struct workers *all, struct err *err)
{
    for (size_t i = 0; i < all->count; i++) {
        struct worker *w = &all->list[i];

        w->running = uv_thread_create(&w->thread, run, w) == 0;
        if (!w->running)
            return err_set(err, ERR_INTERNAL, "cannot start a thread");
    }
    return true;
}

static void close_shared(struct workers *all)
{
    throttle_close(&all->throttle);
    limits_close(&all->limits);
    stores_close(&all->stores);
    mem_free(all->list);
}

/* What the workers have in common; false with *err set, and nothing is left open. */
static bool open_shared(struct workers *all, const struct conf *conf, size_t worker_count,
                        struct err *err)
{
    all->list = mem_array(worker_count, sizeof *all->list);
    all->stores = stores_open(conf, worker_count);
    if (all->list == NULL || all->stores == NULL)
        err_set(err, ERR_INTERNAL, "no memory for workers");
    else
        all->throttle = throttle_open(&conf->throttle, err);
    if (all->throttle != NULL)
        all->limits = limits_open(&conf->limits, err);
    if (all->limits == NULL)
        close_shared(all);
    return all->limits != NULL;
}

struct workers *workers_start(const struct conf *conf, const struct tls *tls,
                              const struct listeners *listeners, const struct workers_view *view,
                              struct err *err)
{
    struct workers *all = mem_new(sizeof *all);
    size_t count = workers_wanted(conf);
    bool opened = true;

    if (all == NULL || !open_shared(all, conf, count, err)) {
        mem_free(all);
        return NULL;
    }
    all->view = *view;
    all->started_at = time(NULL);
    while (opened && all->count < count) /* one that fails to open is counted, to be closed */
        opened = open_worker(&all->list[all->count++], all, conf, tls, listeners, err);
    if (opened)
        view->on_open(view->owner, all);
    if (!opened || !start_threads(all, err))
        workers_end(&all, false);
    return all;
}

void workers_accept(struct workers *workers)
{
    for (size_t i = 0; i < workers->count; i++) {
        workers->list[i].accept.deliver = on_may_accept;
        inbox_post(&workers->list[i].home.inbox, &workers->list[i].accept);
    }
}

void workers_drain(struct workers *workers)
{
    atomic_store(&workers->closing, true);
    for (size_t i = 0; i < workers->count; i++) {
        workers->list[i].drain.deliver = on_drain;
        inbox_post(&workers->list[i].home.inbox, &workers->list[i].drain);
    }
}

void workers_stop(struct workers *workers)
{
    atomic_store(&workers->closing, true);
    for (size_t i = 0; i < workers->count; i++) {
        workers->list[i].stop.deliver = on_stop;
        inbox_post(&workers->list[i].home.inbox, &workers->list[i].stop);
    }
}

/* Brings a worker new contexts. */
struct tls_letter {
    struct letter letter; /* first member */
    const struct tls *tls;
    struct tls_letter *next; /* until it is posted */
};

static void on_tls(struct letter *letter, void *receiver)
{
    struct tls_letter *brought = (struct tls_letter *)letter;
    struct home *home = receiver;

    pool_use_tls(home->pool, brought->tls);
    tls_release(&home->tls);
    home->tls = brought->tls;
    mem_free(brought);
}

static bool write_tls_letters(const struct workers *workers, const struct tls *tls,
                              struct tls_letter **first_out)
{
    for (size_t i = 0; i < workers->count; i++) {
        struct tls_letter *letter = mem_new(sizeof *letter);

        if (letter == NULL)
            return false;
        *letter = (struct tls_letter){{.deliver = on_tls}, tls_hold(tls), *first_out};
        *first_out = letter;
    }
    return true;
}

bool workers_use_tls(struct workers *workers, const struct tls *tls, struct err *err)
{
    struct tls_letter *first = NULL, *next;
    bool written = write_tls_letters(workers, tls, &first);

    for (size_t i = 0; first != NULL; first = next, i++) {
        next = first->next;
        if (written) {
            workers_post(workers, i, &first->letter);
            continue;
        }
        tls_release(&first->tls);
        mem_free(first);
    }
    return written || err_set(err, ERR_INTERNAL, "no memory for letters to workers");
}

struct stores *workers_stores(struct workers *workers)
{
    return workers->stores;
}

struct throttle *workers_throttle(struct workers *workers)
{
    return workers->throttle;
}

struct limits *workers_limits(struct workers *workers)
{
    return workers->limits;
}

size_t workers_count(const struct workers *workers)
{
    return workers->count;
}

void workers_know(struct workers *workers, const struct known_route *route)
{
    router_know(workers->list[workers_number_of(workers, route->user)].home.router, route);
}

size_t workers_number_of(const struct workers *workers, const char *user)
{
    return (size_t)(hash_name(user) % workers->count);
}

size_t workers_session_count(const struct workers *workers)
{
    return atomic_load(&workers->session_count);
}

void workers_post(struct workers *workers, size_t number, struct letter *letter)
{
    bool posted = inbox_post(&workers->list[number].home.inbox, letter);

    assert(posted);
    (void)posted;
}

uint64_t worker_metric(const struct workers *workers, size_t number, size_t offset)
{
    return metric_value(&workers->list[number].counters, offset);
}

uint64_t workers_metric(const struct workers *workers, size_t offset)
{
    uint64_t sum = metric_value(workers->view.control, offset);

    for (size_t i = 0; i < workers->count; i++)
        sum += worker_metric(workers, i, offset);
    return sum;
}

/* The counters of each thread, one more than workers, in new memory; NULL without. */
static const struct counters **list_counters(const struct workers *workers)
{
    const struct counters **list = mem_array(workers->count + 1, sizeof(struct counters *));

    for (size_t i = 0; list != NULL && i < workers->count; i++)
        list[i] = &workers->list[i].counters;
    if (list != NULL)
        list[workers->count] = workers->view.control;
    return list;
}

bool workers_sum_metrics(const struct workers *workers, struct counters *sum_out)
{
    const struct counters **list = list_counters(workers);

    if (list == NULL)
        return false;
    metrics_sum(sum_out, list, workers->count + 1);
    mem_free(list);
    return true;
}

/* What there is to print, and of whom. */
struct exposition {
    const struct workers *workers;
    struct counters sum;
};

static void print_all(FILE *out, const void *what)
{
    const struct exposition *all = what;
    const struct workers_view *view = &all->workers->view;

    metrics_print(out, &all->sum);
    store_metrics_print(out, all->workers->stores);
    if (view->print_metrics != NULL)
        view->print_metrics(view->owner, out);
    process_metrics_print(out, all->workers->started_at);
}

bool workers_print_metrics(const struct workers *workers, FILE *out)
{
    struct exposition all = {.workers = workers};

    if (!workers_sum_metrics(workers, &all.sum))
        return false;
    print_all(out, &all);
    return true;
}

bool workers_save_metrics(const struct workers *workers, const char *file, struct err *err)
{
    struct exposition all = {.workers = workers};

    if (!workers_sum_metrics(workers, &all.sum))
        return err_set(err, ERR_INTERNAL, "no memory for metrics");
    return metrics_save(file, print_all, &all, err);
}

void workers_end(struct workers **workers, bool last_word)
{
    struct workers *all = *workers;

    *workers = NULL;
    for (size_t i = 0; i < all->count; i++) {
        if (!all->list[i].running)
            continue;
        all->list[i].end.deliver = on_end;
        inbox_post(&all->list[i].home.inbox, &all->list[i].end);
    }
    for (size_t i = 0; i < all->count; i++)
        if (all->list[i].running)
            uv_thread_join(&all->list[i].thread);
    for (size_t i = 0; i < all->count; i++)
        empty_inbox(&all->list[i]);

    const struct conf *conf = all->list[0].running ? conf_hold(all->list[0].home.env.conf) : NULL;

    for (size_t i = 0; i < all->count; i++)
        close_worker(&all->list[i]);
    if (last_word && conf != NULL && conf->metrics.file[0] != '\0')
        workers_save_metrics(all, conf->metrics.file, NULL); /* a failure was logged before */
    conf_release(&conf);
    close_shared(all);
    mem_free(all);
}
