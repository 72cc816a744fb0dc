/* Owns which folders the process reads and writes, and keeps their names for later questions. */
#include "proxy/base/sandbox.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/syscall_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/landlock.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of newer kernels than the headers that we may be built with. */
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif

enum {
    ALL_OF_FIRST = (1 << 13) - 1, /* rights of the first version */
    READ = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR,
    WRITE = READ | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG |
            LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_REMOVE_FILE |
            (int)LANDLOCK_ACCESS_FS_TRUNCATE,
    OF_FILES = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE |
               (int)LANDLOCK_ACCESS_FS_TRUNCATE
};

/*
 * What libraries read while the process runs: names and users (glibc, systemd, sssd, nscd), time
 * zones, modules that they load, authorities, random numbers, what processors there are.
 */
static const char *const system_paths[] = {"/etc",
                                           "/usr",
                                           "/lib",
                                           "/lib64",
                                           "/run/nscd",
                                           "/run/systemd",
                                           "/run/resolvconf",
                                           "/run/NetworkManager",
                                           "/proc/self",
                                           "/proc/sys",
                                           "/proc/stat",
                                           "/proc/meminfo",
                                           "/proc/cpuinfo",
                                           "/sys/devices/system/cpu",
                                           "/sys/fs/cgroup",
                                           "/var/lib/sss",
                                           "/dev/urandom",
                                           "/dev/random",
                                           NULL};

struct place {
    char *path; /* without symbolic links */
    bool may_write;
};

/* The rules so far; `ruleset` is -1 where the kernel has no Landlock. */
struct rules {
    int ruleset;
    uint64_t handled;
    struct err *err;
};

/* Of the process, until it ends; NULL: not limited. */
static struct place *places;
static size_t place_count;

static bool remember(const char *path, bool may_write)
{
    struct place *more = mem_resize(places, (place_count + 1) * sizeof *places);

    if (more == NULL)
        return false;
    places = more;
    places[place_count] = (struct place){mem_copy_text(path, strlen(path)), may_write};
    return places[place_count].path != NULL && ++place_count > 0;
}

/* What is not there needs no rule. */
static void allow(struct rules *rules, const char *path, uint64_t rights)
{
    char whole[PATH_MAX];
    struct stat status;
    int fd = realpath(path, whole) == NULL ? -1 : open(whole, O_PATH | O_CLOEXEC);

    if (fd < 0)
        return;
    if (fstat(fd, &status) == 0 && !S_ISDIR(status.st_mode))
        rights &= OF_FILES;
    const struct landlock_path_beneath_attr rule = {.allowed_access = rights & rules->handled,
                                                    .parent_fd = fd};
    if (syscall(SYS_landlock_add_rule, rules->ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) != 0 ||
        !remember(whole, rights != READ))
        err_set(rules->err, ERR_INTERNAL, "process.sandbox: %.120s: %s", whole,
                strerrordesc_np(errno));
    close(fd);
}

static void allow_folder_of(struct rules *rules, const char *path, uint64_t rights)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');

    if (*path != '/')
        return; /* not set, or a URL */
    snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    allow(rules, folder, rights);
}

/* A file may be replaced, so its folder counts; and the one that a symbolic link leads to. */
static void allow_file(struct rules *rules, const char *path)
{
    char whole[PATH_MAX];

    allow_folder_of(rules, path, READ);
    if (realpath(path, whole) != NULL)
        allow_folder_of(rules, whole, READ);
}

static bool allow_named(void *owner, const struct conf_place *place)
{
    allow_file(owner, place->path);
    return true;
}

static void add_rules(struct rules *rules, const struct conf *conf)
{
    for (size_t i = 0; system_paths[i] != NULL; i++)
        allow(rules, system_paths[i], READ);
    allow_file(rules, "/etc/resolv.conf"); /* a link to wherever who manages the net keeps it */
    allow(rules, "/dev/null", READ | LANDLOCK_ACCESS_FS_WRITE_FILE);
    conf_each_path(conf, allow_named, rules);
    allow_folder_of(rules, conf->metrics.file, WRITE);
    allow_folder_of(rules, conf->route.snapshot, WRITE);
    allow_folder_of(rules, conf->admin.socket, WRITE);
    if (conf->process.core_dumps)
        allow(rules, ".", WRITE); /* where the kernel may put one */
}

#ifdef IMAPMUX_WITHOUT_SANDBOX
static const bool is_built = false;
#else
static const bool is_built = true;
#endif

/* False without Landlock, with errno set. */
static bool limit_files(const struct conf *conf, long version, struct err *err)
{
    const uint64_t handled = ALL_OF_FIRST | (version >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0) |
                             (version >= 3 ? LANDLOCK_ACCESS_FS_TRUNCATE : 0);
    const struct landlock_ruleset_attr attributes = {.handled_access_fs = handled};
    struct rules rules = {.handled = handled, .err = err};
    bool limited = false;

    rules.ruleset = (int)syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
    if (rules.ruleset >= 0) {
        add_rules(&rules, conf);
        limited =
            err->kind == ERR_NONE && syscall(SYS_landlock_restrict_self, rules.ruleset, 0) == 0;
        close(rules.ruleset);
    }
    return limited;
}

bool sandbox_enter(const struct conf *conf, struct err *err)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

    if (!is_built) {
        log_event(LOG_LEVEL_INFO, "sandbox", "this build has none");
        return true;
    }
    if (!conf->process.sandbox) {
        log_event(LOG_LEVEL_WARNING, "sandbox", "switched off by process.sandbox");
        return true;
    }
    if (version > 0 && limit_files(conf, version, err))
        log_event(LOG_LEVEL_INFO, "sandbox", "system calls and files are limited");
    else if (err->kind == ERR_NONE)
        log_event(LOG_LEVEL_WARNING, "sandbox",
                  "system calls are limited, but files are not: the kernel has no Landlock: %s",
                  strerrordesc_np(errno));
    return err->kind == ERR_NONE && syscall_filter_install(err);
}

/* --- questions --- */

static bool is_below(const char *path, const char *folder)
{
    size_t len = strlen(folder);

    return strncmp(path, folder, len) == 0 &&
           (path[len] == '\0' || path[len] == '/' || strcmp(folder, "/") == 0);
}

static bool may(const char *path, bool write)
{
    char whole[PATH_MAX];

    if (places == NULL || realpath(path, whole) == NULL)
        return true;
    for (size_t i = 0; i < place_count; i++)
        if (is_below(whole, places[i].path) && (!write || places[i].may_write))
            return true;
    return false;
}

bool sandbox_is_entered(void)
{
    return places != NULL;
}

bool sandbox_may_read(const char *path)
{
    return may(path, false);
}

bool sandbox_may_write(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');

    snprintf(folder, sizeof folder, "%.*s", slash == NULL ? 0 : (int)(slash - path) + 1, path);
    return *folder == '\0' || may(folder, true);
}
