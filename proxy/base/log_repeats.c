/* Owns the table of what is said often, and counts what is held back. */
#include "proxy/base/log_repeats.h"

#include "proxy/base/log_output.h"

#include <pthread.h>
#include <string.h>

enum { ABOUT_MAX = 256 };

/* Of one window; free when that has ended and nothing was held back. */
struct repeat {
    const char *event; /* NULL: never used */
    enum conf_log_level level;
    uint64_t since_ms, held;
    unsigned written;
    char about[ABOUT_MAX + 1];
};

static _Atomic unsigned limit;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct repeat repeats[LOG_REPEATS_MAX]; /* under the lock */

void log_repeats_set_limit(unsigned wanted)
{
    atomic_store(&limit, wanted);
}

static bool has_ended(const struct repeat *repeat, uint64_t now_ms)
{
    return repeat->event == NULL || now_ms >= repeat->since_ms + LOG_REPEATS_WINDOW_MS;
}

static bool is_about(const struct repeat *repeat, const char *event, const char *about)
{
    return repeat->event != NULL && strcmp(repeat->event, event) == 0 &&
           strncmp(repeat->about, about, ABOUT_MAX) == 0;
}

/* That of this event about this thing, or else a free one, or NULL. */
static struct repeat *find(const char *event, const char *about, uint64_t now_ms)
{
    struct repeat *found = NULL;

    for (size_t i = 0; i < LOG_REPEATS_MAX; i++) {
        if (is_about(&repeats[i], event, about))
            return &repeats[i];
        if (has_ended(&repeats[i], now_ms) && repeats[i].held == 0)
            found = &repeats[i];
    }
    return found;
}

/* A window in which lines were held back lasts until they are told. */
static struct repeat *open_window(const struct log_line *line, const char *about, uint64_t now_ms)
{
    struct repeat *repeat = find(line->event, about, now_ms);

    if (repeat == NULL || repeat->held > 0 || !has_ended(repeat, now_ms))
        return repeat;
    *repeat = (struct repeat){.event = line->event, .level = line->level, .since_ms = now_ms};
    strncpy(repeat->about, about, ABOUT_MAX);
    return repeat;
}

bool log_repeats_pass(const struct log_line *line, const char *about, uint64_t now_ms)
{
    unsigned most = atomic_load_explicit(&limit, memory_order_relaxed);
    bool pass = true, is_first = false;

    if (most == 0)
        return true;
    pthread_mutex_lock(&lock);
    struct repeat *repeat = open_window(line, about == NULL ? "" : about, now_ms);
    if (repeat != NULL && repeat->written < most) {
        repeat->written++;
    } else if (repeat != NULL) {
        pass = false;
        is_first = repeat->held++ == 0;
    }
    pthread_mutex_unlock(&lock);
    if (is_first)
        log_output_wake();
    return pass;
}

uint64_t log_repeats_due_ms(void)
{
    uint64_t due_ms = UINT64_MAX;

    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < LOG_REPEATS_MAX; i++) {
        uint64_t end_ms = repeats[i].since_ms + LOG_REPEATS_WINDOW_MS;

        if (repeats[i].held > 0 && end_ms < due_ms)
            due_ms = end_ms;
    }
    pthread_mutex_unlock(&lock);
    return due_ms;
}

/* Closes the window; false when there is nothing to tell of it yet. */
static bool take(struct repeat *repeat, uint64_t now_ms, struct repeat *out)
{
    pthread_mutex_lock(&lock);
    bool found = repeat->held > 0 && has_ended(repeat, now_ms);
    if (found) {
        *out = *repeat;
        repeat->event = NULL;
        repeat->held = 0;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void log_repeats_tell(uint64_t now_ms)
{
    for (size_t i = 0; i < LOG_REPEATS_MAX; i++) {
        struct repeat repeat;
        struct log_line line;

        if (!take(&repeats[i], now_ms, &repeat))
            continue;
        log_begin(&line, repeat.level, "repeated");
        log_text(&line, "of", repeat.event);
        log_number(&line, "count", repeat.held);
        log_number(&line, "seconds", LOG_REPEATS_WINDOW_MS / 1000);
        log_text(&line, "detail", repeat.about);
        log_write(&line);
    }
}
