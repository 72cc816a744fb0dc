/*
 * Owns the source `passwd`: a file of name:hash lines, read once when the source opens. Hashes are
 * what crypt(5) knows. Checking one is slow by design, so it runs in libuv's thread pool on a copy
 * of the password. A check outlives the question that asked for it: when that is cancelled, the
 * check runs on with nobody to tell. The source itself lives until its last check has come back.
 */
#include "auth/source.h"

#include "proxy/base/hash.h"
#include "proxy/base/line.h"
#include "proxy/base/mem.h"

#include <assert.h>
#include <crypt.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>

enum { LINE_MAX_BYTES = 1024 };

struct entry {
    UT_hash_handle hh;
    char *hash; /* in the same text as the name, behind it */
    char name[];
};

struct passwd_file {
    const struct env *env;
    struct entry *entries;
    bool mask_unknown; /* spend as much time on unknown names as on known ones */
    bool closing;
    size_t running_count; /* checks in the pool */
};

struct check {
    uv_work_t work;
    struct passwd_file *passwd;
    struct auth_question *question; /* NULL once cancelled */
    const char *hash;               /* the entry's; entries never change */
    bool user_known;
    struct secret password;
    enum { CHECK_FAILED, CHECK_DIFFERS, CHECK_EQUAL } result;
    struct crypt_data data;
};

static bool read_file(struct passwd_file *passwd, const char *path, struct err *err);
static bool read_lines(struct passwd_file *passwd, const char *path, FILE *file, struct err *err);
static const char *read_entry(struct passwd_file *passwd, char *line);
static bool is_last_source(const struct conf *conf);
static void start_check(struct passwd_file *passwd, struct auth_question *question,
                        const char *hash, bool user_known);
static void run_check(uv_work_t *work);
static void check_done(uv_work_t *work, int status);
static void tell(struct auth_question *question, const struct check *check, int status);
static void free_passwd(struct passwd_file *passwd);

static void *passwd_open(const struct env *env, struct err *err)
{
    struct passwd_file *passwd = mem_new(sizeof *passwd);

    if (passwd == NULL) {
        err_set(err, ERR_INTERNAL, "passwd: no memory");
        return NULL;
    }
    passwd->env = env;
    passwd->mask_unknown = is_last_source(env->conf);
    if (!read_file(passwd, env->conf->passwd.file, err)) {
        free_passwd(passwd);
        return NULL;
    }
    return passwd;
}

/*
 * Only the last source decides that a user does not exist, and only there the time it takes would
 * tell. Before another source the work would be wasted on each of that source's users.
 */
static bool is_last_source(const struct conf *conf)
{
    const struct conf_words *names = &conf->auth.sources;

    return names->count > 0 && strcmp(names->items[names->count - 1], "passwd") == 0;
}

static bool read_file(struct passwd_file *passwd, const char *path, struct err *err)
{
    FILE *file = fopen(path, "re");

    if (file == NULL)
        return err_set(err, ERR_CONFIG, "%s: %s", path, strerror(errno));

    bool ok = read_lines(passwd, path, file, err);

    fclose(file);
    return ok;
}

static bool read_lines(struct passwd_file *passwd, const char *path, FILE *file, struct err *err)
{
    char line[LINE_MAX_BYTES];
    enum line_result result;

    for (unsigned number = 1; (result = line_read(file, line, sizeof line)) != LINE_END; number++) {
        const char *complaint = NULL;

        if (result == LINE_BAD)
            complaint = "the line is too long, or holds a NUL";
        else if (line[0] != '\0' && line[0] != '#')
            complaint = read_entry(passwd, line);
        if (complaint != NULL)
            return err_set(err, ERR_CONFIG, "%s:%u: %s", path, number, complaint);
    }
    if (ferror(file))
        return err_set(err, ERR_CONFIG, "%s: %s", path, strerror(errno));
    return true;
}

/* Adds the line to the table; says what is wrong with it, or NULL. */
static const char *read_entry(struct passwd_file *passwd, char *line)
{
    char *colon = strchr(line, ':');

    if (colon == NULL || colon == line)
        return "expected name:hash";

    size_t name_len = (size_t)(colon - line), size = strlen(line) + 1;
    struct entry *entry = NULL;

    *colon = '\0';
    if (name_len > USERNAME_MAX)
        return "the name is too long";
    if (strpbrk(colon + 1, ": \t\r") != NULL)
        return "the hash holds a colon or white space";

    int salt = crypt_checksalt(colon + 1);

    if (salt == CRYPT_SALT_INVALID || salt == CRYPT_SALT_METHOD_DISABLED)
        return "expected a hash as crypt(5) describes them";
    HASH_FIND(hh, passwd->entries, line, name_len, entry);
    if (entry != NULL)
        return "the name stands in an earlier line";
    entry = mem_new(sizeof *entry + size);
    if (entry == NULL)
        return "no memory";
    memcpy(entry->name, line, size);
    entry->hash = entry->name + name_len + 1;
    HASH_ADD_KEYPTR(hh, passwd->entries, entry->name, name_len, entry);
    if (entry->hh.tbl == NULL) {
        mem_free(entry);
        return "no memory";
    }
    return NULL;
}

static void passwd_verify(void *state, struct auth_question *question)
{
    struct passwd_file *passwd = state;
    struct entry *entry = NULL;

    HASH_FIND(hh, passwd->entries, question->user, strlen(question->user), entry);
    if (question->password == NULL)
        auth_source_answer(question, entry != NULL ? AUTH_VERIFIED : AUTH_UNKNOWN_USER, NULL, NULL);
    else if (entry != NULL)
        start_check(passwd, question, entry->hash, true);
    else if (passwd->mask_unknown && passwd->entries != NULL)
        start_check(passwd, question, passwd->entries->hash, false);
    else
        auth_source_answer(question, AUTH_UNKNOWN_USER, NULL, NULL);
}

static void start_check(struct passwd_file *passwd, struct auth_question *question,
                        const char *hash, bool user_known)
{
    struct check *check = mem_new(sizeof *check);
    struct err err = {0};

    err_set(&err, ERR_INTERNAL, "passwd: no memory");
    if (check == NULL || !secret_set(&check->password, secret_span(question->password))) {
        mem_free(check);
        auth_source_answer(question, AUTH_FAILED, NULL, &err);
        return;
    }
    check->passwd = passwd;
    check->question = question;
    check->hash = hash;
    check->user_known = user_known;
    check->work.data = check;
    question->operation = check;
    passwd->running_count++;
    uv_queue_work(passwd->env->loop, &check->work, run_check,
                  check_done); /* fails only without a callback */
}

/* In a pool thread: touches nothing but its check. */
static void run_check(uv_work_t *work)
{
    struct check *check = work->data;

    /* crypt would stop at a NUL and take the rest of the password for granted. */
    if (memchr(check->password.bytes, '\0', check->password.len) != NULL ||
        check->password.len >= CRYPT_MAX_PASSPHRASE_SIZE) {
        check->result = CHECK_DIFFERS;
        return;
    }

    const char *made =
        crypt_rn(check->password.bytes, check->hash, &check->data, (int)sizeof check->data);

    if (made == NULL)
        return;

    size_t length = strlen(made);

    check->result = length == strlen(check->hash) && CRYPTO_memcmp(made, check->hash, length) == 0
                        ? CHECK_EQUAL
                        : CHECK_DIFFERS;
}

static void check_done(uv_work_t *work, int status)
{
    struct check *check = work->data;
    struct passwd_file *passwd = check->passwd;

    if (check->question != NULL)
        tell(check->question, check, status);
    secret_release(&check->password);
    secret_wipe(&check->data, sizeof check->data);
    mem_free(check);
    passwd->running_count--;
    if (passwd->closing && passwd->running_count == 0)
        free_passwd(passwd);
}

static void tell(struct auth_question *question, const struct check *check, int status)
{
    struct err err = {0};

    if (status != 0 || (check->user_known && check->result == CHECK_FAILED)) {
        err_set(&err, ERR_INTERNAL, "passwd: the hash could not be computed");
        auth_source_answer(question, AUTH_FAILED, NULL, &err);
    } else if (!check->user_known) {
        auth_source_answer(question, AUTH_UNKNOWN_USER, NULL, NULL);
    } else if (check->result == CHECK_EQUAL) {
        auth_source_answer(question, AUTH_VERIFIED, NULL, NULL);
    } else {
        err_set(&err, ERR_CREDENTIALS, "passwd: wrong password");
        auth_source_answer(question, AUTH_REFUSED, NULL, &err);
    }
}

static void passwd_cancel(void *state, struct auth_question *question)
{
    struct check *check = question->operation;

    (void)state;
    question->operation = NULL;
    if (check == NULL)
        return;
    check->question = NULL;
    (void)uv_cancel(
        (uv_req_t *)&check
            ->work); /* works only while it has not begun; check_done comes either way */
}

static void passwd_close(void *state)
{
    struct passwd_file *passwd = state;

    passwd->closing = true;
    if (passwd->running_count == 0)
        free_passwd(passwd);
}

static void free_passwd(struct passwd_file *passwd)
{
    struct entry *entry, *next;

    HASH_ITER(hh, passwd->entries, entry, next)
    {
        HASH_DELETE(hh, passwd->entries, entry);
        secret_wipe(entry->hash, strlen(entry->hash));
        mem_free(entry);
    }
    mem_free(passwd);
}

const struct auth_source auth_source_passwd = {
    .name = "passwd",
    .open = passwd_open,
    .verify = passwd_verify,
    .cancel = passwd_cancel,
    .close = passwd_close,
};
