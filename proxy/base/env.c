/* Owns copies of what a worker tells those who run in it. */
#include "proxy/base/env.h"

#include "proxy/base/mem.h"

const struct env *env_copy(const struct env *env)
{
    struct env *copy = mem_new(sizeof *copy);

    if (copy == NULL)
        return NULL;
    *copy = *env;
    conf_hold(copy->conf);
    copy->holders = 1;
    return copy;
}

const struct env *env_hold(const struct env *env)
{
    if (env->holders > 0)
        ((struct env *)env)->holders++;
    return env;
}

void env_release(const struct env **env)
{
    struct env *e = (struct env *)*env;

    *env = NULL;
    if (e == NULL || e->holders == 0 || --e->holders > 0)
        return;
    conf_release(&e->conf);
    mem_free(e);
}
