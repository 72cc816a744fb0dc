/*
 * Owns the sessions of this worker by user, and who is held: what becomes of a user's sessions when
 * it is not they who want it.
 */
#include "proxy/session/users.h"

#include "proxy/base/clock.h"
#include "proxy/base/hash.h"
#include "proxy/session/phase.h"

#include <assert.h>
#include <sys/random.h>
#include <utlist.h>

static const char moved_bye[] =
    "* BYE [UNAVAILABLE] Your mailbox is being moved, please connect again.\r\n";
static const char let_go_bye[] =
    "* BYE [UNAVAILABLE] Your mail store will be away for a while, please connect again.\r\n";
static const char cut_off_bye[] =
    "* BYE [UNAVAILABLE] The server has lost sight of the others, please connect again.\r\n";

struct hold {
    struct users *users;
    struct user *user;
    uint64_t epoch;
    bool told; /* on_held was called */
    struct turn_task look;
    struct hold *next, *prev;
};

struct user {
    struct session *sessions;
    struct hold *hold; /* NULL: she is not held */
    UT_hash_handle hh;
    char name[];
};

struct users {
    struct home *home;
    struct user *by_name;
    struct hold *holds;
};

struct users *users_open(struct home *home)
{
    struct users *users = mem_new(sizeof *users);

    if (users != NULL)
        users->home = home;
    return users;
}

/* --- by name --- */

static struct user *find(struct users *users, const char *name)
{
    struct user *user;

    HASH_FIND_STR(users->by_name, name, user);
    return user;
}

static struct user *find_or_add(struct users *users, const char *name)
{
    struct user *user = find(users, name);
    size_t len = strlen(name);

    if (user != NULL)
        return user;
    user = mem_new(sizeof *user + len + 1);
    if (user == NULL)
        return NULL;
    memcpy(user->name, name, len);
    HASH_ADD_STR(users->by_name, name, user);
    if (user->hh.tbl != NULL)
        return user;
    mem_free(user);
    return NULL;
}

static void forget_if_unused(struct users *users, struct user *user)
{
    if (user->sessions != NULL || user->hold != NULL)
        return;
    HASH_DEL(users->by_name, user);
    mem_free(user);
}

/* Her sessions may all be away from the stores now. */
static void look_soon(struct users *users, const struct user *user)
{
    if (user->hold != NULL && !user->hold->told)
        turn_post(users->home->env.turn, &user->hold->look);
}

bool users_join(struct session *s, const char *name)
{
    struct user *user = s->user != NULL ? s->user : find_or_add(s->home->users, name);

    if (user == NULL)
        return false;
    if (s->user != NULL)
        return true;
    s->user = user;
    s->user_next = user->sessions;
    s->user_link = &user->sessions;
    if (s->user_next != NULL)
        s->user_next->user_link = &s->user_next;
    user->sessions = s;
    return true;
}

void users_leave(struct session *s)
{
    struct user *user = s->user;

    if (user == NULL)
        return;
    *s->user_link = s->user_next;
    if (s->user_next != NULL)
        s->user_next->user_link = s->user_link;
    s->user = NULL;
    look_soon(s->home->users, user);
    forget_if_unused(s->home->users, user);
}

const char *users_name(const struct user *user)
{
    return user->name;
}

void users_left_store(struct session *s)
{
    if (s->user != NULL)
        look_soon(s->home->users, s->user);
}

bool users_keeps_nothing(const struct session *s)
{
    return s->told_to_end || (s->user != NULL && s->user->hold != NULL);
}

/* --- the end of a session that others want --- */

static uint64_t now_of(const struct session *s)
{
    return uv_now(s->home->env.loop);
}

/* What it has asked for on its way to a store shall not be answered. */
static void call_back(struct session *s)
{
    router_cancel(&s->entry->route);
    pool_cancel(&s->entry->lease);
}

static bool is_on_its_way(const struct session *s)
{
    return s->phase == P_ROUTE || s->phase == P_LEASE || s->phase == P_HELD;
}

bool users_has(const struct session *s)
{
    return s->user != NULL && (is_on_its_way(s) || s->phase == P_RELAY || s->phase == P_STRANDED);
}

static void say_last(struct session *s, const char *reason, const char *bye)
{
    conn_write(s->client, span_of(bye)); /* a failure is met on reading */
    phase_move(s, phase_linger(s, reason));
}

/* Asks a relay to end; it is cut off if that takes too long. */
static void end_relay(struct session *s, const char *reason, const char *bye)
{
    if (s->told_to_end)
        return;
    phase_gone(s, reason);
    s->told_to_end = true;
    s->end_ms = now_of(s) + s->home->env.conf->cutover.end_timeout;
    phase_arm(s, s->lingering ? LIMIT_LINGER : LIMIT_IDLE); /* which is not later than end_ms */
    if (relay_has_left_store(&s->relay))
        phase_move(s, P_LINGER);
    else
        relay_end_politely(&s->relay, bye);
}

static void cut_off(struct session *s, const char *reason, const char *bye)
{
    s->told_to_end = true;
    relay_interject(&s->relay, bye);
    phase_move(s, phase_linger(s, reason));
}

bool users_see_deadline(struct session *s)
{
    if (s->end_ms == 0 || now_of(s) < s->end_ms)
        return false;
    if (s->told_to_end)
        cut_off(s, "time-out", s->relay.bye);
    else
        end_relay(s, "let go", s->home->drained_ms > 0 ? phase_stopping_bye : let_go_bye);
    return true;
}

/* --- held --- */

/*
 * Tells that she is held, once nothing of hers is at a store. Logins were taken back, and new ones
 * do not get there meanwhile; what sessions have returned since was not kept.
 */
static void look(struct turn_task *task)
{
    struct hold *hold = (struct hold *)((char *)task - offsetof(struct hold, look));
    struct home *home = hold->users->home;

    for (const struct session *s = hold->user->sessions; s != NULL; s = s->user_next)
        if (s->connection != NULL)
            return;                                 /* users_left_store follows */
    pool_forget_user(home->pool, hold->user->name); /* as before: this must be certain */
    hold->told = true;
    if (home->on_held != NULL)
        home->on_held(home, hold->user->name, hold->epoch); /* may release her */
}

/* False without memory. */
static bool begin_hold(struct users *users, struct user *user, uint64_t epoch)
{
    struct hold *hold = user->hold;

    if (hold != NULL && epoch <= hold->epoch)
        return true;
    if (hold == NULL) {
        hold = mem_new(sizeof *hold);
        if (hold == NULL)
            return false;
        user->hold = hold;
        hold->users = users;
        hold->user = user;
        hold->look.run = look;
        DL_APPEND(users->holds, hold);
    }
    hold->epoch = epoch;
    hold->told = false;
    router_learn(users->home->router, user->name, epoch, ROUTE_MOVING);
    pool_forget_user(users->home->pool, user->name);
    look_soon(users, user);
    return true;
}

static void end_hold(struct hold *hold)
{
    struct users *users = hold->users;
    struct user *user = hold->user;

    user->hold = NULL;
    DL_DELETE(users->holds, hold);
    turn_cancel(users->home->env.turn, &hold->look);
    mem_free(hold);
    forget_if_unused(users, user);
}

/* A login that is on its way waits, from now on, in phase held. */
static void take_back(struct session *s)
{
    call_back(s);
    phase_move(s, P_HELD);
    users_left_store(s);
}

bool users_hold(struct home *home, const char *name, uint64_t epoch)
{
    struct user *user = find_or_add(home->users, name);
    struct session *next;

    if (user == NULL)
        return false;
    bool held = begin_hold(home->users, user, epoch);
    for (struct session *s = user->sessions; s != NULL; s = next) {
        next = s->user_next;
        if (is_on_its_way(s))
            take_back(s);
        else if (s->phase == P_RELAY)
            end_relay(s, "moved", moved_bye);
    }
    forget_if_unused(home->users, user);
    return held;
}

void users_release(struct home *home, const char *name)
{
    struct user *user = find(home->users, name);
    struct session *next;

    if (user == NULL || user->hold == NULL)
        return;
    for (struct session *s = user->sessions; s != NULL; s = next) {
        next = s->user_next;
        if (s->phase == P_HELD)
            phase_move(s, P_ROUTE);
    }
    end_hold(user->hold);
}

bool users_may_go_on(struct session *s, uint64_t epoch)
{
    const struct hold *hold = s->user->hold;

    if (hold == NULL)
        return true;
    if (epoch < hold->epoch)
        return false;
    users_release(s->home, s->user->name); /* the route has come before the news */
    return true;
}

void users_close(struct users **users)
{
    struct users *u = *users;

    *users = NULL;
    if (u == NULL)
        return;
    while (u->holds != NULL)
        end_hold(u->holds);
    assert(u->by_name == NULL);
    mem_free(u);
}

/* --- kick, let go, cut off --- */

static void kick(struct session *s, const char *bye)
{
    if (s->phase == P_RELAY) {
        end_relay(s, "kicked", bye);
        return;
    }
    if (is_on_its_way(s))
        call_back(s);
    say_last(s, "kicked", bye);
    users_left_store(s);
}

size_t users_kick(struct home *home, const char *name, const char *session_id, const char *bye)
{
    struct session *next;
    size_t count = 0;

    for (struct session *s = home->sessions; s != NULL; s = next) {
        next = s->next;
        if (!users_has(s) ||
            strcmp(name != NULL ? s->user->name : s->id, name != NULL ? name : session_id) != 0)
            continue;
        kick(s, bye);
        count++;
    }
    if (name != NULL)
        pool_forget_user(home->pool, name);
    return count;
}

static uint64_t moment_within(uint64_t ms)
{
    uint64_t random = 0;

    return getrandom(&random, sizeof random, 0) == (ssize_t)sizeof random ? random % (ms + 1) : 0;
}

static void let_go(struct session *s, uint64_t within_ms)
{
    uint64_t end_ms = now_of(s) + moment_within(within_ms);

    if (s->end_ms != 0 && s->end_ms <= end_ms)
        return;
    s->end_ms = end_ms;
    phase_arm(s, s->lingering ? LIMIT_LINGER : LIMIT_IDLE);
}

void users_let_go(struct home *home, size_t shard_id, uint64_t within_ms)
{
    for (struct session *s = home->sessions; s != NULL; s = s->next)
        if (s->phase == P_RELAY && (shard_id == USERS_ALL_SHARDS || s->shard->id == shard_id))
            let_go(s, within_ms);
}

void users_drain(struct home *home, uint64_t within_ms)
{
    home->drained_ms = uv_now(home->env.loop) + within_ms;
    users_let_go(home, USERS_ALL_SHARDS, within_ms);
}

void users_is_relayed(struct session *s)
{
    uint64_t end_ms = s->home->drained_ms, now = now_of(s);

    if (end_ms != 0)
        let_go(s, end_ms > now ? end_ms - now : 0);
}

void users_cut_off(struct home *home)
{
    struct session *next;

    for (struct session *s = home->sessions; s != NULL; s = next) {
        next = s->next;
        if (s->phase == P_RELAY) {
            cut_off(s, "cut off: no word from Redis", cut_off_bye);
        } else if (is_on_its_way(s)) {
            take_back(s);
            phase_move(s, s->phase == P_HELD ? P_ROUTE : s->phase);
        }
    }
    pool_forget_user(home->pool, NULL);
}

/* --- who is here --- */

void users_each(struct home *home, void (*visit)(void *owner, const struct users_session *session),
                void *owner)
{
    uint64_t now = clock_ms();

    for (const struct session *s = home->sessions; s != NULL; s = s->next) {
        if (!users_has(s))
            continue;
        const SSL *tls = conn_tls(s->client);
        const char *master = s->entry != NULL ? s->entry->master : s->master;

        visit(owner, &(struct users_session){
                         .user = s->user->name,
                         .master = master == NULL ? "" : master,
                         .shard = s->shard == NULL ? "" : s->shard->title,
                         .id = s->id,
                         .tls = tls == NULL ? "none" : SSL_get_version(tls),
                         .phase = home->phases[s->phase].name,
                         .peer = &s->peer,
                         .since_seconds = (now - s->accepted_ms) / 1000,
                     });
    }
}

void users_each_of(struct home *home, const char *name,
                   void (*visit)(void *owner, struct session *s), void *owner)
{
    const struct user *user = find(home->users, name);

    for (struct session *s = user == NULL ? NULL : user->sessions; s != NULL; s = s->user_next)
        visit(owner, s);
}

void users_held_each(struct home *home,
                     void (*visit)(void *owner, const char *user, uint64_t epoch), void *owner)
{
    struct hold *hold, *next;

    DL_FOREACH_SAFE(home->users->holds, hold, next)
    {
        visit(owner, hold->user->name, hold->epoch);
    }
}
