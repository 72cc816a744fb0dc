/* Owns how commands are carried out: whose they are, and how an answer is shown. */
#include "proxy/ctl/tool.h"

#include "proxy/base/clock.h"
#include "proxy/ctl/exchange.h"
#include "proxy/ctl/show.h"

#include <stdarg.h>

static tool_command *const own_commands[] = {
#define X(id, ...) tool_##id,
    CTL_TOOL_COMMANDS(X)
#undef X
};

enum ctl_status tool_run(const struct tool *tool, const struct ctl_request *request)
{
    const struct ctl_command *command = request->command;

    if (ctl_is_of_tool(command))
        return own_commands[command - ctl_commands - CTL_COMMAND_COUNT](tool, request);
    return tool_ask(tool, command->name, request->arguments);
}

void tool_show(const struct tool *tool, const json_t *result)
{
    if (result == NULL || json_is_null(result))
        return;
    if (!tool->json)
        show_result(stdout, result);
    else if (json_dumpf(result, stdout, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6)) ==
             0)
        fputc('\n', stdout);
    fflush(stdout); /* what comes piece by piece is read so, too */
}

void tool_show_items(const struct tool *tool, const json_t *items)
{
    if (!tool->json && json_array_size(items) > 0)
        tool_show(tool, items);
    for (size_t i = 0; tool->json && i < json_array_size(items); i++)
        tool_show(tool, json_array_get(items, i));
}

enum ctl_status tool_complain(enum ctl_status status, const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fputs("imapmuxctl: ", stderr);
    show_text(stderr, text);
    return status;
}

enum ctl_status tool_finish(enum ctl_status status)
{
    fflush(stdout);
    return ferror(stdout) ? tool_complain(CTL_FAILED, "the result could not be written") : status;
}

enum ctl_status tool_complain_of(const struct answer *answer)
{
    bool unreachable = answer->kind == ANSWER_NO_CONNECTION || answer->kind == ANSWER_LATE;

    return tool_complain(unreachable ? CTL_NO_CONNECTION : CTL_FAILED, "%s", answer->why);
}

enum ctl_status tool_reach(const struct tool *tool)
{
    json_t *none = json_object();
    struct exchange request = {.socket = tool->socket,
                               .command = "version",
                               .arguments = none,
                               .limit_ms = tool_limit(tool, "version")};
    struct answer answer;

    exchange(&request, &answer);
    enum ctl_status status = answer.kind == ANSWER_DONE ? CTL_DONE : tool_complain_of(&answer);
    answer_release(&answer);
    json_decref(none);
    return status;
}

uint64_t tool_limit(const struct tool *tool, const char *command)
{
    const struct ctl_command *row = ctl_find(command);

    if (tool->timeout_ms > 0)
        return tool->timeout_ms;
    return row != NULL && row->level == CTL_READ ? TOOL_TIMEOUT_MS : 0;
}

struct asking {
    const struct tool *tool;
    uint64_t note_at_ms; /* when it is told that there is no answer yet; 0: it was */
};

static void show_item(void *owner, const json_t *item)
{
    const struct asking *asking = owner;

    tool_show(asking->tool, item);
}

/* Without a limit a process that hangs would keep whoever asks without a word. */
static bool tell_that_it_waits(void *owner)
{
    struct asking *asking = owner;

    if (asking->note_at_ms != 0 && clock_ms() >= asking->note_at_ms) {
        asking->note_at_ms = 0;
        tool_complain(CTL_DONE,
                      "no answer yet: imapmux is busy with it, or hangs; whoever does not "
                      "wait on does not take the command back");
    }
    return true;
}

enum ctl_status tool_ask(const struct tool *tool, const char *command, json_t *arguments)
{
    struct asking asking = {tool, clock_ms() + TOOL_NOTE_MS};
    struct exchange request = {.socket = tool->socket,
                               .command = command,
                               .arguments = arguments,
                               .limit_ms = tool_limit(tool, command),
                               .on_item = tool->json ? show_item : NULL,
                               .owner = &asking};
    struct answer answer;
    enum ctl_status status = CTL_DONE;

    if (request.limit_ms == 0)
        request.on_wait = tell_that_it_waits;
    exchange(&request, &answer);
    tool_show_items(tool, answer.items);
    if (answer.kind == ANSWER_DONE)
        tool_show(tool, answer.result);
    else
        status = tool_complain_of(&answer);
    answer_release(&answer);
    return tool_finish(status);
}
