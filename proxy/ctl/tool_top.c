/*
 * Owns the command `top`: when imapmux is asked, the keys, and what is done if it does not answer.
 */
#include "proxy/base/mem.h"
#include "proxy/ctl/amount.h"
#include "proxy/base/clock.h"
#include "proxy/ctl/exchange.h"
#include "proxy/ctl/interrupt.h"
#include "proxy/ctl/overview.h"
#include "proxy/ctl/show.h"
#include "proxy/ctl/terminal.h"
#include "proxy/ctl/tool.h"

#include <stdlib.h>
#include <unistd.h>

enum {
    INTERVAL_MS = 1000,
    INTERVAL_MIN_MS = 100,
    LIMIT_MS = 5000, /* for an answer */
    KEY_WAIT_MS = 50,
    PAGE_COLUMNS = 80,
    PAGE_SHARDS_MAX = 400,
    PAGE_LINES = 30 /* without shards */
};

struct top {
    const struct tool *tool;
    struct overview overview;
    struct sample before, now;
    struct figures figures;
    struct sheet sheet;
    uint64_t looks_left; /* UINT64_MAX: no end */
    uint64_t next_look_ms;
    int fd;       /* -1: not connected */
    bool is_late; /* the last request had no answer in time */
    bool is_screen, over;
    char trouble[512];
};

/* --- the screen and its keys --- */

static void draw_on(struct top *top, int lines, int columns)
{
    sheet_clear(&top->sheet, lines, columns);
    overview_draw(&top->overview, &top->sheet);
}

static void redraw(struct top *top)
{
    int lines, columns;

    if (!top->is_screen)
        return;
    terminal_size(&lines, &columns);
    draw_on(top, lines, columns);
    terminal_show(&top->sheet);
}

static void scroll(struct top *top, int key)
{
    size_t *first = &top->overview.first_shard;

    if (key == TERMINAL_DOWN || key == 'j')
        ++*first; /* drawing brings it back to the last one */
    else if (*first > 0)
        --*first;
}

static bool set_order(struct top *top, int key)
{
    static const char keys[] = {[FIGURES_BY_NAME] = 'n',
                                [FIGURES_BY_SESSIONS] = 's',
                                [FIGURES_BY_LOGINS] = 'l',
                                [FIGURES_BY_WAITING] = 'w'};

    for (size_t i = 0; i < sizeof keys; i++)
        if (key == keys[i]) {
            top->overview.order = (enum figures_order)i;
            top->overview.first_shard = 0;
            return true;
        }
    return false;
}

static void take_key(struct top *top, int key)
{
    if (key == TERMINAL_NONE)
        return;
    if (key == 'q' || key == 'Q') {
        top->over = true;
    } else if (key == 'p' || key == ' ') {
        top->overview.is_paused = !top->overview.is_paused;
        top->next_look_ms = clock_ms();
    } else if (key == TERMINAL_UP || key == TERMINAL_DOWN || key == 'j' || key == 'k') {
        scroll(top, key);
    } else if (!set_order(top, key) && key != TERMINAL_RESIZED) {
        return;
    }
    redraw(top);
}

/* Waits a moment; keys count meanwhile. False: it is over. */
static bool pass_time(struct top *top, int ms)
{
    if (top->is_screen)
        take_key(top, terminal_key(ms));
    else if (ms > 0)
        clock_sleep((uint64_t)ms);
    top->over = top->over || interrupt_count() > 0;
    return !top->over;
}

static bool on_wait(void *owner)
{
    return pass_time(owner, 0);
}

/* --- looking --- */

static void disconnect(struct top *top)
{
    if (top->fd >= 0)
        close(top->fd);
    top->fd = -1;
}

/* False: no answer; `why` has the reason, and the connection is closed if it is of no use. */
static bool ask(struct top *top, const char *command, struct answer *answer_out)
{
    json_t *none = json_object();
    struct exchange request = {.socket = top->tool->socket,
                               .command = command,
                               .arguments = none,
                               .limit_ms =
                                   top->tool->timeout_ms > 0 ? top->tool->timeout_ms : LIMIT_MS,
                               .on_wait = on_wait,
                               .owner = top};

    exchange_over(top->fd, &request, answer_out);
    json_decref(none);
    top->is_late = answer_out->kind == ANSWER_LATE;
    if (answer_out->kind == ANSWER_DONE)
        return true;
    snprintf(top->trouble, sizeof top->trouble, "%s", answer_out->why);
    disconnect(top);
    return false;
}

static bool take_sample(struct top *top, struct sample *sample_out)
{
    struct answer metrics = {0}, status = {0};
    bool good = ask(top, "metrics", &metrics) && ask(top, "status", &status);
    const char *text = good ? json_string_value(metrics.result) : NULL;

    *sample_out = (struct sample){0};
    good = text != NULL && sample_read(sample_out, clock_ms(), text, json_incref(status.result));
    answer_release(&metrics);
    answer_release(&status);
    return good;
}

/* imapmux closes a connection that is idle for long: a new one is tried before anything is said. */
static bool look_once(struct top *top, struct sample *sample_out)
{
    bool was_connected = top->fd >= 0;
    struct answer answer;

    if (was_connected && take_sample(top, sample_out))
        return true;
    if (was_connected)
        sample_release(sample_out);
    if (top->over || (was_connected && top->is_late))
        return false;
    top->fd = exchange_connect(top->tool->socket, &answer);
    if (top->fd < 0)
        snprintf(top->trouble, sizeof top->trouble, "%s", answer.why);
    answer_release(&answer);
    return top->fd >= 0 && take_sample(top, sample_out);
}

static json_int_t pid_of(const struct sample *sample)
{
    return json_integer_value(json_object_get(sample->status, "pid"));
}

/* Rates need two looks at the same process. */
static bool compare(struct top *top)
{
    struct figures figures;

    if (top->before.at_ms == 0 || pid_of(&top->before) != pid_of(&top->now))
        return false;
    if (!figures_make(&figures, &top->before, &top->now)) {
        figures_release(&figures);
        return false;
    }
    figures_release(&top->figures);
    top->figures = figures;
    top->overview.figures = &top->figures;
    return true;
}

/* True: there are new figures. */
static bool look(struct top *top)
{
    struct sample sample = {0};
    bool good = look_once(top, &sample);

    if (!good) {
        sample_release(&sample);
        if (!top->over)
            top->overview.trouble = top->trouble;
        return false;
    }
    sample_release(&top->before);
    top->before = top->now;
    top->now = sample;
    top->overview.trouble = "";
    return compare(top);
}

/* --- showing --- */

static void print_page(struct top *top)
{
    size_t shards =
        top->figures.shard_count < PAGE_SHARDS_MAX ? top->figures.shard_count : PAGE_SHARDS_MAX;

    draw_on(top, PAGE_LINES + (int)shards, PAGE_COLUMNS);
    sheet_print(&top->sheet, stdout);
    putchar('\n');
    fflush(stdout);
}

/* Without figures there is nothing to show but that, on a screen. */
static void show(struct top *top, bool has_figures)
{
    if (has_figures && top->looks_left != UINT64_MAX)
        top->looks_left--;
    if (top->is_screen) {
        redraw(top);
    } else if (!has_figures && *top->overview.trouble != '\0') {
        tool_complain(CTL_DONE, "%s; trying again", top->trouble);
    } else if (has_figures && top->tool->json) {
        json_t *described = figures_describe(&top->figures, &top->now);

        tool_show(top->tool, described);
        json_decref(described);
    } else if (has_figures) {
        print_page(top);
    }
    top->over = top->over || top->looks_left == 0 || ferror(stdout);
}

static void watch(struct top *top)
{
    while (!top->over) {
        uint64_t now = clock_ms();

        if (now < top->next_look_ms || top->overview.is_paused) {
            pass_time(top, KEY_WAIT_MS);
            continue;
        }
        top->next_look_ms = now + top->overview.interval_ms;
        bool has_figures = look(top);
        if (!top->over)
            show(top, has_figures);
    }
}

/* --- the command --- */

static bool read_count(const char *text, uint64_t *count_out)
{
    static const struct amount_unit none[] = {{"", 1}, {NULL, 0}};
    uint64_t unit;

    *count_out = UINT64_MAX;
    return text == NULL || amount_read(text, none, count_out, &unit);
}

static enum figures_order read_order(const char *word)
{
    static const char *const words[] = {[FIGURES_BY_NAME] = "name",
                                        [FIGURES_BY_SESSIONS] = "sessions",
                                        [FIGURES_BY_LOGINS] = "logins",
                                        [FIGURES_BY_WAITING] = "waiting"};
    size_t i = 0;

    while (word != NULL && i < FIGURES_BY_WAITING && strcmp(words[i], word) != 0)
        i++;
    return (enum figures_order)i;
}

static enum ctl_status run(struct top *top)
{
    struct answer answer;
    enum ctl_status status = CTL_DONE;

    top->fd = exchange_connect(top->tool->socket, &answer); /* else there is nothing to wait for */
    if (top->fd < 0)
        status = tool_complain_of(&answer);
    answer_release(&answer);
    if (status != CTL_DONE)
        return status;
    interrupt_listen(); /* before the terminal is opened: ncurses leaves alone what is handled */
    top->is_screen = top->overview.has_keys = !top->tool->json && terminal_open();
    redraw(top);
    watch(top);
    terminal_close();
    disconnect(top);
    return tool_finish(CTL_DONE);
}

enum ctl_status tool_top(const struct tool *tool, const struct ctl_request *request)
{
    const char *interval = ctl_request_argument(request, "interval"),
               *count = ctl_request_argument(request, "count");
    struct top *top = mem_new(sizeof *top);
    enum ctl_status status = CTL_FAILED;

    if (top == NULL)
        return tool_complain(CTL_FAILED, "out of memory");
    top->tool = tool;
    top->overview.now = &top->now;
    top->overview.trouble = "";
    top->overview.interval_ms = INTERVAL_MS;
    top->overview.order = read_order(ctl_request_argument(request, "sort"));
    if (!read_count(count, &top->looks_left))
        tool_complain(status, "--count is \"%s\", expected a number", count);
    else if (interval != NULL && (!amount_read_duration(interval, &top->overview.interval_ms) ||
                                  top->overview.interval_ms < INTERVAL_MIN_MS))
        tool_complain(status, "--interval is \"%s\", expected a time of 100ms or more", interval);
    else
        status = run(top);
    figures_release(&top->figures);
    sample_release(&top->before);
    sample_release(&top->now);
    mem_free(top);
    return status;
}
