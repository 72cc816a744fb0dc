/*
 * Owns a wave while it runs: threads that take one user after the other, each to her end. The
 * thread that has called draws, and keeps other programs away from the wave.
 */
#include "proxy/ctl/wave.h"

#include "proxy/base/clock.h"
#include "proxy/ctl/exchange.h"
#include "proxy/ctl/interrupt.h"
#include "proxy/ctl/progress.h"
#include "proxy/ctl/show.h"

#include <pthread.h>
#include <stdarg.h>
#include <unistd.h>

enum {
    TURN_MS = 100,
    HOLD_EVERY_MS = 10000, /* it lasts for half a minute, */
    TAKE_OVER_MS = 35000,  /* which we wait for */
    STOP_AT = 1,           /* interrupts: no more users are begun, */
    GIVE_UP_AT = 2         /* those under way are given up, too */
};

struct run {
    const struct wave *wave;
    struct move_plan plan;
    struct progress *progress;
    pthread_mutex_t mutex; /* for all that follows */
    void *next;            /* in wave->users; NULL: none is left */
    double next_ms;        /* when one may begin, by clock_ms */
    size_t working;        /* threads */
    char stopped[300];     /* why no more are begun; "": they are */
};

/* --- whose turn it is --- */

static void stop(struct run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void stop(struct run *run, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    pthread_mutex_lock(&run->mutex);
    bool is_first = run->stopped[0] == '\0';
    if (is_first)
        vsnprintf(run->stopped, sizeof run->stopped, format, args);
    pthread_mutex_unlock(&run->mutex);
    va_end(args);
    if (is_first) /* it is not changed any more */
        progress_say(run->progress, "no more are begun", span_of(run->stopped));
}

/* Is there a reason to begin no more? */
static void check(struct run *run)
{
    size_t errors = progress_errors(run->progress), total = json_object_size(run->wave->users);

    if (interrupt_count() >= STOP_AT)
        stop(run, "interrupted (again, to give up those under way)");
    if ((double)errors * 100 > run->wave->plan->errors_percent * (double)total)
        stop(run, "too many have failed: %zu of %zu, more than %g%%", errors, total,
             run->wave->plan->errors_percent);
}

/* NULL: there is none now. `over_out`: nor will there be. */
static void *take_now(struct run *run, bool *over_out)
{
    void *taken = NULL;

    pthread_mutex_lock(&run->mutex);
    *over_out = run->next == NULL || run->stopped[0] != '\0';
    if (!*over_out && (double)clock_ms() >= run->next_ms) {
        double now_ms = (double)clock_ms(), pause_ms = run->wave->plan->interval_ms;

        taken = run->next;
        run->next = json_object_iter_next((json_t *)run->wave->users, taken);
        if (run->next_ms + pause_ms < now_ms) /* what was missed is not made up */
            run->next_ms = now_ms;
        run->next_ms += pause_ms;
    }
    pthread_mutex_unlock(&run->mutex);
    return taken;
}

/* Waits for the rate. NULL: no more are begun. */
static void *take(struct run *run)
{
    for (bool over = false; !over;
         clock_sleep(run->wave->plan->interval_ms > 0 ? TURN_MS / 10 : 0)) {
        check(run);
        void *taken = take_now(run, &over);

        if (taken != NULL)
            return taken;
    }
    return NULL;
}

/* --- one user --- */

/* As the store has it: an end is another one on the way back, and after a failure there. */
static const char *state_of(const struct run *run, enum move_end end, bool had_begun)
{
    bool back = run->wave->to == NULL;

    switch (end) {
    case MOVE_MOVED:
        return back ? "back" : "moved";
    case MOVE_THERE:
        return back ? "back" : had_begun ? "moved" : "there";
    case MOVE_FAILED:
        return back ? "moved" : "failed";
    default:
        return back ? "returning" : "moving";
    }
}

/*
 * Writes what becomes of her, before she is held, too: whoever goes on after us looks there. It
 * keeps where she came from at first.
 */
static bool keep(struct run *run, const struct move *move, enum move_end end, const json_t *before,
                 struct err *err)
{
    const char *old = answer_text(before, "from");
    bool back = run->wave->to == NULL,
         had_begun = strcmp(answer_text(before, "state"), "moving") == 0;
    json_t *record = json_pack("{s:s, s:s}", "state", state_of(run, end, had_begun), "from",
                               back || (had_begun && *old != '\0') ? old : move->from);
    json_t *users = json_pack("{s:o}", move->user, record);

    if (end == MOVE_READY || end == MOVE_UNSURE)
        json_object_set_new(record, "move", json_string(move->id));
    if (end == MOVE_MOVED)
        json_object_set_new(record, "hold_ms", json_integer((json_int_t)move->hold_ms));
    if (end == MOVE_FAILED || end == MOVE_UNSURE)
        json_object_set_new(record, "why", json_string(move->why));
    bool kept = wave_store_put(run->wave->store, users, err);
    json_decref(users);
    return kept;
}

static enum move_end move_one(struct run *run, struct move *move, const json_t *before)
{
    const char *old = answer_text(before, "move");
    enum move_end end = *old != '\0' ? move_settle(move, old) : move_look_up(move);
    struct err err = {0};

    if (end == MOVE_READY && !keep(run, move, MOVE_READY, before, &err)) {
        snprintf(move->why, sizeof move->why, "it could not be noted: %s", err.text);
        return MOVE_FAILED;
    }
    return end == MOVE_READY ? move_run(move) : end;
}

static void work_on(struct run *run, void *place)
{
    const char *user = json_object_iter_key(place);
    const json_t *before = json_object_iter_value(place);
    const char *to = run->wave->to != NULL ? run->wave->to : answer_text(before, "from");
    struct move move = {.plan = &run->plan, .user = user, .to = to};
    struct err err = {0};

    progress_begun(run->progress);
    enum move_end end = move_one(run, &move, before);
    if (!keep(run, &move, end, before, &err))
        stop(run, "what became of %s could not be noted: %s", user, err.text);
    json_t *result = move_describe(&move, end);
    progress_done(run->progress, &move, end, result);
    json_decref(result);
}

static void *work(void *argument)
{
    struct run *run = argument;

    for (void *place; (place = take(run)) != NULL;)
        work_on(run, place);
    pthread_mutex_lock(&run->mutex);
    run->working--;
    pthread_mutex_unlock(&run->mutex);
    return NULL;
}

/* --- the whole --- */

static void say_line(void *run, const char *user, struct span line)
{
    progress_say(((struct run *)run)->progress, user, line);
}

/* For the eyes, until the threads are done. */
static void watch(struct run *run)
{
    uint64_t hold_ms = clock_ms() + HOLD_EVERY_MS;
    struct err err = {0};

    for (size_t working = 1; working > 0; clock_sleep(TURN_MS)) {
        check(run);
        progress_draw(run->progress);
        if (clock_ms() >= hold_ms) {
            hold_ms = clock_ms() + HOLD_EVERY_MS;
            if (!wave_store_hold(run->wave->store, &err))
                stop(run, "%s", err.text);
        }
        pthread_mutex_lock(&run->mutex);
        working = run->working;
        pthread_mutex_unlock(&run->mutex);
    }
}

static void run_threads(struct run *run)
{
    pthread_t threads[PLAN_PARALLEL_MAX];
    size_t count = 0;

    run->working = run->wave->plan->parallel;
    while (count < run->wave->plan->parallel &&
           pthread_create(&threads[count], NULL, work, run) == 0)
        count++;
    pthread_mutex_lock(&run->mutex);
    run->working -= run->wave->plan->parallel - count;
    pthread_mutex_unlock(&run->mutex);
    watch(run);
    for (size_t i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

/*
 * Nobody else may work on the wave. One that has died without a word holds it for half a minute
 * more.
 */
static bool take_over(struct run *run)
{
    uint64_t end = clock_ms() + TAKE_OVER_MS;
    struct err err = {0};

    while (!wave_store_hold(run->wave->store, &err)) {
        if (clock_ms() >= end || interrupt_count() >= STOP_AT) {
            stop(run, "%s", err.text);
            return false;
        }
        if (end - clock_ms() > TAKE_OVER_MS - TURN_MS)
            progress_say(run->progress, "waiting for the wave", span_of(err.text));
        clock_sleep(TURN_MS);
    }
    return true;
}

/* The sum, and what to do about the rest. */
static enum ctl_status finish(struct run *run)
{
    const struct wave *wave = run->wave;
    json_t *sum = progress_sum(run->progress);
    size_t errors = progress_errors(run->progress);
    json_int_t left = json_integer_value(json_object_get(sum, "left"));

    progress_close(&run->progress);
    json_object_set_new(sum, "wave", json_string(wave->store->id));
    struct tool tool = {.json = wave->tool->json || !isatty(STDOUT_FILENO)};
    tool_show(&tool, sum);
    json_decref(sum);
    if (errors == 0 && left == 0)
        return tool_finish(CTL_DONE);
    return tool_complain(CTL_FAILED, "%s; to go on: imapmuxctl move %s %s",
                         run->stopped[0] != '\0' ? run->stopped : "not all were moved",
                         wave->to == NULL ? "--rollback" : "--resume", wave->store->id);
}

enum ctl_status wave_run(const struct wave *wave)
{
    struct run run = {.wave = wave,
                      .plan = wave->plan->move,
                      .progress = progress_open(json_object_size(wave->users), wave->tool->json),
                      .next = json_object_iter((json_t *)wave->users),
                      .next_ms = (double)clock_ms()};

    if (run.progress == NULL)
        return tool_complain(CTL_FAILED, "out of memory");
    run.plan.say = say_line;
    run.plan.owner = &run;
    run.plan.give_up_at = GIVE_UP_AT;
    pthread_mutex_init(&run.mutex, NULL);
    interrupt_listen();
    if (take_over(&run)) {
        run_threads(&run);
        wave_store_release(wave->store);
    }
    pthread_mutex_destroy(&run.mutex);
    return finish(&run);
}

/* --- only to see --- */

enum ctl_status wave_rehearse(const struct wave *wave)
{
    json_t *rows = json_array(), *before;
    enum ctl_status status = CTL_DONE;
    const char *user;

    json_object_foreach ((json_t *)wave->users, user, before) {
        struct move move = {.plan = &wave->plan->move,
                            .user = user,
                            .to = wave->to != NULL ? wave->to : answer_text(before, "from")};
        enum move_end end = move_look_up(&move);

        json_array_append_new(rows, json_pack("{s:s, s:s, s:s, s:s, s:s}", "user", user, "from",
                                              move.from, "to", move.to, "would_be",
                                              end == MOVE_READY   ? "moved"
                                              : end == MOVE_THERE ? "left there"
                                                                  : "failed",
                                              "why", move.why));
        if (end != MOVE_READY && end != MOVE_THERE)
            status = CTL_FAILED;
    }
    tool_show_items(wave->tool, rows);
    json_decref(rows);
    if (status != CTL_DONE)
        tool_complain(status, "not all can be moved");
    return tool_finish(status);
}
