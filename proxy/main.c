/* Owns the process: the command line, the control thread's loop, and signals. */
#include "proxy/admin/handlers.h"
#include "proxy/base/log.h"
#include "proxy/base/notify.h"
#include "proxy/base/sandbox.h"
#include "proxy/fleet/cutover.h"
#include "proxy/fleet/fleet.h"
#include "proxy/http/site.h"
#include "proxy/http/verdicts.h"
#include "proxy/net/private_key.h"
#include "proxy/net/redis_link.h"
#include "proxy/net/tls.h"
#include "proxy/process/certificates.h"
#include "proxy/process/control.h"
#include "proxy/process/ending.h"
#include "proxy/process/inherited.h"
#include "proxy/process/launcher.h"
#include "proxy/process/listeners.h"
#include "proxy/process/orders.h"
#include "proxy/process/preflight.h"
#include "proxy/process/privileges.h"
#include "proxy/process/pulse.h"
#include "proxy/process/reload.h"
#include "proxy/process/takeover.h"
#include "routing/route.h"

#include <assert.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#ifndef IMAPMUX_CONF
#define IMAPMUX_CONF "/etc/imapmux/proxy.conf"
#endif

struct process {
    struct control control; /* first member: give_up casts */
    uv_loop_t loop;
    struct turn turn;
    struct counters counters;
    uv_signal_t terminate, interrupt, hang_up, upgrade;
    uv_timer_t metrics;
    struct site *site;
    struct pulse pulse;
    const char *take_over;     /* the socket of the process whose place this one takes; or NULL */
    struct takeover *takeover; /* until that has come to an end */
    bool metrics_failed;
};

static const char usage[] =
    "Usage: imapmux [-c FILE] [-t | --take-over[=SOCKET]]\n"
    "       imapmux --print-defaults | --print-settings | --version | --help\n"
    "\n"
    "IMAP proxy and connection multiplexer: runs in the foreground, logs to standard error.\n"
    "\n"
    "  -c, --config FILE     configuration (default " IMAPMUX_CONF ")\n"
    "  -t, --test            check the configuration and exit\n"
    "      --take-over[=SOCKET]  take the place of the process that listens at SOCKET (default:\n"
    "                        admin.socket), without refusing a client; that one drains and ends\n"
    "      --print-defaults  print a proxy.conf with every setting and its default\n"
    "      --print-settings  print the reference of all settings, in Markdown\n"
    "  -V, --version         print the version\n"
    "  -h, --help            print this help\n"
    "\n"
    "SIGTERM and SIGINT end the process in order: clients are told BYE; a second one ends it at "
    "once.\n"
    "SIGHUP has it read the configuration again.\n"
    "SIGUSR2 starts the binary anew with --take-over, as imapmuxctl upgrade does.\n";

/* --- the control loop --- */

/* It has ended in order, and says so, whatever signals come in its last moments. */
static void close_signals(struct process *process)
{
    uv_signal_t *const signals[] = {&process->terminate, &process->interrupt, &process->hang_up,
                                    &process->upgrade};

    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        int number = signals[i]->signum;

        uv_close((uv_handle_t *)signals[i], NULL);
        signal(number, SIG_IGN);
    }
}

/* What workers have sent back is still delivered. Then the loop runs out. */
static void end_control(struct process *process)
{
    struct letter *next;

    for (struct letter *letter = inbox_close(&process->control.inbox); letter != NULL;
         letter = next) {
        next = letter->next;
        letter->deliver(letter, &process->control);
    }
    reload_close(&process->control.reload);
    certificates_close(&process->control.certificates);
    fleet_close(&process->control.fleet);
    cutovers_close(&process->control.cutovers);
    router_close(&process->control.router);
    redis_link_close(&process->control.env.redis);
    close_signals(process);
    uv_close((uv_handle_t *)&process->metrics, NULL);
    ending_close(&process->control.ending);
    launcher_close(&process->control.launcher);
    uv_run(&process->loop, UV_RUN_DEFAULT);
    turn_release(&process->turn);
    uv_run(&process->loop, UV_RUN_DEFAULT);
    uv_loop_close(&process->loop);
}

/* Any thread. */
static void tell_idle(void *owner)
{
    struct process *process = owner;

    ending_tell_idle(process->control.ending);
}

/* A worker's thread. */
static void tell_held(void *owner, const char *user, uint64_t epoch)
{
    struct process *process = owner;

    fleet_tell_held(&process->control, user, epoch);
}

/* The control thread. */
static void print_metrics(void *owner, FILE *out)
{
    struct process *process = owner;

    verdict_print_metrics(&process->control, out);
    certificates_print_metrics(&process->control, out);
}

static void teach(void *owner, struct workers *workers)
{
    struct process *process = owner;

    fleet_teach(process->control.fleet, workers);
}

static void on_signal(uv_signal_t *handle, int signum)
{
    struct process *process = handle->data;
    char why[32];

    snprintf(why, sizeof why, "on signal %d", signum);
    ending_stop(process->control.ending, why);
}

static void on_hang_up(uv_signal_t *handle, int signum)
{
    struct process *process = handle->data;

    (void)signum;
    reload_wanted(process->control.reload);
}

static void on_upgrade(uv_signal_t *handle, int signum)
{
    struct process *process = handle->data;
    struct err err = {0};

    (void)signum;
    if (process->control.stopping)
        err_set(&err, ERR_CONFIG, "the process is stopping");
    if (err.kind != ERR_NONE || !launcher_launch(process->control.launcher, NULL, NULL, &err))
        log_event(LOG_LEVEL_ERROR, "upgrade failed", "%s", err.text);
}

/* Now and at each interval; what goes wrong is logged once, until it goes well again. */
static void save_metrics(uv_timer_t *timer)
{
    struct process *process = timer->data;
    struct err err = {0};
    bool saved = process->control.has_heir || /* which writes its own there */
                 workers_save_metrics(process->control.workers,
                                      process->control.env.conf->metrics.file, &err);

    if (!saved && !process->metrics_failed)
        log_event(LOG_LEVEL_ERROR, "metrics not written", "%s", err.text);
    process->metrics_failed = !saved;
}

static void start_metrics(struct process *process, const struct conf_metrics *conf)
{
    uv_timer_stop(&process->metrics);
    if (conf->file[0] != '\0')
        uv_timer_start(&process->metrics, save_metrics, 0, conf->interval);
}

/* Of a hand-over: the port of HTTP, which the heir wants to have. */
static void give_up(struct control *control, bool back)
{
    struct process *process = (struct process *)control;
    struct err err = {0};

    site_close(&process->site);
    if (back && control->env.conf->http.address[0] != '\0' &&
        (process->site = site_open(control, &err)) == NULL)
        log_event(LOG_LEVEL_ERROR, "http", "%s", err.text);
}

/* Another configuration is in force. */
static void on_change(void *owner, const struct conf *before)
{
    struct process *process = owner;
    const struct conf *conf = process->control.env.conf;
    size_t workers = workers_count(process->control.workers);

    if (conf->metrics.interval != before->metrics.interval ||
        strcmp(conf->metrics.file, before->metrics.file) != 0)
        start_metrics(process, &conf->metrics);
    if (privileges_descriptors(conf, workers) != privileges_descriptors(before, workers))
        privileges_raise_descriptors(conf, workers);
}

static bool open_control(struct process *process, const struct conf *conf, struct err *err)
{
    struct control *control = &process->control;

    if (uv_loop_init(&process->loop) != 0 || !inbox_open(&control->inbox, &process->loop, control))
        return err_set(err, ERR_INTERNAL, "no descriptors for the control loop");
    control->env = (struct env){.loop = &process->loop,
                                .turn = &process->turn,
                                .conf = conf_hold(conf),
                                .counters = &process->counters};
    control->started_ms = uv_now(&process->loop);
    control->give_up = give_up;
    control->ending = ending_open(control, err);
    control->reload = reload_open(control, on_change, process);
    if (control->ending == NULL || control->reload == NULL)
        return err_set(err, ERR_INTERNAL, "no memory or descriptors for the control loop");
    turn_init(&process->turn, &process->loop);
    uv_timer_init(&process->loop, &process->metrics);
    process->metrics.data = process;
    uv_signal_init(&process->loop, &process->terminate);
    uv_signal_init(&process->loop, &process->interrupt);
    uv_signal_init(&process->loop, &process->hang_up);
    uv_signal_init(&process->loop, &process->upgrade);
    process->terminate.data = process->interrupt.data = process;
    process->hang_up.data = process->upgrade.data = process;
    uv_signal_start(&process->terminate, on_signal, SIGTERM);
    uv_signal_start(&process->interrupt, on_signal, SIGINT);
    uv_signal_start(&process->hang_up, on_hang_up, SIGHUP);
    uv_signal_start(&process->upgrade, on_upgrade, SIGUSR2);
    launcher_listen(control->launcher, &control->env);
    pulse_start(&process->pulse, control);
    control->pulse = &process->pulse;
    return true;
}

static bool open_redis(struct control *control, struct err *err)
{
    if (!conf_uses_redis(control->env.conf))
        return true;
    control->env.redis = redis_link_open(&control->env, err);
    if (control->env.redis == NULL)
        return false;
    control->cutovers = cutovers_open(&control->env, err);
    return control->cutovers != NULL;
}

/* The usual socket of administration is the other process's until the end. */
static bool is_beside(const struct process *process)
{
    return process->takeover != NULL &&
           strcmp(process->take_over, process->control.env.conf->admin.socket) == 0;
}

static bool open_admin(struct process *process, struct err *err)
{
    struct control *control = &process->control;

    if (control->env.conf->admin.socket[0] == '\0')
        return true;
    control->admin = admin_open(&control->env, is_beside(process), admin_handlers, control, err);
    return control->admin != NULL;
}

/* Whether it is ready can be asked before it is. */
static bool open_site(struct process *process, struct err *err)
{
    struct control *control = &process->control;

    if (control->env.conf->http.address[0] == '\0')
        return true;
    process->site = site_open(control, err);
    return process->site != NULL;
}

/* Others know of this process before it serves anybody. */
static bool open_fleet(struct process *process, struct err *err)
{
    struct control *control = &process->control;

    control->fleet =
        fleet_open(control, process->takeover == NULL ? NULL : takeover_id(process->takeover), err);
    return control->fleet != NULL && fleet_join(control->fleet, err) && !control->stopping;
}

/* Of the configured addresses, some may come from systemd, or from the process before. */
static bool open_listeners(struct process *process, struct err *err)
{
    struct control *control = &process->control;
    const struct conf *conf = control->env.conf;
    struct inherited inherited;
    bool good;

    if (process->take_over != NULL) {
        process->takeover = takeover_begin(process->take_over, &inherited, err);
        good = process->takeover != NULL;
    } else {
        good = inherited_from_systemd(&inherited, err);
    }
    if (good)
        control->listeners = listeners_open(conf, workers_wanted(conf), &inherited, err);
    inherited_release(&inherited);
    return control->listeners != NULL;
}

/* What only one of two processes can have: after this only moments pass until it is settled. */
static bool take_release(struct process *process, struct err *err)
{
    if (process->takeover == NULL)
        return true;
    if (!takeover_release(process->takeover, err))
        return false;
    fleet_inherit(process->control.fleet);
    return true;
}

/* All is open. What can still fail does so before clients come, and before another process goes. */
static bool take_place(struct process *process, struct err *err)
{
    struct control *control = &process->control;

    if (!listeners_listen(control->listeners, err))
        return false;
    if (process->takeover != NULL) {
        fleet_keep(control->fleet);
        if (control->stopping || !takeover_finish(process->takeover, is_beside(process), err))
            return false;
        admin_take_place(control->admin);
    }
    workers_accept(control->workers);
    takeover_close(&process->takeover);
    return true;
}

static bool start_workers(struct process *process, struct err *err)
{
    struct control *control = &process->control;
    const struct workers_view view = {.control = &process->counters,
                                      .freshness = fleet_freshness(control->fleet),
                                      .on_open = teach,
                                      .on_idle = tell_idle,
                                      .on_held = tell_held,
                                      .print_metrics = print_metrics,
                                      .owner = process};

    control->workers =
        workers_start(control->env.conf, control->tls, control->listeners, &view, err);
    return control->workers != NULL;
}

/* The other way round: others know that nobody is served here when that is so. */
static void end_workers(struct process *process)
{
    uv_timer_stop(&process->metrics);
    listeners_close(&process->control.listeners);
    fleet_stop(process->control.fleet);
    /* Else another process writes its own there. */
    workers_end(&process->control.workers, process->control.serving && !process->control.has_heir);
    health_close(&process->control.health);
    orders_close(&process->control.orders);
    fleet_leave(process->control.fleet);
    log_event(LOG_LEVEL_INFO, "stopped", "all sessions have ended");
}

/* After the workers, whose stores tell what a ring's shards take. */
static bool open_router(struct control *control, struct err *err)
{
    const struct router_view view = {.ring_weight = store_ring_weight,
                                     .owner = workers_stores(control->workers)};

    control->router = router_open(&control->env, &view, err);
    return control->router != NULL;
}

/* NULL: of whichever. */
static void on_shard_changed(void *owner, const char *shard)
{
    struct control *control = owner;

    if (control->orders != NULL)
        orders_look(control->orders, shard);
}

/* What decides about the stores that workers use. */
static bool open_stores(struct control *control, struct err *err)
{
    control->orders = orders_open(control, err);
    if (control->orders == NULL)
        return false;
    fleet_watch_shards(control->fleet, on_shard_changed, control);
    control->health =
        health_open(&control->env, control->tls, workers_stores(control->workers), err);
    return control->health != NULL;
}

/* From here on nothing needs root. Threads have the limits of whoever starts them: none before. */
static bool enter_sandbox(struct process *process, struct err *err)
{
    const struct conf *conf = process->control.env.conf;

    return privileges_drop(conf, err) && sandbox_enter(conf, err) &&
           log_start(&process->counters.log_lost, err);
}

/*
 * Administration is there from before the first client until after the last one. Takes *tls over,
 * for it may be replaced.
 */
static bool serve(struct process *process, const struct conf *conf, const struct tls **tls,
                  struct err *err)
{
    struct control *control = &process->control;

    if (!open_control(process, conf, err))
        return false;
    control->certificates = certificates_open(control, *tls, err);
    tls_release(tls);
    if (control->certificates != NULL && open_listeners(process, err) &&
        enter_sandbox(process, err) && open_redis(control, err) && open_fleet(process, err) &&
        open_admin(process, err) && take_release(process, err) && open_site(process, err) &&
        start_workers(process, err) && open_router(control, err) && open_stores(control, err) &&
        fleet_serve(control->fleet, err) && take_place(process, err)) {
        control->serving = true;
        log_event(LOG_LEVEL_INFO, "ready", "imapmux " IMAPMUX_VERSION);
        notify_status("imapmux " IMAPMUX_VERSION ": %zu workers", workers_count(control->workers));
        notify_ready();
        launcher_report_ready(); /* last: the process before may end then */
        start_metrics(process, &conf->metrics);
        uv_run(&process->loop, UV_RUN_DEFAULT);
    }
    ending_has_begun(control->env.conf);
    admin_close(&control->admin);
    site_close(&process->site);
    pulse_stop(&process->pulse);
    if (control->workers != NULL)
        end_workers(process);
    else if (control->fleet != NULL)
        fleet_leave(control->fleet);
    listeners_close(&control->listeners);
    end_control(process);
    conf_release(&control->env.conf);
    takeover_close(&process->takeover); /* the other process goes on, with all that is its own */
    ending_is_complete();
    return err->kind == ERR_NONE;
}

/* --- the command line --- */

/* Where core dumps are wanted, only what is read from now on can be kept out of them. */
static struct conf *read_conf(const char *path, struct err *err)
{
    struct conf *conf = conf_open(path, err);

    if (conf == NULL)
        return NULL;
    privileges_guard_memory(conf);
    if (conf->process.core_dumps && secret_hide_all((size_t)conf->process.max_sessions)) {
        conf_close(&conf);
        conf = conf_open(path, err);
    }
    return conf;
}

/*
 * For reloads: whole, but with its symbolic links as they are. Each may lead elsewhere by then, and
 * what it led to be gone, as in a volume of Kubernetes.
 */
static void set_conf_path(struct control *control, const char *path)
{
    char folder[PATH_MAX];

    assert(path != NULL); /* -c has an argument */
    if (*path == '/' || getcwd(folder, sizeof folder) == NULL ||
        snprintf(control->conf_path, PATH_MAX, "%s/%s", folder, path) >= PATH_MAX)
        snprintf(control->conf_path, PATH_MAX, "%s", path);
}

static int run(const char *path, bool only_check, const char *take_over, char **argv)
{
    struct err err = {0};
    struct process process = {.take_over = take_over};

    launcher_take_report();
    if (!only_check) {
        signal(SIGHUP, SIG_IGN);  /* who starts reads the configuration anyway, */
        signal(SIGUSR2, SIG_IGN); /* and is new */
        process.control.launcher = launcher_fork(argv);
    }

    private_key_prepare();

    struct conf *conf = read_conf(path, &err);
    const struct tls *tls = conf == NULL ? NULL : tls_open(conf, &err);
    bool good = tls != NULL && (!only_check || preflight_check(conf, &err));

    if (good && only_check) {
        printf("%s: the configuration is good\n", path);
    } else if (good) {
        log_configure(&conf->log);
        signal(SIGPIPE, SIG_IGN); /* OpenSSL, hiredis and libldap write without MSG_NOSIGNAL */
        /* A directory that hangs may keep threads waiting; names and hashes need some, too. */
        setenv("UV_THREADPOOL_SIZE", "32", 0);
        privileges_raise_descriptors(conf, workers_wanted(conf));
        launcher_settle(process.control.launcher, conf->admin.socket);
        if (take_over != NULL && *take_over == '\0')
            process.take_over = conf->admin.socket;
        set_conf_path(&process.control, path);
        good = serve(&process, conf, &tls, &err);
        log_stop();
    }
    if (!good)
        fprintf(stderr, "imapmux: %s\n", err.text);
    launcher_report_failure(err.text); /* unless it was ready */
    launcher_close(&process.control.launcher);
    tls_release(&tls);
    conf_close(&conf);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    enum { OPT_DEFAULTS = 256, OPT_SETTINGS, OPT_TAKE_OVER };
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"test", no_argument, NULL, 't'},
        {"take-over", optional_argument, NULL, OPT_TAKE_OVER},
        {"print-defaults", no_argument, NULL, OPT_DEFAULTS},
        {"print-settings", no_argument, NULL, OPT_SETTINGS},
        {"version", no_argument, NULL, 'V'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    const char *path = IMAPMUX_CONF, *take_over = NULL;
    bool only_check = false;

    for (int option; (option = getopt_long(argc, argv, "c:tVh", options, NULL)) != -1;) {
        switch (option) {
        case 'c':
            path = optarg;
            break;
        case 't':
            only_check = true;
            break;
        case OPT_TAKE_OVER:
            take_over = optarg == NULL ? "" : optarg;
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
    return run(path, only_check, take_over, argv);
}
