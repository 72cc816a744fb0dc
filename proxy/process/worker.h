/*
 * One thread with one loop, and all that lives on it: listeners, sessions, authentication, routing,
 * pool. Nothing in it is locked, because nothing in it is shared; other threads send letters.
 */
#ifndef IMAPMUX_PROCESS_WORKER_H
#define IMAPMUX_PROCESS_WORKER_H

#include "proxy/base/conf.h"
#include "proxy/base/inbox.h"
#include "proxy/base/metrics.h"
#include "proxy/net/tls.h"
#include "proxy/store/store.h"

struct freshness;
struct home;
struct known_route;
struct limits;
struct listeners;
struct throttle;
struct workers;

/* What is around the workers. All that it points to outlives them. */
struct workers_view {
    const struct counters *control; /* the control thread's own metrics, for the sums */
    struct freshness *freshness;    /* of what routers remember; NULL without Redis */
    /* All is open, and no thread runs yet: routers may be told what is known (workers_know). */
    void (*on_open)(void *owner, struct workers *workers);
    /* From any thread: no client comes any more, and the last session has gone. */
    void (*on_idle)(void *owner);
    /* From a worker's thread: see home->on_held. */
    void (*on_held)(void *owner, const char *user, uint64_t epoch);
    /* Metrics of others than workers, to be printed with theirs. May be NULL. */
    void (*print_metrics)(void *owner, FILE *out);
    void *owner;
};

/* How many there are to be. */
size_t workers_wanted(const struct conf *conf);

/*
 * Opens what the workers need, duplicates of their listening sockets, too, and starts their
 * threads. NULL with *err set, and nothing left running. *view is copied.
 */
struct workers *workers_start(const struct conf *conf, const struct tls *tls,
                              const struct listeners *listeners, const struct workers_view *view,
                              struct err *err);

/* All is open, and the sockets listen: clients may come. Once. */
void workers_accept(struct workers *workers);

/*
 * For another set of sockets, in two steps, on the worker's thread: opens what accepts from them;
 * then that takes the place of what does so now, or is dropped. A set may be closed once it is
 * prepared. False with *err set, and nothing prepared.
 */
bool worker_prepare_listeners(struct home *home, const struct listeners *listeners,
                              struct err *err);
void worker_use_listeners(struct home *home);
void worker_drop_listeners(struct home *home);

/*
 * No new clients: listeners close, and connections to stores are kept no more. on_idle follows when
 * all sessions have gone. Once.
 */
void workers_drain(struct workers *workers);

/*
 * Begins the orderly stop: listeners close, clients are told BYE. on_idle follows when all have
 * gone.
 */
void workers_stop(struct workers *workers);

/*
 * Handshakes with clients and stores that begin from now on use these contexts; each worker holds
 * them. False with *err set, and nothing has changed, without memory. Not once workers_end has
 * begun.
 */
bool workers_use_tls(struct workers *workers, const struct tls *tls, struct err *err);

/* What workers have in common: until workers_end. */
struct stores *workers_stores(struct workers *workers);
struct throttle *workers_throttle(struct workers *workers);
struct limits *workers_limits(struct workers *workers);

size_t workers_count(const struct workers *workers);

/* Before the threads run: the user's worker remembers this route, as router_know. */
void workers_know(struct workers *workers, const struct known_route *route);

/* The number of the worker on which all about this user happens. */
size_t workers_number_of(const struct workers *workers, const char *user);

/* Client sessions of all workers, at this moment; from any thread. */
size_t workers_session_count(const struct workers *workers);

/*
 * Posts a letter to the worker of this number, whose struct home receives it: on the worker's
 * thread, or, if the process ends first, within workers_end. From any thread, until workers_end.
 */
void workers_post(struct workers *workers, size_t number, struct letter *letter);

/*
 * The counter or gauge at this offset of struct counters: the sum of all threads', or that of one
 * worker. From any thread. A session that changes its worker counts down where it has not counted
 * up: gauges of phases may be off by some for one worker, not in sum.
 */
uint64_t workers_metric(const struct workers *workers, size_t offset);
uint64_t worker_metric(const struct workers *workers, size_t number, size_t offset);

/* The sums of all threads' metrics. False without memory. */
bool workers_sum_metrics(const struct workers *workers, struct counters *sum_out);

/*
 * Prints these, and the series of each shard and of the process, as Prometheus reads them. False
 * without memory.
 */
bool workers_print_metrics(const struct workers *workers, FILE *out);

/* Writes the same to a file. False with *err set. */
bool workers_save_metrics(const struct workers *workers, const char *file, struct err *err);

/*
 * Cuts off the sessions that are left, ends and joins the threads, frees all. With
 * `last_word` the metrics are saved for the last time. Nulls the pointer.
 */
void workers_end(struct workers **workers, bool last_word);

#endif
