/* Owns the counts of a wave, and what is seen of it while it goes on. */
#include "proxy/ctl/progress.h"

#include "proxy/base/mem.h"
#include "proxy/base/clock.h"
#include "proxy/ctl/show.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BAR_WIDTH = 20, COLUMNS_MAX = 400, COLUMNS_DEFAULT = 80 };

#define ERASE_LINE "\r\033[K"

struct progress {
    pthread_mutex_t mutex; /* for all that follows, and for both outputs */
    bool on_terminal;
    size_t total, begun, counts[MOVE_UNSURE + 1];
    uint64_t started_ms;
    uint64_t *holds_ms; /* in order of size */
    size_t hold_count;
};

struct progress *progress_open(size_t total, bool json)
{
    struct progress *progress = mem_new(sizeof *progress);

    if (progress == NULL || (progress->holds_ms = mem_array(total + 1, sizeof(uint64_t))) == NULL) {
        mem_free(progress);
        return NULL;
    }
    pthread_mutex_init(&progress->mutex, NULL);
    progress->total = total;
    progress->on_terminal = !json && isatty(STDOUT_FILENO);
    progress->started_ms = clock_ms();
    return progress;
}

void progress_close(struct progress **progress)
{
    struct progress *p = *progress;

    *progress = NULL;
    if (p == NULL)
        return;
    if (p->on_terminal)
        fputs(ERASE_LINE, stdout);
    pthread_mutex_destroy(&p->mutex);
    mem_free(p->holds_ms);
    mem_free(p);
}

/* --- what is counted; with the mutex held --- */

static size_t done_count(const struct progress *p)
{
    return p->counts[MOVE_MOVED] + p->counts[MOVE_THERE] + p->counts[MOVE_FAILED] +
           p->counts[MOVE_UNSURE];
}

static size_t failed_count(const struct progress *p)
{
    return p->counts[MOVE_FAILED] + p->counts[MOVE_UNSURE];
}

static void keep_hold(struct progress *p, uint64_t ms)
{
    size_t at = p->hold_count++;

    for (; at > 0 && p->holds_ms[at - 1] > ms; at--)
        p->holds_ms[at] = p->holds_ms[at - 1];
    p->holds_ms[at] = ms;
}

static uint64_t median_ms(const struct progress *p)
{
    return p->hold_count == 0 ? 0 : p->holds_ms[p->hold_count / 2];
}

static uint64_t worst_ms(const struct progress *p)
{
    return p->hold_count == 0 ? 0 : p->holds_ms[p->hold_count - 1];
}

static uint64_t elapsed_ms(const struct progress *p)
{
    return clock_ms() - p->started_ms;
}

/* --- what is seen --- */

static size_t columns(void)
{
    struct winsize size = {0};

    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
        return COLUMNS_DEFAULT;
    return size.ws_col < COLUMNS_MAX ? size.ws_col : COLUMNS_MAX - 1;
}

/* "[#####...............] 250/1000 done, 3 failed, 8 under way, 58/min, held 0.8 s, worst 4.1 s" */
static void draw(const struct progress *p)
{
    size_t done = done_count(p), full = p->total == 0 ? BAR_WIDTH : done * BAR_WIDTH / p->total;
    uint64_t ms = elapsed_ms(p);
    char line[COLUMNS_MAX];

    snprintf(
        line, sizeof line,
        "[%.*s%.*s] %zu/%zu done, %zu failed, %zu under way, %.0f/min, held %.1f s, worst %.1f s",
        (int)full, "####################", (int)(BAR_WIDTH - full), "....................", done,
        p->total, failed_count(p), p->begun - done,
        ms == 0 ? 0.0 : (double)done * 60000 / (double)ms, (double)median_ms(p) / 1000,
        (double)worst_ms(p) / 1000);
    printf(ERASE_LINE "%.*s", (int)columns() - 1, line);
    fflush(stdout);
}

void progress_draw(struct progress *p)
{
    pthread_mutex_lock(&p->mutex);
    if (p->on_terminal)
        draw(p);
    pthread_mutex_unlock(&p->mutex);
}

/* Makes room where the bar is; it is drawn again soon. */
static void erase(const struct progress *p)
{
    if (p->on_terminal) {
        fputs(ERASE_LINE, stdout);
        fflush(stdout);
    }
}

void progress_say(struct progress *p, const char *user, struct span line)
{
    pthread_mutex_lock(&p->mutex);
    erase(p);
    show_prefixed(stderr, user, line);
    pthread_mutex_unlock(&p->mutex);
}

void progress_begun(struct progress *p)
{
    pthread_mutex_lock(&p->mutex);
    p->begun++;
    pthread_mutex_unlock(&p->mutex);
}

void progress_done(struct progress *p, const struct move *move, enum move_end end,
                   const json_t *result)
{
    pthread_mutex_lock(&p->mutex);
    p->counts[end]++;
    if (end == MOVE_MOVED)
        keep_hold(p, move->hold_ms);
    if (!p->on_terminal) {
        json_dumpf(result, stdout, JSON_COMPACT);
        fputc('\n', stdout);
        fflush(stdout);
    } else if (end == MOVE_FAILED || end == MOVE_UNSURE) {
        erase(p);
        show_prefixed(stdout, move->user, span_of(move->why));
    }
    pthread_mutex_unlock(&p->mutex);
}

/* --- what is to be known --- */

size_t progress_errors(struct progress *p)
{
    pthread_mutex_lock(&p->mutex);
    size_t count = failed_count(p);
    pthread_mutex_unlock(&p->mutex);
    return count;
}

json_t *progress_sum(struct progress *p)
{
    pthread_mutex_lock(&p->mutex);
    uint64_t seconds = elapsed_ms(p) / 1000;
    size_t left = p->total - done_count(p);
    json_t *sum =
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "users", (json_int_t)p->total,
                  "moved", (json_int_t)p->counts[MOVE_MOVED], "there",
                  (json_int_t)p->counts[MOVE_THERE], "failed", (json_int_t)failed_count(p), "left",
                  (json_int_t)left, "median_hold_ms", (json_int_t)median_ms(p), "worst_hold_ms",
                  (json_int_t)worst_ms(p), "elapsed_seconds", (json_int_t)seconds);
    pthread_mutex_unlock(&p->mutex);
    return sum;
}
