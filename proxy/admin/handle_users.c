/*
 * Owns the command `users`: sessions and parked connections, summed by user. Sessions are counted
 * first, then the workers are asked for what is parked.
 */
#include "proxy/admin/handlers.h"

#include "proxy/base/hash.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/census.h"
#include "proxy/process/ask.h"

#include <stdlib.h>

enum { QUEUE_MAX = 256 * 1024, GROWTH = 256 };

struct listed_user {
    UT_hash_handle hh;
    size_t sessions, parked;
    uint64_t oldest_ms; /* of the sessions */
    char shard[CENSUS_TITLE_MAX];
    char name[];
};

/* A copy of what a worker has parked for somebody. */
struct parked {
    char user[USERNAME_MAX + 1], shard[CENSUS_TITLE_MAX];
    size_t count;
};

/* One worker's; only the worker touches it until all have been asked. */
struct part {
    struct parked *list;
    size_t count, room;
    bool out_of_memory;
};

struct user_list {
    struct census census;
    struct ask ask;
    struct admin_call *call; /* NULL: nobody waits for the answer any more */
    struct control *control;
    char *shard; /* the only one wanted; NULL: all */
    size_t limit;
    struct listed_user *by_name;
    struct listed_user **sorted;
    size_t sorted_count, told;
    struct part *parts;
    size_t part_count;
    bool is_under_way; /* sessions are counted, or workers asked */
    bool out_of_memory;
};

/* --- users --- */

static struct listed_user *find_or_add(struct user_list *users, const char *name)
{
    struct listed_user *user = NULL;
    size_t len = strlen(name);

    HASH_FIND_STR(users->by_name, name, user);
    if (user != NULL)
        return user;
    user = mem_new(sizeof *user + len + 1);
    if (user != NULL) {
        memcpy(user->name, name, len);
        HASH_ADD_STR(users->by_name, name, user);
        if (user->hh.tbl != NULL)
            return user;
    }
    mem_free(user);
    users->out_of_memory = true;
    return NULL;
}

static void on_sessions(struct census *census, const struct census_session *list, size_t count)
{
    struct user_list *users = (struct user_list *)census;

    for (size_t i = 0; i < count; i++) {
        struct listed_user *user = find_or_add(users, list[i].user);

        if (user == NULL)
            continue;
        user->sessions++;
        user->oldest_ms = list[i].age_ms > user->oldest_ms ? list[i].age_ms : user->oldest_ms;
        memcpy(user->shard, list[i].shard, sizeof user->shard);
    }
}

/* On workers' threads. */
static bool wants(const struct census *census, const struct census_session *session)
{
    const struct user_list *users = (const struct user_list *)census;

    return session->has_user && (users->shard == NULL || strcmp(users->shard, session->shard) == 0);
}

/* --- what is parked --- */

static struct user_list *of_ask(struct ask *ask)
{
    return (struct user_list *)((char *)ask - offsetof(struct user_list, ask));
}

static void note_parked(void *owner, const char *user, const struct conf_shard *shard, size_t count)
{
    struct part *part = owner;

    if (part->count == part->room) {
        struct parked *list = mem_resize(part->list, (part->room + GROWTH) * sizeof *list);

        part->out_of_memory = part->out_of_memory || list == NULL;
        if (list == NULL)
            return;
        part->list = list;
        part->room += GROWTH;
    }
    struct parked *parked = &part->list[part->count++];
    snprintf(parked->user, sizeof parked->user, "%s", user);
    snprintf(parked->shard, sizeof parked->shard, "%s", shard->title);
    parked->count = count;
}

static void visit(struct ask *ask, struct home *home, size_t worker)
{
    pool_each_parked(home->pool, note_parked, &of_ask(ask)->parts[worker]);
}

static void add_parked(struct user_list *users, const struct part *part)
{
    users->out_of_memory = users->out_of_memory || part->out_of_memory;
    for (size_t i = 0; i < part->count; i++) {
        const struct parked *parked = &part->list[i];
        struct listed_user *user;

        if ((users->shard != NULL && strcmp(users->shard, parked->shard) != 0) ||
            (user = find_or_add(users, parked->user)) == NULL)
            continue;
        user->parked += parked->count;
        if (*user->shard == '\0')
            memcpy(user->shard, parked->shard, sizeof user->shard);
    }
}

/* --- telling --- */

static void release(struct user_list *users)
{
    struct listed_user *user = users->by_name, *next;

    HASH_CLEAR(hh, users->by_name); /* which leaves their list as it is */
    for (; user != NULL; user = next) {
        next = user->hh.next;
        mem_free(user);
    }
    for (size_t i = 0; users->parts != NULL && i < users->part_count; i++)
        mem_free(users->parts[i].list);
    mem_free(users->parts);
    mem_free(users->sorted);
    mem_free(users->shard);
    mem_free(users);
}

/* Most sessions first, then most parked connections, then by name. */
static int compare(const void *a, const void *b)
{
    const struct listed_user *one = *(struct listed_user *const *)a,
                             *other = *(struct listed_user *const *)b;

    if (one->sessions != other->sessions)
        return one->sessions < other->sessions ? 1 : -1;
    if (one->parked != other->parked)
        return one->parked < other->parked ? 1 : -1;
    return strcmp(one->name, other->name);
}

static bool sort(struct user_list *users)
{
    users->sorted = mem_array(HASH_COUNT(users->by_name) + 1, sizeof *users->sorted);
    if (users->sorted == NULL)
        return false;
    for (struct listed_user *user = users->by_name; user != NULL; user = user->hh.next)
        users->sorted[users->sorted_count++] = user;
    qsort(users->sorted, users->sorted_count, sizeof *users->sorted, compare);
    if (users->sorted_count > users->limit)
        users->sorted_count = users->limit;
    return true;
}

/* As much as the client takes. */
static void tell(struct user_list *users)
{
    while (users->told < users->sorted_count && admin_queued(users->call) < QUEUE_MAX) {
        const struct listed_user *user = users->sorted[users->told++];

        admin_item(users->call,
                   json_pack("{s:o, s:I, s:I, s:s, s:o}", "user", admin_text(user->name),
                             "sessions", (json_int_t)user->sessions, "parked",
                             (json_int_t)user->parked, "shard", user->shard, "oldest_seconds",
                             user->sessions == 0
                                 ? json_null()
                                 : json_integer((json_int_t)(user->oldest_ms / 1000))));
    }
    if (users->told < users->sorted_count)
        return;
    admin_answer(users->call, json_null());
    release(users);
}

static void on_drained(struct admin_call *call)
{
    struct user_list *users = call->state;

    if (!users->is_under_way)
        tell(users);
}

/* --- the call --- */

static void fail(struct user_list *users)
{
    if (users->call != NULL)
        admin_answer(users->call, NULL);
    release(users);
}

static void on_asked(struct ask *ask)
{
    struct user_list *users = of_ask(ask);

    users->is_under_way = false;
    for (size_t i = 0; i < users->part_count; i++)
        add_parked(users, &users->parts[i]);
    if (users->call == NULL || users->out_of_memory || !sort(users))
        fail(users);
    else
        tell(users);
}

static void on_counted(struct census *census)
{
    struct user_list *users = (struct user_list *)census;
    struct control *control = users->control;

    users->is_under_way = false;
    if (users->call == NULL) {
        release(users);
        return;
    }
    users->part_count = workers_count(control->workers);
    users->parts = mem_array(users->part_count, sizeof *users->parts);
    users->is_under_way =
        users->parts != NULL && ask_workers(&users->ask, control->workers, &control->inbox);
    if (!users->is_under_way)
        fail(users);
}

static void cancel(struct admin_call *call)
{
    struct user_list *users = call->state;

    users->call = NULL;
    if (!users->is_under_way)
        release(users);
    else if (users->parts == NULL)
        census_cancel(&users->census);
}

void run_users(struct admin_call *call)
{
    struct control *control = call->context;
    const char *shard = admin_argument(call, "shard");
    size_t limit;

    if (!admin_read_limit(call, SIZE_MAX, &limit))
        return;
    if (shard != NULL && conf_find_shard(control->env.conf, shard) == NULL) {
        admin_refuse(call, "there is no shard \"%.63s\"", shard);
        return;
    }
    struct user_list *users = mem_new(sizeof *users);
    if (users == NULL) {
        admin_answer(call, NULL);
        return;
    }
    users->census =
        (struct census){.wants = wants, .on_sessions = on_sessions, .on_done = on_counted};
    users->ask = (struct ask){.visit = visit, .on_done = on_asked};
    users->control = control;
    users->limit = limit;
    users->shard = shard == NULL ? NULL : mem_copy_text(shard, strlen(shard));
    users->is_under_way =
        (shard == NULL || users->shard != NULL) && census_begin(&users->census, control);
    if (!users->is_under_way) {
        release(users);
        admin_answer(call, NULL);
        return;
    }
    users->call = call;
    call->state = users;
    call->cancel = cancel;
    call->on_drained = on_drained;
}
