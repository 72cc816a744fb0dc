/*
 * Owns the load of the benchmark: many IMAP clients in one thread, whose work is counted and timed.
 *
 * Prints one line of JSON when the work is done. With --hold it prints "ready" before the start and
 * waits for a line on standard input; and for another one before it closes the connections, so that
 * the servers can be looked at. Exits with 1 if any answer was not as it should be.
 */
#include "bench/client.h"
#include "bench/options.h"
#include "proxy/base/mem.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    EVENTS_AT_ONCE = 256,
    OPENING_AT_ONCE = 64, /* connections, before the start */
    TICKS_PER_SECOND = 100,
    ERRORS_MAX = 20,
    STALLED_SECONDS = 20,
};

static const uint64_t second_ns = 1000000000;

static struct {
    struct options options;
    struct run run;
    struct client **clients;
    uint64_t started_ns;
    uint64_t last_progress, progress_ns;
} load;

void run_error(struct run *run, const char *what, const char *words)
{
    run->errors++;
    fprintf(stderr, "load: %s: %s\n", what, words == NULL ? "" : words);
}

/* --- before the run --- */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* All servers are made to do the same work: one version, one cipher, one group. */
static SSL_CTX *make_context(void)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());

    if (context == NULL || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1 ||
        SSL_CTX_set1_groups_list(context, "X25519") != 1)
        die("TLS");
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    if (load.run.resume)
        client_keep_tickets(context);
    return context;
}

static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        die("descriptors");
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit); /* if not, opening a socket fails, and says so */
}

static void prepare_run(void)
{
    raise_descriptor_limit();
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    load.run.tls = load.options.plain ? NULL : make_context();
    load.run.epoll = epoll_create1(EPOLL_CLOEXEC);
    struct client **clients = mem_array(load.options.clients, sizeof *clients);
    if (clients == NULL || load.run.epoll < 0)
        die("clients");
    for (unsigned i = 0; i < load.options.clients; i++)
        clients[i] = client_new(&load.run, i);
    load.clients = clients;
}

/* --- the run --- */

static bool is_finished(void)
{
    return load.run.finished >= load.options.clients;
}

static void give_up(const char *why)
{
    run_error(&load.run, "given up", why);
    load.run.finished = load.options.clients;
}

static void check_progress(uint64_t now)
{
    const struct run *run = &load.run;
    uint64_t progress = run->units_done + run->bytes_in + run->bytes_out + run->ready;

    if (progress != load.last_progress || load.progress_ns == 0) {
        load.last_progress = progress;
        load.progress_ns = now;
    } else if (now - load.progress_ns > STALLED_SECONDS * second_ns) {
        give_up("nothing moves any more");
    }
    if (run->errors > ERRORS_MAX)
        give_up("too many errors");
}

static void take_events(int timeout_ms)
{
    struct epoll_event events[EVENTS_AT_ONCE];
    int count = epoll_wait(load.run.epoll, events, EVENTS_AT_ONCE, timeout_ms);

    for (int i = 0; i < count; i++)
        client_event(events[i].data.ptr, events[i].events);
    check_progress(now_ns());
}

/* Until all are ready, or one has failed. */
static void open_all(void)
{
    unsigned prepared = 0;

    while (load.run.ready < load.options.clients && load.run.errors == 0) {
        if (prepared < load.options.clients && prepared - load.run.ready < OPENING_AT_ONCE)
            client_prepare(load.clients[prepared++]);
        else
            take_events(1000);
    }
}

/* False at the end of the input. */
static bool wait_for_line(void)
{
    char line[16];

    fflush(stdout);
    return fgets(line, sizeof line, stdin) != NULL;
}

static void start_all(void)
{
    load.started_ns = load.progress_ns = now_ns();
    load.run.ends_ns = load.started_ns + (uint64_t)(load.options.seconds * (double)second_ns);
    load.run.bytes_in = load.run.bytes_out = 0;
    load.run.going = true;
    for (unsigned i = 0; i < load.options.clients; i++)
        client_start(load.clients[i]);
    if (load.options.store > 0)
        kill(load.options.store, SIGUSR1);
}

/* Clients that read slowly are let read a little at each tick, and are cut off at the end. */
static void work_slowly(void)
{
    uint64_t tick_ns = second_ns / TICKS_PER_SECOND, next_ns = now_ns();

    while (!is_finished() && next_ns < load.run.ends_ns) {
        uint64_t now = now_ns();

        if (now < next_ns) {
            take_events((int)((next_ns - now) / 1000000) + 1);
            continue;
        }
        next_ns += tick_ns;
        for (unsigned i = 0; i < load.options.clients; i++)
            client_allow(load.clients[i], load.run.rate / TICKS_PER_SECOND);
    }
}

static void work(void)
{
    while (!is_finished())
        take_events(1000);
}

static double cpu_seconds(void)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void print_result(double seconds, double cpu)
{
    struct run *run = &load.run;

    samples_sort(&run->samples);
    printf("{\"units\": %llu, \"seconds\": %.6f, \"p50_ms\": %.4f, \"p99_ms\": %.4f, "
           "\"max_ms\": %.4f, \"resumed\": %llu, \"bytes_in\": %llu, \"bytes_out\": %llu, "
           "\"errors\": %llu, \"load_cpu\": %.6f}\n",
           (unsigned long long)run->units_done, seconds, samples_ms(&run->samples, 0.5),
           samples_ms(&run->samples, 0.99), samples_ms(&run->samples, 1),
           (unsigned long long)run->resumed, (unsigned long long)run->bytes_in,
           (unsigned long long)run->bytes_out, (unsigned long long)run->errors, cpu);
    fflush(stdout);
}

static void do_run(void)
{
    if (load.options.hold) {
        puts("ready");
        if (!wait_for_line())
            exit(1);
    }
    double cpu_before = cpu_seconds();
    start_all();
    if (load.run.rate > 0)
        work_slowly();
    else
        work();
    print_result((double)(now_ns() - load.started_ns) / 1e9, cpu_seconds() - cpu_before);
    if (load.options.hold)
        wait_for_line();
}

int main(int argc, char **argv)
{
    options_parse(argc, argv, &load.options, &load.run);
    prepare_run();
    open_all();
    if (load.run.errors == 0)
        do_run();
    for (unsigned i = 0; i < load.options.clients; i++)
        client_free(load.clients[i]);
    samples_release(&load.run.samples);
    SSL_CTX_free(load.run.tls);
    return load.run.errors == 0 ? 0 : 1;
}
