/* Owns what was last heard of the other proxies. */
#include "proxy/http/neighbours.h"

#include "proxy/fleet/fleet.h"

enum { FRESH_MS = 2000 };

/* A Redis that does not answer leaves what was known: the page tells that Redis is away. */
static void on_roster(struct roster_request *request, json_t *list, const struct err *err)
{
    struct neighbours *neighbours = (struct neighbours *)request;

    neighbours->asking = false;
    if (err->kind != ERR_NONE)
        return;
    json_decref(neighbours->list);
    neighbours->list = json_incref(list);
}

const json_t *neighbours_look(struct neighbours *neighbours, const struct control *control)
{
    uint64_t now = uv_now(control->env.loop);

    if (control->env.redis == NULL)
        return NULL;
    if (!neighbours->asking &&
        (neighbours->asked_ms == 0 || now - neighbours->asked_ms >= FRESH_MS)) {
        neighbours->asking = true;
        neighbours->asked_ms = now;
        neighbours->request = (struct roster_request){
            .env = &control->env, .id = fleet_id(control->fleet), .on_answer = on_roster};
        roster_ask(&neighbours->request);
    }
    return neighbours->list;
}

void neighbours_close(struct neighbours *neighbours)
{
    if (neighbours->asking)
        roster_cancel(&neighbours->request);
    json_decref(neighbours->list);
    *neighbours = (struct neighbours){0};
}
