/* Owns the process: the command line, the control thread's loop, and signals. */
#include "proxy/base/conf.h"
#include "proxy/base/log.h"
#include "proxy/net/tls.h"
#include "proxy/worker.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <uv.h>

#ifndef IMAPMUX_CONF
#define IMAPMUX_CONF "/etc/imapmux/proxy.conf"
#endif

struct control {
    uv_loop_t loop;
    uv_signal_t terminate, interrupt;
    uv_timer_t stop_deadline, metrics;
    uv_async_t idle; /* the last session has gone */
    const struct conf *conf;
    struct workers *workers;
    bool stopping;
    bool metrics_failed;
};

static const char usage[] =
    "Usage: imapmux [-c FILE] [-t]\n"
    "       imapmux --print-defaults | --print-settings | --version | --help\n"
    "\n"
    "IMAP proxy and connection multiplexer: runs in the foreground, logs to standard error.\n"
    "\n"
    "  -c, --config FILE     configuration (default " IMAPMUX_CONF ")\n"
    "  -t, --test            check the configuration and exit\n"
    "      --print-defaults  print a proxy.conf with every setting and its default\n"
    "      --print-settings  print the reference of all settings, in Markdown\n"
    "  -V, --version         print the version\n"
    "  -h, --help            print this help\n"
    "\n"
    "SIGTERM and SIGINT end the process in order: clients are told BYE; a second one ends it at "
    "once.\n";

/* --- the control loop --- */

static void end_control(struct control *control)
{
    uv_close((uv_handle_t *)&control->terminate, NULL);
    uv_close((uv_handle_t *)&control->interrupt, NULL);
    uv_close((uv_handle_t *)&control->stop_deadline, NULL);
    uv_close((uv_handle_t *)&control->metrics, NULL);
    uv_close((uv_handle_t *)&control->idle, NULL);
}

static void on_stop_deadline(uv_timer_t *timer)
{
    log_event(LOG_LEVEL_WARNING, "stop", "time is up: the remaining sessions are cut off");
    uv_stop(timer->loop);
}

/* Any thread: no session is left. */
static void tell_idle(void *owner)
{
    struct control *control = owner;

    uv_async_send(&control->idle);
}

static void on_idle(uv_async_t *async)
{
    uv_stop(async->loop);
}

static void on_signal(uv_signal_t *handle, int signum)
{
    struct control *control = handle->data;

    if (control->stopping) {
        uv_stop(handle->loop);
        return;
    }
    control->stopping = true;
    log_event(LOG_LEVEL_INFO, "stopping", "on signal %d", signum);
    uv_timer_start(&control->stop_deadline, on_stop_deadline, control->conf->process.stop_timeout,
                   0);
    workers_stop(control->workers);
}

/* Now and at each interval; what goes wrong is logged once, until it goes well again. */
static void save_metrics(uv_timer_t *timer)
{
    struct control *control = timer->data;
    struct err err = {0};
    bool saved = workers_save_metrics(control->workers, &err);

    if (!saved && !control->metrics_failed)
        log_event(LOG_LEVEL_ERROR, "metrics not written", "%s", err.text);
    control->metrics_failed = !saved;
}

static void start_metrics(struct control *control)
{
    if (control->conf->metrics.file[0] != '\0')
        uv_timer_start(&control->metrics, save_metrics, 0, control->conf->metrics.interval);
}

static bool open_control(struct control *control, struct err *err)
{
    if (uv_loop_init(&control->loop) != 0 ||
        uv_async_init(&control->loop, &control->idle, on_idle) != 0)
        return err_set(err, ERR_INTERNAL, "no descriptors for the control loop");
    uv_timer_init(&control->loop, &control->stop_deadline);
    uv_timer_init(&control->loop, &control->metrics);
    control->metrics.data = control;
    uv_signal_init(&control->loop, &control->terminate);
    uv_signal_init(&control->loop, &control->interrupt);
    control->terminate.data = control->interrupt.data = control;
    uv_signal_start(&control->terminate, on_signal, SIGTERM);
    uv_signal_start(&control->interrupt, on_signal, SIGINT);
    return true;
}

/* Two descriptors for each session, and some for the rest: as many as the system lets us have. */
static void raise_descriptor_limit(const struct conf *conf)
{
    struct rlimit limit;
    rlim_t wanted = 2 * (rlim_t)conf->process.max_sessions + 512;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < wanted)
        log_event(LOG_LEVEL_WARNING, "descriptors",
                  "%llu are allowed, max_sessions = %lld may need %llu: raise the limit or lower "
                  "the setting",
                  (unsigned long long)limit.rlim_cur, (long long)conf->process.max_sessions,
                  (unsigned long long)wanted);
}

static bool serve(struct control *control, const struct tls *tls, struct err *err)
{
    if (!open_control(control, err))
        return false;
    control->workers = workers_start(control->conf, tls, tell_idle, control, err);
    if (control->workers != NULL) {
        log_event(LOG_LEVEL_INFO, "ready", "imapmux " IMAPMUX_VERSION);
        start_metrics(control);
        uv_run(&control->loop, UV_RUN_DEFAULT);
        workers_end(&control->workers);
        log_event(LOG_LEVEL_INFO, "stopped", "all sessions have ended");
    }
    end_control(control);
    uv_run(&control->loop, UV_RUN_DEFAULT);
    uv_loop_close(&control->loop);
    return err->kind == ERR_NONE;
}

/* --- the command line --- */

static int run(const char *path, bool only_check)
{
    struct err err = {0};
    struct control control = {0};
    struct conf *conf = conf_open(path, &err);
    struct tls *tls = conf == NULL ? NULL : tls_open(conf, &err);
    bool good = tls != NULL;

    if (good && only_check) {
        printf("%s: the configuration is good\n", path);
    } else if (good) {
        log_configure((enum conf_log_format)conf->log.format, (enum conf_log_level)conf->log.level);
        signal(SIGPIPE, SIG_IGN); /* OpenSSL, hiredis and libldap write without MSG_NOSIGNAL */
        /* A directory that hangs may keep threads waiting; names and hashes need some, too. */
        setenv("UV_THREADPOOL_SIZE", "32", 0);
        raise_descriptor_limit(conf);
        control.conf = conf;
        good = serve(&control, tls, &err);
    }
    if (!good)
        fprintf(stderr, "imapmux: %s\n", err.text);
    tls_close(&tls);
    conf_close(&conf);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    enum { OPT_DEFAULTS = 256, OPT_SETTINGS };
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"test", no_argument, NULL, 't'},
        {"print-defaults", no_argument, NULL, OPT_DEFAULTS},
        {"print-settings", no_argument, NULL, OPT_SETTINGS},
        {"version", no_argument, NULL, 'V'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    const char *path = IMAPMUX_CONF;
    bool only_check = false;

    for (int option; (option = getopt_long(argc, argv, "c:tVh", options, NULL)) != -1;) {
        switch (option) {
        case 'c':
            path = optarg;
            break;
        case 't':
            only_check = true;
            break;
        case OPT_DEFAULTS:
            conf_print_defaults(stdout);
            return EXIT_SUCCESS;
        case OPT_SETTINGS:
            conf_print_markdown(stdout);
            return EXIT_SUCCESS;
        case 'V':
            puts("imapmux " IMAPMUX_VERSION);
            return EXIT_SUCCESS;
        case 'h':
            fputs(usage, stdout);
            return EXIT_SUCCESS;
        default:
            fputs(usage, stderr);
            return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "imapmux: unexpected argument \"%s\"\n%s", argv[optind], usage);
        return 2;
    }
    return run(path, only_check);
}
