/* Owns the way from what we were started as to what we need: a user without any privilege. */
#include "proxy/process/privileges.h"

#include "proxy/base/log.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <pwd.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    PER_WORKER = 16,  /* its loop, its inbox, connections to Redis and Sentinels, to LDAP servers */
    PER_PROCESS = 512 /* threads that look up names or fetch keys, administration, files, the log */
};

/* --- descriptors and memory --- */

unsigned long long privileges_descriptors(const struct conf *conf, size_t worker_count)
{
    unsigned long long listeners = 0, stores = 0, ldap = 0;

    for (size_t i = 0; i < conf->listener_count; i++)
        listeners += conf->listeners[i].address.count;
    for (size_t i = 0; i < conf->shard_count; i++)
        stores += conf->shards[i].address.count;
    if (conf_has_word(&conf->auth.sources, "ldap"))
        ldap = (unsigned long long)conf->ldap.search_handles +
               (unsigned long long)conf->ldap.bind_handles;
    return 2 * (unsigned long long)conf->process.max_sessions +
           (conf->pool.park_time > 0 ? (unsigned long long)conf->pool.park_total : 0) +
           worker_count * ((unsigned long long)conf->pool.warm * conf->shard_count + 2 * listeners +
                           ldap + PER_WORKER) +
           2 * stores + PER_PROCESS;
}

void privileges_raise_descriptors(const struct conf *conf, size_t worker_count)
{
    unsigned long long wanted = privileges_descriptors(conf, worker_count);
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    struct rlimit more = {.rlim_cur = wanted, .rlim_max = wanted};
    if (limit.rlim_max < wanted && setrlimit(RLIMIT_NOFILE, &more) == 0)
        return; /* root may */
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= wanted)
        return;
    log_event(
        LOG_LEVEL_WARNING, "descriptors",
        "%llu are allowed, but max_sessions = %lld, %zu shards and %zu workers may need %llu: "
        "raise the limit, as by LimitNOFILE=%llu of systemd, or lower max_sessions",
        (unsigned long long)limit.rlim_max, (long long)conf->process.max_sessions,
        conf->shard_count, worker_count, wanted, wanted);
}

/* To become another user resets it, to what the system says for such programs. */
static void set_dumpable(const struct conf *conf)
{
    (void)prctl(PR_SET_DUMPABLE, conf->process.core_dumps ? 1 : 0);
}

void privileges_guard_memory(const struct conf *conf)
{
    const struct rlimit none = {0, 0};

    if (conf->process.core_dumps)
        return;
    (void)setrlimit(RLIMIT_CORE, &none);
    set_dumpable(conf); /* which also counts where cores are piped to a program */
}

/* --- the user --- */

struct identity {
    const char *name;
    uid_t uid;
    gid_t gid;
};

static bool find_identity(const struct conf_process *conf, struct identity *out, struct err *err)
{
    const struct passwd *user = getpwnam(conf->user);
    const struct group *group = *conf->group == '\0' ? NULL : getgrnam(conf->group);

    if (user == NULL || (*conf->group != '\0' && group == NULL))
        return err_set(err, ERR_CONFIG,
                       "process: there is no user \"%.60s\", or no group \"%.60s\"", conf->user,
                       conf->group);
    *out =
        (struct identity){conf->user, user->pw_uid, group == NULL ? user->pw_gid : group->gr_gid};
    return true;
}

/* Was all of it given up, so that nothing leads back? */
static bool has_become(const struct identity *identity)
{
    uid_t uid, effective_uid, saved_uid;
    gid_t gid, effective_gid, saved_gid;

    return getresuid(&uid, &effective_uid, &saved_uid) == 0 &&
           getresgid(&gid, &effective_gid, &saved_gid) == 0 && uid == identity->uid &&
           effective_uid == uid && saved_uid == uid && gid == identity->gid &&
           effective_gid == gid && saved_gid == gid && setresuid((uid_t)-1, 0, (uid_t)-1) != 0;
}

static bool become(const struct identity *identity, struct err *err)
{
    if (identity->uid == getuid() && identity->uid == geteuid() && identity->gid == getegid())
        return true; /* as when a service manager has seen to it */
    if (geteuid() != 0)
        return err_set(err, ERR_CONFIG,
                       "process.user: only root can become \"%s\"; start as root or as that user",
                       identity->name);
    if (initgroups(identity->name, identity->gid) == 0 &&
        setresgid(identity->gid, identity->gid, identity->gid) == 0 &&
        setresuid(identity->uid, identity->uid, identity->uid) == 0 && has_become(identity))
        return true;
    return err_set(err, ERR_CONFIG, "process.user: cannot become \"%s\": %s", identity->name,
                   strerrordesc_np(errno));
}

/* --- capabilities --- */

/* What no program could get again, whatever it were to execute; only with CAP_SETPCAP. */
static void drop_bounding_set(void)
{
    for (unsigned long each = 0; prctl(PR_CAPBSET_READ, each, 0, 0, 0) >= 0; each++)
        (void)prctl(PR_CAPBSET_DROP, each, 0, 0, 0);
}

static bool drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};

    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return syscall(SYS_capset, &header, none) == 0;
}

/* --- what the user needs --- */

static bool fail_at(struct err *err, const struct conf *conf, const char *setting, const char *path,
                    const char *what)
{
    int failure = errno;
    const struct passwd *user = getpwuid(geteuid());

    return err_set(err, ERR_CONFIG, "%s: user \"%.32s\" cannot %s %.100s: %s%s", setting,
                   user == NULL ? "?" : user->pw_name, what, path, strerrordesc_np(failure),
                   *conf->process.user == '\0' ? "" : "; it is process.user who must be let in");
}

/* Files are made there, and replaced, while the process runs. */
static bool check_folder_of(const struct conf *conf, const char *setting, const char *path,
                            struct err *err)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');

    if (slash == NULL)
        return true; /* not set: paths are absolute */
    snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    return access(folder, W_OK | X_OK) == 0 ||
           fail_at(err, conf, setting, folder, "write to the folder");
}

/* Only to a group of its own may a user give a file. */
static bool check_admin_group(const struct conf *conf, struct err *err)
{
    const struct group *group =
        *conf->admin.socket == '\0' || *conf->admin.group == '\0' || geteuid() == 0
            ? NULL
            : getgrnam(conf->admin.group);

    if (group == NULL || group->gr_gid == getegid() || group_member(group->gr_gid))
        return true;
    errno = EPERM;
    return fail_at(err, conf, "admin.group", conf->admin.group,
                   "give the socket to a group that it is no member of:");
}

/* They are opened again while the process runs. */
static bool check_file(const struct conf *conf, const char *setting, const char *path,
                       struct err *err)
{
    return *path != '/' || access(path, R_OK) == 0 || fail_at(err, conf, setting, path, "read");
}

static bool check_files(const struct conf *conf, struct err *err)
{
    bool uses_ldap =
        conf_has_word(&conf->auth.sources, "ldap") || conf_has_word(&conf->route.sources, "ldap");

    return check_folder_of(conf, "metrics.file", conf->metrics.file, err) &&
           check_folder_of(conf, "admin.socket", conf->admin.socket, err) &&
           check_admin_group(conf, err) &&
           check_folder_of(conf, "route.snapshot", conf->route.snapshot, err) &&
           (!conf_has_word(&conf->auth.sources, "passwd") ||
            check_file(conf, "passwd.file", conf->passwd.file, err)) &&
           (!conf_has_word(&conf->route.sources, "file") ||
            check_file(conf, "route.file", conf->route.file, err)) &&
           (!uses_ldap ||
            (check_file(conf, "ldap.ca_file", conf->ldap.ca_file, err) &&
             check_file(conf, "ldap.client_certificate", conf->ldap.client_certificate, err) &&
             check_file(conf, "ldap.client_key", conf->ldap.client_key, err))) &&
           check_file(conf, "oauth.keys", conf->oauth.keys, err) &&
           check_file(conf, "oauth.keys_ca_file", conf->oauth.keys_ca_file, err);
}

bool privileges_drop(const struct conf *conf, struct err *err)
{
    struct identity identity = {.uid = geteuid()};

    if (*conf->process.user != '\0' && !find_identity(&conf->process, &identity, err))
        return false;
    if (identity.uid != 0)
        drop_bounding_set(); /* before the user, who could not */
    if (*conf->process.user != '\0' && !become(&identity, err))
        return false;
    if (geteuid() == 0)
        log_event(LOG_LEVEL_WARNING, "privileges",
                  "imapmux runs as root, which it need not: set process.user");
    else if (!drop_capabilities())
        return err_set(err, ERR_INTERNAL, "cannot give up capabilities: %s",
                       strerrordesc_np(errno));
    set_dumpable(conf);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return err_set(err, ERR_INTERNAL, "PR_SET_NO_NEW_PRIVS: %s", strerrordesc_np(errno));
    return check_files(conf, err);
}
