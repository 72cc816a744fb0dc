/* Owns the threads that compute hashes, and the line of jobs before them, under a lock. */
#include "auth/passwd/hasher.h"

#include "proxy/base/mem.h"

#include <assert.h>
#include <crypt.h>
#include <openssl/crypto.h>
#include <string.h>
#include <utlist.h>

struct hasher {
    uv_mutex_t lock; /* guards the three members below */
    struct hash_job *waiting;
    size_t waiting_count;
    bool stopping;
    uv_cond_t wake;
    size_t thread_count;
    uv_thread_t threads[];
};

static bool init_locks(struct hasher *hasher);
static void work(void *argument);
static struct hash_job *take(struct hasher *hasher);
static enum hash_verdict check(const struct hash_job *job, struct crypt_data *data);

struct hasher *hasher_open(struct err *err)
{
    size_t wanted_count = uv_available_parallelism();
    struct hasher *hasher = mem_new(sizeof *hasher + wanted_count * sizeof hasher->threads[0]);

    if (hasher == NULL || !init_locks(hasher)) {
        mem_free(hasher);
        err_set(err, ERR_INTERNAL, "passwd: no memory");
        return NULL;
    }
    while (hasher->thread_count < wanted_count &&
           uv_thread_create(&hasher->threads[hasher->thread_count], work, hasher) == 0)
        hasher->thread_count++;
    if (hasher->thread_count < wanted_count) {
        err_set(err, ERR_INTERNAL, "passwd: cannot start a thread");
        hasher_close(&hasher);
    }
    return hasher;
}

static bool init_locks(struct hasher *hasher)
{
    if (uv_mutex_init(&hasher->lock) != 0)
        return false;
    if (uv_cond_init(&hasher->wake) == 0)
        return true;
    uv_mutex_destroy(&hasher->lock);
    return false;
}

void hasher_close(struct hasher **hasher)
{
    struct hasher *h = *hasher;

    *hasher = NULL;
    if (h == NULL)
        return;
    assert(h->waiting == NULL);
    uv_mutex_lock(&h->lock);
    h->stopping = true;
    uv_cond_broadcast(&h->wake);
    uv_mutex_unlock(&h->lock);
    for (size_t i = 0; i < h->thread_count; i++)
        uv_thread_join(&h->threads[i]);
    uv_cond_destroy(&h->wake);
    uv_mutex_destroy(&h->lock);
    mem_free(h);
}

bool hasher_put(struct hasher *hasher, struct hash_job *job, size_t queue_max)
{
    uv_mutex_lock(&hasher->lock);

    bool fits = hasher->waiting_count < queue_max;

    if (fits) {
        DL_APPEND(hasher->waiting, job);
        hasher->waiting_count++;
        uv_cond_signal(&hasher->wake);
    }
    uv_mutex_unlock(&hasher->lock);
    return fits;
}

bool hasher_withdraw(struct hasher *hasher, struct hash_job *job)
{
    uv_mutex_lock(&hasher->lock);

    bool waits = job->prev != NULL;

    if (waits) {
        DL_DELETE(hasher->waiting, job);
        hasher->waiting_count--;
        job->prev = NULL;
    }
    uv_mutex_unlock(&hasher->lock);
    return waits;
}

/* --- the threads --- */

static void work(void *argument)
{
    struct hasher *hasher = argument;
    struct crypt_data data = {0};
    struct hash_job *job;

    while ((job = take(hasher)) != NULL) {
        job->verdict = check(job, &data);
        secret_wipe(&data, sizeof data);
        inbox_post(job->inbox, &job->letter); /* open: whoever has a job under way stays */
    }
}

/* The job that waits longest, as soon as there is one; NULL when it is over. */
static struct hash_job *take(struct hasher *hasher)
{
    uv_mutex_lock(&hasher->lock);
    while (hasher->waiting == NULL && !hasher->stopping)
        uv_cond_wait(&hasher->wake, &hasher->lock);

    struct hash_job *job = hasher->waiting;

    if (job != NULL) {
        DL_DELETE(hasher->waiting, job);
        hasher->waiting_count--;
        job->prev = NULL; /* it has begun */
    }
    uv_mutex_unlock(&hasher->lock);
    return job;
}

static enum hash_verdict check(const struct hash_job *job, struct crypt_data *data)
{
    const struct secret *password = job->password;

    /* crypt would stop at a NUL and take the rest of the password for granted. */
    if (memchr(password->bytes, '\0', password->len) != NULL ||
        password->len >= CRYPT_MAX_PASSPHRASE_SIZE)
        return HASH_DIFFERS;

    const char *made = crypt_rn(password->bytes, job->hash, data, (int)sizeof *data);

    if (made == NULL)
        return HASH_NOT_COMPUTED;

    size_t length = strlen(made);

    return length == strlen(job->hash) && CRYPTO_memcmp(made, job->hash, length) == 0
               ? HASH_EQUAL
               : HASH_DIFFERS;
}
