/* Owns the commands about all proxies: their sessions, and themselves. */
#include "proxy/admin/handlers.h"

#include "auth/username.h"
#include "proxy/base/address.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/fleet.h"
#include "proxy/fleet/roster.h"
#include "proxy/process/control.h"
#include "proxy/session/traces.h"

enum { QUEUE_MAX = 256 * 1024 /* of items that the client has not taken; then it is waited for */ };

/* --- who, trace --- */

struct who {
    struct fleet_question question; /* first member */
    struct admin_call *call;
    json_t *pieces;    /* lists of items */
    size_t piece;      /* the next one to be sent */
    bool over, is_cut; /* there was no memory for some items */
    struct err err;
};

static void free_who(struct who *who)
{
    json_decref(who->pieces);
    mem_free(who);
}

/* As much as the client takes; what it does not is kept here. */
static void send_items(struct admin_call *call)
{
    struct who *who = call->state;

    while (who->piece < json_array_size(who->pieces) && admin_queued(call) < QUEUE_MAX) {
        const json_t *items = json_array_get(who->pieces, who->piece);

        for (size_t i = 0; i < json_array_size(items); i++)
            admin_item(call, json_incref(json_array_get(items, i)));
        json_array_set_new(who->pieces, who->piece++, json_null());
    }
    if (!who->over || who->piece < json_array_size(who->pieces))
        return;
    if (who->err.kind == ERR_NONE)
        admin_answer(call, json_null());
    else
        admin_refuse(call, "%s", who->err.text);
    free_who(who);
}

static void take_sessions(struct fleet_question *question, json_t *items)
{
    struct who *who = (struct who *)question;

    if (json_array_append(who->pieces, items) != 0)
        who->is_cut = true;
    send_items(who->call);
}

static void end_who(struct fleet_question *question, const struct err *err)
{
    struct who *who = (struct who *)question;

    who->over = true;
    who->err = *err;
    if (who->is_cut)
        err_set(&who->err, ERR_INTERNAL, "out of memory");
    send_items(who->call);
}

static void cancel_who(struct admin_call *call)
{
    struct who *who = call->state;

    fleet_ask_cancel(&who->question);
    free_who(who);
}

/* What kind of thing is meant. */
static const char *kind_of(const struct conf *conf, const char *what)
{
    struct network network;

    if (conf_find_shard(conf, what) != NULL)
        return "shard";
    return network_parse(what, &network) ? "address" : "user";
}

/* False when the call has been refused; else the question, NULL without memory. */
static bool read_who(struct admin_call *call, json_t **question_out)
{
    const struct control *control = call->context;
    const struct conf *conf = control->env.conf;
    const char *what = admin_argument(call, "what"), *by = admin_argument(call, "by");
    char user[USERNAME_MAX + 1];
    struct network network;

    if (what == NULL && by == NULL) {
        *question_out = json_pack("{s:s}", "what", "who");
        return true;
    }
    if (what == NULL) {
        admin_refuse(call, "which %s?", by);
        return false;
    }
    by = by == NULL ? kind_of(conf, what) : by;
    if (strcmp(by, "shard") == 0 && conf_find_shard(conf, what) == NULL) {
        admin_refuse(call, "there is no shard \"%.100s\"", what);
    } else if (strcmp(by, "address") == 0 && !network_parse(what, &network)) {
        admin_refuse(call, "\"%.100s\" is no address", what);
    } else if (strcmp(by, "user") == 0 &&
               !username_normalise(&conf->username, span_of(what), user)) {
        admin_refuse(call, "this cannot be the name of a user");
    } else {
        *question_out = json_pack("{s:s, s:s, s:s}", "what", "who", "by", by, "value",
                                  strcmp(by, "user") == 0 ? user : what);
        return true;
    }
    return false;
}

/* Asks all, and lists what they say. Takes over the question; NULL: there was no memory for it. */
static void list(struct admin_call *call, json_t *question)
{
    struct control *control = call->context;
    struct who *who = question == NULL ? NULL : mem_new(sizeof *who);
    struct err err = {0};

    if (who == NULL) {
        json_decref(question);
        admin_answer(call, NULL);
        return;
    }
    who->call = call;
    who->pieces = json_array();
    who->question.question = question;
    who->question.on_items = take_sessions;
    who->question.on_done = end_who;
    if (fleet_ask(control->fleet, &who->question, &err)) {
        call->state = who;
        call->cancel = cancel_who;
        call->on_drained = send_items;
    } else {
        admin_refuse(call, "%s", err.text);
        free_who(who);
    }
    json_decref(question);
}

void run_who(struct admin_call *call)
{
    json_t *question;

    if (read_who(call, &question))
        list(call, question);
}

void run_trace_fetch(struct admin_call *call)
{
    const struct control *control = call->context;
    const char *id = admin_argument(call, "trace");
    char user[USERNAME_MAX + 1];

    if (!username_normalise(&control->env.conf->username, span_of(admin_argument(call, "user")),
                            user))
        admin_refuse(call, "this cannot be the name of a user");
    else if (strlen(id) > TRACES_ID_MAX)
        admin_refuse(call, "\"trace\" is too long");
    else
        list(call, json_pack("{s:s, s:s, s:s, s:b, s:b}", "what", "trace", "user", user, "trace",
                             id, "bodies", admin_argument(call, "bodies") != NULL, "end",
                             admin_argument(call, "end") != NULL));
}

/* --- kick --- */

struct kick {
    struct fleet_question question; /* first member */
    struct admin_call *call;
    json_int_t sessions, proxies;
};

static void count_kicked(struct fleet_question *question, json_t *items)
{
    struct kick *kick = (struct kick *)question;
    json_int_t sessions = json_integer_value(json_object_get(json_array_get(items, 0), "sessions"));

    kick->sessions += sessions;
    kick->proxies += sessions > 0;
}

static void end_kick(struct fleet_question *question, const struct err *err)
{
    struct kick *kick = (struct kick *)question;
    json_t *result = json_pack("{s:I, s:I}", "sessions", kick->sessions, "proxies", kick->proxies);

    if (err->kind != ERR_NONE) {
        admin_item(kick->call, result);
        admin_refuse(kick->call, "%s", err->text);
    } else if (kick->sessions == 0) {
        admin_refuse(kick->call, "there is no such session");
        json_decref(result);
    } else {
        admin_answer(kick->call, result);
    }
    mem_free(kick);
}

static void cancel_kick(struct admin_call *call)
{
    struct kick *kick = call->state;

    fleet_ask_cancel(&kick->question);
    mem_free(kick);
}

/* False when the call has been refused; else the question, NULL without memory. */
static bool read_kick(struct admin_call *call, json_t **question_out)
{
    const struct control *control = call->context;
    const char *name = admin_argument(call, "user"), *session = admin_argument(call, "session");
    char user[USERNAME_MAX + 1];

    if ((name == NULL) == (session == NULL)) {
        admin_refuse(call, "either a user or a session is needed");
    } else if (name != NULL &&
               !username_normalise(&control->env.conf->username, span_of(name), user)) {
        admin_refuse(call, "this cannot be the name of a user");
    } else {
        *question_out = name == NULL ? json_pack("{s:s, s:s}", "what", "kick", "session", session)
                                     : json_pack("{s:s, s:s}", "what", "kick", "user", user);
        return true;
    }
    return false;
}

void run_kick(struct admin_call *call)
{
    struct control *control = call->context;
    json_t *question;
    struct kick *kick;
    struct err err = {0};

    if (!read_kick(call, &question))
        return;
    kick = question == NULL ? NULL : mem_new(sizeof *kick);
    if (kick == NULL) {
        json_decref(question);
        admin_answer(call, NULL);
        return;
    }
    kick->call = call;
    kick->question.question = question;
    kick->question.on_items = count_kicked;
    kick->question.on_done = end_kick;
    if (fleet_ask(control->fleet, &kick->question, &err)) {
        call->state = kick;
        call->cancel = cancel_kick;
    } else {
        admin_refuse(call, "%s", err.text);
        mem_free(kick);
    }
    json_decref(question);
}

/* --- proxies --- */

struct roster {
    struct roster_request request; /* first member */
    struct admin_call *call;
};

/* This process alone, as it knows itself. */
static json_t *describe_self(const struct control *control)
{
    char host[64];
    size_t size = sizeof host;

    if (uv_os_gethostname(host, &size) != 0)
        host[0] = '\0';
    return json_pack("{s:s, s:s, s:i, s:i, s:I, s:s}", "id", fleet_id(control->fleet), "host", host,
                     "pid", (int)uv_os_getpid(), "seen_seconds", 0, "sessions",
                     (json_int_t)workers_session_count(control->workers), "state", "self");
}

static void on_roster(struct roster_request *request, json_t *list, const struct err *err)
{
    struct roster *roster = (struct roster *)request;
    struct admin_call *call = roster->call;

    if (err->kind == ERR_NONE) {
        admin_answer(call, list == NULL ? json_null() : json_incref(list));
    } else {
        if (request->forget == NULL)
            admin_item(call, describe_self(call->context));
        admin_refuse(call, "%s", err->text);
    }
    mem_free(roster);
}

static void cancel_roster(struct admin_call *call)
{
    struct roster *roster = call->state;

    roster_cancel(&roster->request);
    mem_free(roster);
}

static void ask_roster(struct admin_call *call, const char *forget)
{
    struct control *control = call->context;
    struct roster *roster = mem_new(sizeof *roster);

    if (roster == NULL) {
        admin_answer(call, NULL);
        return;
    }
    roster->call = call;
    roster->request.env = &control->env;
    roster->request.id = fleet_id(control->fleet);
    roster->request.forget = forget;
    roster->request.on_answer = on_roster;
    call->state = roster;
    call->cancel = cancel_roster;
    roster_ask(&roster->request);
}

void run_proxies(struct admin_call *call)
{
    const struct control *control = call->context;

    if (control->env.redis == NULL)
        admin_answer(call, json_pack("[o]", describe_self(control)));
    else
        ask_roster(call, NULL);
}

void run_proxies_forget(struct admin_call *call)
{
    const struct control *control = call->context;

    if (control->env.redis == NULL)
        admin_refuse(call, "there is no Redis, so there are no other proxies");
    else
        ask_roster(call, admin_argument(call, "id"));
}
