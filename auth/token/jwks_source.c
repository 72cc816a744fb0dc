/*
 * Owns when keys are loaded, and that a failure costs no keys. One load at a time: its results
 * belong to the pool's thread until load_done. One timer: when to load next.
 */
#include "auth/token/jwks_source.h"

#include "auth/token/jwks_fetch.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"

enum {
    OCTETS_MAX = 1 << 20,
    LOOK_MS = 1000, /* between two looks at a file */
    ASK_MS = 5000,  /* between two loads that tokens have asked for */
    RETRY_MIN_MS = 1000,
    RETRY_MAX_MS = 60000
};

struct found {
    struct jwks *keys;
    struct file_version file;
    struct err err;
};

struct jwks_source {
    const struct env *env;
    void (*on_load)(void *owner);
    void *owner;
    struct jwks *keys;           /* NULL before the first load that went well */
    uint64_t began_ns, ended_ns; /* the last load */
    uint64_t looked_ms;          /* at the file */
    struct file_version file;
    unsigned failures; /* since a load went well */
    struct err err;    /* of the last one */
    uv_timer_t next;
    bool loading, closing, timer_closed;

    /* The load: `stop` is for both sides, the rest for the thread. */
    uv_work_t work;
    atomic_bool stop;
    struct found found;
};

static bool file_has_changed(struct jwks_source *source);
static void schedule(struct jwks_source *source, uint64_t delay_ms);
static void time_to_load(uv_timer_t *timer);
static void start_load(struct jwks_source *source);
static void load(uv_work_t *work);
static void find(const struct conf_oauth *conf, const atomic_bool *stop, struct found *found);
static void load_done(uv_work_t *work, int status);
static void take_keys(struct jwks_source *source);
static void take_failure(struct jwks_source *source);
static void timer_closed(uv_handle_t *handle);
static void free_when_done(struct jwks_source *source);

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

struct jwks_source *jwks_source_open(const struct env *env, void (*on_load)(void *owner),
                                     void *owner, struct err *err)
{
    struct jwks_source *source = mem_new(sizeof *source);

    if (source == NULL) {
        err_set(err, ERR_INTERNAL, "oauth: no memory");
        return NULL;
    }
    source->env = env_hold(env);
    source->on_load = on_load;
    source->owner = owner;
    source->work.data = source;
    uv_timer_init(env->loop, &source->next);
    source->next.data = source;
    if (jwks_is_url(env->conf->oauth.keys)) {
        start_load(source);
        return source;
    }
    source->began_ns = uv_hrtime();
    load(&source->work);
    if (source->found.keys == NULL) {
        err_set(err, ERR_CONFIG, "%s", source->found.err.text);
        conf_blame(&env->conf->oauth, err);
        jwks_source_close(&source);
        return NULL;
    }
    take_keys(source);
    return source;
}

const struct jwks *jwks_source_keys(struct jwks_source *source)
{
    bool is_file = !jwks_is_url(source->env->conf->oauth.keys);
    uint64_t now_ms = uv_now(source->env->loop);

    if (is_file && !source->loading && now_ms - source->looked_ms >= LOOK_MS &&
        file_has_changed(source))
        start_load(source);
    return is_file && source->loading ? NULL : source->keys;
}

static bool file_has_changed(struct jwks_source *source)
{
    struct file_version now = file_version_of(source->env->conf->oauth.keys);

    source->looked_ms = uv_now(source->env->loop);
    return !file_version_same(&now, &source->file);
}

enum jwks_news jwks_source_ask(struct jwks_source *source, uint64_t asked_ns, struct err *err)
{
    const struct conf_oauth *conf = &source->env->conf->oauth;
    uint64_t past_ms = (uv_hrtime() - source->ended_ns) / 1000000;
    uint64_t pause_ms = least(ASK_MS, conf->refresh);
    bool is_old = source->began_ns < asked_ns, is_url = jwks_is_url(conf->keys);

    if (source->loading)
        return JWKS_NEWS_SOON;
    if (is_old && is_url && (source->failures == 0 || past_ms >= pause_ms)) {
        schedule(source, past_ms < pause_ms ? pause_ms - past_ms : 0);
        return JWKS_NEWS_SOON;
    }
    if (is_old && !is_url && file_has_changed(source)) {
        start_load(source);
        return JWKS_NEWS_SOON;
    }
    if (source->failures == 0)
        return JWKS_NO_NEWS;
    *err = source->err;
    return JWKS_NEWS_FAIL;
}

/* Loads then, or earlier if that is planned. */
static void schedule(struct jwks_source *source, uint64_t delay_ms)
{
    if (!uv_is_active((uv_handle_t *)&source->next) ||
        uv_timer_get_due_in(&source->next) > delay_ms)
        uv_timer_start(&source->next, time_to_load, delay_ms, 0);
}

static void time_to_load(uv_timer_t *timer)
{
    start_load(timer->data);
}

static void start_load(struct jwks_source *source)
{
    uv_timer_stop(&source->next);
    source->loading = true;
    source->began_ns = uv_hrtime();
    /* fails only without a callback */
    uv_queue_work(source->env->loop, &source->work, load, load_done);
}

static void find(const struct conf_oauth *conf, const atomic_bool *stop, struct found *found)
{
    struct buf octets;

    buf_init(&octets, OCTETS_MAX);
    found->err = (struct err){0};
    if (jwks_fetch(conf, stop, &octets, &found->file, &found->err)) {
        struct err err = {0};

        found->keys = jwks_parse(buf_span(&octets), &err);
        if (found->keys == NULL)
            err_set(&found->err, err.kind, "%.120s: %s", conf->keys, err.text);
    }
    buf_release(&octets);
}

/* In a pool thread. */
static void load(uv_work_t *work)
{
    struct jwks_source *source = work->data;

    find(&source->env->conf->oauth, &source->stop, &source->found);
}

bool jwks_source_check(const struct conf_oauth *conf, struct err *err)
{
    static const atomic_bool go_on;
    struct found found = {0};

    find(conf, &go_on, &found);

    bool good = found.keys != NULL;

    jwks_close(&found.keys);
    if (good)
        return true;
    err_set(err, ERR_CONFIG, "%s", found.err.text);
    return conf_blame(conf, err);
}

static void load_done(uv_work_t *work, int status)
{
    struct jwks_source *source = work->data;

    (void)status; /* cancelled only by jwks_source_close */
    source->loading = false;
    source->ended_ns = uv_hrtime();
    if (source->closing) {
        free_when_done(source);
        return;
    }
    if (source->found.keys != NULL)
        take_keys(source);
    else
        take_failure(source);
    source->on_load(source->owner);
}

static void take_keys(struct jwks_source *source)
{
    const struct conf_oauth *conf = &source->env->conf->oauth;
    bool expected = jwks_is_url(conf->keys) && source->keys != NULL && source->failures == 0;

    jwks_close(&source->keys);
    source->keys = source->found.keys;
    source->found.keys = NULL;
    source->file = source->found.file;
    source->failures = 0;
    counter_add(&source->env->counters->token_key_loads, 1);
    log_event(expected ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, "token keys loaded", "%.120s: %zu keys",
              conf->keys, jwks_count(source->keys));
    if (jwks_is_url(conf->keys))
        schedule(source, conf->refresh);
}

static void take_failure(struct jwks_source *source)
{
    uint64_t delay_ms = RETRY_MIN_MS;

    for (unsigned i = 0; i < source->failures && delay_ms < RETRY_MAX_MS; i++)
        delay_ms *= 2;
    source->failures++;
    source->file = source->found.file;
    source->err = source->found.err;
    counter_add(&source->env->counters->token_key_failures, 1);
    log_event_limited(LOG_LEVEL_WARNING, "token keys not loaded", "%s", source->err.text);
    schedule(source, least(delay_ms, RETRY_MAX_MS));
}

void jwks_source_close(struct jwks_source **source)
{
    struct jwks_source *s = *source;

    *source = NULL;
    if (s == NULL)
        return;
    s->closing = true;
    atomic_store(&s->stop, true);
    if (s->loading)
        (void)uv_cancel((uv_req_t *)&s->work); /* load_done comes either way */
    uv_close((uv_handle_t *)&s->next, timer_closed);
}

static void timer_closed(uv_handle_t *handle)
{
    struct jwks_source *source = handle->data;

    source->timer_closed = true;
    free_when_done(source);
}

static void free_when_done(struct jwks_source *source)
{
    if (source->loading || !source->timer_closed)
        return;
    jwks_close(&source->keys);
    jwks_close(&source->found.keys);
    env_release(&source->env);
    mem_free(source);
}
