/* Owns questions about users that have no proof, and a look at what is remembered. */
#include "auth/look.h"

#include "auth/chain.h"
#include "auth/username.h"
#include "proxy/base/clock.h"
#include "proxy/base/mem.h"

#include <assert.h>

static void timer_closed(uv_handle_t *handle)
{
    mem_free(handle);
}

/* It is under way no more. The facts stay until the owner has read them. */
static void end(struct auth_look *look)
{
    look->active = false;
    turn_cancel(auth_env(look->auth)->turn, &look->task);
    if (look->deadline != NULL)
        uv_close((uv_handle_t *)look->deadline, timer_closed);
    look->deadline = NULL;
    auth_leave(look->auth);
}

static void answer(struct turn_task *task)
{
    struct auth_look *look = (struct auth_look *)((char *)task - offsetof(struct auth_look, task));
    struct auth_facts *facts = auth_facts_hold(look->question.facts);

    chain_cancel(&look->question);
    end(look);
    look->facts = facts;
    look->on_answer(look); /* which may free it */
    auth_facts_release(&facts);
}

static void answer_later(struct auth_look *look)
{
    look->task.run = answer;
    turn_post(auth_env(look->auth)->turn, &look->task);
}

static void on_decided(struct auth_question *question)
{
    struct auth_look *look = question->owner;
    const struct auth_facts *facts = question->facts;
    const struct conf_username *conf = &auth_env(look->auth)->conf->username;

    look->err = question->err;
    look->source = chain_source(question);
    if (look->err.kind == ERR_NONE && facts != NULL && facts->user[0] != '\0' &&
        !username_normalise(conf, span_of(facts->user), look->name))
        err_set(&look->err, ERR_INTERNAL, "the source's name for the user is not allowed");
    answer_later(look);
}

static void on_deadline(uv_timer_t *timer)
{
    struct auth_look *look = timer->data;

    if (look->task.link != NULL)
        return; /* it has its answer */
    chain_give_up(&look->question);
    on_decided(&look->question);
}

void auth_look(struct auth *auth, struct auth_look *look)
{
    const struct env *env = auth_env(auth);

    assert(!look->active);
    *look = (struct auth_look){.user = look->user,
                               .on_answer = look->on_answer,
                               .owner = look->owner,
                               .source = "",
                               .auth = auth,
                               .active = true};
    auth_enter(auth);
    memcpy(look->name, look->user, strlen(look->user) + 1); /* normalised: it fits */
    look->deadline = mem_new(sizeof *look->deadline);
    if (look->deadline == NULL) {
        err_set(&look->err, ERR_INTERNAL, "auth: no memory");
        answer_later(look);
        return;
    }
    uv_timer_init(env->loop, look->deadline);
    look->deadline->data = look;
    uv_timer_start(look->deadline, on_deadline, env->conf->auth.timeout, 0);
    look->question = (struct auth_question){
        .user = look->user, .uncached = true, .on_answer = on_decided, .owner = look};
    chain_recall(auth_chain(auth), &look->question);
    chain_ask(&look->question);
}

void auth_look_cancel(struct auth_look *look)
{
    if (!look->active)
        return;
    chain_cancel(&look->question);
    end(look);
}

void auth_recall(const struct auth *auth, const char *user, struct auth_memory *memory_out)
{
    *memory_out = (struct auth_memory){.password = CACHE_UNKNOWN};
    memory_out->password = chain_remembers(auth_chain(auth), user, &memory_out->password_age_ms);
    memory_out->failures =
        throttle_look(auth_throttle(auth), user, clock_ms(), &memory_out->delay_ms);
}
