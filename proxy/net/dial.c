/* Owns the order in which the addresses of a store are tried. */
#include "proxy/net/dial.h"

#include "proxy/base/mem.h"

#include <string.h>

static void forget_addresses(struct dial *d)
{
    mem_free(d->addresses);
    d->addresses = NULL;
    d->address_count = d->address_next = 0;
}

static void on_resolved(struct resolve_request *request, const union address *list, size_t count,
                        const struct err *err)
{
    struct dial *d = request->owner;
    struct err failure = *err;

    if (failure.kind == ERR_NONE) {
        d->addresses = mem_array(count, sizeof *list);
        if (d->addresses == NULL) {
            err_set(&failure, ERR_INTERNAL, "no memory for addresses");
        } else {
            memcpy(d->addresses, list, count * sizeof *list);
            d->address_count = count;
        }
    }
    d->on_ready(d, &failure);
}

enum dial_step dial_next(struct dial *dial)
{
    uint16_t port = 0;

    if (dial->address_next < dial->address_count) {
        dial->to = &dial->addresses[dial->address_next++];
        return DIAL_ADDRESS;
    }
    forget_addresses(dial);
    if (dial->name_next == dial->names->count)
        return DIAL_END;
    dial->name_index = dial->name_next++;
    address_split(dial->names->items[dial->name_index], dial->host, &port);
    dial->resolving.on_answer = on_resolved;
    dial->resolving.owner = dial;
    resolve(dial->env, &dial->resolving, dial->host, port);
    return DIAL_LATER;
}

void dial_skip(struct dial *dial)
{
    resolve_cancel(&dial->resolving);
}

void dial_release(struct dial *dial)
{
    resolve_cancel(&dial->resolving);
    forget_addresses(dial);
}
