/*
 * Owns the checks of the stores. For each shard there is a *watch*, which looks its names up, and
 * for each address that these have a *check*, which opens a connection now and then, as a session
 * would, but at this address alone.
 */
#include "proxy/store/health.h"

#include "proxy/base/clock.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/dial.h"
#include "proxy/store/backend.h"
#include "proxy/store/health_state.h"

#include <stdio.h>
#include <sys/random.h>
#include <utlist.h>

struct check {
    struct watch *watch;
    struct check *prev, *next;
    union address address;
    char host[HOST_MAX]; /* the name that has it */
    char text[ADDRESS_TEXT_MAX];
    char *word;              /* the same, as the only one of... */
    struct conf_shard shard; /* the watch's shard at this address; borrows all texts */
    struct store_client client;
    struct tls_memory memory;
    struct backend_target target;
    struct backend *backend; /* NULL between two checks */
    uv_timer_t timer;        /* the next one */
    struct health_state state;
    uint64_t started_ms, ended_ms; /* of the last one, clock_ms */
    char why[sizeof((struct err){0}.text)];
    bool logging_in;
    bool probe_refused; /* it was said in the log */
    bool seen;          /* its name still has it */
};

/* All of one shard. */
struct watch {
    struct health *health;
    struct store *store;
    const struct conf_shard *shard; /* in force; NULL: it is not watched */
    struct dial dial;
    bool walking;
    bool is_counted;  /* among those that are down */
    uv_timer_t timer; /* the names are looked up again */
    struct check *checks;
    struct health_state names; /* whether they have any address at all */
    char why[sizeof((struct err){0}.text)];
};

struct health {
    struct env env; /* the control thread's, but for the counters; it holds the configuration */
    /* Of the connections that checks make: those of sessions shall not be mixed up with them. */
    struct counters unseen;
    struct counters *counters;
    const struct stores *stores;
    const struct tls *tls; /* held */
    struct health_rules rules;
    uv_async_t doubts;                     /* a worker has met a store that may not be well */
    struct watch *watches[CONF_SHARD_IDS]; /* by shard id */
    size_t count;
    size_t handles_open;
    bool stopped;
};

static void on_look_up(uv_timer_t *timer);
static void on_due(uv_timer_t *timer);
static void on_doubt(uv_async_t *doubts);
static void on_name(struct dial *dial, const struct err *err);
static void on_answer(void *owner, const struct err *err);
static void on_lost(void *owner);

static const struct backend_events events = {on_answer, on_lost};

/* A tenth earlier or later, so that what began together does not stay together. */
static uint64_t jittered(uint64_t ms)
{
    uint64_t random = 0, span = ms / 5;

    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random || span == 0)
        return ms;
    return ms - span / 2 + random % (span + 1);
}

static const struct conf_health *settings(const struct health *health)
{
    return &health->env.conf->health;
}

/* --- life --- */

struct health *health_open(const struct env *env, const struct tls *tls,
                           const struct stores *stores, struct err *err)
{
    struct health *health = mem_new(sizeof *health);

    if (health == NULL || uv_async_init(env->loop, &health->doubts, on_doubt) != 0) {
        mem_free(health);
        err_set(err, ERR_INTERNAL, "health checks: no memory or descriptors");
        return NULL;
    }
    health->env = *env;
    health->env.conf = conf_hold(env->conf);
    health->env.counters = &health->unseen;
    health->counters = env->counters;
    health->stores = stores;
    health->tls = tls_hold(tls);
    health->doubts.data = health;
    health->handles_open = 1;
    if (health_prepare(health, env->conf)) {
        health_commit(health, env->conf, tls);
        return health;
    }
    health_close(&health);
    err_set(err, ERR_INTERNAL, "health checks: no memory");
    return NULL;
}

void health_use_tls(struct health *health, const struct tls *tls)
{
    const struct tls *old = health->tls;

    health->tls = tls_hold(tls);
    for (size_t i = 0; i < health->count; i++)
        for (struct check *check = health->watches[i]->checks; check != NULL; check = check->next)
            check->target.tls = tls_shard_context(tls, &check->shard);
    tls_release(&old);
}

static void free_if_last(struct health *health)
{
    if (--health->handles_open > 0)
        return;
    tls_release(&health->tls);
    conf_release(&health->env.conf);
    for (size_t i = 0; i < CONF_SHARD_IDS; i++)
        mem_free(health->watches[i]);
    mem_free(health);
}

static void handle_closed(uv_handle_t *handle)
{
    struct watch *watch = handle->data;

    free_if_last(watch->health);
}

static void doubts_closed(uv_handle_t *handle)
{
    free_if_last(handle->data);
}

static void check_closed(uv_handle_t *handle)
{
    struct check *check = handle->data;
    struct health *health = check->watch->health;

    tls_memory_release(&check->memory);
    mem_free(check);
    free_if_last(health);
}

/* What is under way is given up. */
static void end_check(struct check *check)
{
    backend_close(&check->backend);
    shared_text_release(&check->target.greeting_capabilities);
    shared_text_release(&check->target.login_capabilities);
    shared_text_release(&check->target.login_text);
}

/* It may have been down: that is forgotten. */
static void close_check(struct check *check)
{
    DL_DELETE(check->watch->checks, check);
    end_check(check);
    uv_close((uv_handle_t *)&check->timer, check_closed);
}

void health_stop(struct health *health)
{
    health->stopped = true;
    for (size_t i = 0; i < health->count; i++) {
        struct watch *watch = health->watches[i];

        while (watch->checks != NULL)
            close_check(watch->checks);
        dial_release(&watch->dial);
        uv_timer_stop(&watch->timer);
    }
}

void health_close(struct health **health)
{
    struct health *h = *health;

    *health = NULL;
    if (h == NULL)
        return;
    health_stop(h);
    for (size_t i = 0; i < h->count; i++)
        uv_close((uv_handle_t *)&h->watches[i]->timer, handle_closed);
    uv_close((uv_handle_t *)&h->doubts, doubts_closed);
}

/* --- the verdict on a store --- */

static bool all_down(const struct watch *watch)
{
    if (watch->checks == NULL)
        return watch->names.is_down;
    for (const struct check *check = watch->checks; check != NULL; check = check->next)
        if (!check->state.is_down)
            return false;
    return true;
}

static void count_down(struct watch *watch, bool is_down)
{
    gauge_add(&watch->health->counters->stores_down, (int)is_down - (int)watch->is_counted);
    watch->is_counted = is_down;
}

/*
 * Down is a store of which all addresses are down, but not one that has greeted a login since the
 * check began that tells us so: it may have no room for a check, and still serve.
 */
static void judge(struct watch *watch, uint64_t started_ms)
{
    struct store *store = watch->store;
    bool was_down = atomic_load(&store->is_down), is_down = all_down(watch);

    if (is_down && !was_down && watch->checks != NULL &&
        atomic_load(&store->reached_ms) > started_ms)
        return;
    store_found(store, is_down, watch->why);
    count_down(watch, is_down);
}

static void log_address(const struct check *check)
{
    if (check->watch->checks->next == NULL)
        return; /* the store's own line says it */
    if (check->state.is_down)
        log_event(LOG_LEVEL_WARNING, "store address is down", "%s of shard %s: %s", check->text,
                  check->shard.title, check->why);
    else
        log_event(LOG_LEVEL_WARNING, "store address is back", "%s of shard %s", check->text,
                  check->shard.title);
}

/*
 * Workers dial it last, or as usual again. Who is on the way to it goes elsewhere if there is
 * anywhere; if not, it is the verdict on the store that counts.
 */
static void tell_address(struct check *check, bool is_down)
{
    struct store *store = check->watch->store;

    store_address_found(store, &check->address, is_down);
    if (is_down && !all_down(check->watch))
        store_leave_down_addresses(store);
    gauge_add(&check->watch->health->counters->addresses_down, is_down ? 1 : -1);
}

/* --- one check --- */

static void schedule(struct check *check)
{
    const struct health_rules *rules = &check->watch->health->rules;

    uv_timer_start(&check->timer, on_due, jittered(health_state_pause(&check->state, rules)), 0);
}

static void take_result(struct check *check, bool good, const char *why)
{
    struct watch *watch = check->watch;
    struct health *health = watch->health;

    counter_add(good ? &health->counters->health_good : &health->counters->health_failed, 1);
    snprintf(check->why, sizeof check->why, "%s", why);
    snprintf(watch->why, sizeof watch->why, "%s", why);
    if (health_state_take(&check->state, &health->rules, good, clock_ms())) {
        tell_address(check, check->state.is_down);
        log_address(check);
    }
    judge(watch, check->started_ms);
}

static void begin_check(struct check *check)
{
    const struct conf_health *conf = settings(check->watch->health);
    bool by_proxy_header = check->shard.client_address == CLIENT_ADDRESS_PROXY;

    check->started_ms = clock_ms();
    check->logging_in = false;
    check->shard.connect_timeout = conf->timeout;
    check->backend = backend_open(&check->watch->health->env, &check->target,
                                  by_proxy_header ? &check->client : NULL, &events, check);
    if (check->backend == NULL)
        schedule(check); /* no memory: that says nothing about the store */
}

static void on_due(uv_timer_t *timer)
{
    begin_check(timer->data);
}

/* Both steps together have the one time. */
static void log_in(struct check *check)
{
    uint64_t passed = clock_ms() - check->started_ms,
             timeout = settings(check->watch->health)->timeout;

    check->logging_in = true;
    check->shard.login_timeout = passed < timeout ? timeout - passed : 1;
    backend_log_in(check->backend, &check->client);
}

/* The store has an answer, but not for this user: that is for somebody to mend, once. */
static void note_refusal(struct check *check, const struct err *err)
{
    if (!check->probe_refused)
        log_event(LOG_LEVEL_ERROR, "probe user refused", "shard %s: %s", check->shard.title,
                  err->text);
    check->probe_refused = true;
}

static void on_answer(void *owner, const struct err *err)
{
    struct check *check = owner;
    bool is_answer = err->kind == ERR_NONE || check->logging_in;

    if (err->kind == ERR_NONE && !check->logging_in && check->shard.probe_user[0] != '\0') {
        log_in(check);
        return;
    }
    if (err->kind == ERR_NONE && check->logging_in) {
        check->probe_refused = false;
        backend_log_out(check->backend);
    }
    backend_close(&check->backend);
    check->ended_ms = clock_ms();
    if (err->kind == ERR_UNAVAILABLE) {
        take_result(check, false, err->text);
    } else if (is_answer) {
        if (err->kind != ERR_NONE)
            note_refusal(check, err);
        take_result(check, true, "");
    } /* else it is we who lack something: descriptors, memory */
    schedule(check);
}

/* It is never kept between two operations; but the contract has it. */
static void on_lost(void *owner)
{
    struct check *check = owner;

    backend_close(&check->backend);
    schedule(check);
}

/* --- addresses --- */

static void set_target(struct check *check)
{
    struct watch *watch = check->watch;
    struct conf_shard *shard = &check->shard;

    *shard = *watch->shard;
    shard->address = (struct conf_words){&check->word, 1};
    if (shard->tls_name[0] == '\0')
        shard->tls_name = check->host;
    if (shard->client_address == CLIENT_ADDRESS_ID)
        shard->client_address = CLIENT_ADDRESS_NONE; /* there is no client */
    if (shard->probe_user[0] != '\0')
        shard->login = SHARD_LOGIN_PASSWORD;
    check->client = (struct store_client){.user = shard->probe_user,
                                          .password = &watch->shard->probe_password,
                                          .session_id = "health",
                                          .proxy_ttl = 1};
    check->target = (struct backend_target){
        .shard = shard,
        .tls = tls_shard_context(watch->health->tls, watch->shard),
        .memories = &check->memory,
    };
}

/* Its first check follows at once. Without memory it is found again at the next walk. */
static void add_check(struct watch *watch, const union address *address, const char *host)
{
    struct check *check = mem_new(sizeof *check);

    if (check == NULL)
        return;
    check->watch = watch;
    check->address = *address;
    check->seen = true;
    snprintf(check->host, sizeof check->host, "%s", host);
    address_text(address, check->text);
    check->word = check->text;
    set_target(check);
    uv_timer_init(watch->health->env.loop, &check->timer);
    check->timer.data = check;
    watch->health->handles_open++;
    DL_APPEND(watch->checks, check);
    uv_timer_start(&check->timer, on_due, 0, 0);
}

static void see(struct watch *watch, const union address *address, const char *host)
{
    char text[ADDRESS_TEXT_MAX];

    address_text(address, text);
    for (struct check *check = watch->checks; check != NULL; check = check->next) {
        if (strcmp(check->text, text) == 0 && strcmp(check->host, host) == 0) {
            check->seen = true;
            return;
        }
    }
    add_check(watch, address, host);
}

/* The walk over all names is over. */
static void end_walk(struct watch *watch)
{
    const struct health_rules *rules = &watch->health->rules;
    struct check *next;

    watch->walking = false;
    dial_release(&watch->dial);
    for (struct check *check = watch->checks; check != NULL; check = next) {
        next = check->next;
        if (check->seen)
            continue;
        if (check->state.is_down)
            tell_address(check, false);
        close_check(check);
    }
    health_state_take(&watch->names, rules, watch->checks != NULL, clock_ms());
    judge(watch, 0);
    uv_timer_start(&watch->timer, on_look_up, jittered(health_state_pause(&watch->names, rules)),
                   0);
}

static void walk(struct watch *watch)
{
    for (;;) {
        switch (dial_next(&watch->dial)) {
        case DIAL_ADDRESS:
            see(watch, watch->dial.to, watch->dial.host);
            break;
        case DIAL_LATER:
            return;
        case DIAL_END:
            end_walk(watch);
            return;
        }
    }
}

/* A name that cannot be looked up now keeps the addresses that it had. */
static void on_name(struct dial *dial, const struct err *err)
{
    struct watch *watch = dial->owner;

    if (err->kind != ERR_NONE) {
        snprintf(watch->why, sizeof watch->why, "%s", err->text);
        for (struct check *check = watch->checks; check != NULL; check = check->next)
            check->seen = check->seen || strcmp(check->host, dial->host) == 0;
    }
    walk(watch);
}

static void on_look_up(uv_timer_t *timer)
{
    struct watch *watch = timer->data;

    for (struct check *check = watch->checks; check != NULL; check = check->next)
        check->seen = false;
    watch->walking = true;
    watch->dial = (struct dial){.env = &watch->health->env,
                                .names = &watch->shard->address,
                                .on_ready = on_name,
                                .owner = watch};
    walk(watch);
}

/* --- another configuration --- */

static void open_watch(struct health *health, struct watch *watch)
{
    struct store *store = health->stores->by_id[health->count];

    watch->health = health;
    watch->store = store;
    uv_timer_init(health->env.loop, &watch->timer);
    watch->timer.data = watch;
    health->handles_open++;
    health->count++;
    store_watch(store, &health->doubts);
}

/* Nothing is known of it any more. */
static void stop_watch(struct watch *watch)
{
    while (watch->checks != NULL) {
        if (watch->checks->state.is_down)
            tell_address(watch->checks, false);
        close_check(watch->checks);
    }
    dial_release(&watch->dial);
    uv_timer_stop(&watch->timer);
    watch->walking = false;
    watch->names = (struct health_state){0};
    watch->why[0] = '\0';
    count_down(watch, false);
}

/* One that was under way begins at once; others no later than the new rules want. */
static void renew_check(struct check *check)
{
    const struct health_rules *rules = &check->watch->health->rules;
    uint64_t pause = check->backend != NULL ? 0 : health_state_pause(&check->state, rules);

    end_check(check);
    set_target(check);
    if (!uv_is_active((uv_handle_t *)&check->timer) || uv_timer_get_due_in(&check->timer) > pause)
        uv_timer_start(&check->timer, on_due, pause, 0);
}

/* `shard` is of the configuration in force; NULL: it is not to be watched. */
static void change_watch(struct watch *watch, const struct conf_shard *shard, uint64_t begin_ms)
{
    bool is_new = watch->shard == NULL;

    watch->shard = shard;
    if (shard == NULL) {
        stop_watch(watch);
        return;
    }
    for (struct check *check = watch->checks; check != NULL; check = check->next)
        renew_check(check);
    dial_release(&watch->dial);
    watch->walking = false;
    uv_timer_start(&watch->timer, on_look_up, is_new ? begin_ms : 0, 0);
}

/* What is made for a configuration that does not come into force serves the next one. */
bool health_prepare(struct health *health, const struct conf *conf)
{
    for (size_t id = health->count; id < conf->shard_titles.count; id++)
        if (health->watches[id] == NULL &&
            (health->watches[id] = mem_new(sizeof *health->watches[id])) == NULL)
            return false;
    return true;
}

void health_commit(struct health *health, const struct conf *conf, const struct tls *tls)
{
    const struct conf *old_conf = health->env.conf;
    const struct tls *old_tls = health->tls;
    const struct conf_health *rules = &conf->health;
    bool is_on = rules->interval > 0;

    health->env.conf = conf_hold(conf);
    health->tls = tls_hold(tls);
    health->rules = (struct health_rules){(uint32_t)rules->fall, (uint32_t)rules->rise,
                                          rules->interval, rules->max_interval};
    while (health->count < conf->shard_titles.count)
        open_watch(health, health->watches[health->count]);
    for (size_t i = 0; i < health->count; i++)
        change_watch(health->watches[i], is_on ? conf_shard_of(conf, i) : NULL,
                     rules->interval * i / health->count);
    conf_release(&old_conf);
    tls_release(&old_tls);
}

/* --- what sessions meet --- */

/* The next check comes soon, unless one is under way, or it is known to be down. */
static void bring_forward(struct check *check)
{
    uint64_t confirm = health_confirm_ms(&check->watch->health->rules);
    uint64_t since = clock_ms() - check->ended_ms, pause = since < confirm ? confirm - since : 0;

    if (check->backend == NULL && !check->state.is_down &&
        uv_timer_get_due_in(&check->timer) > pause)
        uv_timer_start(&check->timer, on_due, pause, 0);
}

static void on_doubt(uv_async_t *doubts)
{
    struct health *health = doubts->data;

    for (size_t i = 0; i < health->count && !health->stopped; i++) {
        struct watch *watch = health->watches[i];

        if (!atomic_exchange(&watch->store->is_doubted, false) || watch->shard == NULL)
            continue;
        if (watch->checks == NULL && !watch->walking)
            uv_timer_start(&watch->timer, on_look_up, 0, 0);
        for (struct check *check = watch->checks; check != NULL; check = check->next)
            bring_forward(check);
    }
}

/* --- for those who look --- */

static const char *state_name(bool is_down)
{
    return is_down ? "down" : "up";
}

void health_each_address(const struct health *health, const struct conf_shard *shard,
                         void (*visit)(void *owner, const struct health_address *address),
                         void *owner)
{
    const struct watch *watch = health->watches[shard->id];
    char text[ADDRESS_TEXT_MAX];

    for (size_t i = 0; watch->shard == NULL && i < shard->address.count; i++)
        visit(owner, &(struct health_address){shard->address.items[i], "not checked", ""});
    if (watch->shard != NULL && watch->checks == NULL)
        visit(owner, &(struct health_address){"", state_name(watch->names.is_down), watch->why});
    for (const struct check *check = watch->checks; check != NULL; check = check->next) {
        address_text(&check->address, text);
        visit(owner, &(struct health_address){text, state_name(check->state.is_down), check->why});
    }
}
