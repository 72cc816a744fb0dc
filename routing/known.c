/*
 * Owns a table of users. Of each it has a route, or the last event, or both; a route that does not
 * agree with the last event is dropped. What events have told is kept without a route, too, for
 * answers may come that are older: from before the event, or from a server that was cut off from
 * the others. Such entries take a quarter of the places at most when places are short.
 *
 * An event that had to make room is not quite forgotten: `lost_event` says that what was asked
 * before it is to be asked again, whoever it is about.
 */
#include "routing/known.h"

#include "proxy/base/clock.h"
#include "proxy/base/hash.h"

#include <assert.h>
#include <stdio.h>
#include <utlist.h>

/*
 * An event that nothing has confirmed for so long does not stand against what Redis says: it may
 * have been of a master whose last words were lost with it.
 */
enum { TOLD_MS = 60 * 1000 };

struct entry {
    UT_hash_handle hh;
    struct entry *prev, *next; /* in the list that it belongs to; who came last is first */
    size_t shard;              /* its id, and one more; 0 without a route */
    const char *source;
    char *backend_user; /* NULL: Redis names none */
    uint64_t epoch;
    uint64_t read_ms;    /* when it was asked for */
    uint64_t told_epoch; /* by the last event */
    uint64_t told_ms;
    uint64_t told_event; /* its number; 0: there was none */
    bool told_gone;
    char user[];
};

struct list {
    struct entry *recent;
    size_t count;
};

struct known {
    size_t holders;
    const struct conf *conf; /* in force: held */
    const struct freshness *freshness;
    struct counters *counters;
    size_t worker_count;
    struct entry *by_user;
    struct list routes, told; /* entries with a route, and without */
    uint64_t event_count;
    uint64_t lost_event; /* the last one that is not in the table any more */
};

/* --- life --- */

struct known *known_open(const struct conf *conf, const struct router_view *view,
                         struct counters *counters, struct err *err)
{
    static const struct freshness none;
    struct known *known = mem_new(sizeof *known);

    if (known == NULL) {
        err_set(err, ERR_INTERNAL, "route: no memory");
        return NULL;
    }
    known->holders = 1;
    known->conf = conf_hold(conf);
    known->freshness = view->freshness == NULL ? &none : view->freshness;
    known->counters = counters;
    known->worker_count = view->worker_count == 0 ? 1 : view->worker_count;
    return known;
}

struct known *known_hold(struct known *known)
{
    known->holders++;
    return known;
}

static struct list *list_of(struct known *known, const struct entry *entry)
{
    return entry->shard != 0 ? &known->routes : &known->told;
}

static void leave_list(struct known *known, struct entry *entry)
{
    struct list *list = list_of(known, entry);

    DL_DELETE(list->recent, entry);
    list->count--;
    if (list == &known->routes)
        gauge_add(&known->counters->routes_known, -1);
}

static void enter_list(struct known *known, struct entry *entry, bool as_first)
{
    struct list *list = list_of(known, entry);

    if (as_first)
        DL_PREPEND(list->recent, entry);
    else
        DL_APPEND(list->recent, entry);
    list->count++;
    if (list == &known->routes)
        gauge_add(&known->counters->routes_known, 1);
}

static void drop(struct known *known, struct entry *entry)
{
    assert(known->by_user != NULL);
    leave_list(known, entry);
    if (entry->told_event > known->lost_event)
        known->lost_event = entry->told_event;
    HASH_DEL(known->by_user, entry);
    mem_free(entry->backend_user);
    mem_free(entry);
}

void known_release(struct known **known)
{
    struct known *k = *known;

    *known = NULL;
    if (k == NULL || --k->holders > 0)
        return;
    while (k->routes.recent != NULL)
        drop(k, k->routes.recent);
    while (k->told.recent != NULL)
        drop(k, k->told.recent);
    conf_release(&k->conf);
    mem_free(k);
}

/* --- entries --- */

static struct entry *find(const struct known *known, const char *user)
{
    struct entry *entry;

    HASH_FIND_STR(known->by_user, user, entry);
    return entry;
}

/* This worker's part. */
static size_t max_of(const struct known *known)
{
    return (size_t)known->conf->route.max_known / known->worker_count + 1;
}

static void make_room(struct known *known, size_t max)
{
    struct list *list = &known->routes;

    if (HASH_COUNT(known->by_user) < max)
        return;
    if (known->told.count > max / 4 || list->count == 0)
        list = &known->told;
    drop(known, list->recent->prev); /* the head's prev is the tail */
}

/* In no list yet. NULL without memory. */
static struct entry *entry_new(struct known *known, const char *user)
{
    size_t len = strlen(user);
    struct entry *entry = mem_new(sizeof *entry + len + 1);

    if (entry == NULL)
        return NULL;
    make_room(known, max_of(known));
    memcpy(entry->user, user, len);
    HASH_ADD_STR(known->by_user, user, entry);
    if (entry->hh.tbl != NULL)
        return entry;
    mem_free(entry);
    return NULL;
}

/* The entry is in no list. */
static void clear_route(struct entry *entry)
{
    entry->shard = 0;
    mem_free(entry->backend_user);
    entry->backend_user = NULL;
}

/* Titles stay with their ids, those of shards that were removed, too. */
static const char *shard_of(const struct known *known, const struct entry *entry)
{
    return known->conf->shard_titles.items[entry->shard - 1];
}

void known_use(struct known *known, const struct conf *conf)
{
    const struct conf *old = known->conf;

    known->conf = conf_hold(conf);
    conf_release(&old);
    while (HASH_COUNT(known->by_user) > max_of(known))
        make_room(known, max_of(known));
}

/* --- looking --- */

/* The clock is looked at last, so that it is never behind what the control thread has written. */
static bool is_fresh(const struct known *known, const struct entry *entry)
{
    uint64_t since = atomic_load(&known->freshness->complete_since_ms);
    uint64_t until = atomic_load(&known->freshness->events_until_ms);
    uint64_t now = clock_ms();

    return entry->read_ms >= since && now < until &&
           now - entry->read_ms < known->conf->route.cache_ttl;
}

static bool may_serve(const struct known *known, const struct entry *entry)
{
    return entry->read_ms >= atomic_load(&known->freshness->known_since_ms);
}

bool known_find(struct known *known, const char *user, enum known_use use, struct route *route_out)
{
    struct entry *entry = find(known, user);

    if (entry == NULL || entry->shard == 0 || !may_serve(known, entry))
        return false;
    if (use == KNOWN_FRESH ? !is_fresh(known, entry)
                           : clock_ms() >= atomic_load(&known->freshness->fence_ms))
        return false;
    leave_list(known, entry);
    enter_list(known, entry, true);
    *route_out = (struct route){.state = ROUTE_ACTIVE,
                                .epoch = entry->epoch,
                                .source = entry->source,
                                .age_ms = clock_ms() - entry->read_ms};
    snprintf(route_out->shard, sizeof route_out->shard, "%s", shard_of(known, entry));
    if (entry->backend_user != NULL)
        snprintf(route_out->backend_user, sizeof route_out->backend_user, "%s",
                 entry->backend_user);
    return true;
}

struct route_moment known_moment(const struct known *known)
{
    return (struct route_moment){clock_ms(), known->event_count};
}

/*
 * Whoever was asked after the event may still be a server that has not heard of it, but that counts
 * only while the events come from the same one: after that epochs may have begun anew.
 */
bool known_is_outdated(const struct known *known, const char *user, struct route_moment asked,
                       uint64_t epoch)
{
    const struct entry *entry = find(known, user);

    if (known->lost_event > asked.event)
        return true;
    if (entry == NULL || entry->told_event == 0)
        return false;
    if (entry->told_event > asked.event)
        return entry->told_gone || epoch < entry->told_epoch;
    return entry->told_ms >= atomic_load(&known->freshness->complete_since_ms) &&
           clock_ms() - entry->told_ms < TOLD_MS && epoch < entry->told_epoch;
}

/* --- learning --- */

/*
 * Takes over a route; there is none without memory, or when the shard was removed meanwhile. The
 * entry is in no list.
 */
static void set_route(struct known *known, struct entry *entry, const char *title,
                      const char *backend_user)
{
    const struct conf_shard *shard = conf_find_shard(known->conf, title);

    clear_route(entry);
    if (shard == NULL)
        return;
    if (backend_user[0] != '\0') {
        entry->backend_user = mem_copy_text(backend_user, strlen(backend_user));
        if (entry->backend_user == NULL)
            return;
    }
    entry->shard = shard->id + 1;
}

void known_keep(struct known *known, const char *user, struct route_moment asked,
                const struct route *route, const char *source)
{
    struct entry *entry = find(known, user);

    assert(route->state == ROUTE_ACTIVE);
    if (entry != NULL)
        leave_list(known, entry);
    else
        entry = entry_new(known, user);
    if (entry == NULL)
        return;
    entry->epoch = route->epoch;
    entry->read_ms = asked.ms;
    entry->source = source;
    set_route(known, entry, route->shard, route->backend_user);
    enter_list(known, entry, true);
}

void known_forget(struct known *known, const char *user)
{
    struct entry *entry = find(known, user);

    if (entry == NULL || entry->shard == 0)
        return;
    if (entry->told_event == 0) {
        drop(known, entry);
        return;
    }
    leave_list(known, entry);
    clear_route(entry);
    enter_list(known, entry, true);
}

void known_learn(struct known *known, const char *user, uint64_t epoch, enum route_state state)
{
    struct entry *entry = find(known, user);

    known->event_count++;
    if (entry != NULL)
        leave_list(known, entry);
    else
        entry = entry_new(known, user);
    if (entry == NULL) {
        known->lost_event = known->event_count;
        return;
    }
    entry->told_event = known->event_count;
    entry->told_ms = clock_ms();
    entry->told_gone = state == ROUTE_GONE;
    entry->told_epoch = entry->told_gone ? 0 : epoch;
    if (state != ROUTE_ACTIVE || entry->epoch != epoch)
        clear_route(entry);
    enter_list(known, entry, true);
}

/* --- snapshots --- */

void known_each(const struct known *known,
                void (*visit)(void *owner, const struct known_route *route), void *owner)
{
    for (const struct entry *entry = known->routes.recent; entry != NULL; entry = entry->next) {
        struct known_route route = {.user = entry->user,
                                    .shard = shard_of(known, entry),
                                    .backend_user =
                                        entry->backend_user == NULL ? "" : entry->backend_user,
                                    .epoch = entry->epoch,
                                    .age_ms = clock_ms() - entry->read_ms};

        if (may_serve(known, entry))
            visit(owner, &route);
    }
}

void known_add(struct known *known, const struct known_route *route)
{
    uint64_t now = clock_ms();
    struct entry *entry;

    if (conf_find_shard(known->conf, route->shard) == NULL || find(known, route->user) != NULL ||
        HASH_COUNT(known->by_user) >= max_of(known))
        return;
    entry = entry_new(known, route->user);
    if (entry == NULL)
        return;
    entry->epoch = route->epoch;
    entry->read_ms = route->age_ms < now ? now - route->age_ms : 0;
    entry->source = "snapshot";
    set_route(known, entry, route->shard, route->backend_user);
    enter_list(known, entry, false);
}
