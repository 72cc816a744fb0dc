/* Owns the order in which the addresses of a store are tried. */
#include "proxy/net/dial.h"

#include "proxy/base/mem.h"

#include <string.h>

struct dial_late {
    union address address;
    size_t name_index;
};

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

/* Puts it at the end; false without memory: then it is tried where it stands. */
static bool put_off(struct dial *d, const union address *address)
{
    struct dial_late *late = mem_resize(d->late, (d->late_count + 1) * sizeof *late);

    if (late == NULL)
        return false;
    late[d->late_count++] = (struct dial_late){*address, d->name_index};
    d->late = late;
    return true;
}

/* The next address of the name that is tried. */
static bool next_of_name(struct dial *d)
{
    while (d->address_next < d->address_count) {
        d->to = &d->addresses[d->address_next++];
        if (d->comes_last == NULL || !d->comes_last(d->owner, d->to) || !put_off(d, d->to))
            return true;
    }
    return false;
}

static void name_host(struct dial *d, size_t name_index, uint16_t *port_out)
{
    d->name_index = name_index;
    address_split(d->names->items[name_index], d->host, port_out);
}

/* After all names. */
static enum dial_step next_late(struct dial *d)
{
    const struct dial_late *late;
    uint16_t port;

    if (d->late_next == d->late_count)
        return DIAL_END;
    late = &d->late[d->late_next++];
    name_host(d, late->name_index, &port);
    d->to = &late->address;
    return DIAL_ADDRESS;
}

enum dial_step dial_next(struct dial *dial)
{
    uint16_t port = 0;

    if (next_of_name(dial))
        return DIAL_ADDRESS;
    forget_addresses(dial);
    if (dial->name_next == dial->names->count)
        return next_late(dial);
    name_host(dial, dial->name_next++, &port);
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
    mem_free(dial->late);
    dial->late = NULL;
    dial->late_count = dial->late_next = 0;
}
