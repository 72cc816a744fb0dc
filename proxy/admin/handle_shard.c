/* Owns the commands about shards: what is known of them, and what operators want of them. */
#include "proxy/admin/handlers.h"

#include "proxy/base/clock.h"
#include "proxy/base/mem.h"
#include "proxy/process/orders.h"

#include <inttypes.h>
#include <stdio.h>

enum { LET_GO_MAX_MS = 86400000, DIGITS_MAX = 24 };

/* --- list --- */

/* What a look at the addresses gathers. */
struct addresses {
    json_t *list; /* NULL when there was no memory */
    const char *error;
};

static void add(struct addresses *addresses, json_t *text)
{
    if (json_array_append_new(addresses->list, text) == 0)
        return;
    json_decref(addresses->list);
    addresses->list = NULL;
}

static void add_address(void *owner, const struct health_address *at)
{
    struct addresses *addresses = owner;

    if (*at->why != '\0')
        addresses->error = at->why;
    if (*at->text != '\0')
        add(addresses, json_sprintf("%s %s", at->text, at->state));
}

static json_t *describe(const struct control *control, const struct conf_shard *shard)
{
    const struct store *store = stores_of(workers_stores(control->workers), shard);
    uint64_t since_ms = clock_ms() - atomic_load(&store->changed_ms);
    struct addresses addresses = {json_array(), ""};
    uint32_t waiting =
        atomic_load(&store->logins.waiting) + atomic_load(&store->connections.waiting);

    health_each_address(control->health, shard, add_address, &addresses);
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:o, s:s, s:s}", "shard", shard->title,
                     "state", store_order_names[atomic_load(&store->order)], "health",
                     atomic_load(&store->is_down) ? "down" : "up", "since_seconds",
                     (json_int_t)(since_ms / 1000), "weight",
                     (json_int_t)atomic_load(&store->weight), "connections",
                     (json_int_t)atomic_load(&store->connections.used), "waiting",
                     (json_int_t)waiting, "addresses", addresses.list, "replica", shard->replica,
                     "error", addresses.error);
}

void run_shard_list(struct admin_call *call)
{
    const struct control *control = call->context;
    json_t *list = json_array();
    bool good = list != NULL;

    for (size_t i = 0; i < control->env.conf->shard_count && good; i++)
        good = json_array_append_new(list, describe(control, &control->env.conf->shards[i])) == 0;
    admin_answer(call, good ? json_incref(list) : NULL);
    json_decref(list);
}

/* --- orders --- */

struct order_call {
    struct order_request request; /* first member */
    struct admin_call *call;      /* NULL: nobody waits for the answer any more */
    struct control *control;
    char let_go[DIGITS_MAX], weight[DIGITS_MAX];
};

static void on_ordered(struct order_request *request, const struct err *err)
{
    struct order_call *order = (struct order_call *)request;
    const struct control *control = order->control;
    const struct store *store = request->store;

    if (order->call != NULL && err->kind != ERR_NONE)
        admin_refuse(order->call, "shard %s: %s", store->title, err->text);
    else if (order->call != NULL)
        admin_answer(
            order->call,
            json_pack("{s:s, s:s, s:I, s:s}", "shard", store->title, "state",
                      store_order_names[atomic_load(&store->order)], "weight",
                      (json_int_t)atomic_load(&store->weight), "applies_to",
                      control->env.redis == NULL ? "this process until it ends" : "all proxies"));
    mem_free(order);
}

static void cancel_order(struct admin_call *call)
{
    ((struct order_call *)call->state)->call = NULL;
}

/* A new order about the shard that is named; NULL when the call was refused. */
static struct order_call *new_order(struct admin_call *call)
{
    struct control *control = call->context;
    const char *title = admin_argument(call, "shard");
    const struct conf_shard *shard = conf_find_shard(control->env.conf, title);
    struct order_call *order = shard == NULL ? NULL : mem_new(sizeof *order);

    if (shard == NULL)
        admin_refuse(call, "there is no shard \"%.63s\"", title);
    else if (order == NULL)
        admin_answer(call, NULL);
    if (order == NULL)
        return NULL;
    order->control = control;
    order->request =
        (struct order_request){.store = stores_of(workers_stores(control->workers), shard),
                               .let_go = order->let_go,
                               .weight = order->weight,
                               .on_answer = on_ordered};
    return order;
}

static void give(struct admin_call *call, struct order_call *order)
{
    order->call = call;
    call->state = order;
    call->cancel = cancel_order;
    orders_give(order->control->orders, &order->request);
}

static void give_state(struct admin_call *call, enum store_order state, const char *let_go)
{
    struct order_call *order = new_order(call);
    uint64_t within_ms = 0;

    if (order == NULL)
        return;
    if (let_go != NULL && !conf_read_duration(let_go, LET_GO_MAX_MS, &within_ms)) {
        mem_free(order);
        admin_refuse(call, "\"let-go\" is \"%.40s\", expected a duration up to 1d, as 5m", let_go);
        return;
    }
    if (let_go != NULL)
        snprintf(order->let_go, sizeof order->let_go, "%" PRIu64, within_ms);
    order->request.sets_state = true;
    order->request.state = state;
    give(call, order);
}

void run_shard_up(struct admin_call *call)
{
    give_state(call, STORE_UP, NULL);
}

void run_shard_drain(struct admin_call *call)
{
    give_state(call, STORE_DRAIN, admin_argument(call, "let-go"));
}

void run_shard_down(struct admin_call *call)
{
    give_state(call, STORE_DOWN, admin_argument(call, "let-go"));
}

void run_shard_weight(struct admin_call *call)
{
    const char *text = admin_argument(call, "weight");
    size_t len = strlen(text);
    unsigned long weight = strtoul(text, NULL, 10);
    struct order_call *order;

    if (len == 0 || len > 4 || strspn(text, "0123456789") != len || weight == 0 ||
        weight > STORE_WEIGHT_MAX) {
        admin_refuse(call, "\"weight\" is \"%.40s\", expected a number from 1 to %d", text,
                     STORE_WEIGHT_MAX);
        return;
    }
    order = new_order(call);
    if (order == NULL)
        return;
    snprintf(order->weight, sizeof order->weight, "%lu", weight);
    give(call, order);
}
