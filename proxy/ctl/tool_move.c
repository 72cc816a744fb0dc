/* Owns the commands `move` and `shard empty`: who is to be moved, how, and where it is noted. */
#include "proxy/ctl/exchange.h"
#include "proxy/ctl/interrupt.h"
#include "proxy/ctl/show.h"
#include "proxy/ctl/tool.h"
#include "proxy/ctl/users_file.h"
#include "proxy/ctl/wave.h"

#include <errno.h>
#include <time.h>

static const char *argument(const struct ctl_request *request, const char *name)
{
    return json_string_value(json_object_get(request->arguments, name));
}

static bool is_given(const struct ctl_request *request, const char *name)
{
    return json_object_get(request->arguments, name) != NULL;
}

/* --- whereto --- */

static bool is_down(const json_t *shard, const char *name)
{
    const char *value = json_string_value(json_object_get(shard, name));

    return value != NULL && strcmp(value, "down") == 0;
}

/* Can users be moved there? Else it has complained. */
static enum ctl_status check_target(const struct tool *tool, const char *to)
{
    json_t *none = json_object();
    struct exchange request = {.socket = tool->socket,
                               .command = "shard list",
                               .arguments = none,
                               .limit_ms = tool_limit(tool, "shard list")};
    struct answer answer;
    enum ctl_status status = CTL_DONE;
    const json_t *found = NULL;

    exchange(&request, &answer);
    for (size_t i = 0; i < json_array_size(answer.result) && found == NULL; i++) {
        const json_t *shard = json_array_get(answer.result, i);
        const char *title = json_string_value(json_object_get(shard, "shard"));

        found = title != NULL && strcmp(title, to) == 0 ? shard : NULL;
    }
    if (answer.kind != ANSWER_DONE)
        status = tool_complain_of(&answer);
    else if (found == NULL)
        status = tool_complain(CTL_FAILED, "there is no shard \"%s\"", to);
    else if (is_down(found, "health"))
        status = tool_complain(CTL_FAILED, "shard %s does not answer", to);
    else if (is_down(found, "state"))
        status = tool_complain(CTL_FAILED, "shard %s was taken down", to);
    answer_release(&answer);
    json_decref(none);
    return status;
}

/* --- one user --- */

static void say_line(void *owner, const char *user, struct span line)
{
    (void)owner;
    show_prefixed(stderr, user, line);
}

static enum ctl_status move_single(const struct tool *tool, struct plan *plan, const char *user,
                                   const char *to)
{
    struct move move = {.plan = &plan->move, .user = user, .to = to};

    plan->move.say = say_line;
    plan->move.give_up_at = 1;
    interrupt_listen();
    enum move_end end = move_look_up(&move);
    if (end == MOVE_READY)
        end = move_run(&move);
    bool failed = end != MOVE_MOVED && end != MOVE_THERE;
    json_t *result = move_describe(&move, end);
    if (tool->json || !failed)
        tool_show(tool, result);
    json_decref(result);
    return tool_finish(failed ? tool_complain(CTL_FAILED, "%s: %s", user, move.why) : CTL_DONE);
}

/* --- a new wave --- */

/* What is kept of it: how users are moved, by the names of our options, and when it began. */
static json_t *make_parameters(const struct ctl_request *request)
{
    static const char *const others[] = {"user", "from-file", "shard", "dry-run"};
    json_t *parameters = json_copy(request->arguments);

    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        json_object_del(parameters, others[i]);
    json_object_set_new(parameters, "created", json_integer((json_int_t)time(NULL)));
    return parameters;
}

static bool store_wave(struct wave_store *store, const struct tool *tool,
                       const struct ctl_request *request, json_t *users, struct err *err)
{
    json_t *parameters = make_parameters(request), *user;
    const char *name;

    json_object_foreach (users, name, user) {
        json_object_set_new(user, "state", json_string("waiting"));
    }
    bool good = wave_store_create(store, tool->socket, parameters, err) &&
                wave_store_put(store, users, err);
    json_decref(parameters);
    return good;
}

/* Takes over the users. */
static enum ctl_status move_wave(const struct tool *tool, const struct ctl_request *request,
                                 const struct plan *plan, json_t *users)
{
    struct wave_store store;
    struct wave wave = {tool, plan, &store, argument(request, "to"), users};
    struct err err = {0};
    enum ctl_status status;

    if (is_given(request, "dry-run"))
        status = wave_rehearse(&wave);
    else if (json_object_size(users) == 0)
        status = tool_complain(CTL_DONE, "there is nobody to move");
    else if (!store_wave(&store, tool, request, users, &err))
        status = tool_complain(CTL_FAILED, "%s", err.text);
    else
        status = wave_run(&wave);
    json_decref(users);
    return status;
}

/* --- a wave that is there --- */

/* Those in one of these states, "a|b|c". */
static json_t *pick(const json_t *users, const char *states)
{
    json_t *picked = json_object(), *user;
    const char *name;

    json_object_foreach ((json_t *)users, name, user) {
        const char *state = json_string_value(json_object_get(user, "state"));

        if (state != NULL && ctl_is_word(states, state))
            json_object_set(picked, name, user);
    }
    return picked;
}

/* A command that copies one way would, on the way back, overwrite what is newer. */
static enum ctl_status check_way_back(const json_t *parameters, const struct ctl_request *request)
{
    const char *sync = json_string_value(json_object_get(parameters, "sync"));

    if (sync == NULL || is_given(request, "sync"))
        return CTL_DONE;
    return tool_complain(CTL_WRONG_USAGE,
                         "--sync must say how mail is copied on the way back; there it was: %s",
                         sync);
}

static enum ctl_status go_on(const struct tool *tool, const struct ctl_request *request,
                             const struct wave_store *store, const json_t *parameters,
                             const json_t *users)
{
    bool back = is_given(request, "rollback");
    json_t *merged = json_copy((json_t *)parameters);
    json_t *picked = pick(users, back ? "moved|moving|returning" : "waiting|moving|failed");
    struct plan plan;
    struct wave wave = {tool, &plan, store, NULL, picked};
    struct err err = {0};
    enum ctl_status status = back ? check_way_back(parameters, request) : CTL_DONE;

    json_object_update(merged, request->arguments);
    if (!back)
        wave.to = json_string_value(json_object_get(merged, "to"));
    if (status == CTL_DONE && !back && wave.to == NULL)
        status = tool_complain(CTL_FAILED, "the wave does not say whereto");
    if (status == CTL_DONE && !plan_read(&plan, merged, &err))
        status = tool_complain(CTL_WRONG_USAGE, "%s", err.text);
    plan.move.socket = tool->socket;
    if (status == CTL_DONE)
        status = is_given(request, "dry-run") ? wave_rehearse(&wave) : wave_run(&wave);
    json_decref(picked);
    json_decref(merged);
    return status;
}

static enum ctl_status move_again(const struct tool *tool, const struct ctl_request *request,
                                  const char *id)
{
    struct wave_store store;
    json_t *parameters = NULL, *users = NULL;
    struct err err = {0};
    enum ctl_status status;

    if (!wave_store_open(&store, tool->socket, id, &err) ||
        !wave_store_read(&store, &parameters, &users, &err))
        status = tool_complain(CTL_FAILED, "%s", err.text);
    else
        status = go_on(tool, request, &store, parameters, users);
    json_decref(parameters);
    json_decref(users);
    return status;
}

/* --- who --- */

/* Adds the names of the command line; false when one is none. */
static bool add_words(json_t *users, const json_t *words)
{
    for (size_t i = 0; i < json_array_size(words); i++) {
        const char *user = json_string_value(json_array_get(words, i));

        if (!users_is_name(user))
            return tool_complain(CTL_FAILED, "\"%s\" cannot be the name of a user", user) ==
                   CTL_DONE;
        json_object_set_new(users, user, json_object());
    }
    return true;
}

/* An object with the names; NULL when that has been complained of. */
static json_t *read_users(const struct ctl_request *request)
{
    const char *path = argument(request, "from-file");
    FILE *in = path == NULL || strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    json_t *users = NULL;

    if (in == NULL)
        tool_complain(CTL_FAILED, "%s: %s", path, strerrordesc_np(errno));
    else
        users = path == NULL ? json_object() : users_read(in, path, stderr);
    if (in != NULL && in != stdin)
        fclose(in);
    if (users != NULL && add_words(users, json_object_get(request->arguments, "user")))
        return users;
    json_decref(users);
    return NULL;
}

/* Those on a shard, by what Redis knows. */
static json_t *export_users(const struct tool *tool, const char *shard)
{
    json_t *arguments = json_pack("{s:s}", "shard", shard), *users = json_object();
    struct exchange request = {
        .socket = tool->socket, .command = "routes export", .arguments = arguments};
    struct answer answer;

    exchange(&request, &answer);
    for (size_t i = 0; i < json_array_size(answer.items); i++) {
        const char *user =
            json_string_value(json_object_get(json_array_get(answer.items, i), "user"));

        if (user != NULL)
            json_object_set_new(users, user, json_object());
    }
    if (answer.kind != ANSWER_DONE) {
        tool_complain(CTL_FAILED, "%s", answer.why);
        json_decref(users);
        users = NULL;
    }
    answer_release(&answer);
    json_decref(arguments);
    return users;
}

/* --- the commands --- */

/* Which of the forms is it? NULL: no valid one. */
static const char *find_fault(const struct ctl_request *request)
{
    bool named = is_given(request, "user") || is_given(request, "from-file");
    int forms = named + is_given(request, "resume") + is_given(request, "rollback");

    if (forms == 0)
        return "whom? Name users, or say --from-file, --resume or --rollback";
    if (forms > 1)
        return "users, --resume and --rollback exclude each other";
    if (named && !is_given(request, "to"))
        return "--to is missing";
    if (!named && is_given(request, "to"))
        return "--to is known from the wave";
    return NULL;
}

enum ctl_status tool_move(const struct tool *tool, const struct ctl_request *request)
{
    const char *fault = find_fault(request);
    const char *wave =
        is_given(request, "resume") ? argument(request, "resume") : argument(request, "rollback");
    struct plan plan;
    struct err err = {0};

    if (fault != NULL || !plan_read(&plan, request->arguments, &err))
        return tool_complain(CTL_WRONG_USAGE, "%s", fault != NULL ? fault : err.text);
    plan.move.socket = tool->socket;
    enum ctl_status reached = tool_reach(tool);
    if (reached != CTL_DONE)
        return reached;
    if (wave != NULL)
        return move_again(tool, request, wave);
    reached = check_target(tool, argument(request, "to"));
    if (reached != CTL_DONE)
        return reached;
    json_t *users = read_users(request);
    if (users == NULL)
        return CTL_FAILED;
    if (json_object_size(users) != 1 || is_given(request, "from-file") ||
        is_given(request, "dry-run"))
        return move_wave(tool, request, &plan, users);
    enum ctl_status status = move_single(tool, &plan, json_object_iter_key(json_object_iter(users)),
                                         argument(request, "to"));
    json_decref(users);
    return status;
}

enum ctl_status tool_shard_empty(const struct tool *tool, const struct ctl_request *request)
{
    const char *shard = argument(request, "shard"), *to = argument(request, "to");
    const char *fault = to == NULL               ? "--to is missing"
                        : strcmp(shard, to) == 0 ? "a shard is not moved to itself"
                                                 : NULL;
    struct plan plan;
    struct err err = {0};

    if (fault != NULL || !plan_read(&plan, request->arguments, &err))
        return tool_complain(CTL_WRONG_USAGE, "%s", fault != NULL ? fault : err.text);
    plan.move.socket = tool->socket;
    enum ctl_status reached = tool_reach(tool);
    if (reached == CTL_DONE)
        reached = check_target(tool, to);
    if (reached != CTL_DONE)
        return reached;
    json_t *users = export_users(tool, shard);
    return users == NULL ? CTL_FAILED : move_wave(tool, request, &plan, users);
}
