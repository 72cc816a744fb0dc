/* Owns the letters to workers that come of events, of reading again, and of the fence. */
#include "proxy/fleet/dispatch.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/process/ask.h"
#include "proxy/session/users.h"

const char dispatch_kick_bye[] = "* BYE Your session has been ended by an administrator.\r\n";

static const char stray_bye[] =
    "* BYE [UNAVAILABLE] Your mailbox has been moved, please connect again.\r\n";

/* --- one user --- */

struct news {
    struct letter letter; /* first member */
    uint64_t epoch;
    enum route_state state;
    bool stray;
    char user[];
};

bool dispatch_read_state(const char *word, enum route_state *state_out)
{
    static const char *const words[] = {[ROUTE_ACTIVE] = "active",
                                        [ROUTE_MOVING] = "moving",
                                        [ROUTE_COMMITTED] = "committed",
                                        [ROUTE_DISABLED] = "disabled",
                                        [ROUTE_GONE] = "gone"};

    for (size_t i = 0; word != NULL && i < sizeof words / sizeof *words; i++) {
        if (strcmp(words[i], word) != 0)
            continue;
        *state_out = (enum route_state)i;
        return true;
    }
    return false;
}

/*
 * On the worker. The router learns first: who is released asks it. Who cannot be held for want of
 * memory is not consented for either, so the move goes back.
 */
static void deliver_news(struct letter *letter, void *receiver)
{
    struct news *news = (struct news *)letter;
    struct home *home = receiver;

    router_learn(home->router, news->user, news->epoch, news->state);
    if (news->stray)
        users_kick(home, news->user, NULL, stray_bye);
    switch (news->state) {
    case ROUTE_MOVING:
    case ROUTE_COMMITTED:
        if (!users_hold(home, news->user, news->epoch))
            log_event(LOG_LEVEL_ERROR, "user not held", "no memory");
        break;
    case ROUTE_DISABLED:
        users_kick(home, news->user, NULL, dispatch_kick_bye);
        users_release(home, news->user);
        break;
    case ROUTE_ACTIVE:
    case ROUTE_GONE:
        users_release(home, news->user);
        break;
    }
    mem_free(news);
}

bool dispatch_route(struct control *control, const char *user, uint64_t epoch,
                    enum route_state state, bool stray)
{
    size_t len = strlen(user);

    if (control->workers == NULL)
        return true;

    struct news *news = mem_new(sizeof *news + len + 1);
    if (news == NULL)
        return false;
    news->letter.deliver = deliver_news;
    news->epoch = epoch;
    news->state = state;
    news->stray = stray;
    memcpy(news->user, user, len);
    workers_post(control->workers, workers_number_of(control->workers, user), &news->letter);
    return true;
}

/* --- all of them --- */

struct order {
    struct ask ask; /* first member */
    bool cut_off;
    uint64_t within_ms;
    void (*on_done)(void *owner); /* of a cut-off */
    void *owner;
};

static void carry_out(struct ask *ask, struct home *home, size_t number)
{
    const struct order *order = (const struct order *)ask;

    (void)number;
    if (order->cut_off)
        users_cut_off(home);
    else
        users_let_go(home, USERS_ALL_SHARDS, order->within_ms);
}

static void on_carried_out(struct ask *ask)
{
    struct order *order = (struct order *)ask;

    if (order->on_done != NULL)
        order->on_done(order->owner);
    mem_free(order);
}

static bool give(struct control *control, const struct order *what)
{
    struct order *order = mem_new(sizeof *order);

    if (order == NULL)
        return false;
    *order = *what;
    order->ask = (struct ask){.visit = carry_out, .on_done = on_carried_out};
    if (ask_workers(&order->ask, control->workers, &control->inbox))
        return true;
    mem_free(order);
    return false;
}

bool dispatch_let_go(struct control *control, uint64_t within_ms)
{
    return control->workers == NULL || give(control, &(struct order){.within_ms = within_ms});
}

bool dispatch_cut_off(struct control *control, void (*on_done)(void *owner), void *owner)
{
    if (control->workers != NULL)
        return give(control, &(struct order){.cut_off = true, .on_done = on_done, .owner = owner});
    on_done(owner);
    return true;
}
