/* Owns the command `waves`: what is kept of waves of moves, in a shape for eyes. */
#include "proxy/ctl/exchange.h"
#include "proxy/ctl/tool.h"

#include <time.h>

static json_t *number(size_t value)
{
    return json_integer((json_int_t)value);
}

/* Takes over the arguments. False when it has complained. */
static bool ask(const struct tool *tool, const char *command, json_t *arguments,
                struct answer *answer_out, enum ctl_status *status_out)
{
    struct exchange request = {.socket = tool->socket, .command = command, .arguments = arguments};

    exchange(&request, answer_out);
    json_decref(arguments);
    *status_out = answer_out->kind == ANSWER_DONE ? CTL_DONE : tool_complain_of(answer_out);
    return *status_out == CTL_DONE;
}

/* --- the users of one --- */

static enum ctl_status show_wave(const struct tool *tool, const char *id)
{
    struct answer answer;
    enum ctl_status status;

    if (ask(tool, "wave show", json_pack("{s:s}", "wave", id), &answer, &status)) {
        for (size_t i = 0; i < json_array_size(answer.items); i++)
            json_object_del(json_array_get(answer.items, i), "move"); /* the id is for us */
        tool_show_items(tool, answer.items);
    }
    answer_release(&answer);
    return tool_finish(status);
}

/* --- all --- */

/* Adds how many users of the wave are in which state. */
static void count_states(json_t *row, const json_t *users)
{
    static const char *const states[] = {"waiting", "moving",    "moved", "there",
                                         "failed",  "returning", "back"};
    size_t counts[sizeof states / sizeof *states] = {0};

    for (size_t i = 0; i < json_array_size(users); i++) {
        const char *state = json_string_value(json_object_get(json_array_get(users, i), "state"));

        for (size_t s = 0; state != NULL && s < sizeof states / sizeof *states; s++)
            counts[s] += strcmp(state, states[s]) == 0;
    }
    for (size_t s = 0; s < sizeof states / sizeof *states; s++)
        json_object_set_new(row, states[s], number(counts[s]));
}

static json_t *describe(const json_t *wave)
{
    const json_t *created = json_object_get(wave, "created");
    json_t *row = json_pack("{s:O, s:O?, s:O?}", "wave", json_object_get(wave, "wave"), "to",
                            json_object_get(wave, "to"), "users", json_object_get(wave, "users"));

    json_object_set_new(row, "age_seconds",
                        json_integer((json_int_t)time(NULL) - json_integer_value(created)));
    return row;
}

static enum ctl_status list_waves(const struct tool *tool)
{
    struct answer all, one;
    enum ctl_status status;
    json_t *rows = json_array();
    bool good = ask(tool, "wave list", json_object(), &all, &status);

    for (size_t i = 0; good && i < json_array_size(all.items); i++) {
        const json_t *wave = json_array_get(all.items, i);
        json_t *row = describe(wave), *id = json_object_get(wave, "wave");

        good = ask(tool, "wave show", json_pack("{s:O}", "wave", id), &one, &status);
        count_states(row, one.items);
        answer_release(&one);
        json_object_set(row, "holder", json_object_get(wave, "holder"));
        json_array_append_new(rows, row);
    }
    answer_release(&all);
    tool_show_items(tool, rows);
    json_decref(rows);
    return tool_finish(status);
}

enum ctl_status tool_waves(const struct tool *tool, const struct ctl_request *request)
{
    const char *id = ctl_request_argument(request, "wave");

    return id == NULL ? list_waves(tool) : show_wave(tool, id);
}
