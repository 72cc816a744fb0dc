/* Owns how a request is written as JSON, and what makes one valid. */
#include "proxy/ctl/request.h"

#include <assert.h>

static bool read_members(struct ctl_request *request, const json_t *json, struct err *err);
static bool check_argument(const struct ctl_command *command, const char *name, const json_t *value,
                           struct err *err);

bool ctl_request_read(struct ctl_request *request_out, struct span line, struct err *err)
{
    json_error_t problem;
    json_t *json = json_loadb(line.ptr, line.len, JSON_REJECT_DUPLICATES, &problem);

    *request_out = (struct ctl_request){0};
    if (json == NULL)
        return err_set(err, ERR_PEER, "the request is no JSON object: %s", problem.text);
    bool ok = read_members(request_out, json, err);
    json_decref(json);
    if (!ok)
        ctl_request_release(request_out);
    return ok;
}

static bool read_members(struct ctl_request *request, const json_t *json, struct err *err)
{
    const char *name = json_string_value(json_object_get(json, "command"));
    json_t *arguments = json_object_get(json, "arguments");

    if (name == NULL)
        return err_set(err, ERR_PEER, "the request has no \"command\"");
    if (json_object_size(json) > (arguments == NULL ? 1 : 2))
        return err_set(err, ERR_PEER, "the request has more than \"command\" and \"arguments\"");
    request->command = ctl_find(name);
    if (request->command == NULL || ctl_is_of_tool(request->command))
        return err_set(err, ERR_PEER, "there is no command \"%.*s\"", CTL_NAME_MAX, name);
    request->arguments = arguments == NULL ? json_object() : json_incref(arguments);
    if (request->arguments == NULL)
        return err_set(err, ERR_INTERNAL, "out of memory");
    return ctl_check_arguments(request->command, request->arguments, err);
}

bool ctl_check_arguments(const struct ctl_command *command, const json_t *arguments,
                         struct err *err)
{
    const char *name;
    json_t *value;

    if (!json_is_object(arguments))
        return err_set(err, ERR_PEER, "\"arguments\" are no JSON object");
    json_object_foreach ((json_t *)arguments, name, value) {
        if (!check_argument(command, name, value, err))
            return false;
    }
    for (const struct ctl_argument *row = command->arguments; row->name != NULL; row++)
        if (row->presence == CTL_REQUIRED && json_object_get(arguments, row->name) == NULL)
            return err_set(err, ERR_PEER, "\"%s\" needs \"%s\"", command->name, row->name);
    return true;
}

static bool are_texts(const json_t *value)
{
    size_t count = json_array_size(value), i = 0;

    while (i < count && json_is_string(json_array_get(value, i)))
        i++;
    return count > 0 && i == count;
}

static bool check_argument(const struct ctl_command *command, const char *name, const json_t *value,
                           struct err *err)
{
    const struct ctl_argument *row = ctl_find_argument(command, name);

    if (row == NULL)
        return err_set(err, ERR_PEER, "\"%s\" takes no \"%.*s\"", command->name, CTL_NAME_MAX,
                       name);
    if (row->kind == CTL_TEXTS)
        return are_texts(value) || err_set(err, ERR_PEER, "\"%s\" is no list of texts", name);
    if (!json_is_string(value))
        return err_set(err, ERR_PEER, "\"%s\" is no text", name);
    const char *words = row->kind == CTL_FLAG ? CTL_SET : row->words,
               *text = json_string_value(value);
    if (row->kind != CTL_TEXT && !ctl_is_word(words, text))
        return err_set(err, ERR_PEER, "\"%s\" is \"%.*s\", expected one of %s", name, CTL_NAME_MAX,
                       text, words);
    return true;
}

void ctl_request_release(struct ctl_request *request)
{
    json_decref(request->arguments);
    *request = (struct ctl_request){0};
}

json_t *ctl_request_write(const struct ctl_request *request)
{
    return json_pack("{s:s, s:O}", "command", request->command->name, "arguments",
                     request->arguments);
}

const char *ctl_request_argument(const struct ctl_request *request, const char *name)
{
    assert(ctl_find_argument(request->command, name) != NULL);
    return json_string_value(json_object_get(request->arguments, name));
}

enum ctl_level ctl_request_level(const struct ctl_request *request)
{
    enum ctl_level level = request->command->level;

    for (const struct ctl_argument *row = request->command->arguments; row->name != NULL; row++)
        if (row->level > level && json_object_get(request->arguments, row->name) != NULL)
            level = row->level;
    return level;
}
