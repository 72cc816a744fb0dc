/* Owns the command `trace`: asks for what was said, again and again, and writes it down. */
#include "proxy/ctl/amount.h"
#include "proxy/base/clock.h"
#include "proxy/ctl/exchange.h"
#include "proxy/ctl/interrupt.h"
#include "proxy/ctl/show.h"
#include "proxy/ctl/tool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PAUSE_MS = 300,
    PATIENCE_MS = 10000, /* while another process takes over */
    FOR_MS = 600 * 1000,
    FOR_MAX_MS = 3600 * 1000,
    LINES = 100000,
    LINES_MAX = 100 * 1000 * 1000
};

struct trace {
    const struct tool *tool;
    FILE *out;
    json_t *arguments;
    uint64_t until_ms;
    size_t lines, lines_max;
};

/* --- a line --- */

/* "14:03:12.123 5d1f0c2e00000007 C: a1 NOOP" */
static void print_line(const struct trace *trace, const json_t *item)
{
    json_int_t at_ms = json_integer_value(json_object_get(item, "at_ms"));
    time_t at = (time_t)(at_ms / 1000);
    const char *from = answer_text(item, "from");
    char prefix[96], clock[16];
    struct tm local;

    localtime_r(&at, &local);
    strftime(clock, sizeof clock, "%H:%M:%S", &local);
    snprintf(prefix, sizeof prefix, "%s.%03d %.40s %s", clock, (int)(at_ms % 1000),
             answer_text(item, "session"),
             strcmp(from, "client") == 0  ? "C"
             : strcmp(from, "store") == 0 ? "S"
                                          : "-");
    show_prefixed(trace->out, prefix, span_of(answer_text(item, "text")));
}

static void print_item(struct trace *trace, const json_t *item)
{
    const json_t *lost = json_object_get(item, "lost");

    if (trace->tool->json) {
        json_dumpf(item, trace->out, JSON_COMPACT);
        fputc('\n', trace->out);
    } else if (lost != NULL) {
        fprintf(trace->out, "(%lld lines were lost)\n", (long long)json_integer_value(lost));
    } else {
        print_line(trace, item);
    }
    trace->lines++;
}

/* --- asking --- */

static int by_time(const void *a, const void *b)
{
    json_int_t left = json_integer_value(json_object_get(*(json_t *const *)a, "at_ms"));
    json_int_t right = json_integer_value(json_object_get(*(json_t *const *)b, "at_ms"));

    return left < right ? -1 : left > right;
}

/* Of one proxy lines come in order; two proxies may have said something meanwhile. */
static bool print_items(struct trace *trace, const json_t *items, const char **refusal_out)
{
    size_t count = json_array_size(items);
    json_t **list = calloc(count + 1, sizeof(json_t *));

    for (size_t i = 0; list != NULL && i < count; i++)
        list[i] = json_array_get(items, i);
    if (list != NULL && count > 1)
        qsort(list, count, sizeof(json_t *), by_time);
    *refusal_out = NULL;
    for (size_t i = 0; list != NULL && i < count && trace->lines < trace->lines_max; i++) {
        if (json_object_get(list[i], "refused") != NULL)
            *refusal_out = answer_text(list[i], "refused");
        else
            print_item(trace, list[i]);
    }
    free(list);
    fflush(trace->out);
    return *refusal_out == NULL && !ferror(trace->out);
}

static bool goes_on(void *owner)
{
    (void)owner;
    return interrupt_count() == 0;
}

/* With the answer to be released. */
static void ask(const struct trace *trace, uint64_t patience_ms, struct answer *answer_out)
{
    bool is_last = json_object_get(trace->arguments, "end") != NULL;
    struct exchange request = {.socket = trace->tool->socket,
                               .command = "trace fetch",
                               .arguments = trace->arguments,
                               .limit_ms = tool_limit(trace->tool, "trace fetch"),
                               .patience_ms = patience_ms,
                               .on_wait = is_last ? NULL : goes_on};

    exchange(&request, answer_out);
}

static enum ctl_status fetch(struct trace *trace)
{
    const char *refusal;
    struct answer answer;
    enum ctl_status status = CTL_DONE;

    ask(trace, trace->lines > 0 ? PATIENCE_MS : 0, &answer);
    if (!print_items(trace, answer.items, &refusal))
        status = refusal != NULL ? tool_complain(CTL_FAILED, "%s", refusal)
                                 : tool_complain(CTL_FAILED, "the trace could not be written");
    else if (answer.kind != ANSWER_DONE && answer.kind != ANSWER_STOPPED &&
             answer.kind != ANSWER_AGAIN)
        status = tool_complain_of(&answer);
    answer_release(&answer);
    return status;
}

/* One proxy has refused, but others may listen by now, and would refuse whoever asks next. */
static void give_up(const struct trace *trace)
{
    struct answer answer;

    ask(trace, 0, &answer);
    answer_release(&answer);
}

static enum ctl_status follow(struct trace *trace)
{
    enum ctl_status status;

    interrupt_listen();
    do {
        status = fetch(trace);
        if (status == CTL_DONE && interrupt_count() == 0)
            clock_sleep(PAUSE_MS);
    } while (status == CTL_DONE && interrupt_count() == 0 && clock_ms() < trace->until_ms &&
             trace->lines < trace->lines_max);
    json_object_set_new(trace->arguments, "end", json_string("yes"));
    if (status == CTL_DONE)
        return fetch(trace);
    give_up(trace);
    return status;
}

/* --- the command --- */

static bool read_limits(const struct ctl_request *request, struct trace *trace)
{
    const char *time = ctl_request_argument(request, "for");
    const char *lines = ctl_request_argument(request, "lines");
    uint64_t time_ms = FOR_MS;
    char *end = NULL;

    trace->lines_max = lines == NULL ? LINES : strtoul(lines, &end, 10);
    if (time != NULL && (!amount_read_duration(time, &time_ms) || time_ms > FOR_MAX_MS)) {
        tool_complain(CTL_FAILED, "\"for\" is \"%s\", expected a duration up to 1h, as 5m", time);
        return false;
    }
    if (lines != NULL &&
        (*end != '\0' || *lines < '1' || *lines > '9' || trace->lines_max > LINES_MAX)) {
        tool_complain(CTL_FAILED, "\"lines\" is \"%s\", expected a number from 1", lines);
        return false;
    }
    trace->until_ms = clock_ms() + time_ms;
    return true;
}

/* A file that only we can read, for what is in it is private; never one that is there already. */
static FILE *open_out(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
    FILE *out = fd < 0 ? NULL : fdopen(fd, "w");

    if (out == NULL)
        tool_complain(CTL_FAILED, "%s: %s", path, strerror(errno));
    return out;
}

static bool make_id(char id[17])
{
    uint64_t number;

    if (getrandom(&number, sizeof number, 0) != sizeof number)
        return false;
    snprintf(id, 17, "%016llx", (unsigned long long)number);
    return true;
}

enum ctl_status tool_trace(const struct tool *tool, const struct ctl_request *request)
{
    const char *path = ctl_request_argument(request, "out");
    struct trace trace = {.tool = tool, .out = stdout};
    char id[17];

    if (!read_limits(request, &trace))
        return CTL_FAILED;
    if (!make_id(id))
        return tool_complain(CTL_FAILED, "there is no random number to be had");
    trace.arguments =
        json_pack("{s:s, s:s}", "user", ctl_request_argument(request, "user"), "trace", id);
    if (ctl_request_argument(request, "bodies") != NULL)
        json_object_set_new(trace.arguments, "bodies", json_string("yes"));
    if (path != NULL && (trace.out = open_out(path)) == NULL) {
        json_decref(trace.arguments);
        return CTL_FAILED;
    }
    enum ctl_status status = follow(&trace);
    json_decref(trace.arguments);
    if (path != NULL && fclose(trace.out) != 0)
        return tool_complain(CTL_FAILED, "%s: %s", path, strerror(errno));
    return tool_finish(status);
}
