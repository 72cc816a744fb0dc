/*
 * Owns the source `passwd`: the users of a password file. Its file and the threads that compute
 * hashes are shared by all workers. A check has copies of the hash and of the password, so the file
 * may change meanwhile; once it has begun it outlives the question that asked for it, and runs on
 * with nobody to tell. The source itself lives until its last check has come back.
 */
#include "auth/source.h"

#include "auth/passwd/shared.h"
#include "proxy/base/mem.h"

#include <stddef.h>

struct source {
    const struct env *env;
    struct passwd_shared *shared;
    bool mask_unknown; /* spend as much time on unknown names as on known ones */
    bool closing;
    size_t check_count; /* under way */
    struct inbox inbox; /* where checks come back */
};

struct check {
    struct hash_job job;
    struct source *source;
    struct auth_question *question; /* NULL once cancelled */
    bool user_known;
    struct secret password;
    char hash[PASSWD_LINE_MAX + 1];
};

static bool is_last_source(const struct conf *conf);
static void start_check(struct source *source, struct auth_question *question, struct check *check);
static void check_done(struct letter *letter, void *receiver);
static void free_check(struct check *check);
static void tell(struct auth_question *question, const struct check *check);
static void close_if_done(struct source *source);
static void free_source(void *source);

static void *source_open(const struct env *env, struct err *err)
{
    struct source *source = mem_new(sizeof *source);

    if (source == NULL) {
        err_set(err, ERR_INTERNAL, "passwd: no memory");
        return NULL;
    }
    source->env = env_hold(env);
    source->mask_unknown = is_last_source(env->conf);
    source->shared = passwd_shared_join(env->conf->passwd.file, err);
    if (source->shared == NULL) {
        env_release(&source->env);
        mem_free(source);
        return NULL;
    }
    if (!inbox_open(&source->inbox, env->loop, source)) {
        err_set(err, ERR_INTERNAL, "passwd: no descriptors");
        free_source(source);
        return NULL;
    }
    source->inbox.on_closed = free_source;
    return source;
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

/* --- checks --- */

static void source_verify(void *state, struct auth_question *question)
{
    struct source *source = state;
    struct check *check = mem_new(sizeof *check);
    struct err err = {0};

    if (check == NULL) {
        err_set(&err, ERR_INTERNAL, "passwd: no memory");
        auth_source_answer(question, AUTH_FAILED, NULL, &err);
        return;
    }

    bool found =
        passwd_file_find(source->shared->file, question->user, check->hash, &check->user_known);

    if (question->password != NULL && found && (check->user_known || source->mask_unknown)) {
        start_check(source, question, check);
        return;
    }
    auth_source_answer(question,
                       question->password == NULL && check->user_known ? AUTH_VERIFIED
                                                                       : AUTH_UNKNOWN_USER,
                       NULL, NULL);
    free_check(check);
}

static void start_check(struct source *source, struct auth_question *question, struct check *check)
{
    size_t queue_max = (size_t)source->env->conf->passwd.max_queue;
    struct err err = {0};

    check->source = source;
    check->question = question;
    check->job = (struct hash_job){.hash = check->hash,
                                   .password = &check->password,
                                   .inbox = &source->inbox,
                                   .letter.deliver = check_done};
    if (!secret_set(&check->password, secret_span(question->password)))
        err_set(&err, ERR_INTERNAL, "passwd: no memory");
    else if (!hasher_put(source->shared->hasher, &check->job, queue_max))
        err_set(&err, ERR_UNAVAILABLE, "passwd: %zu logins wait already", queue_max);
    if (err.kind != ERR_NONE) {
        free_check(check);
        auth_source_answer(question, AUTH_FAILED, NULL, &err);
        return;
    }
    source->check_count++;
    question->operation = check;
}

static void check_done(struct letter *letter, void *receiver)
{
    struct check *check = (struct check *)((char *)letter - offsetof(struct check, job.letter));
    struct source *source = receiver;

    if (check->question != NULL)
        tell(check->question, check);
    free_check(check);
    source->check_count--;
    close_if_done(source);
}

static void tell(struct auth_question *question, const struct check *check)
{
    struct err err = {0};

    if (check->user_known && check->job.verdict == HASH_NOT_COMPUTED) {
        err_set(&err, ERR_INTERNAL, "passwd: the hash could not be computed");
        auth_source_answer(question, AUTH_FAILED, NULL, &err);
    } else if (!check->user_known) {
        auth_source_answer(question, AUTH_UNKNOWN_USER, NULL, NULL);
    } else if (check->job.verdict == HASH_EQUAL) {
        auth_source_answer(question, AUTH_VERIFIED, NULL, NULL);
    } else {
        err_set(&err, ERR_CREDENTIALS, "passwd: wrong password");
        auth_source_answer(question, AUTH_REFUSED, NULL, &err);
    }
}

static void free_check(struct check *check)
{
    secret_release(&check->password);
    secret_wipe(check->hash, sizeof check->hash);
    mem_free(check);
}

static void source_cancel(void *state, struct auth_question *question)
{
    struct source *source = state;
    struct check *check = question->operation;

    question->operation = NULL;
    if (check == NULL)
        return;
    check->question = NULL;
    if (!hasher_withdraw(source->shared->hasher, &check->job))
        return; /* check_done comes */
    free_check(check);
    source->check_count--;
}

/* --- the end --- */

static void source_close(void *state)
{
    struct source *source = state;

    source->closing = true;
    close_if_done(source);
}

static void close_if_done(struct source *source)
{
    if (source->closing && source->check_count == 0)
        inbox_close(&source->inbox); /* nothing is in it */
}

static void free_source(void *receiver)
{
    struct source *source = receiver;

    passwd_shared_leave(&source->shared);
    env_release(&source->env);
    mem_free(source);
}

const struct auth_source auth_source_passwd = {
    .name = "passwd",
    .open = source_open,
    .verify = source_verify,
    .cancel = source_cancel,
    .close = source_close,
};
