/*
 * Owns the look-ups that run on the thread pool. getaddrinfo cannot be stopped once it runs, so
 * each look-up is an object of its own: a cancel takes the request out of it, and it frees itself
 * when libuv gives it back.
 */
#include "proxy/net/resolve.h"

#include "proxy/base/mem.h"

#include <assert.h>

struct resolve_lookup {
    uv_getaddrinfo_t uv;
    struct resolve_request *request; /* NULL once it was cancelled */
    uint16_t port;
    char host[HOST_MAX]; /* for the error text */
};

static bool lookup_start(const struct env *env, struct resolve_request *request, const char *host,
                         uint16_t port);
static void on_addresses(uv_getaddrinfo_t *uv, int status, struct addrinfo *found);
static size_t collect(const struct addrinfo *found, uint16_t port,
                      union address list_out[RESOLVE_ADDRESSES_MAX]);
static bool take_address(const struct addrinfo *info, uint16_t port, union address *address_out);
static void answer_now(struct turn_task *task);

void resolve(const struct env *env, struct resolve_request *request, const char *host,
             uint16_t port)
{
    assert(request->lookup == NULL && request->task.link == NULL);
    request->env = env;
    request->err = (struct err){0};
    request->task.run = answer_now;
    if (address_of(host, port, &request->numeric) || !lookup_start(env, request, host, port))
        turn_post(env->turn, &request->task);
}

void resolve_cancel(struct resolve_request *request)
{
    if (request->task.link != NULL)
        turn_cancel(request->env->turn, &request->task);
    if (request->lookup == NULL)
        return;
    request->lookup->request = NULL;
    uv_cancel(
        (uv_req_t *)&request->lookup->uv); /* fails when it already runs: then it ends alone */
    request->lookup = NULL;
}

/* False with request->err set when the look-up could not even be queued. */
static bool lookup_start(const struct env *env, struct resolve_request *request, const char *host,
                         uint16_t port)
{
    static const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct resolve_lookup *lookup;
    int status;

    if (strnlen(host, HOST_MAX) == HOST_MAX)
        return err_set(&request->err, ERR_UNAVAILABLE, "resolve: the host name is too long");
    lookup = mem_new(sizeof *lookup);
    if (lookup == NULL)
        return err_set(&request->err, ERR_INTERNAL, "resolve: no memory to look up %s", host);
    lookup->request = request;
    lookup->port = port;
    memcpy(lookup->host, host, strlen(host) + 1);
    status = uv_getaddrinfo(env->loop, &lookup->uv, on_addresses, lookup->host, NULL, &hints);
    if (status != 0) {
        mem_free(lookup);
        return err_set(&request->err, ERR_UNAVAILABLE, "resolve: %s: %s", host,
                       uv_strerror(status));
    }
    lookup->uv.data = lookup;
    request->lookup = lookup;
    return true;
}

static void on_addresses(uv_getaddrinfo_t *uv, int status, struct addrinfo *found)
{
    struct resolve_lookup *lookup = uv->data;
    struct resolve_request *request = lookup->request;
    union address list[RESOLVE_ADDRESSES_MAX];
    size_t count = 0;
    struct err err = {0};

    if (status == 0)
        count = collect(found, lookup->port, list);
    if (count == 0)
        err_set(&err, ERR_UNAVAILABLE, "resolve: %s: %s", lookup->host,
                status == 0 ? "no usable address" : uv_strerror(status));
    uv_freeaddrinfo(found);
    mem_free(lookup);
    if (request == NULL)
        return;
    request->lookup = NULL;
    request->on_answer(request, count > 0 ? list : NULL, count, &err);
}

static size_t collect(const struct addrinfo *found, uint16_t port,
                      union address list_out[RESOLVE_ADDRESSES_MAX])
{
    size_t count = 0;

    for (; found != NULL && count < RESOLVE_ADDRESSES_MAX; found = found->ai_next)
        if (take_address(found, port, &list_out[count]))
            count++;
    return count;
}

static bool take_address(const struct addrinfo *info, uint16_t port, union address *address_out)
{
    *address_out = (union address){.v6 = {0}};
    if (info->ai_family == AF_INET && info->ai_addrlen == sizeof address_out->v4) {
        memcpy(&address_out->v4, info->ai_addr, sizeof address_out->v4);
        address_out->v4.sin_port = htons(port);
        return true;
    }
    if (info->ai_family == AF_INET6 && info->ai_addrlen == sizeof address_out->v6) {
        memcpy(&address_out->v6, info->ai_addr, sizeof address_out->v6);
        address_out->v6.sin6_port = htons(port);
        return true;
    }
    return false;
}

/* The answer that was known, or the failure that happened, inside resolve. */
static void answer_now(struct turn_task *task)
{
    struct resolve_request *request =
        (struct resolve_request *)((char *)task - offsetof(struct resolve_request, task));
    union address numeric = request->numeric;
    struct err err = request->err;
    bool ok = err.kind == ERR_NONE;

    request->on_answer(request, ok ? &numeric : NULL, ok ? 1 : 0, &err);
}
