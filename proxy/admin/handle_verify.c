/* Owns the handler that compares a user's mailboxes at two stores. */
#include "proxy/admin/handlers.h"

#include "auth/username.h"
#include "proxy/base/mem.h"
#include "proxy/process/control.h"
#include "proxy/store/verify.h"
#include "routing/route.h"

#include <stdio.h>

struct verifying {
    struct admin_call *call;
    struct control *control;
    struct route_request route; /* what is her name at the stores? */
    struct verify_request verify;
    char user[USERNAME_MAX + 1], backend_user[BACKEND_USER_MAX + 1];
};

static void cancel(struct admin_call *call)
{
    struct verifying *verifying = call->state;

    router_cancel(&verifying->route);
    verify_cancel(&verifying->verify);
    mem_free(verifying);
}

static void refuse(struct verifying *verifying, enum err_kind kind, const char *why)
{
    struct err err;

    err_set(&err, kind, "%s: %s", verifying->user, why);
    admin_fail(verifying->call, &err);
    mem_free(verifying);
}

/* Each difference is an item; the reason of the refusal has the first one, too. */
static void refuse_with(struct verifying *verifying, struct inventory_comparison *comparison)
{
    size_t count = comparison->difference_count;
    char why[2 * INVENTORY_TEXT_MAX + 64];

    for (size_t i = 0; i < count && i < INVENTORY_DIFFERENCES_MAX; i++) {
        struct inventory_difference *difference = &comparison->differences[i];

        admin_item(verifying->call,
                   json_pack("{s:o, s:s}", "mailbox", admin_text(difference->mailbox), "differs",
                             difference->what));
    }
    snprintf(why, sizeof why, "%zu mailbox%s: %s: %s", count, count == 1 ? " differs" : "es differ",
             comparison->differences[0].mailbox, comparison->differences[0].what);
    refuse(verifying, ERR_PEER, why);
}

static void on_verified(struct verify_request *request,
                        const struct inventory_comparison *comparison, const struct err *err)
{
    struct verifying *verifying = request->owner;

    if (err->kind != ERR_NONE) { /* of a store: whoever holds the user does not wait for it */
        refuse(verifying, ERR_PEER, err->text);
        return;
    }
    if (comparison->difference_count > 0) {
        struct inventory_comparison own = *comparison;

        refuse_with(verifying, &own);
        return;
    }
    admin_answer(verifying->call,
                 json_pack("{s:I, s:I}", "mailboxes", (json_int_t)comparison->mailboxes, "messages",
                           (json_int_t)comparison->messages));
    mem_free(verifying);
}

static bool find_shards(struct verifying *verifying)
{
    const struct conf *conf = verifying->control->env.conf;
    struct verify_request *verify = &verifying->verify;

    *verify = (struct verify_request){
        .from = conf_find_shard(conf, admin_argument(verifying->call, "from")),
        .to = conf_find_shard(conf, admin_argument(verifying->call, "to")),
        .from_user = verifying->backend_user,
        .to_user = verifying->backend_user,
        .on_answer = on_verified,
        .owner = verifying};
    return verify->from != NULL && verify->to != NULL;
}

/* Whoever is moved has a route, which is not to be used. */
static void on_route(struct route_request *request, const struct route *route,
                     const struct err *err)
{
    struct verifying *verifying = request->owner;
    struct control *control = verifying->control;
    struct err why = {0};

    if (route == NULL && err->kind != ERR_NONE && err->kind != ERR_ADMIN) {
        refuse(verifying, err->kind, err->text);
        return;
    }
    snprintf(verifying->backend_user, sizeof verifying->backend_user, "%s",
             route == NULL ? verifying->user : route->backend_user);
    if (!find_shards(verifying)) {
        refuse(verifying, ERR_PEER, "a shard was removed");
        return;
    }
    if (!verify_start(&control->env, control->tls, &verifying->verify, &why))
        refuse(verifying, why.kind, why.text);
}

/* False when it has been refused. */
static bool read_arguments(struct verifying *verifying)
{
    const struct conf *conf = verifying->control->env.conf;
    const char *user = admin_argument(verifying->call, "user"),
               *from = admin_argument(verifying->call, "from"),
               *to = admin_argument(verifying->call, "to");

    if (!username_normalise(&conf->username, span_of(user), verifying->user))
        admin_refuse(verifying->call, "this cannot be the name of a user");
    else if (!find_shards(verifying))
        admin_refuse(verifying->call, "there is no shard \"%s\"",
                     verifying->verify.from == NULL ? from : to);
    else
        return true;
    return false;
}

void run_cutover_verify(struct admin_call *call)
{
    struct verifying *verifying = mem_new(sizeof *verifying);

    if (verifying == NULL) {
        admin_answer(call, NULL);
        return;
    }
    verifying->call = call;
    verifying->control = call->context;
    if (!read_arguments(verifying)) {
        mem_free(verifying);
        return;
    }
    verifying->route = (struct route_request){.user = verifying->user,
                                              .told_shard = "",
                                              .told_backend_user = "",
                                              .look_only = true,
                                              .on_answer = on_route,
                                              .owner = verifying};
    call->state = verifying;
    call->cancel = cancel;
    router_find(verifying->control->router, &verifying->route);
}
