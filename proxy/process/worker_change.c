/* Owns what a worker opens for another configuration, until that is in force. */
#include "proxy/process/worker_change.h"

#include "proxy/base/conf_change.h"
#include "proxy/base/mem.h"
#include "proxy/session/users.h"
#include "proxy/store/pool_change.h"

struct worker_change {
    const struct conf *conf; /* this and the next are held */
    const struct tls *tls;
    struct auth *auth; /* NULL: the one that is there stays */
    struct router *router;
    struct pool_change *pool;
    struct span *capabilities; /* for more shards */
};

void worker_set_filter(struct home *home)
{
    const struct conf_capability *conf = &home->env.conf->capability;

    home->filter = (struct caps_filter){.remove = (const char *const *)conf->remove.items,
                                        .remove_count = conf->remove.count,
                                        .add = (const char *const *)conf->add.items,
                                        .add_count = conf->add.count,
                                        .common = home->shard_capabilities,
                                        .common_count = home->shard_count};
}

/* --- the first step --- */

static bool open_auth(struct home *home, struct worker_change *change, const struct env *next,
                      struct err *err)
{
    if (conf_same_auth(auth_env(home->auth)->conf, change->conf))
        return true;
    change->auth = auth_open(next, auth_throttle(home->auth), err);
    return change->auth != NULL;
}

static bool open_router(struct home *home, struct worker_change *change, const struct env *next,
                        struct err *err)
{
    struct router_view view = *router_view(home->router);

    view.before = home->router;
    change->router = router_open(next, &view, err);
    return change->router != NULL;
}

bool worker_prepare(struct home *home, const struct conf *conf, const struct tls *tls,
                    struct err *err)
{
    struct worker_change *change = mem_new(sizeof *change);
    struct env next = home->env;

    if (change == NULL)
        return err_set(err, ERR_INTERNAL, "no memory");
    home->change = change;
    change->conf = next.conf = conf_hold(conf);
    change->tls = tls_hold(tls);
    change->capabilities = mem_array(conf->shard_titles.count, sizeof(struct span));
    change->pool = pool_prepare(home->pool, conf, tls);
    if (change->capabilities == NULL || change->pool == NULL)
        err_set(err, ERR_INTERNAL, "no memory");
    else if (open_auth(home, change, &next, err) && open_router(home, change, &next, err))
        return true;
    worker_discard(home);
    return false;
}

/* --- the second step --- */

static void end_change(struct home *home)
{
    struct worker_change *change = home->change;

    home->change = NULL;
    mem_free(change->capabilities);
    tls_release(&change->tls);
    conf_release(&change->conf);
    mem_free(change);
}

void worker_discard(struct home *home)
{
    struct worker_change *change = home->change;

    if (change == NULL)
        return;
    pool_discard(&change->pool);
    router_close(&change->router);
    auth_close(&change->auth);
    end_change(home);
}

static void swap_conf(struct home *home, struct worker_change *change)
{
    const struct conf *conf = home->env.conf;
    const struct tls *tls = home->tls;

    home->env.conf = change->conf;
    home->tls = change->tls;
    change->conf = conf;
    change->tls = tls;
}

/* Of a shard that was removed nothing counts any more. */
static void take_capabilities(struct home *home, struct worker_change *change)
{
    struct span *old = home->shard_capabilities;

    for (size_t id = 0; id < home->shard_count; id++) {
        if (conf_shard_of(home->env.conf, id) != NULL)
            change->capabilities[id] = old[id];
        else
            mem_free((void *)old[id].ptr);
    }
    home->shard_capabilities = change->capabilities;
    home->shard_count = home->env.conf->shard_titles.count;
    change->capabilities = old;
    worker_set_filter(home);
}

/* As if an operator had taken the shard down: nobody's route leads there any more. */
static void let_go_of_removed(struct home *home, const struct conf *before)
{
    for (size_t i = 0; i < before->shard_count; i++) {
        const struct conf_shard *shard = &before->shards[i];

        if (conf_shard_of(home->env.conf, shard->id) == NULL)
            users_let_go(home, shard->id, shard->drain_time);
    }
}

void worker_commit(struct home *home)
{
    struct worker_change *change = home->change;

    swap_conf(home, change);
    if (change->auth != NULL) {
        auth_retire(&home->auth);
        home->auth = change->auth;
    }
    router_take_over(change->router, &home->router);
    home->router = change->router;
    take_capabilities(home, change);
    pool_commit(home->pool, &change->pool);
    let_go_of_removed(home, change->conf);
    end_change(home);
}
