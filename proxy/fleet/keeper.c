/*
 * Owns when the file of last known routes is written, and what the process before this one has left
 * there until the routers have it. Routes are gathered by each worker, and written by a thread of
 * libuv's pool.
 */
#include "proxy/fleet/keeper.h"

#include "proxy/base/clock.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/process/ask.h"
#include "routing/snapshot.h"

#include <sys/queue.h>

enum { WRITE_EACH_MS = 30000 };

struct left_route {
    STAILQ_ENTRY(left_route) link;
    struct known_route route; /* its texts are behind it */
};

struct keeper {
    struct ask ask; /* first member */
    struct control *control;
    const char *id;
    struct snapshot *snapshot;
    struct snapshot_head left, head; /* as they were read; as they are being written */
    uint64_t read_ms, left_fence_ms; /* of clock_ms */
    STAILQ_HEAD(left_routes, left_route) routes;

    uint64_t fence_ms;   /* of Redis' last confirmation; 0: there was none */
    uint64_t written_ms; /* when the last writing began */
    uint64_t written_fence_ms;
    uv_work_t work;
    struct buf *parts; /* of each worker, while something is being written */
    size_t part_count;
    struct err err;
    bool writing, closing, complained;
    bool forgotten; /* what is being written is of no use any more */
    bool again;     /* somebody wants what was learned since that began, too */
    void (*on_kept)(void *owner);
    void *owner;
};

/* What goes wrong is logged once, until it goes well again. */
static void complain(struct keeper *keeper, const struct err *err)
{
    if (!keeper->complained)
        log_event(LOG_LEVEL_ERROR, "snapshot not kept", "%s", err->text);
    keeper->complained = true;
}

/* --- what was left --- */

/* Without memory the route is left out. */
static void take_route(void *owner, const struct known_route *route)
{
    struct keeper *keeper = owner;
    size_t user = strlen(route->user) + 1, shard = strlen(route->shard) + 1,
           backend_user = strlen(route->backend_user) + 1;
    struct left_route *left = mem_new(sizeof *left + user + shard + backend_user);
    char *text;

    if (left == NULL)
        return;
    text = (char *)(left + 1);
    left->route = *route;
    left->route.user = memcpy(text, route->user, user);
    left->route.shard = memcpy(text + user, route->shard, shard);
    left->route.backend_user = memcpy(text + user + shard, route->backend_user, backend_user);
    STAILQ_INSERT_TAIL(&keeper->routes, left, link);
}

static void read_file(struct keeper *keeper)
{
    uint64_t now = clock_wall_ms();
    struct err err = {0};

    keeper->read_ms = clock_ms();
    if (!snapshot_read(keeper->snapshot, now, &keeper->left, take_route, keeper, &err))
        log_event(LOG_LEVEL_WARNING, "snapshot unusable", "%s", err.text);
    if (keeper->left.fence_ms > now)
        keeper->left_fence_ms = keeper->read_ms + (keeper->left.fence_ms - now);
}

struct keeper *keeper_open(struct control *control, const char *id)
{
    const char *path = control->env.conf->route.snapshot;
    struct keeper *keeper = path[0] == '\0' ? NULL : mem_new(sizeof *keeper);
    struct err err = {0};

    if (keeper == NULL)
        return NULL;
    STAILQ_INIT(&keeper->routes);
    keeper->control = control;
    keeper->id = id;
    keeper->snapshot = snapshot_open(path, &err);
    if (keeper->snapshot == NULL) {
        complain(keeper, &err);
        mem_free(keeper);
        return NULL;
    }
    read_file(keeper);
    return keeper;
}

const char *keeper_predecessor(const struct keeper *keeper)
{
    return keeper->left.proxy;
}

uint64_t keeper_fence_ms(const struct keeper *keeper)
{
    return keeper->left_fence_ms;
}

static struct left_route *pop_route(struct keeper *keeper)
{
    struct left_route *left = STAILQ_FIRST(&keeper->routes);

    if (left != NULL)
        STAILQ_REMOVE_HEAD(&keeper->routes, link);
    return left;
}

void keeper_drop(struct keeper *keeper)
{
    struct left_route *left;

    while ((left = pop_route(keeper)) != NULL)
        mem_free(left);
    keeper->left_fence_ms = 0;
}

void keeper_teach(struct keeper *keeper, struct workers *workers)
{
    uint64_t later_ms = clock_ms() - keeper->read_ms;
    uint64_t count = 0;
    struct left_route *left;

    while ((left = pop_route(keeper)) != NULL) {
        left->route.age_ms += later_ms;
        workers_know(workers, &left->route);
        mem_free(left);
        count++;
    }
    if (count > 0)
        log_event(LOG_LEVEL_INFO, "snapshot read", "routes=%llu", (unsigned long long)count);
}

/* --- writing --- */

static void free_parts(struct keeper *keeper)
{
    for (size_t i = 0; keeper->parts != NULL && i < keeper->part_count; i++)
        buf_release(&keeper->parts[i]);
    mem_free(keeper->parts);
    keeper->parts = NULL;
}

static void free_keeper(struct keeper *keeper)
{
    keeper_drop(keeper);
    free_parts(keeper);
    snapshot_close(&keeper->snapshot);
    mem_free(keeper);
}

static void end_writing(struct keeper *keeper)
{
    void (*on_kept)(void *owner) = keeper->on_kept;
    bool again = keeper->again && !keeper->forgotten;

    free_parts(keeper);
    keeper->writing = keeper->again = false;
    keeper->on_kept = NULL;
    if (keeper->err.kind != ERR_NONE)
        complain(keeper, &keeper->err);
    else
        keeper->complained = false;
    if (keeper->forgotten)
        keeper_forget(keeper);
    if (keeper->closing)
        free_keeper(keeper);
    else if (on_kept != NULL && !(again && keeper_write(keeper, on_kept, keeper->owner)))
        on_kept(keeper->owner);
}

/* In a thread of libuv's pool. */
static void write_file(uv_work_t *work)
{
    struct keeper *keeper = work->data;
    struct span *spans = mem_array(keeper->part_count, sizeof *spans);

    for (size_t i = 0; spans != NULL && i < keeper->part_count; i++)
        spans[i] = buf_span(&keeper->parts[i]);
    if (spans == NULL)
        err_set(&keeper->err, ERR_INTERNAL, "out of memory");
    else
        snapshot_write(keeper->snapshot, &keeper->head, spans, keeper->part_count, &keeper->err);
    mem_free(spans);
}

static void on_written(uv_work_t *work, int status)
{
    struct keeper *keeper = work->data;

    if (status != 0)
        err_set(&keeper->err, ERR_INTERNAL, "%s", uv_strerror(status));
    if (keeper->err.kind == ERR_NONE)
        snapshot_written(keeper->snapshot, &keeper->head);
    end_writing(keeper);
}

/* On the worker's thread. */
static void gather(struct ask *ask, struct home *home, size_t number)
{
    struct keeper *keeper = (struct keeper *)ask;

    router_known_each(home->router, snapshot_add, &keeper->parts[number]);
}

static void on_gathered(struct ask *ask)
{
    struct keeper *keeper = (struct keeper *)ask;

    keeper->work.data = keeper;
    if (uv_queue_work(keeper->control->env.loop, &keeper->work, write_file, on_written) == 0)
        return;
    err_set(&keeper->err, ERR_INTERNAL, "no work can be queued");
    end_writing(keeper);
}

/* Times of clock_ms become those of the clock on the wall here. */
static void fill_head(struct keeper *keeper, uint64_t fence_ms)
{
    uint64_t now = clock_ms(), wall = clock_wall_ms();

    keeper->head = (struct snapshot_head){.written_ms = wall,
                                          .fence_ms = fence_ms > now ? wall + (fence_ms - now) : 0,
                                          .mark = snapshot_mark(keeper->snapshot)};
    snprintf(keeper->head.proxy, sizeof keeper->head.proxy, "%s", keeper->id);
}

bool keeper_write(struct keeper *keeper, void (*on_kept)(void *owner), void *owner)
{
    struct control *control = keeper->control;

    if (keeper->writing) {
        keeper->again = true;
        keeper->on_kept = on_kept;
        keeper->owner = owner;
        return true;
    }
    if (control->workers == NULL || keeper->fence_ms == 0)
        return false; /* what was read still holds */
    keeper->err = (struct err){0};
    keeper->part_count = workers_count(control->workers);
    keeper->parts = mem_array(keeper->part_count, sizeof *keeper->parts);
    for (size_t i = 0; keeper->parts != NULL && i < keeper->part_count; i++)
        buf_init(&keeper->parts[i], BUF_CEILING_MAX);
    fill_head(keeper, keeper->fence_ms);
    keeper->ask = (struct ask){.visit = gather, .on_done = on_gathered};
    if (keeper->parts == NULL || !ask_workers(&keeper->ask, control->workers, &control->inbox)) {
        free_parts(keeper);
        return false;
    }
    keeper->writing = true;
    keeper->written_ms = clock_ms();
    keeper->written_fence_ms = keeper->fence_ms;
    keeper->on_kept = on_kept;
    keeper->owner = owner;
    return true;
}

void keeper_confirm(struct keeper *keeper, uint64_t fence_ms)
{
    keeper->fence_ms = fence_ms;
    if (!keeper->writing && fence_ms > keeper->written_fence_ms &&
        (keeper->written_ms == 0 || clock_ms() - keeper->written_ms >= WRITE_EACH_MS))
        keeper_write(keeper, NULL, NULL);
}

bool keeper_void(struct keeper *keeper)
{
    struct err err = {0};

    fill_head(keeper, 0);
    if (snapshot_write(keeper->snapshot, &keeper->head, NULL, 0, &err))
        return true;
    complain(keeper, &err);
    return false;
}

void keeper_forget(struct keeper *keeper)
{
    keeper->forgotten = keeper->writing || !keeper_void(keeper);
    keeper->written_ms = 0; /* the next beat may fill it again */
    keeper->written_fence_ms = 0;
}

bool keeper_add_moved(struct keeper *keeper, const char *user, uint64_t epoch)
{
    struct err err = {0};

    if (snapshot_add_moved(keeper->snapshot, user, epoch, &err))
        return true;
    complain(keeper, &err);
    return false;
}

void keeper_close(struct keeper **keeper)
{
    struct keeper *k = *keeper;

    *keeper = NULL;
    if (k == NULL)
        return;
    k->closing = true;
    if (!k->writing)
        free_keeper(k);
}
