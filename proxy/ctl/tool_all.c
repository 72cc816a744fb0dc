/* Owns a command that is asked of each process of this host, with --all. */
#include "proxy/ctl/tool_all.h"

#include "proxy/ctl/exchange.h"
#include "proxy/ctl/show.h"

#include <glob.h>
#include <stdio.h>
#include <string.h>

struct round {
    const struct tool *tool;
    const struct ctl_request *request;
    json_t *all; /* with --json: what each one has said */
    size_t count;
    enum ctl_status status;
};

/* What was answered: the pieces, or the result. */
static json_t *content_of(const struct answer *answer)
{
    return json_array_size(answer->items) > 0 ? answer->items : answer->result;
}

static void show_to_people(const struct round *round, const char *path, const struct answer *answer)
{
    printf("%sprocess %ld, at %s:\n", round->count > 0 ? "\n" : "", answer->pid, path);
    if (answer->kind == ANSWER_DONE || json_array_size(answer->items) > 0)
        tool_show(round->tool, content_of(answer));
    fflush(stdout);
}

static json_t *tell_program(const char *path, const struct answer *answer)
{
    json_t *told = json_pack("{s:I, s:s}", "pid", (json_int_t)answer->pid, "socket", path);

    if (answer->kind != ANSWER_DONE)
        json_object_set_new(told, "error", json_string(answer->why));
    else
        json_object_set(told, "result", content_of(answer));
    return told;
}

/* Nobody may listen there any more: that is no failure. */
static void ask_one(struct round *round, const char *path)
{
    const struct tool *tool = round->tool;
    const char *command = round->request->command->name;
    const struct exchange request = {.socket = path,
                                     .command = command,
                                     .arguments = round->request->arguments,
                                     .limit_ms = tool_limit(tool, command)};
    struct answer answer;

    exchange(&request, &answer);
    if (answer.kind != ANSWER_NO_CONNECTION) {
        if (tool->json)
            json_array_append_new(round->all, tell_program(path, &answer));
        else
            show_to_people(round, path, &answer);
        if (answer.kind != ANSWER_DONE)
            round->status = tool_complain_of(&answer);
        round->count++;
    }
    answer_release(&answer);
}

/* "PATH.123"? */
static bool has_number(const char *path, size_t base_len)
{
    const char *number = path + base_len + 1;

    return *number != '\0' && number[strspn(number, "0123456789")] == '\0';
}

enum ctl_status tool_all(const struct tool *tool, const struct ctl_request *request)
{
    struct round round = {tool, request, json_array(), 0, CTL_DONE};
    char pattern[512];
    glob_t found = {0};

    if (ctl_is_of_tool(request->command)) {
        json_decref(round.all);
        return tool_complain(CTL_WRONG_USAGE, "--all: \"%s\" is carried out by imapmuxctl itself",
                             request->command->name);
    }
    ask_one(&round, tool->socket);
    snprintf(pattern, sizeof pattern, "%s.[0-9]*", tool->socket);
    if (glob(pattern, 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++)
            if (has_number(found.gl_pathv[i], strlen(tool->socket)))
                ask_one(&round, found.gl_pathv[i]);
    globfree(&found);
    if (tool->json)
        tool_show(tool, round.all);
    json_decref(round.all);
    if (round.count == 0)
        return tool_complain(CTL_NO_CONNECTION, "%s: nobody listens there, nor beside it",
                             tool->socket);
    return tool_finish(round.status);
}
