/*
 * The source `ring`: a shard for a user whom nobody knows yet. The first `ring` section that fits
 * the user's domain names the shards; which of them it is follows from the user's name, by weighted
 * rendezvous hashing: each shard waits, in thought, for a time that is random but fixed by the two
 * names, exponentially distributed, with the shard's weight as its rate. The shortest wait wins.
 *  - Movement is minimal: another shard changes only the users that it wins itself, and they come
 *    from all others alike; no user ever moves between two old ones.
 *  - Weights are exact: the shortest of such times is the one of rate w with probability w / sum.
 *  - There is no table to build or to agree upon, and any process comes to the same result.
 *
 * If Redis is a source, too, the choice is written there, in one script that changes nothing if the
 * user has a shard by then: who was first wins, and is what is answered. So weights may change, and
 * a shard may take no new users, without moving anybody. Without Redis nobody notes the choice, and
 * it must be the same each time: then the weights of the configuration hold, whatever the state of
 * the shards.
 */
#include "proxy/base/mem.h"
#include "proxy/net/redis_link.h"
#include "routing/user_hash.h"

#include <math.h>
#include <string.h>

struct ring_source {
    const struct env *env;
    struct router_view view;
    bool writes; /* Redis is a source, too */
    struct redis_script script;
    char channel[REDIS_KEY_MAX]; /* of events */
};

/*
 * KEYS: the user's hash. ARGV: shard, ring (for people), channel, user, fields to return.
 * A hash that has a state but no shard, as that of a disabled user, is left alone.
 */
static const char script_text[] =
    "local shard, state = unpack(redis.call('HMGET', KEYS[1], 'shard', 'state'))\n"
    "if not shard and (not state or state == 'active') then\n"
    "  local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)\n"
    "  redis.call('HSET', KEYS[1], 'shard', ARGV[1], 'ring', ARGV[2])\n"
    "  redis.call('PUBLISH', ARGV[3], cjson.encode({event = 'route', user = ARGV[4],\n"
    "    epoch = epoch, state = 'active'}))\n"
    "end\n"
    "return redis.call('HMGET', KEYS[1], unpack(ARGV, 5))\n";

static const struct conf_ring *find_ring(const struct conf *conf, const char *user);
static const struct conf_shard *choose(const struct ring_source *source,
                                       const struct conf_ring *ring, const char *user);
static bool send_choice(struct ring_source *source, const struct conf_ring *ring,
                        const struct conf_shard *shard, struct route_request *request,
                        struct err *err);
static void on_reply(void *owner, const redisReply *reply, const struct err *err);

static void *ring_open(const struct env *env, const struct router_view *view, struct err *err)
{
    struct ring_source *source = mem_new(sizeof *source);

    if (source == NULL) {
        err_set(err, ERR_INTERNAL, "ring: no memory");
        return NULL;
    }
    source->env = env;
    source->view = *view;
    source->writes = conf_routes_by_redis(env->conf);
    if (redis_script_init(&source->script, script_text, err) &&
        (redis_key(source->channel, &env->conf->redis, "events", NULL) ||
         err_set(err, ERR_CONFIG, "ring: no room for the name of a channel")))
        return source;
    mem_free(source);
    return NULL;
}

static void ring_find(void *state, struct route_request *request)
{
    struct ring_source *source = state;
    const struct conf_ring *ring = find_ring(source->env->conf, request->user);
    const struct conf_shard *shard = ring == NULL ? NULL : choose(source, ring, request->user);
    struct route route = {.state = ROUTE_ACTIVE};
    struct err err = {0};

    if (ring == NULL) {
        route_source_answer(request, ROUTE_UNKNOWN_USER, NULL, NULL);
    } else if (shard == NULL) {
        err_set(&err, ERR_UNAVAILABLE, "ring %s: no shard takes new users", ring->title);
        route_source_answer(request, ROUTE_FAILED, NULL, &err);
    } else if (!source->writes || request->look_only) {
        memcpy(route.shard, shard->title, strlen(shard->title) + 1); /* conf_check bounds titles */
        route_source_answer(request, ROUTE_FOUND, &route, NULL);
    } else if (!send_choice(source, ring, shard, request, &err)) {
        route_source_answer(request, ROUTE_NO_ANSWER, NULL, &err);
    }
}

/* What is behind the last "@"; a user without that fits rings for all. */
static const struct conf_ring *find_ring(const struct conf *conf, const char *user)
{
    const char *at = strrchr(user, '@'), *domain = at == NULL ? "" : at + 1;

    for (size_t i = 0; i < conf->ring_count; i++) {
        const struct conf_words *domains = &conf->rings[i].domains;

        if (domains->count == 0)
            return &conf->rings[i];
        for (size_t j = 0; j < domains->count; j++)
            if (strcasecmp(domains->items[j], domain) == 0)
                return &conf->rings[i];
    }
    return NULL;
}

/* FNV-1a of both names and the NUL between them; then the last step of MurmurHash3's mixing. */
static uint64_t hash_pair(const char *user, const char *title)
{
    const struct span parts[] = {{user, strlen(user) + 1}, {title, strlen(title)}};
    uint64_t hash = UINT64_C(14695981039346656037);

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        for (size_t j = 0; j < parts[i].len; j++)
            hash = (hash ^ (unsigned char)parts[i].ptr[j]) * UINT64_C(1099511628211);
    hash = (hash ^ hash >> 33) * UINT64_C(0xff51afd7ed558ccd);
    hash = (hash ^ hash >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return hash ^ hash >> 33;
}

/* Evenly distributed in (0, 1): neither end is ever met, so the logarithm is finite and not 0. */
static double wait_of(const char *user, const char *title, uint32_t weight)
{
    double fraction = ((double)(hash_pair(user, title) >> 12) + 0.5) / (double)(UINT64_C(1) << 52);

    return -log(fraction) / weight;
}

/* NULL when no member of the ring has a weight. */
static const struct conf_shard *choose(const struct ring_source *source,
                                       const struct conf_ring *ring, const char *user)
{
    const struct conf *conf = source->env->conf;
    const struct conf_shard *chosen = NULL;
    double shortest = INFINITY;

    for (size_t i = 0; i < conf->shard_count; i++) {
        const struct conf_shard *shard = &conf->shards[i];
        uint32_t weight = source->writes && source->view.ring_weight != NULL
                              ? source->view.ring_weight(source->view.owner, shard->id)
                              : (uint32_t)shard->weight;
        double wait;

        if (weight == 0 || (ring->shards.count > 0 && !conf_has_word(&ring->shards, shard->title)))
            continue;
        wait = wait_of(user, shard->title, weight);
        if (wait >= shortest)
            continue;
        shortest = wait;
        chosen = shard;
    }
    return chosen;
}

static bool send_choice(struct ring_source *source, const struct conf_ring *ring,
                        const struct conf_shard *shard, struct route_request *request,
                        struct err *err)
{
    const struct env *env = source->env;
    char key[REDIS_KEY_MAX];
    struct span arguments[5 + USER_HASH_FIELDS] = {{NULL, 0},
                                                   span_of(shard->title),
                                                   span_of(ring->title),
                                                   span_of(source->channel),
                                                   span_of(request->user)};

    if (!redis_key(key, &env->conf->redis, "user", request->user))
        return err_set(err, ERR_UNAVAILABLE, "redis: no room for the key");
    arguments[0] = span_of(key);
    for (size_t i = 0; i < USER_HASH_FIELDS; i++)
        arguments[5 + i] = span_of(user_hash_fields[i]);
    request->operation = redis_link_call(env->redis, &source->script, arguments,
                                         5 + USER_HASH_FIELDS, 1, on_reply, request, err);
    return request->operation != NULL;
}

static void on_reply(void *owner, const redisReply *reply, const struct err *err)
{
    struct route_request *request = owner;

    request->operation = NULL;
    user_hash_answer(request, reply, err);
}

static void ring_cancel(void *state, struct route_request *request)
{
    (void)state;
    if (request->operation != NULL)
        redis_command_cancel(request->operation);
    request->operation = NULL;
}

static void ring_close(void *state)
{
    mem_free(state);
}

const struct route_source route_source_ring = {
    .name = "ring",
    .is_remembered = true,
    .open = ring_open,
    .find = ring_find,
    .cancel = ring_cancel,
    .close = ring_close,
};
