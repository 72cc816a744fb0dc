/* Owns what the parts in proxy/fleet have in common, and brings them together. */
#include "proxy/fleet/fleet.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/acks.h"
#include "proxy/fleet/dispatch.h"
#include "proxy/fleet/hearing.h"
#include "proxy/fleet/keeper.h"
#include "proxy/fleet/membership.h"
#include "proxy/fleet/questions.h"
#include "proxy/fleet/replies.h"
#include "proxy/fleet/reread.h"

#include <inttypes.h>
#include <stdio.h>

enum { RETRY_EACH_MS = 500, TAKE_BACK_TRIES = 20 };

/* Among processes of this host that follow one another. */
enum place { KEEPS, RELEASES /* the file is being written */, RELEASED, HAS_HEIR };

struct fleet {
    struct control *control;
    char id[PROXY_ID_MAX];
    struct freshness freshness;
    struct questions *questions;
    struct membership *membership; /* this and the next are NULL without Redis */
    struct hearing *hearing;
    struct reread *reread;
    struct acks *acks;
    struct replies *replies;
    struct keeper *keeper;   /* NULL also without a file */
    uv_timer_t retry, limit; /* limit: of joining */
    unsigned handles_open;
    bool waiting;        /* for Redis to know */
    bool cut_off_wanted; /* there was no memory for it */
    char heir_of[PROXY_ID_MAX];
    enum place place;
    bool gave_file;      /* there was a keeper */
    unsigned tries_left; /* to have it back */
    void (*on_released)(void *owner);
    void *releaser;
    void (*on_shard_changed)(void *owner, const char *shard);
    void *shards_owner;
};

/* --- the record and the fence --- */

static size_t count_sessions(void *owner)
{
    struct fleet *fleet = owner;
    const struct workers *workers = fleet->control->workers;

    return workers == NULL ? 0 : workers_session_count(workers);
}

static void stop_waiting(void *owner)
{
    struct fleet *fleet = owner;

    if (fleet->waiting)
        uv_stop(fleet->control->env.loop);
    fleet->waiting = false;
}

/* Others, too, may stop the loop meanwhile. */
static void wait_for_it(struct fleet *fleet)
{
    fleet->waiting = true;
    while (fleet->waiting)
        uv_run(fleet->control->env.loop, UV_RUN_DEFAULT);
}

static void on_beat(void *owner)
{
    struct fleet *fleet = owner;

    if (fleet->keeper != NULL && membership_is_confirmed(fleet->membership))
        keeper_confirm(fleet->keeper, membership_fence_ms(fleet->membership));
    if (uv_is_active((uv_handle_t *)&fleet->limit)) /* it is waited for by fleet_join only */
        stop_waiting(fleet);
}

static void on_forgotten(void *owner)
{
    struct fleet *fleet = owner;

    if (fleet->keeper != NULL)
        keeper_forget(fleet->keeper);
    if (fleet->reread != NULL)
        reread_start(fleet->reread, true);
}

static void let_go(void *owner, uint64_t within_ms)
{
    struct fleet *fleet = owner;

    dispatch_let_go(fleet->control, within_ms); /* without memory they are cut off later */
}

static void on_cut_off(void *owner)
{
    struct fleet *fleet = owner;

    membership_is_cut_off(fleet->membership);
}

static void cut_off(void *owner)
{
    struct fleet *fleet = owner;

    fleet->cut_off_wanted = !dispatch_cut_off(fleet->control, on_cut_off, fleet);
}

static const struct membership_events membership_events = {count_sessions, on_beat, on_forgotten,
                                                           let_go, cut_off};

/* --- events --- */

static void hear_route(struct fleet *fleet, const json_t *event)
{
    const char *user = json_string_value(json_object_get(event, "user"));
    json_int_t epoch = json_integer_value(json_object_get(event, "epoch"));
    enum route_state state;

    if (user == NULL || epoch < 0 ||
        !dispatch_read_state(json_string_value(json_object_get(event, "state")), &state)) {
        log_event_limited(LOG_LEVEL_WARNING, "event unusable", "of a route");
        return;
    }
    if (state != ROUTE_MOVING && state != ROUTE_COMMITTED)
        acks_drop(fleet->acks, user, (uint64_t)epoch);
    if (!dispatch_route(fleet->control, user, (uint64_t)epoch, state,
                        json_is_true(json_object_get(event, "stray"))))
        hearing_begin_anew(fleet->hearing); /* no memory: what the worker knows may be old */
}

static void on_event(void *owner, const char *name, const json_t *event)
{
    struct fleet *fleet = owner;
    const char *shard = json_string_value(json_object_get(event, "shard"));

    counter_add(&fleet->control->env.counters->fleet_events, 1);
    if (strcmp(name, "route") == 0)
        hear_route(fleet, event);
    else if (strcmp(name, "ask") == 0)
        replies_hear_ask(fleet->replies, event);
    else if (strcmp(name, "answer") == 0)
        questions_hear_answer(fleet->questions, event);
    else if (strcmp(name, "shard") == 0 && fleet->on_shard_changed != NULL)
        fleet->on_shard_changed(fleet->shards_owner, shard);
}

static void on_gap(void *owner)
{
    struct fleet *fleet = owner;

    reread_start(fleet->reread, false);
    if (fleet->on_shard_changed != NULL)
        fleet->on_shard_changed(fleet->shards_owner, NULL);
}

static const struct hearing_events hearing_events = {on_event, on_gap};

static void on_read(void *owner)
{
    struct fleet *fleet = owner;

    acks_repeat(fleet->acks);
}

/* --- consents --- */

/* A process after this one must know, too, before a move goes on. */
static bool may_tell(void *owner, const char *user, uint64_t epoch)
{
    struct fleet *fleet = owner;

    if (fleet->place == RELEASES || fleet->place == RELEASED)
        return false; /* nobody would write it down */
    return fleet->keeper == NULL || keeper_add_moved(fleet->keeper, user, epoch);
}

struct held {
    struct letter letter; /* first member */
    uint64_t epoch;
    char user[];
};

static void deliver_held(struct letter *letter, void *receiver)
{
    struct held *held = (struct held *)letter;
    struct control *control = receiver;

    if (control->fleet != NULL && control->fleet->acks != NULL &&
        !acks_add(control->fleet->acks, held->user, held->epoch))
        log_event(LOG_LEVEL_ERROR, "move not consented", "no memory");
    mem_free(held);
}

void fleet_tell_held(struct control *control, const char *user, uint64_t epoch)
{
    size_t len = strlen(user);
    struct held *held = mem_new(sizeof *held + len + 1);

    if (held == NULL) {
        log_event(LOG_LEVEL_ERROR, "move not consented", "no memory");
        return;
    }
    held->letter.deliver = deliver_held;
    held->epoch = epoch;
    memcpy(held->user, user, len);
    if (!inbox_post(&control->inbox, &held->letter))
        mem_free(held); /* the process has ended */
}

/* --- life --- */

static void try_to_keep(struct fleet *fleet);

static void on_retry(uv_timer_t *timer)
{
    struct fleet *fleet = timer->data;

    if (fleet->tries_left > 0)
        try_to_keep(fleet);
    if (fleet->cut_off_wanted)
        cut_off(fleet);
    if (fleet->reread != NULL) {
        reread_retry(fleet->reread);
        acks_retry(fleet->acks);
    }
}

static bool make_id(struct fleet *fleet, struct err *err)
{
    uint64_t random;

    if (uv_random(NULL, NULL, &random, sizeof random, 0, NULL) != 0)
        return err_set(err, ERR_INTERNAL, "fleet: no random numbers");
    snprintf(fleet->id, sizeof fleet->id, "%016" PRIx64, random);
    return true;
}

static bool open_parts(struct fleet *fleet, struct err *err)
{
    const struct env *env = &fleet->control->env;

    fleet->questions = questions_open(fleet->control, fleet->id, err);
    if (fleet->questions == NULL || env->redis == NULL)
        return fleet->questions != NULL;
    struct predecessor before = {fleet->heir_of, fleet->heir_of[0] != '\0'};
    if (!before.lives && (fleet->keeper = keeper_open(fleet->control, fleet->id)) != NULL)
        before.id = keeper_predecessor(fleet->keeper);
    fleet->membership =
        membership_open(env, fleet->id, &before, &fleet->freshness, &membership_events, fleet, err);
    fleet->freshness.proxy = fleet->id;
    if (fleet->membership != NULL)
        fleet->acks = acks_open(env, fleet->id, may_tell, fleet, err);
    if (fleet->acks != NULL)
        fleet->replies = replies_open(fleet->control, fleet->id, err);
    return fleet->replies != NULL;
}

struct fleet *fleet_open(struct control *control, const char *heir_of, struct err *err)
{
    struct fleet *fleet = mem_new(sizeof *fleet);

    if (fleet == NULL || !make_id(fleet, err)) {
        err_set(err, ERR_INTERNAL, "fleet: no memory, or no random numbers");
        mem_free(fleet);
        return NULL;
    }
    fleet->control = control;
    snprintf(fleet->heir_of, sizeof fleet->heir_of, "%s", heir_of == NULL ? "" : heir_of);
    uv_timer_init(control->env.loop, &fleet->retry);
    uv_timer_init(control->env.loop, &fleet->limit);
    fleet->retry.data = fleet->limit.data = fleet;
    fleet->handles_open = 2;
    uv_timer_start(&fleet->retry, on_retry, RETRY_EACH_MS, RETRY_EACH_MS);
    if (!open_parts(fleet, err))
        fleet_close(&fleet);
    return fleet;
}

static void on_limit(uv_timer_t *timer)
{
    stop_waiting(timer->data);
}

bool fleet_join(struct fleet *fleet, struct err *err)
{
    const struct conf *conf = fleet->control->env.conf;

    if (fleet->membership == NULL)
        return true;
    uv_timer_start(&fleet->limit, on_limit, conf->redis.timeout, 0);
    wait_for_it(fleet);
    uv_timer_stop(&fleet->limit);
    return fleet->heir_of[0] == '\0' || !conf_routes_by_redis(conf) ||
           membership_is_confirmed(fleet->membership) ||
           err_set(err, ERR_UNAVAILABLE,
                   "Redis does not confirm this process, so moves of users "
                   "would not wait for it: try again when Redis is back");
}

void fleet_inherit(struct fleet *fleet)
{
    if (fleet->membership == NULL)
        return;
    fleet->keeper = keeper_open(fleet->control, fleet->id);
    if (fleet->keeper != NULL && strcmp(keeper_predecessor(fleet->keeper), fleet->heir_of) != 0)
        keeper_drop(fleet->keeper); /* what it says may have been moved before our time */
}

void fleet_teach(struct fleet *fleet, struct workers *workers)
{
    if (fleet->keeper == NULL)
        return;
    keeper_teach(fleet->keeper, workers);
    membership_inherit(fleet->membership, keeper_fence_ms(fleet->keeper));
}

bool fleet_serve(struct fleet *fleet, struct err *err)
{
    struct control *control = fleet->control;

    if (fleet->membership == NULL)
        return true;
    fleet->reread = reread_open(control, fleet->id, on_read, fleet, err);
    if (fleet->reread != NULL)
        fleet->hearing =
            hearing_open(&control->env, fleet->id, &fleet->freshness, &hearing_events, fleet, err);
    return fleet->hearing != NULL;
}

void fleet_keep(struct fleet *fleet)
{
    if (fleet->keeper == NULL)
        return;
    keeper_confirm(fleet->keeper, membership_fence_ms(fleet->membership));
    fleet_stop(fleet);
}

void fleet_stop(struct fleet *fleet)
{
    if (fleet->keeper != NULL && keeper_write(fleet->keeper, stop_waiting, fleet))
        wait_for_it(fleet);
}

void fleet_leave(struct fleet *fleet)
{
    if (fleet->keeper != NULL && membership_can_leave(fleet->membership) &&
        !keeper_void(fleet->keeper))
        return; /* so moves wait until what the file says has lapsed */
    if (fleet->membership != NULL && membership_leave(fleet->membership, stop_waiting))
        wait_for_it(fleet);
}

static void handle_closed(uv_handle_t *handle)
{
    struct fleet *fleet = handle->data;

    if (--fleet->handles_open == 0)
        mem_free(fleet);
}

void fleet_close(struct fleet **fleet)
{
    struct fleet *f = *fleet;

    *fleet = NULL;
    if (f == NULL)
        return;
    hearing_close(&f->hearing);
    reread_close(&f->reread);
    acks_close(&f->acks);
    questions_close(&f->questions);
    replies_close(&f->replies);
    membership_close(&f->membership);
    keeper_close(&f->keeper);
    uv_close((uv_handle_t *)&f->retry, handle_closed);
    uv_close((uv_handle_t *)&f->limit, handle_closed);
}

/* --- giving its place to an heir --- */

static void release(struct fleet *fleet)
{
    fleet->place = RELEASED;
    fleet->gave_file = fleet->keeper != NULL;
    keeper_close(&fleet->keeper);
}

static void on_kept(void *owner)
{
    struct fleet *fleet = owner;

    if (fleet->place != RELEASES)
        return; /* it was taken back meanwhile */
    release(fleet);
    fleet->on_released(fleet->releaser);
}

bool fleet_release(struct fleet *fleet, void (*on_released)(void *owner), void *owner)
{
    fleet->place = RELEASES;
    fleet->on_released = on_released;
    fleet->releaser = owner;
    fleet->tries_left = 0;
    if (fleet->keeper != NULL && keeper_write(fleet->keeper, on_kept, fleet))
        return true;
    release(fleet);
    return false;
}

/* The lock goes when the heir has ended, which may be in a moment. */
static void try_to_keep(struct fleet *fleet)
{
    fleet->keeper = keeper_open(fleet->control, fleet->id);
    fleet->tries_left = fleet->keeper == NULL ? fleet->tries_left - 1 : 0;
    if (fleet->keeper != NULL)
        keeper_drop(fleet->keeper); /* the routers know better */
    if (fleet->tries_left == 0)
        fleet->place = KEEPS; /* without a file, if need be, as after a start */
}

void fleet_take_back(struct fleet *fleet)
{
    if (fleet->place == RELEASED && fleet->gave_file) {
        fleet->tries_left = TAKE_BACK_TRIES;
        try_to_keep(fleet);
    } else {
        fleet->place = KEEPS;
    }
}

void fleet_has_heir(struct fleet *fleet)
{
    fleet->place = HAS_HEIR;
}

/* --- for others --- */

bool fleet_ask(struct fleet *fleet, struct fleet_question *question, struct err *err)
{
    return questions_ask(fleet->questions, question, err);
}

void fleet_ask_cancel(struct fleet_question *question)
{
    questions_cancel(question);
}

const char *fleet_id(const struct fleet *fleet)
{
    return fleet->id;
}

struct freshness *fleet_freshness(struct fleet *fleet)
{
    return fleet->membership == NULL ? NULL : &fleet->freshness;
}

void fleet_watch_shards(struct fleet *fleet, void (*on_changed)(void *owner, const char *shard),
                        void *owner)
{
    fleet->on_shard_changed = on_changed;
    fleet->shards_owner = owner;
}
