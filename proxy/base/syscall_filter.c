/*
 * Owns the list of system calls. It is made to hold for years without breaking anything: what is
 * not on it does not exist (ENOSYS), as on an older kernel, so that a newer libc or libuv takes the
 * way that it has for those. EPERM in its place would be taken for an answer. Only what nothing in
 * this process has any reason to call, on whatever system, ends the process: whoever does has
 * taken it over.
 */
#include "proxy/base/syscall_filter.h"

#include <errno.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Also what other versions of the libraries call, or call on other processors. NULL ends it. */
static const char *const allowed[] = {
    /* memory */
    "brk", "madvise", "membarrier", "mincore", "mlock", "mlock2", "mremap", "munlock", "munmap",
    /* threads, signals, time */
    "alarm", "arch_prctl", "clock_getres", "clock_gettime", "clock_nanosleep", "exit", "exit_group",
    "futex", "futex_waitv", "get_robust_list", "getcpu", "getitimer", "getpid", "getppid", "gettid",
    "gettimeofday", "nanosleep", "pause", "restart_syscall", "riscv_flush_icache", "rseq",
    "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend",
    "rt_sigtimedwait", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
    "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_setaffinity", "sched_yield",
    "set_robust_list", "set_tid_address", "setitimer", "sigaltstack", "time", "timerfd_create",
    "timerfd_gettime", "timerfd_settime", "times",
    /* files: which, Landlock says */
    "access", "chmod", "chown", "close", "close_range", "copy_file_range", "dup", "dup2", "dup3",
    "faccessat", "faccessat2", "fadvise64", "fallocate", "fchmod", "fchmodat", "fchmodat2",
    "fchown", "fchownat", "fcntl", "fdatasync", "flock", "fstat", "fstatfs", "fsync", "ftruncate",
    "getcwd", "getdents", "getdents64", "inotify_add_watch", "inotify_init", "inotify_init1",
    "inotify_rm_watch", "lchown", "lseek", "lstat", "memfd_create", "newfstatat", "open", "openat",
    "openat2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read",
    "readlink", "readlinkat", "readv", "rename", "renameat", "renameat2", "sendfile", "stat",
    "statfs", "statx", "sync_file_range", "truncate", "umask", "unlink", "unlinkat", "utimensat",
    "write", "writev",
    /* waiting */
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "eventfd", "eventfd2", "pipe", "pipe2", "poll", "ppoll", "pselect6", "select", "signalfd4",
    /* the net */
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen",
    "recvfrom", "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
    /* who and where we are */
    "capget", "getegid", "geteuid", "getgid", "getgroups", "getpriority", "getrandom", "getresgid",
    "getresuid", "getrlimit", "getrusage", "getuid", "sysinfo", "uname", NULL};

/* Other programs, other processes, other file systems, the kernel itself. */
static const char *const deadly[] = {"acct",
                                     "add_key",
                                     "bpf",
                                     "chroot",
                                     "delete_module",
                                     "execve",
                                     "execveat",
                                     "finit_module",
                                     "fsconfig",
                                     "fsmount",
                                     "fsopen",
                                     "fspick",
                                     "init_module",
                                     "ioperm",
                                     "iopl",
                                     "kcmp",
                                     "kexec_file_load",
                                     "kexec_load",
                                     "mount",
                                     "mount_setattr",
                                     "move_mount",
                                     "open_by_handle_at",
                                     "open_tree",
                                     "perf_event_open",
                                     "pidfd_getfd",
                                     "pivot_root",
                                     "process_madvise",
                                     "process_vm_readv",
                                     "process_vm_writev",
                                     "ptrace",
                                     "quotactl",
                                     "reboot",
                                     "setns",
                                     "swapoff",
                                     "swapon",
                                     "umount2",
                                     "unshare",
                                     "userfaultfd",
                                     NULL};

/* Allowed only for these values of an argument. */
struct choice {
    const char *name;
    unsigned argument;
    const uint64_t *values;
    size_t count;
};
#define VALUES(...)                                                                                \
    (const uint64_t[]){__VA_ARGS__}, sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t)
static const struct choice choices[] = {
    {"socket", 0, VALUES(AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)}, /* the last to look up names */
    {"socketpair", 0, VALUES(AF_UNIX)},
    {"ioctl", 1,
     VALUES(FIONBIO, FIONREAD, FIOCLEX, FIONCLEX, TCGETS, TIOCGWINSZ, SIOCOUTQ, SIOCGIFINDEX,
            SIOCGIFNAME, SIOCGIFCONF, SIOCGIFFLAGS, SIOCGIFADDR)},
    {"prctl", 0, VALUES(PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_CAPBSET_READ, PR_SET_VMA)},
    {"prlimit64", 0, VALUES(0)}, /* of ourselves */
};

enum {
    WRITE_AND_EXECUTE = PROT_WRITE | PROT_EXEC /* memory is never both, nor becomes executable */
};

/* Names that this libseccomp does not know are no calls that this libc makes. */
static int add(scmp_filter_ctx filter, uint32_t action, const char *name,
               const struct scmp_arg_cmp *condition)
{
    int number = seccomp_syscall_resolve_name(name);

    if (number == __NR_SCMP_ERROR)
        return 0;
    return seccomp_rule_add_array(filter, action, number, condition == NULL ? 0 : 1, condition);
}

static int add_when(scmp_filter_ctx filter, uint32_t action, const char *name, unsigned argument,
                    uint64_t mask, uint64_t value)
{
    const struct scmp_arg_cmp condition = {argument, SCMP_CMP_MASKED_EQ, mask, value};

    return add(filter, action, name, &condition);
}

static int add_lists(scmp_filter_ctx filter)
{
    int failure = 0;

    for (size_t i = 0; failure == 0 && allowed[i] != NULL; i++)
        failure = add(filter, SCMP_ACT_ALLOW, allowed[i], NULL);
    for (size_t i = 0; failure == 0 && deadly[i] != NULL; i++)
        failure = add(filter, SCMP_ACT_KILL_PROCESS, deadly[i], NULL);
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        for (size_t j = 0; failure == 0 && j < choices[i].count; j++)
            failure = add_when(filter, SCMP_ACT_ALLOW, choices[i].name, choices[i].argument,
                               UINT32_MAX, choices[i].values[j]);
    return failure;
}

/* Threads, but no processes: clone3, whose flags nobody can see here, is not there (ENOSYS). */
static int add_threads(scmp_filter_ctx filter)
{
    const uint32_t refused = SCMP_ACT_ERRNO(EPERM);
    int failure = add_when(filter, SCMP_ACT_ALLOW, "clone", 0, CLONE_THREAD, CLONE_THREAD);

    if (failure == 0)
        failure = add_when(filter, refused, "clone", 0, CLONE_THREAD, 0);
    if (failure == 0)
        failure = add(filter, refused, "fork", NULL);
    if (failure == 0)
        failure = add(filter, refused, "vfork", NULL);
    return failure;
}

/* Signals to ourselves: abort(), and what glibc tells its threads. */
static int add_signals(scmp_filter_ctx filter)
{
    const uint64_t self = (uint64_t)getpid();
    int failure = add_when(filter, SCMP_ACT_ALLOW, "tgkill", 0, UINT32_MAX, self);

    return failure == 0 ? add_when(filter, SCMP_ACT_ALLOW, "kill", 0, UINT32_MAX, self) : failure;
}

static int add_memory(scmp_filter_ctx filter)
{
    static const uint64_t harmless[] = {0, PROT_WRITE, PROT_EXEC};
    const uint32_t refused = SCMP_ACT_ERRNO(EPERM);
    int failure = add_when(filter, refused, "mmap", 2, WRITE_AND_EXECUTE, WRITE_AND_EXECUTE);

    for (size_t i = 0; failure == 0 && i < sizeof harmless / sizeof *harmless; i++)
        failure = add_when(filter, SCMP_ACT_ALLOW, "mmap", 2, WRITE_AND_EXECUTE, harmless[i]);
    if (failure == 0)
        failure = add_when(filter, refused, "mprotect", 2, PROT_EXEC, PROT_EXEC);
    if (failure == 0)
        failure = add_when(filter, SCMP_ACT_ALLOW, "mprotect", 2, PROT_EXEC, 0);
    return failure;
}

static int build(scmp_filter_ctx filter)
{
    int failure = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);

    if (failure == 0)
        failure = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    if (failure == 0)
        failure = add_lists(filter);
    if (failure == 0)
        failure = add_threads(filter);
    if (failure == 0)
        failure = add_signals(filter);
    if (failure == 0)
        failure = add_memory(filter);
    (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree; newer libraries only */
    return failure;
}

bool syscall_filter_install(struct err *err)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    int failure = filter == NULL ? -ENOMEM : build(filter);

    if (failure == 0)
        failure = seccomp_load(filter);
    if (filter != NULL)
        seccomp_release(filter);
    return failure == 0 || err_set(err, ERR_CONFIG,
                                   "process.sandbox: the kernel takes no filter of system calls "
                                   "(seccomp): %s; set it to no if that has to be",
                                   strerrordesc_np(-failure));
}
