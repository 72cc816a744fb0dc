/* Owns a command of the shell while it runs: its process group, its output, its end. */
#include "proxy/ctl/child.h"

#include "proxy/base/buf.h"
#include "proxy/base/mem.h"
#include "proxy/base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { GRACE_MS = 5000, READ_SIZE = 4096 };

struct running {
    const struct child *child;
    pid_t pid;        /* and the process group's */
    int pidfd;        /* readable once it has ended */
    int output;       /* our end of its output; -1 when that has ended */
    struct buf input; /* what is not a line yet */
    uint64_t kill_ms; /* when it is killed; 0: it was not told to end */
};

/* --- the beginning --- */

static bool has_name_of(const char *const *entries, const char *entry)
{
    size_t len = strcspn(entry, "=");

    while (*entries != NULL && (strncmp(*entries, entry, len) != 0 || (*entries)[len] != '='))
        entries++;
    return *entries != NULL;
}

/* The child's, and of ours what it has none of: of two of one name a shell takes the last. */
static char **make_environment(const char *const *first)
{
    size_t count = 0, own = 0;

    while (first[count] != NULL)
        count++;
    while (environ[own] != NULL)
        own++;
    char **all = mem_array(count + own + 1, sizeof *all);
    if (all == NULL)
        return NULL;
    memcpy(all, first, count * sizeof *all);
    for (char **entry = environ; *entry != NULL; entry++)
        if (!has_name_of(first, *entry))
            all[count++] = *entry;
    return all;
}

/*
 * The one of the group that ends all of it if imapmuxctl dies: nobody reads the output then, which
 * is an error at this end. In any other case it ends with the group. Like the next one it runs
 * after fork(2), where only what is safe in a signal handler may be called.
 */
static _Noreturn void guard(int output)
{
    struct pollfd state = {.fd = STDOUT_FILENO};

    signal(SIGTERM, SIG_IGN);
    dup2(output, STDOUT_FILENO);
    close_range(STDERR_FILENO, ~0U, 0); /* other children's pipes, too */
    while (poll(&state, 1, -1) < 0 && errno == EINTR)
        continue;
    kill(0, SIGTERM);
    sleep(GRACE_MS / 1000);
    kill(0, SIGKILL);
    _exit(0);
}

static _Noreturn void become(const char *command, char **environment, int output)
{
    char *const words[] = {(char[]){"sh"}, (char[]){"-c"}, (char *)command, NULL};
    sigset_t none;
    int null = open("/dev/null", O_RDONLY);

    setpgid(0, 0);
    signal(SIGPIPE, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (_Fork() == 0)
        guard(output);
    if (null >= 0 && dup2(null, STDIN_FILENO) >= 0 && dup2(output, STDOUT_FILENO) >= 0 &&
        dup2(output, STDERR_FILENO) >= 0)
        execve("/bin/sh", words, environment);
    _exit(127);
}

static bool start(struct running *r, struct err *err)
{
    char **environment = make_environment(r->child->environment);
    int ends[2] = {-1, -1};

    if (environment == NULL || pipe2(ends, O_CLOEXEC) != 0) {
        mem_free(environment);
        return err_set(err, ERR_INTERNAL, "no memory, or no descriptors");
    }
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    r->pid = fork();
    if (r->pid == 0)
        become(r->child->command, environment, ends[1]);
    mem_free(environment);
    close(ends[1]);
    r->output = ends[0];
    if (r->pid < 0) {
        close(r->output);
        return err_set(err, ERR_INTERNAL, "fork: %s", strerrordesc_np(errno));
    }
    setpgid(r->pid, r->pid); /* whoever is first */
    fcntl(r->output, F_SETFL, O_NONBLOCK);
    r->pidfd = pidfd_open(r->pid, 0);
    if (r->pidfd >= 0)
        return true;
    kill(-r->pid, SIGKILL);
    waitpid(r->pid, NULL, 0);
    close(r->output);
    return err_set(err, ERR_INTERNAL, "pidfd_open: %s", strerrordesc_np(errno));
}

/* --- its output --- */

static void tell(struct running *r, size_t len, size_t end_len)
{
    r->child->on_line(r->child->owner, (struct span){buf_span(&r->input).ptr, len});
    buf_consume(&r->input, len + end_len);
}

/* Tells the lines that are whole, or too long; at the end of all the rest, too. */
static void tell_lines(struct running *r)
{
    for (;;) {
        struct span all = buf_span(&r->input);
        const char *end = memchr(all.ptr, '\n', all.len);

        if (end != NULL && end - all.ptr <= CHILD_LINE_MAX)
            tell(r, (size_t)(end - all.ptr), 1);
        else if (all.len >= CHILD_LINE_MAX)
            tell(r, CHILD_LINE_MAX, 0);
        else
            break;
    }
    if (r->output < 0 && buf_len(&r->input) > 0)
        tell(r, buf_len(&r->input), 0);
}

/* Reads once; false when nothing is there now, or will ever be. */
static bool read_some(struct running *r)
{
    char *room = r->output < 0 ? NULL : buf_reserve(&r->input, READ_SIZE);
    ssize_t count = room == NULL ? 0 : read(r->output, room, READ_SIZE);

    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (count > 0) {
        buf_commit(&r->input, (size_t)count);
    } else if (r->output >= 0) {
        close(r->output);
        r->output = -1;
    }
    tell_lines(r);
    return count > 0;
}

/* --- its end --- */

static void hurry(struct running *r)
{
    if (r->kill_ms == 0 && !r->child->on_wait(r->child->owner)) {
        r->kill_ms = clock_ms() + GRACE_MS;
        kill(-r->pid, SIGTERM);
    } else if (r->kill_ms != 0 && clock_ms() >= r->kill_ms) {
        kill(-r->pid, SIGKILL);
    }
}

/* Until the shell has ended; what it has left in its group ends with it. */
static void attend(struct running *r)
{
    struct pollfd state[] = {{.fd = r->pidfd, .events = POLLIN}, {.events = POLLIN}};

    do {
        hurry(r);
        state[1].fd = r->output;
        if (poll(state, 2, CHILD_WAIT_MS) > 0)
            read_some(r);
    } while (state[0].revents == 0);
    kill(-r->pid, SIGKILL); /* before it is reaped: until then the number is its own */
    while (read_some(r))
        continue;
}

/*
 * Until all of its group have ended, so that nothing is copied behind our back. They are our
 * children, those that have lost their parents, too.
 */
static void reap(const struct running *r, int *status_out)
{
    pid_t ended;
    int status;

    while ((ended = waitpid(-r->pid, &status, 0)) > 0 || errno == EINTR)
        if (ended == r->pid)
            *status_out = status;
}

static bool judge(const struct running *r, int status, struct err *err)
{
    if (r->kill_ms != 0)
        return err_set(err, ERR_PEER, "was ended");
    if (WIFSIGNALED(status))
        return err_set(err, ERR_PEER, "was ended by signal %d", WTERMSIG(status));
    if (WEXITSTATUS(status) != 0)
        return err_set(err, ERR_PEER, "failed with exit status %d", WEXITSTATUS(status));
    return true;
}

bool child_run(const struct child *child, struct err *err)
{
    struct running r = {.child = child, .output = -1};
    int status = 0;

    buf_init(&r.input, CHILD_LINE_MAX + READ_SIZE);
    if (!start(&r, err))
        return false;
    attend(&r);
    reap(&r, &status);
    close(r.pidfd);
    if (r.output >= 0) {
        close(r.output);
        r.output = -1;
        tell_lines(&r);
    }
    buf_release(&r.input);
    return judge(&r, status, err);
}
