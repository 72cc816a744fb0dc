/*
 * Owns the order in which the cache and the sources are asked: what a source says is acted upon in
 * a later turn, so no answer is given inside chain_ask and no source runs inside another. What
 * comes next once a source has spoken is task.run.
 */
#include "auth/chain.h"

#include "proxy/base/mem.h"

#include <assert.h>

struct chain {
    const struct env *env;
    struct auth_cache *cache; /* NULL where nothing shall be remembered */
    size_t count;
    struct {
        const struct auth_source *source;
        void *state;
    } entries[];
};

static const struct auth_source *const known_sources[] = {&auth_source_passwd, &auth_source_ldap};

/* --- life --- */

static bool open_cache(struct chain *chain, struct err *err)
{
    const struct conf_auth_cache *conf = &chain->env->conf->auth_cache;

    if (conf->ttl == 0 && conf->negative_ttl == 0)
        return true;
    chain->cache = auth_cache_open(conf, err);
    return chain->cache != NULL;
}

static const struct auth_source *find_source(const char *name)
{
    for (size_t i = 0; i < sizeof known_sources / sizeof known_sources[0]; i++)
        if (strcmp(known_sources[i]->name, name) == 0)
            return known_sources[i];
    return NULL;
}

static bool open_source(struct chain *chain, const char *name, struct err *err)
{
    const struct auth_source *source = find_source(name);
    void *state;

    if (source == NULL)
        return err_set(err, ERR_CONFIG, "auth.sources: there is no source \"%s\"", name);
    state = source->open(chain->env, err);
    if (state == NULL)
        return false;
    chain->entries[chain->count].source = source;
    chain->entries[chain->count++].state = state;
    return true;
}

struct chain *chain_open(const struct env *env, struct err *err)
{
    const struct conf_words *names = &env->conf->auth.sources;
    struct chain *chain = mem_new(sizeof *chain + names->count * sizeof chain->entries[0]);

    if (chain == NULL) {
        err_set(err, ERR_INTERNAL, "auth: no memory");
        return NULL;
    }
    chain->env = env;
    bool ok = open_cache(chain, err);
    for (size_t i = 0; ok && i < names->count; i++)
        ok = open_source(chain, names->items[i], err);
    if (!ok)
        chain_close(&chain);
    return chain;
}

void chain_close(struct chain **chain)
{
    struct chain *c = *chain;

    *chain = NULL;
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->count; i++)
        c->entries[i].source->close(c->entries[i].state);
    auth_cache_close(&c->cache);
    mem_free(c);
}

void chain_each_server(const struct chain *chain,
                       void (*tell)(void *owner, const struct auth_server *server), void *owner)
{
    for (size_t i = 0; i < chain->count; i++)
        if (chain->entries[i].source->each_server != NULL)
            chain->entries[i].source->each_server(chain->entries[i].state, tell, owner);
}

/* --- a question --- */

static void count_verdict(struct counters *counters, enum cache_verdict verdict)
{
    counter_add(verdict == CACHE_VERIFIED  ? &counters->auth_cache_hits
                : verdict == CACHE_REFUSED ? &counters->auth_cache_negative
                                           : &counters->auth_cache_misses,
                1);
}

enum cache_verdict chain_recall(struct chain *chain, struct auth_question *question)
{
    const struct env *env = chain->env;
    enum cache_verdict verdict = CACHE_UNKNOWN;

    assert(!question->active && (question->password == NULL || question->password->len > 0));
    auth_facts_release(&question->facts);
    question->chain = chain;
    question->source_index = 0;
    question->err = (struct err){0};
    question->stood_in = false;
    question->task = (struct turn_task){0};
    question->operation = NULL;
    question->key = (struct cache_key){0};
    if (chain->cache != NULL && !question->uncached &&
        auth_cache_key(chain->cache, question->user, question->password, &question->key)) {
        verdict =
            auth_cache_find(chain->cache, &question->key, uv_now(env->loop), &question->facts);
        count_verdict(env->counters, verdict);
    }
    question->cached = (uint8_t)verdict;
    return verdict;
}

static struct auth_question *question_of(struct turn_task *task)
{
    return (struct auth_question *)((char *)task - offsetof(struct auth_question, task));
}

/* The sources have spoken: the cache learns from them, or stands in for them. */
static void consult_cache(struct auth_question *question)
{
    struct chain *chain = question->chain;
    uint64_t now = uv_now(chain->env->loop);

    if (!question->key.usable || question->cached == CACHE_REFUSED)
        return;
    switch (question->err.kind) {
    case ERR_NONE:
        auth_cache_verified(chain->cache, &question->key, question->facts, now);
        break;
    case ERR_CREDENTIALS:
        auth_cache_refused(chain->cache, &question->key, now);
        break;
    case ERR_EXPIRED:
    case ERR_ADMIN:
        auth_cache_forget(chain->cache, question->user);
        break;
    case ERR_UNAVAILABLE:
        if (question->cached != CACHE_STALE)
            break;
        question->err = (struct err){0};
        question->stood_in = true;
        counter_add(&chain->env->counters->auth_cache_stale, 1);
        break;
    default:
        break;
    }
}

static void answer(struct turn_task *task)
{
    struct auth_question *question = question_of(task);

    consult_cache(question);
    question->active = false;
    question->on_answer(question);
}

static void answer_later(struct auth_question *question)
{
    question->task.run = answer;
    turn_post(question->chain->env->turn, &question->task);
}

/*
 * Asks the source whose turn it is; after the last one, the answer is what is remembered or "who?".
 */
static void ask(struct auth_question *question)
{
    struct chain *chain = question->chain;
    size_t i = question->source_index;

    if (i < chain->count) {
        chain->entries[i].source->verify(chain->entries[i].state, question);
        return;
    }
    if (question->err.kind == ERR_NONE)
        err_set(&question->err, ERR_CREDENTIALS, "no source knows the user");
    answer_later(question);
}

void chain_ask(struct auth_question *question)
{
    question->active = true;
    if (question->cached == CACHE_REFUSED) {
        err_set(&question->err, ERR_CREDENTIALS, "refused before");
        answer_later(question);
        return;
    }
    ask(question);
}

static void ask_next(struct turn_task *task)
{
    struct auth_question *question = question_of(task);

    question->source_index++;
    ask(question);
}

void auth_source_answer(struct auth_question *question, enum auth_verdict verdict,
                        struct auth_facts *facts, const struct err *err)
{
    assert(question->active && (verdict == AUTH_VERIFIED || facts == NULL));
    assert((verdict != AUTH_REFUSED && verdict != AUTH_FAILED) || err->kind != ERR_NONE);
    question->operation = NULL;
    if (verdict == AUTH_VERIFIED) {
        question->err.kind = ERR_NONE;
        auth_facts_release(&question->facts); /* of a stale entry */
        question->facts = facts;
    }
    /* The first failure is the one to tell, unless a later source decides. */
    if (verdict == AUTH_REFUSED || (verdict == AUTH_FAILED && question->err.kind == ERR_NONE))
        question->err = *err;
    question->task.run = verdict == AUTH_VERIFIED || verdict == AUTH_REFUSED ? answer : ask_next;
    turn_post(question->chain->env->turn, &question->task);
}

/* Nobody answers from now on. */
static void stop(struct auth_question *question)
{
    const struct chain *chain = question->chain;
    size_t i = question->source_index;

    if (!question->active)
        return;
    if (question->operation != NULL && i < chain->count)
        chain->entries[i].source->cancel(chain->entries[i].state, question);
    question->operation = NULL;
    question->active = false;
    turn_cancel(chain->env->turn, &question->task);
}

void chain_give_up(struct auth_question *question)
{
    const struct chain *chain = question->chain;
    const char *name = question->source_index < chain->count
                           ? chain->entries[question->source_index].source->name
                           : "chain";

    bool decided = question->task.link != NULL && question->task.run == answer;

    stop(question);
    if (!decided) /* what was about to be told still counts */
        err_set(&question->err, ERR_UNAVAILABLE, "%s: no answer within auth.timeout", name);
    consult_cache(question);
}

void chain_cancel(struct auth_question *question)
{
    stop(question);
    auth_facts_release(&question->facts);
}

void chain_forget(struct chain *chain, const char *user)
{
    if (chain->cache != NULL)
        auth_cache_forget(chain->cache, user);
}

const char *chain_source(const struct auth_question *question)
{
    const struct chain *chain = question->chain;
    size_t i = question->source_index;

    return i < chain->count ? chain->entries[i].source->name : "";
}

enum cache_verdict chain_remembers(const struct chain *chain, const char *user,
                                   uint64_t *age_ms_out)
{
    *age_ms_out = 0;
    return chain->cache == NULL
               ? CACHE_UNKNOWN
               : auth_cache_remembers(chain->cache, user, uv_now(chain->env->loop), age_ms_out);
}
