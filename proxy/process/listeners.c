/* Owns the listening sockets: which there are for each address, and who accepts from which. */
#include "proxy/process/listeners.h"

#include "proxy/base/mem.h"
#include "proxy/net/listener.h"
#include "proxy/process/inherited.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* One address, and its sockets. */
struct place {
    const struct conf_listener *conf;
    const char *text;
    union address address;
    int *fds;
    size_t count;
};

struct listeners {
    const struct conf *conf; /* held */
    size_t worker_count;
    struct place *places;
    size_t count;
};

/* --- life --- */

static bool add_socket(struct place *place, int fd, struct err *err)
{
    int *fds = mem_resize(place->fds, (place->count + 1) * sizeof *fds);

    if (fds == NULL) {
        close(fd);
        return err_set(err, ERR_INTERNAL, "no memory for a listener");
    }
    place->fds = fds;
    place->fds[place->count++] = fd;
    return true;
}

/* As many as there are workers. */
static bool bind_place(struct place *place, size_t wanted, struct err *err)
{
    while (place->count < wanted) {
        int fd = listener_bind(place->text, err);

        if (fd < 0 || !add_socket(place, fd, err))
            return false;
    }
    return true;
}

static struct place *find_place(const struct listeners *listeners, const union address *address)
{
    for (size_t i = 0; listeners != NULL && i < listeners->count; i++) {
        const union address *there = &listeners->places[i].address;

        if (memcmp(there, address, address_size(address)) == 0)
            return &listeners->places[i];
    }
    return NULL;
}

static bool copy_place(struct place *place, const struct place *old, struct err *err)
{
    for (size_t i = 0; i < old->count; i++) {
        int fd = fcntl(old->fds[i], F_DUPFD_CLOEXEC, 0);

        if (fd < 0)
            return err_set(err, ERR_UNAVAILABLE, "cannot listen on %s: %s", place->text,
                           strerrordesc_np(errno));
        if (!add_socket(place, fd, err))
            return false;
    }
    return true;
}

/* More than there are would only be better: that they cannot be had is no failure. */
static bool inherit_place(struct place *place, struct inherited *inherited, size_t wanted,
                          struct err *err)
{
    for (int fd; (fd = inherited_take(inherited, &place->address)) >= 0;)
        if (!add_socket(place, fd, err))
            return false;
    if (place->count > 0 && inherited->may_grow)
        bind_place(place, wanted, NULL);
    return true;
}

static bool open_place(struct listeners *l, struct place *place, const struct listeners *old,
                       struct inherited *inherited, struct err *err)
{
    if (!address_parse(place->text, &place->address))
        return err_set(err, ERR_CONFIG, "listener: \"%s\" is no address", place->text);

    const struct place *known = find_place(old, &place->address);

    if (known != NULL)
        return copy_place(place, known, err);
    if (inherited != NULL && !inherit_place(place, inherited, l->worker_count, err))
        return false;
    return place->count > 0 || bind_place(place, l->worker_count, err) ||
           conf_blame(place->conf, err);
}

static struct listeners *open_all(const struct conf *conf, size_t worker_count,
                                  const struct listeners *old, struct inherited *inherited,
                                  struct err *err)
{
    struct listeners *listeners = mem_new(sizeof *listeners);
    size_t total = 0;

    for (size_t i = 0; i < conf->listener_count; i++)
        total += conf->listeners[i].address.count;
    if (listeners != NULL)
        listeners->places = mem_array(total, sizeof *listeners->places);
    if (listeners == NULL || listeners->places == NULL) {
        mem_free(listeners);
        err_set(err, ERR_INTERNAL, "no memory for listeners");
        return NULL;
    }
    listeners->conf = conf_hold(conf);
    listeners->worker_count = worker_count;
    for (size_t i = 0; i < conf->listener_count; i++) {
        for (size_t j = 0; j < conf->listeners[i].address.count; j++) {
            struct place *place = &listeners->places[listeners->count++];

            place->conf = &conf->listeners[i];
            place->text = conf->listeners[i].address.items[j];
            if (!open_place(listeners, place, old, inherited, err)) {
                listeners_close(&listeners);
                return NULL;
            }
        }
    }
    return listeners;
}

struct listeners *listeners_open(const struct conf *conf, size_t worker_count,
                                 struct inherited *inherited, struct err *err)
{
    struct listeners *listeners = open_all(conf, worker_count, NULL, inherited, err);

    if (listeners != NULL && inherited != NULL && !inherited_check(inherited, err))
        listeners_close(&listeners);
    return listeners;
}

struct listeners *listeners_prepare(const struct listeners *old, const struct conf *conf,
                                    struct err *err)
{
    return open_all(conf, old->worker_count, old, NULL, err);
}

void listeners_close(struct listeners **listeners)
{
    struct listeners *l = *listeners;

    *listeners = NULL;
    if (l == NULL)
        return;
    for (size_t i = 0; i < l->count; i++) {
        for (size_t j = 0; j < l->places[i].count; j++)
            close(l->places[i].fds[j]);
        mem_free(l->places[i].fds);
    }
    mem_free(l->places);
    conf_release(&l->conf);
    mem_free(l);
}

/* --- use --- */

bool listeners_listen(struct listeners *listeners, struct err *err)
{
    for (size_t i = 0; i < listeners->count; i++) {
        const struct place *place = &listeners->places[i];

        for (size_t j = 0; j < place->count; j++)
            if (!listener_listen(place->fds[j], (int)place->conf->backlog, &listeners->conf->tcp))
                return err_set(err, ERR_UNAVAILABLE, "cannot listen on %s: %s", place->text,
                               strerrordesc_np(errno));
    }
    return true;
}

/* Of too many sockets a worker has several; too few are shared. */
static bool each_of_place(const struct place *place, size_t worker, size_t worker_count,
                          bool (*visit)(void *owner, int fd, const struct conf_listener *conf),
                          void *owner)
{
    size_t pairs = place->count > worker_count ? place->count : worker_count;

    for (size_t i = worker; i < pairs; i += worker_count)
        if (!visit(owner, place->fds[i % place->count], place->conf))
            return false;
    return true;
}

bool listeners_each(const struct listeners *listeners, size_t worker,
                    bool (*visit)(void *owner, int fd, const struct conf_listener *conf),
                    void *owner)
{
    for (size_t i = 0; i < listeners->count; i++)
        if (!each_of_place(&listeners->places[i], worker, listeners->worker_count, visit, owner))
            return false;
    return true;
}

void listeners_all(const struct listeners *listeners,
                   void (*visit)(void *owner, int fd, const char *address), void *owner)
{
    for (size_t i = 0; i < listeners->count; i++)
        for (size_t j = 0; j < listeners->places[i].count; j++)
            visit(owner, listeners->places[i].fds[j], listeners->places[i].text);
}
