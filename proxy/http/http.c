/*
 * Owns the server: libmicrohttpd without threads, whose epoll descriptor the loop watches, and the
 * list of connections, so that none takes longer than it may.
 */
#include "proxy/http/http.h"

#include "proxy/base/address.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/listener.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

enum { BACKLOG = 64, MEMORY_MAX = 16384 /* of a connection: bounds its request */, LOOK_MS = 100 };

/* A connection, for as long as libmicrohttpd has it. */
struct visitor {
    struct visitor *prev, *next;
    int fd;
    uint64_t since_ms; /* it came, or its last request was done */
};

struct http {
    const struct env *env;
    const struct http_page *pages;
    void *owner;
    struct MHD_Daemon *daemon;
    struct listener *listener;
    struct visitor *visitors;
    uv_poll_t poll;    /* the daemon's epoll */
    uv_timer_t due;    /* the daemon wants to run again */
    uv_timer_t patrol; /* while there are visitors */
    unsigned handles_open;
};

/* --- the daemon on the loop --- */

static void on_due(uv_timer_t *timer);

static void run(struct http *http)
{
    MHD_UNSIGNED_LONG_LONG wait_ms = 0;

    MHD_run(http->daemon);
    if (MHD_get_timeout(http->daemon, &wait_ms) == MHD_YES)
        uv_timer_start(&http->due, on_due, wait_ms, 0);
    else
        uv_timer_stop(&http->due);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    run(poll->data);
}

static void on_due(uv_timer_t *timer)
{
    run(timer->data);
}

/* The daemon closes the descriptor, if it has no room for it, too. */
static void on_accept(void *owner, int fd, const union address *peer,
                      const struct conf_listener *conf)
{
    struct http *http = owner;

    (void)conf;
    MHD_add_connection(http->daemon, fd, &peer->any, address_size(peer));
    run(http);
}

/* --- who takes too long --- */

/* Whoever sends or reads too slowly meets a closed socket; the daemon notices it by itself. */
static void on_patrol(uv_timer_t *timer)
{
    struct http *http = timer->data;
    uint64_t now = uv_now(timer->loop);

    for (struct visitor *visitor = http->visitors; visitor != NULL; visitor = visitor->next)
        if (now - visitor->since_ms >= http->env->conf->http.timeout)
            (void)shutdown(visitor->fd, SHUT_RDWR);
    if (http->visitors == NULL)
        uv_timer_stop(timer);
}

static int fd_of(struct MHD_Connection *connection)
{
    return MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
}

static void add_visitor(struct http *http, struct MHD_Connection *connection, void **context)
{
    struct visitor *visitor = mem_new(sizeof *visitor);

    *context = visitor;
    if (visitor == NULL) {
        (void)shutdown(fd_of(connection), SHUT_RDWR); /* nobody would see to it */
        return;
    }
    visitor->fd = fd_of(connection);
    visitor->since_ms = uv_now(http->env->loop);
    DL_APPEND(http->visitors, visitor);
    if (!uv_is_active((uv_handle_t *)&http->patrol))
        uv_timer_start(&http->patrol, on_patrol, LOOK_MS, LOOK_MS);
}

static void on_connection(void *owner, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http *http = owner;
    struct visitor *visitor = *context;

    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        add_visitor(http, connection, context);
    } else if (visitor != NULL) {
        DL_DELETE(http->visitors, visitor);
        mem_free(visitor);
    }
}

static void on_completed(void *owner, struct MHD_Connection *connection, void **request,
                         enum MHD_RequestTerminationCode code)
{
    struct http *http = owner;
    struct visitor *visitor =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;

    (void)request;
    (void)code;
    if (visitor != NULL)
        visitor->since_ms = uv_now(http->env->loop);
}

/* --- requests --- */

bool http_host_is_ours(const char *host, const struct conf_words *names)
{
    char with_port[HOST_MAX + 8], name[HOST_MAX], own[HOST_MAX];
    size_t own_size = sizeof own;
    union address address;
    uint16_t port;

    if (host == NULL)
        return true;
    snprintf(with_port, sizeof with_port, "%.255s:80", host);
    if (!address_split(host, name, &port) && !address_split(with_port, name, &port))
        return false;
    if (address_of(name, port, &address) || strcasecmp(name, "localhost") == 0)
        return true;
    for (size_t i = 0; i < names->count; i++)
        if (strcasecmp(name, names->items[i]) == 0)
            return true;
    return uv_os_gethostname(own, &own_size) == 0 && strcasecmp(name, own) == 0;
}

/* The last step of each request. The answer takes over the text, of malloc. */
static enum MHD_Result answer(struct MHD_Connection *connection, unsigned status, const char *type,
                              const char *policy, char *text, size_t len)
{
    static const char nothing[] = "default-src 'none'; frame-ancestors 'none'";
    struct MHD_Response *response =
        MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE);
    const char *const headers[][2] = {
        {MHD_HTTP_HEADER_CONTENT_TYPE, type},
        {"Content-Security-Policy", policy == NULL ? nothing : policy},
        {"X-Content-Type-Options", "nosniff"},
        {"X-Frame-Options", "DENY"},
        {"Referrer-Policy", "no-referrer"},
        {"Cross-Origin-Resource-Policy", "same-origin"},
        {MHD_HTTP_HEADER_CACHE_CONTROL, "no-store"},
        {MHD_HTTP_HEADER_ALLOW, status == MHD_HTTP_METHOD_NOT_ALLOWED ? "GET, HEAD" : NULL},
    };
    enum MHD_Result result = MHD_NO;

    if (response == NULL) {
        mem_free(text);
        return MHD_NO;
    }
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++)
        if (headers[i][1] != NULL)
            MHD_add_response_header(response, headers[i][0], headers[i][1]);
    result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result refuse(struct MHD_Connection *connection, unsigned status, const char *why)
{
    char *text = mem_copy_text(why, strlen(why));

    return text == NULL
               ? MHD_NO
               : answer(connection, status, "text/plain; charset=utf-8", NULL, text, strlen(text));
}

static enum MHD_Result show(struct http *http, struct MHD_Connection *connection,
                            const struct http_page *page)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    unsigned status = out == NULL ? 0 : page->write(http->owner, out);

    if (out != NULL && fclose(out) == 0)
        return answer(connection, status, page->type, page->policy, text, len);
    mem_free(text);
    return MHD_NO;
}

/*
 * Comes with the header, and once more when the whole request is there. An answer to the first call
 * ends the connection, for what may follow is not read then: that is for those who are refused.
 */
static enum MHD_Result on_request(void *owner, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **request)
{
    struct http *http = owner;
    const char *host =
        MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_HOST);
    const struct http_page *page = http->pages;

    (void)version;
    (void)upload;
    while (page->path != NULL && strcmp(page->path, path) != 0)
        page++;
    if (!http_host_is_ours(host, &http->env->conf->http.names))
        return refuse(connection, MHD_HTTP_MISDIRECTED_REQUEST,
                      "This is not my name. If it should be: setting \"names\" of section http.\n");
    if (page->path == NULL)
        return refuse(connection, MHD_HTTP_NOT_FOUND, "There is nothing here.\n");
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return refuse(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "Only GET and HEAD.\n");
    if (*request == NULL || *upload_size > 0) {
        bool has_body = *upload_size > 0;

        *request = http;
        return has_body ? MHD_NO : MHD_YES;
    }
    return show(http, connection, page);
}

/* --- life --- */

__attribute__((format(printf, 2, 0))) static void on_message(void *owner, const char *format,
                                                             va_list values)
{
    char text[256];

    (void)owner;
    vsnprintf(text, sizeof text, format, values);
    log_event(LOG_LEVEL_DEBUG, "http", "%.*s", (int)strcspn(text, "\n"), text);
}

static struct MHD_Daemon *start_daemon(struct http *http)
{
    const struct conf_http *conf = &http->env->conf->http;

    return MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request,
        http, MHD_OPTION_EXTERNAL_LOGGER, on_message, NULL, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)conf->max_connections, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)MEMORY_MAX,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, http, MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, http, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1,
        MHD_OPTION_END);
}

static bool listen_for_it(struct http *http, struct err *err)
{
    const struct conf *conf = http->env->conf;
    int fd = listener_bind(conf->http.address, err);

    if (fd < 0)
        return false;
    if (!listener_listen(fd, BACKLOG, &conf->tcp)) {
        err_set(err, ERR_UNAVAILABLE, "http: cannot listen on %s: %s", conf->http.address,
                strerrordesc_np(errno));
        close(fd);
        return false;
    }
    http->listener = listener_open(http->env, fd, NULL, on_accept, http);
    if (http->listener == NULL)
        return err_set(err, ERR_INTERNAL, "http: no memory for a listener");
    listener_start(http->listener);
    return true;
}

static bool open_daemon(struct http *http, struct err *err)
{
    const union MHD_DaemonInfo *info = NULL;

    http->daemon = start_daemon(http);
    if (http->daemon != NULL)
        info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (info == NULL || uv_poll_init(http->env->loop, &http->poll, info->epoll_fd) != 0)
        return err_set(err, ERR_INTERNAL, "http: no memory or descriptors");
    http->poll.data = http;
    http->handles_open++;
    uv_poll_start(&http->poll, UV_READABLE, on_poll);
    return true;
}

static void open_timer(struct http *http, uv_timer_t *timer)
{
    uv_timer_init(http->env->loop, timer);
    timer->data = http;
    http->handles_open++;
}

struct http *http_open(const struct env *env, const struct http_page *pages, void *owner,
                       struct err *err)
{
    struct http *http = mem_new(sizeof *http);

    if (http == NULL) {
        err_set(err, ERR_INTERNAL, "http: no memory");
        return NULL;
    }
    http->env = env;
    http->pages = pages;
    http->owner = owner;
    open_timer(http, &http->due);
    open_timer(http, &http->patrol);
    if (!open_daemon(http, err) || !listen_for_it(http, err))
        http_close(&http);
    return http;
}

static void handle_closed(uv_handle_t *handle)
{
    struct http *http = handle->data;

    if (--http->handles_open == 0)
        mem_free(http);
}

void http_close(struct http **http)
{
    struct http *h = *http;

    *http = NULL;
    if (h == NULL)
        return;
    listener_close(&h->listener);
    if (h->poll.data != NULL)
        uv_close((uv_handle_t *)&h->poll, handle_closed);
    if (h->daemon != NULL)
        MHD_stop_daemon(h->daemon);
    uv_close((uv_handle_t *)&h->due, handle_closed);
    uv_close((uv_handle_t *)&h->patrol, handle_closed);
}
