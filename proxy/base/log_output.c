/* Owns the ways out of the log, the backlog before them, and the thread that works it off. */
#include "proxy/base/log_output.h"

#include "proxy/base/clock.h"
#include "proxy/base/log_repeats.h"
#include "proxy/base/mem.h"
#include "proxy/base/metrics.h"

#define SD_JOURNAL_SUPPRESS_LOCATION

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/uio.h>
#include <syslog.h>
#include <systemd/sd-journal.h>
#include <time.h>
#include <unistd.h>

enum {
    BACKLOG_MAX = 4 * 1024 * 1024, /* bytes: thousands of lines */
    FIELDS_MAX = 48,               /* of a line for journald */
    STOP_PATIENCE_MS = 2000
};

/* A line on its way out. */
struct record {
    enum conf_log_output output;
    int facility, level; /* as syslog has them */
    uint64_t lost;       /* it tells that so many lines were lost; 0: any other line */
    struct span text, fields;
};

struct pending {
    STAILQ_ENTRY(pending) link;
    struct record record;
    char bytes[];
};

static_assert(LOG_LINE_MAX + 2 <= PIPE_BUF, "a line is written whole");

enum outcome { DONE, FAILED, NOT_YET };

static _Atomic int facility = LOG_MAIL;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
/* Under the lock. */
static STAILQ_HEAD(backlog, pending) backlog = STAILQ_HEAD_INITIALIZER(backlog);
static size_t backlog_bytes;
static bool running, stopping;
static uint64_t untold; /* lines that were lost since the last "log lost" */
static _Atomic uint64_t *lost_counter;

void log_output_set_facility(enum conf_log_facility wanted)
{
    static const int facilities[] = {[LOG_FACILITY_MAIL] = LOG_MAIL,
                                     [LOG_FACILITY_DAEMON] = LOG_DAEMON,
                                     [LOG_FACILITY_AUTH] = LOG_AUTH,
                                     [LOG_FACILITY_AUTHPRIV] = LOG_AUTHPRIV};
    int local = (int)wanted - (int)LOG_FACILITY_LOCAL0;

    atomic_store(&facility, local < 0 ? facilities[wanted] : LOG_LOCAL0 + (local << 3));
}

/* --- the ways out --- */

/* A whole line at once, so that those of several processes do not mix either. */
static enum outcome write_stderr(const struct record *record, bool wait)
{
    static bool torn; /* what was written last has lost its end: the next starts a line */
    struct pollfd ready = {STDERR_FILENO, POLLOUT, 0};
    struct iovec parts[] = {
        {"\n", torn ? 1 : 0}, {(char *)record->text.ptr, record->text.len}, {"\n", 1}};
    size_t len = parts[0].iov_len + record->text.len + 1;

    for (;;) {
        int count = poll(&ready, 1, wait ? -1 : 0);

        if (count == 0)
            return NOT_YET;
        ssize_t written = count < 0 ? -1 : writev(STDERR_FILENO, parts, 3);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0 && errno == EAGAIN && !wait)
            return NOT_YET;
        if (written < 0 && errno == EAGAIN)
            continue;
        torn = written < 0 ? torn : (size_t)written < len;
        return written == (ssize_t)len ? DONE : FAILED;
    }
}

static enum outcome write_journald(const struct record *record)
{
    char message[LOG_LINE_MAX + 16], priority[16], origin[32];
    struct iovec parts[4 + FIELDS_MAX] = {
        {"SYSLOG_IDENTIFIER=imapmux", 25},
        {priority, (size_t)snprintf(priority, sizeof priority, "PRIORITY=%d", record->level)},
        {origin,
         (size_t)snprintf(origin, sizeof origin, "SYSLOG_FACILITY=%d", record->facility >> 3)},
        {message, (size_t)snprintf(message, sizeof message, "MESSAGE=%.*s", (int)record->text.len,
                                   record->text.ptr)}};
    size_t count = 4;

    for (struct span rest = record->fields; rest.len > 0 && count < 4 + FIELDS_MAX;) {
        uint16_t len;

        memcpy(&len, rest.ptr, sizeof len);
        parts[count++] = (struct iovec){(char *)rest.ptr + sizeof len, len};
        rest = span_after(rest, sizeof len + len);
    }
    return sd_journal_sendv(parts, (int)count) == 0 ? DONE : FAILED;
}

/* libc connects anew when syslog was restarted; it does not tell what was lost then. */
static enum outcome write_syslog(const struct record *record)
{
    syslog(record->facility | record->level, "%.*s", (int)record->text.len, record->text.ptr);
    return DONE;
}

static enum outcome write_and_wait(const struct record *record)
{
    switch (record->output) {
    case LOG_OUTPUT_JOURNALD:
        return write_journald(record);
    case LOG_OUTPUT_SYSLOG:
        return write_syslog(record);
    default:
        return write_stderr(record, true);
    }
}

/* --- the backlog; all of it under the lock --- */

static size_t size_of(const struct record *record)
{
    return sizeof(struct pending) + record->text.len + record->fields.len;
}

static bool keep(const struct record *record)
{
    size_t size = size_of(record);
    struct pending *pending = backlog_bytes + size > BACKLOG_MAX ? NULL : mem_new(size);

    if (pending == NULL)
        return false;
    pending->record = *record;
    pending->record.text.ptr = pending->bytes;
    pending->record.fields.ptr = pending->bytes + record->text.len;
    memcpy(pending->bytes, record->text.ptr, record->text.len);
    memcpy(pending->bytes + record->text.len, record->fields.ptr, record->fields.len);
    STAILQ_INSERT_TAIL(&backlog, pending, link);
    backlog_bytes += size;
    pthread_cond_signal(&changed);
    return true;
}

static void lose(const struct record *record)
{
    untold += record->lost > 0 ? record->lost : 1;
    if (record->lost == 0 && lost_counter != NULL)
        counter_add(lost_counter, 1);
}

static void let_out(const struct record *record)
{
    bool at_once = record->output == LOG_OUTPUT_STDERR && STAILQ_EMPTY(&backlog);
    enum outcome outcome = at_once ? write_stderr(record, false) : NOT_YET;

    if (outcome == FAILED || (outcome == NOT_YET && !keep(record)))
        lose(record);
}

static struct record record_of(const struct log_line *line, uint64_t lost)
{
    static const int levels[] = {[LOG_LEVEL_ERROR] = LOG_ERR,
                                 [LOG_LEVEL_WARNING] = LOG_WARNING,
                                 [LOG_LEVEL_INFO] = LOG_INFO,
                                 [LOG_LEVEL_DEBUG] = LOG_DEBUG};

    return (struct record){.output = line->output,
                           .facility = atomic_load_explicit(&facility, memory_order_relaxed),
                           .level = levels[line->level],
                           .lost = lost,
                           .text = {line->bytes, line->len},
                           .fields = {line->fields, line->fields_len}};
}

/* Says what was lost, just before what comes after it. */
static void tell_lost(void)
{
    struct log_line line;

    log_begin(&line, LOG_LEVEL_WARNING, "log lost");
    log_number(&line, "count", untold);
    log_finish(&line);

    struct record record = record_of(&line, untold);

    untold = 0;
    if (line.wanted)
        let_out(&record);
}

void log_output_send(const struct log_line *line)
{
    struct record record = record_of(line, 0);

    pthread_mutex_lock(&lock);
    if (untold > 0 && STAILQ_EMPTY(&backlog))
        tell_lost();
    if (!running)
        (void)write_and_wait(&record);
    else if (untold > 0)
        lose(&record);
    else
        let_out(&record);
    pthread_mutex_unlock(&lock);
}

void log_output_wake(void)
{
    pthread_mutex_lock(&lock);
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

/* --- the thread --- */

/* Under the lock, but not while it waits: the first one stays in its place meanwhile. */
static void work_off(struct pending *first)
{
    pthread_mutex_unlock(&lock);
    enum outcome outcome = write_and_wait(&first->record);
    pthread_mutex_lock(&lock);
    if (outcome == FAILED)
        lose(&first->record);
    STAILQ_REMOVE_HEAD(&backlog, link);
    backlog_bytes -= size_of(&first->record);
    mem_free(first);
}

static struct timespec time_of(uint64_t ms)
{
    return (struct timespec){.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
}

/* The same: nothing is to be written, but perhaps something that was held back is to be told. */
static void rest(void)
{
    uint64_t due_ms = log_repeats_due_ms(), now_ms = clock_ms();

    if (due_ms == UINT64_MAX) {
        pthread_cond_wait(&changed, &lock);
    } else if (due_ms > now_ms) {
        struct timespec due = time_of(due_ms);

        pthread_cond_clockwait(&changed, &lock, CLOCK_MONOTONIC, &due);
    } else {
        pthread_mutex_unlock(&lock);
        log_repeats_tell(now_ms);
        pthread_mutex_lock(&lock);
    }
}

static void *run(void *unused)
{
    pthread_mutex_lock(&lock);
    while (!stopping || !STAILQ_EMPTY(&backlog)) {
        if (STAILQ_EMPTY(&backlog))
            rest();
        else
            work_off(STAILQ_FIRST(&backlog));
    }
    running = false;
    pthread_cond_signal(&ended);
    pthread_mutex_unlock(&lock);
    return unused;
}

bool log_start(_Atomic uint64_t *lost, struct err *err)
{
    pthread_t thread;

    openlog("imapmux", LOG_PID, LOG_MAIL);
    pthread_mutex_lock(&lock);
    stopping = false;
    lost_counter = lost;
    running = pthread_create(&thread, NULL, run, NULL) == 0;
    if (running)
        pthread_detach(thread);
    bool good = running;
    pthread_mutex_unlock(&lock);
    return good || err_set(err, ERR_INTERNAL, "no thread for the log");
}

void log_stop(void)
{
    struct timespec until = time_of(clock_ms() + STOP_PATIENCE_MS);
    int status = 0;

    log_repeats_tell(UINT64_MAX);
    pthread_mutex_lock(&lock);
    stopping = true;
    pthread_cond_signal(&changed);
    while (running && status == 0)
        status = pthread_cond_clockwait(&ended, &lock, CLOCK_MONOTONIC, &until);
    lost_counter = NULL;
    pthread_mutex_unlock(&lock);
}
