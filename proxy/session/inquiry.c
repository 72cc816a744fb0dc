/*
 * Owns the way of an inquiry: to the worker of the name that is asked for, where her account is
 * looked up; to that of the name which her sources have for her, where the rest is; and back.
 */
#include "proxy/session/inquiry.h"

#include "proxy/session/users.h"

#include <assert.h>
#include <stdio.h>

/* --- between threads --- */

/* On the loop that asks. */
static void come_back(struct letter *letter, void *receiver)
{
    struct inquiry *inquiry = (struct inquiry *)((char *)letter - offsetof(struct inquiry, letter));

    (void)receiver;
    inquiry->on_done(inquiry);
}

static void join(struct inquiry *inquiry, struct home *home)
{
    inquiry->home = home;
    inquiry->next = home->inquiries;
    inquiry->link = &home->inquiries;
    if (inquiry->next != NULL)
        inquiry->next->link = &inquiry->next;
    home->inquiries = inquiry;
}

static void leave(struct inquiry *inquiry)
{
    *inquiry->link = inquiry->next;
    if (inquiry->next != NULL)
        inquiry->next->link = inquiry->link;
}

static void go_back(struct inquiry *inquiry)
{
    inquiry->letter.deliver = come_back;
    bool posted = inbox_post(inquiry->inbox, &inquiry->letter);
    assert(posted);
    (void)posted;
}

static void finish(struct inquiry *inquiry)
{
    leave(inquiry);
    go_back(inquiry);
}

void inquiries_end(struct home *home)
{
    while (home->inquiries != NULL) {
        struct inquiry *inquiry = home->inquiries;

        auth_look_cancel(&inquiry->look);
        router_cancel(&inquiry->request);
        if (inquiry->count != NULL)
            redis_command_cancel(inquiry->count);
        turn_cancel(home->env.turn, &inquiry->task);
        inquiry->stopped = true;
        finish(inquiry);
    }
}

/* --- at home --- */

static void note_hold(void *owner, const char *user, uint64_t epoch)
{
    struct inquiry *inquiry = owner;

    if (strcmp(user, inquiry->name) != 0)
        return;
    inquiry->is_held = true;
    inquiry->held_epoch = epoch;
}

static void note_session(void *owner, const struct users_session *session)
{
    struct inquiry *inquiry = owner;

    if (strcmp(session->user, inquiry->name) == 0)
        inquiry->sessions++;
}

/* Whatever needs no waiting. */
static void look_around(struct inquiry *inquiry)
{
    struct home *home = inquiry->home;
    struct history_refusal refusal;

    users_held_each(home, note_hold, inquiry);
    users_each(home, note_session, inquiry);
    inquiry->parked = pool_parked(home->pool, inquiry->name);
    inquiry->end_count = history_of(home->history, inquiry->name, inquiry->ends, &refusal);
    if (refusal.at >= inquiry->refusal.at)
        inquiry->refusal = refusal;
}

static void all_is_known(struct turn_task *task)
{
    finish((struct inquiry *)((char *)task - offsetof(struct inquiry, task)));
}

static void on_count(void *owner, const redisReply *reply, const struct err *err)
{
    struct inquiry *inquiry = owner;

    (void)err; /* then it is not known */
    inquiry->count = NULL;
    inquiry->sessions_known = reply != NULL && reply->type == REDIS_REPLY_INTEGER;
    if (inquiry->sessions_known)
        inquiry->all_sessions = (uint64_t)reply->integer;
    inquiry->task.run = all_is_known;
    turn_post(inquiry->home->env.turn, &inquiry->task);
}

static void on_route(struct route_request *request, const struct route *route,
                     const struct err *err)
{
    struct inquiry *inquiry = request->owner;
    struct registry *registry = inquiry->home->registry;

    inquiry->has_route = route != NULL;
    if (route != NULL)
        inquiry->route = *route;
    inquiry->route_err = *err;
    look_around(inquiry);
    if (registry != NULL)
        inquiry->count = registry_count(registry, inquiry->name, on_count, inquiry);
    if (inquiry->count == NULL)
        finish(inquiry);
}

static void arrive_home(struct letter *letter, void *receiver)
{
    struct inquiry *inquiry = (struct inquiry *)((char *)letter - offsetof(struct inquiry, letter));
    struct home *home = receiver;

    inquiry->stopped = home->stopping;
    if (home->stopping) {
        go_back(inquiry);
        return;
    }
    join(inquiry, home);
    inquiry->request = (struct route_request){.user = inquiry->name,
                                              .told_shard = inquiry->told_shard,
                                              .told_backend_user = inquiry->told_backend_user,
                                              .look_only = true,
                                              .on_answer = on_route,
                                              .owner = inquiry};
    router_find(home->router, &inquiry->request);
}

/* --- where the name that was given leads to --- */

static void keep_facts(struct inquiry *inquiry, const struct auth_facts *facts)
{
    if (facts == NULL)
        return;
    snprintf(inquiry->told_shard, sizeof inquiry->told_shard, "%s", facts->shard);
    snprintf(inquiry->told_backend_user, sizeof inquiry->told_backend_user, "%s",
             facts->backend_user);
    inquiry->network_count = facts->network_count;
    for (size_t i = 0; i < facts->network_count && i < INQUIRY_NETWORKS_MAX; i++)
        inquiry->networks[i] = facts->networks[i];
}

static void on_account(struct auth_look *look)
{
    struct inquiry *inquiry = look->owner;
    struct home *home = inquiry->home;

    inquiry->account = look->err;
    snprintf(inquiry->source, sizeof inquiry->source, "%s", look->source);
    memcpy(inquiry->name, look->name, sizeof inquiry->name);
    keep_facts(inquiry, look->facts);
    leave(inquiry);
    inquiry->letter.deliver = arrive_home;
    struct home *own = home->home_of(home, inquiry->name);
    if (own == home)
        arrive_home(&inquiry->letter, home);
    else
        inbox_post(&own->inbox, &inquiry->letter); /* open as long as this thread runs */
}

static void arrive(struct letter *letter, void *receiver)
{
    struct inquiry *inquiry = (struct inquiry *)((char *)letter - offsetof(struct inquiry, letter));
    struct home *home = receiver;
    struct history_end ends[HISTORY_ENDS];

    inquiry->stopped = home->stopping;
    if (home->stopping) {
        go_back(inquiry);
        return;
    }
    join(inquiry, home);
    auth_recall(home->auth, inquiry->user, &inquiry->memory);
    history_of(home->history, inquiry->user, ends, &inquiry->refusal);
    inquiry->look.user = inquiry->user;
    inquiry->look.on_answer = on_account;
    inquiry->look.owner = inquiry;
    auth_look(home->auth, &inquiry->look);
}

struct letter *inquiry_begin(struct inquiry *inquiry, struct inbox *inbox)
{
    inquiry->inbox = inbox;
    inquiry->letter.deliver = arrive;
    return &inquiry->letter;
}
