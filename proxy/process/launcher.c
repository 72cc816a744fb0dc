/* Owns the small process that starts new ones, on both sides of the connection to it. */
#include "proxy/process/launcher.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

enum {
    OWN_FD = 3,        /* of the small process: the connection, and no other above */
    MESSAGE_MAX = 512, /* of what is said in either direction; a path is shorter */
    END_MS = 1000
};

#define REPORT_NAME "IMAPMUX_REPORT"
static const char launch[] = "launch", ready[] = "ready ", failed[] = "failed ",
                  take_over[] = "--take-over";

struct launcher {
    int fd;
    bool settled, listens, is_busy;
    uv_poll_t poll;
    launcher_end_fn *on_end;
    void *owner;
    void (*on_settled)(void *owner);
    void *waiter;
};

/* --- the small process --- */

/* Without --take-over, and with room for it and the NULL. */
static char **copy_arguments(char **argv)
{
    size_t count = 0, kept = 0;

    while (argv[count] != NULL)
        count++;
    char **copy = mem_array(count + 2, sizeof(char *));
    for (size_t i = 0; copy != NULL && i < count; i++)
        if (strncmp(argv[i], take_over, strlen("--ta")) != 0) /* or an abbreviation */
            copy[kept++] = argv[i];
    return copy;
}

static void set_signals(void (*action)(int))
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGPIPE};

    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        signal(signals[i], action);
}

/* What systemd has told the first process is not for others, but for the watchdog's time. */
static void clean_environment(void)
{
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDNAMES");
    unsetenv("WATCHDOG_PID");
}

/* Does not return. */
static void become_new(char **arguments, const char *socket, int report)
{
    char place[MESSAGE_MAX + sizeof take_over], number[16];
    size_t count = 0;

    snprintf(place, sizeof place, "%s=%s", take_over, socket);
    while (arguments[count] != NULL)
        count++;
    arguments[count] = place;
    snprintf(number, sizeof number, "%d", report);
    setenv(REPORT_NAME, number, 1);
    fcntl(report, F_SETFD, 0);
    set_signals(SIG_DFL);
    signal(SIGHUP, SIG_IGN); /* as it does itself until it is ready for them */
    signal(SIGUSR2, SIG_IGN);
    execvp(arguments[0], arguments);
    dprintf(report, "%s%s: %s", failed, arguments[0], strerrordesc_np(errno));
    _exit(127);
}

/*
 * The one between ends at once, so that nobody but init, or systemd, is the parent of the new one.
 * Returns where that reports, or -1.
 */
static int start_new(char **arguments, const char *socket)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    pid_t between = fork();
    if (between == 0) {
        pid_t new = fork();

        if (new == 0)
            become_new(arguments, socket, ends[1]);
        if (new < 0)
            dprintf(ends[1], "%s%s", failed, strerrordesc_np(errno));
        _exit(0);
    }
    close(ends[1]);
    if (between > 0)
        waitpid(between, NULL, 0);
    return ends[0];
}

/* Reads what the new process tells, and passes it on when that is all. Returns `report`, or -1. */
static int hear_report(int report, char text[MESSAGE_MAX], size_t *len)
{
    char rest[MESSAGE_MAX];
    bool fits = *len < MESSAGE_MAX - 1;
    ssize_t count =
        read(report, fits ? text + *len : rest, fits ? MESSAGE_MAX - 1 - *len : sizeof rest);

    if (count > 0) {
        *len += fits ? (size_t)count : 0;
        return report;
    }
    close(report);
    if (*len == 0)
        *len = (size_t)snprintf(text, MESSAGE_MAX,
                                "%sit has ended before it was ready; see its log", failed);
    (void)!send(OWN_FD, text, *len, MSG_NOSIGNAL);
    *len = 0;
    return -1;
}

/* Does not return: ends with the process that has forked it. */
static void serve(char **arguments)
{
    char socket[MESSAGE_MAX] = "", message[MESSAGE_MAX], text[MESSAGE_MAX];
    size_t text_len = 0;
    int report = -1;

    for (;;) {
        struct pollfd states[] = {{.fd = OWN_FD, .events = POLLIN}, {report, POLLIN, 0}};

        if (poll(states, 2, -1) < 0)
            continue;
        if (states[1].revents != 0)
            report = hear_report(report, text, &text_len);
        if (states[0].revents == 0)
            continue;
        ssize_t count = recv(OWN_FD, message, sizeof message - 1, 0);
        if (count <= 0)
            _exit(0);
        message[count] = '\0';
        if (*socket == '\0')
            snprintf(socket, sizeof socket, "%s", message);
        else if (report < 0 && (report = start_new(arguments, socket)) < 0)
            (void)!send(OWN_FD, failed, strlen(failed), MSG_NOSIGNAL);
    }
}

/* Nothing of what this process has open is kept, but for the three usual ones. */
static void become_launcher(int fd, char **argv)
{
    char **arguments = copy_arguments(argv);

    prctl(PR_SET_NAME, "imapmux-launch");
    if (arguments == NULL || dup2(fd, OWN_FD) < 0 || fcntl(OWN_FD, F_SETFD, FD_CLOEXEC) != 0 ||
        close_range(OWN_FD + 1, ~0U, 0) != 0)
        _exit(1);
    set_signals(SIG_IGN); /* those for a whole group are for its other process */
    signal(SIGCHLD, SIG_DFL);
    clean_environment();
    serve(arguments);
}

/* --- the side of imapmux --- */

struct launcher *launcher_fork(char **argv)
{
    struct launcher *launcher = mem_new(sizeof *launcher);
    int ends[2];

    if (launcher == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
        mem_free(launcher);
        return NULL;
    }
    signal(SIGCHLD, SIG_IGN); /* it leaves nothing behind if it ends first */
    pid_t pid = fork();
    if (pid == 0)
        become_launcher(ends[1], argv);
    close(ends[1]);
    launcher->fd = ends[0];
    fcntl(launcher->fd, F_SETFL, O_NONBLOCK);
    if (pid < 0)
        launcher_close(&launcher);
    return launcher;
}

void launcher_settle(struct launcher *launcher, const char *socket)
{
    if (launcher != NULL && *socket != '\0')
        launcher->settled = send(launcher->fd, socket, strlen(socket), MSG_NOSIGNAL) > 0;
}

static void end(struct launcher *launcher, long pid, const char *why)
{
    launcher->is_busy = false;
    if (pid != 0)
        log_event(LOG_LEVEL_INFO, "upgrade", "process %ld has taken the place of this one", pid);
    else
        log_event(LOG_LEVEL_ERROR, "upgrade failed", "%s", why);
    if (launcher->on_end != NULL)
        launcher->on_end(launcher->owner, pid, why);
    if (launcher->on_settled != NULL)
        launcher->on_settled(launcher->waiter);
}

static void on_message(uv_poll_t *poll, int status, int events)
{
    struct launcher *launcher = poll->data;
    char text[MESSAGE_MAX];
    ssize_t count = recv(launcher->fd, text, sizeof text - 1, 0);

    (void)status;
    (void)events;
    if (count < 0 && errno == EAGAIN)
        return;
    if (count <= 0) {
        uv_poll_stop(poll);
        launcher->listens = false;
        if (launcher->is_busy)
            end(launcher, 0, "the process that starts new ones has ended");
        return;
    }
    text[count] = '\0';
    if (!launcher->is_busy)
        return;
    if (strncmp(text, ready, strlen(ready)) == 0)
        end(launcher, strtol(text + strlen(ready), NULL, 10), "");
    else
        end(launcher, 0, strncmp(text, failed, strlen(failed)) == 0 ? text + strlen(failed) : text);
}

void launcher_listen(struct launcher *launcher, const struct env *env)
{
    if (launcher == NULL || uv_poll_init(env->loop, &launcher->poll, launcher->fd) != 0)
        return;
    launcher->poll.data = launcher;
    launcher->listens = true;
    uv_poll_start(&launcher->poll, UV_READABLE, on_message);
}

bool launcher_launch(struct launcher *launcher, launcher_end_fn *on_end, void *owner,
                     struct err *err)
{
    if (getpid() == 1)
        return err_set(err, ERR_CONFIG,
                       "this is process 1 of a container, which ends with it: "
                       "start another container");
    if (launcher == NULL || !launcher->settled || !launcher->listens)
        return err_set(err, ERR_CONFIG, "%s",
                       launcher != NULL && !launcher->settled
                           ? "admin.socket is not set"
                           : "there is no process that could start a new one");
    if (launcher->is_busy)
        return err_set(err, ERR_CONFIG, "a new process is on its way already");
    if (send(launcher->fd, launch, strlen(launch), MSG_NOSIGNAL) < 0)
        return err_set(err, ERR_CONFIG, "the process that starts new ones: %s",
                       strerrordesc_np(errno));
    launcher->is_busy = true;
    launcher->on_end = on_end;
    launcher->owner = owner;
    return true;
}

void launcher_forget(struct launcher *launcher)
{
    launcher->on_end = NULL;
}

bool launcher_wait(struct launcher *launcher, void (*on_settled)(void *owner), void *owner)
{
    if (launcher == NULL || !launcher->is_busy)
        return false;
    launcher->on_settled = on_settled;
    launcher->waiter = owner;
    return true;
}

static void handle_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

/* As long as this process is there nobody else has to reap the small one. */
static void wait_for_end(int fd)
{
    struct pollfd state = {.fd = fd, .events = POLLIN};

    shutdown(fd, SHUT_WR);
    poll(&state, 1, END_MS);
}

void launcher_close(struct launcher **launcher)
{
    struct launcher *l = *launcher;

    *launcher = NULL;
    if (l == NULL)
        return;
    wait_for_end(l->fd);
    if (l->poll.data != NULL)
        uv_close((uv_handle_t *)&l->poll, handle_closed);
    close(l->fd);
    if (l->poll.data == NULL)
        mem_free(l);
}

/* --- the new process --- */

static int report_fd = -1;

void launcher_take_report(void)
{
    const char *number = getenv(REPORT_NAME);

    report_fd = number == NULL ? -1 : (int)strtol(number, NULL, 10);
    if (report_fd > STDERR_FILENO)
        fcntl(report_fd, F_SETFD, FD_CLOEXEC);
    else
        report_fd = -1;
    unsetenv(REPORT_NAME);
}

static void close_report(void)
{
    close(report_fd);
    report_fd = -1;
}

void launcher_report_ready(void)
{
    if (report_fd < 0)
        return;
    dprintf(report_fd, "%s%ld", ready, (long)getpid());
    close_report();
}

void launcher_report_failure(const char *why)
{
    if (report_fd < 0)
        return;
    dprintf(report_fd, "%s%s", failed, *why == '\0' ? "it was told to end" : why);
    close_report();
}
