/* Owns the order of the two counts: here first, for what is too many here is too many anywhere. */
#include "proxy/session/admission.h"

#include "proxy/base/mem.h"

struct admission {
    const struct env *env;
    struct limits *limits;
    struct registry *registry; /* NULL: nothing is shared */
};

struct admission *admission_open(const struct env *env, struct limits *limits,
                                 struct registry *registry)
{
    struct admission *admission = mem_new(sizeof *admission);

    if (admission != NULL)
        *admission = (struct admission){.env = env, .limits = limits, .registry = registry};
    return admission;
}

void admission_close(struct admission **admission)
{
    mem_free(*admission);
    *admission = NULL;
}

/* Nobody knows of the others: it is let in, and told when that is possible. */
static void let_in(struct admission_request *request)
{
    struct admission *admission = request->admission;

    counter_add(&admission->env->counters->registry_unknown, 1);
    request->place->shared = registry_add(admission->registry, &request->shared);
}

static void count_refusal(const struct admission *admission, enum err_kind kind)
{
    struct counters *counters = admission->env->counters;

    if (kind == ERR_USER_LIMIT)
        counter_add(&counters->limit_user_refusals, 1);
    else if (kind == ERR_ADDRESS_LIMIT)
        counter_add(&counters->limit_address_refusals, 1);
    else if (kind == ERR_USER_ADDRESS_LIMIT)
        counter_add(&counters->limit_user_address_refusals, 1);
}

static void on_shared(struct registry_request *shared, enum registry_verdict verdict,
                      struct registry_entry *entry)
{
    static const enum err_kind kinds[] = {
        [REGISTRY_USER_FULL] = ERR_USER_LIMIT,
        [REGISTRY_ADDRESS_FULL] = ERR_ADDRESS_LIMIT,
        [REGISTRY_USER_ADDRESS_FULL] = ERR_USER_ADDRESS_LIMIT,
    };
    struct admission_request *request = shared->owner;
    struct err err = {0};

    request->place->shared = entry;
    if (verdict == REGISTRY_UNKNOWN) {
        let_in(request);
    } else if (verdict != REGISTRY_COUNTED) {
        err_set(&err, kinds[verdict], "so many are open on all proxies");
        count_refusal(request->admission, err.kind);
        limits_leave(request->admission->limits, &request->place->here);
    }
    request->on_answer(request, &err);
}

enum admission_answer admission_enter(struct admission *admission,
                                      struct admission_request *request, struct err *err)
{
    struct limits_numbers max = limits_for(admission->limits, request->address);

    request->admission = admission;
    request->shared.call = NULL;
    if (!limits_enter(admission->limits, &request->place->here, request->user, request->address,
                      err)) {
        count_refusal(admission, err->kind);
        return ADMISSION_REFUSED;
    }
    if (admission->registry == NULL)
        return ADMISSION_IN;
    request->shared = (struct registry_request){.user = request->user,
                                                .address = request->address,
                                                .user_max = max.user,
                                                .address_max = max.address,
                                                .user_address_max = max.user_address,
                                                .on_answer = on_shared,
                                                .owner = request};
    if (registry_ask(admission->registry, &request->shared))
        return ADMISSION_WAITS;
    let_in(request);
    return ADMISSION_IN;
}

void admission_cancel(struct admission_request *request)
{
    if (request->shared.call == NULL)
        return;
    registry_cancel(&request->shared);
    limits_leave(request->admission->limits, &request->place->here);
}

bool admission_await(struct admission *admission, struct limits_place *place,
                     const union address *address)
{
    if (limits_await(admission->limits, place, address))
        return true;
    counter_add(&admission->env->counters->limit_before_login_refusals, 1);
    return false;
}

void admission_await_no_more(struct admission *admission, struct limits_place *place)
{
    limits_leave(admission->limits, place);
}

void admission_leave(struct admission *admission, struct admission_place *place)
{
    limits_leave(admission->limits, &place->here);
    if (place->shared != NULL)
        registry_leave(admission->registry, &place->shared);
}
