/* Owns the handlers that move a user to another store, step by step. */
#include "proxy/admin/handlers.h"

#include "auth/username.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/cutover.h"
#include "proxy/process/control.h"
#include "routing/route.h"

#include <stdio.h>

struct step {
    struct admin_call *call;
    struct control *control;
    struct route_request route; /* of begin: where is the user now? */
    struct cutover_request cutover;
    char user[USERNAME_MAX + 1], move[CUTOVER_MOVE_TEXT + 1];
    char to[SHARD_NAME_MAX + 1], from[SHARD_NAME_MAX + 1], backend_user[BACKEND_USER_MAX + 1];
};

/* --- answers --- */

static void cancel(struct admin_call *call)
{
    struct step *step = call->state;

    router_cancel(&step->route);
    cutover_cancel(&step->cutover);
    mem_free(step);
}

static const char *place_text(enum cutover_place place)
{
    static const char *const texts[] = {
        [CUTOVER_UNKNOWN] = "it may have been done or not: ask again",
        [CUTOVER_OLD] = "the user is at the old shard",
        [CUTOVER_BETWEEN] = "the move is committed and only goes forward: commit again",
        [CUTOVER_NEW] = "the user is at the new shard",
    };

    return texts[place];
}

static void refuse(struct step *step, enum cutover_place place, const struct err *err)
{
    struct err told;

    err_set(&told, err->kind, "%s: %s; %s", step->user, err->text, place_text(place));
    admin_fail(step->call, &told);
    mem_free(step);
}

/* {user, from, to, epoch, move, state}; the state is "active" if all that is to follow is done. */
static json_t *describe_begun(const struct step *step, json_t *state)
{
    return json_pack("{s:s, s:O?, s:s, s:O?, s:s, s:O?}", "user", step->user, "from",
                     json_object_get(state, "from"), "to", step->to, "epoch",
                     json_object_get(state, "epoch"), "move", step->move, "state",
                     json_object_get(state, "state"));
}

static void on_begun(struct cutover_request *request, json_t *state, enum cutover_place place,
                     const struct err *err)
{
    struct step *step = request->owner;

    if (err->kind != ERR_NONE) {
        refuse(step, place, err);
        return;
    }
    admin_answer(step->call, describe_begun(step, state));
    mem_free(step);
}

static void on_stepped(struct cutover_request *request, json_t *state, enum cutover_place place,
                       const struct err *err)
{
    struct step *step = request->owner;

    if (err->kind != ERR_NONE) {
        refuse(step, place, err);
        return;
    }
    admin_answer(step->call, json_incref(state));
    mem_free(step);
}

/* --- requests --- */

/* False when it has been refused. */
static bool read_arguments(struct step *step)
{
    struct control *control = step->control;
    const char *user = admin_argument(step->call, "user"),
               *move = admin_argument(step->call, "move");

    if (control->cutovers == NULL)
        admin_refuse(step->call, "the configuration has no Redis, which cutovers need");
    else if (!username_normalise(&control->env.conf->username, span_of(user), step->user))
        admin_refuse(step->call, "this cannot be the name of a user");
    else if (move != NULL && !cutover_is_move(move))
        admin_refuse(step->call, "the id of a move has 16 digits of 0-9a-f");
    else
        return move == NULL || snprintf(step->move, sizeof step->move, "%s", move) > 0;
    return false;
}

/* NULL when the call has been answered. */
static struct step *new_step(struct admin_call *call)
{
    struct step *step = mem_new(sizeof *step);

    if (step == NULL) {
        admin_answer(call, NULL);
        return NULL;
    }
    step->call = call;
    step->control = call->context;
    if (!read_arguments(step)) {
        mem_free(step);
        return NULL;
    }
    step->cutover = (struct cutover_request){.user = step->user,
                                             .move = step->move,
                                             .to = step->to,
                                             .from = step->from,
                                             .backend_user = step->backend_user,
                                             .on_answer = on_stepped,
                                             .owner = step};
    call->state = step;
    call->cancel = cancel;
    return step;
}

void run_cutover_look(struct admin_call *call)
{
    struct step *step = new_step(call);

    if (step != NULL)
        cutover_look(step->control->cutovers, &step->cutover);
}

void run_cutover_commit(struct admin_call *call)
{
    struct step *step = new_step(call);

    if (step != NULL)
        cutover_commit(step->control->cutovers, &step->cutover);
}

void run_cutover_abort(struct admin_call *call)
{
    struct step *step = new_step(call);

    if (step != NULL)
        cutover_abort(step->control->cutovers, &step->cutover);
}

/* --- begin --- */

/* Of a user whom Redis does not know, what other sources say is written there. */
static void on_route(struct route_request *request, const struct route *route,
                     const struct err *err)
{
    struct step *step = request->owner;

    if (route == NULL && err->kind != ERR_NONE && err->kind != ERR_ADMIN) {
        refuse(step, CUTOVER_OLD, err);
        return;
    }
    if (route != NULL) {
        snprintf(step->from, sizeof step->from, "%s", route->shard);
        if (strcmp(route->backend_user, step->user) != 0)
            snprintf(step->backend_user, sizeof step->backend_user, "%s", route->backend_user);
    }
    cutover_begin(step->control->cutovers, &step->cutover);
}

/* False when it has been refused. */
static bool read_target(struct step *step)
{
    const struct conf *conf = step->control->env.conf;
    const char *to = admin_argument(step->call, "to");

    if (conf_find_shard(conf, to) == NULL)
        admin_refuse(step->call, "there is no shard \"%s\"", to);
    else if (strcmp(conf->route.sources.items[0], "redis") != 0)
        admin_refuse(step->call, "route.sources must ask redis first: a cutover writes there");
    else if (step->move[0] == '\0' && !cutover_new_move(step->move))
        admin_refuse(step->call, "there are no random octets");
    else
        return snprintf(step->to, sizeof step->to, "%s", to) > 0;
    return false;
}

void run_cutover_begin(struct admin_call *call)
{
    struct step *step = new_step(call);

    if (step == NULL)
        return;
    if (!read_target(step)) {
        mem_free(step);
        return;
    }
    step->cutover.on_answer = on_begun;
    step->route = (struct route_request){.user = step->user,
                                         .told_shard = "",
                                         .told_backend_user = "",
                                         .look_only = true,
                                         .on_answer = on_route,
                                         .owner = step};
    router_find(step->control->router, &step->route);
}
