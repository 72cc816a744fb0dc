/*
 * A real redis-server for the tests that need one, on a loopback port and on a Unix socket, without
 * persistence: started, frozen, killed, and started again on the same port.
 */
#ifndef IMAPMUX_TESTS_REDIS_SERVER_H
#define IMAPMUX_TESTS_REDIS_SERVER_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
/* after its friends */
#include <cmocka.h>

struct server {
    pid_t pid;
    int port;
    char folder[64], socket_path[96];
    const char *password; /* NULL: none */
};

static struct server server;

static inline int free_port(void)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof any;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&any, sizeof any), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&any, &len), 0);
    close(fd);
    return ntohs(any.sin_port);
}

static inline redisContext *admin_connect(void)
{
    redisContext *admin = redisConnect("127.0.0.1", server.port);

    assert_non_null(admin);
    if (admin->err == 0 && server.password != NULL)
        freeReplyObject(redisCommand(admin, "AUTH %s", server.password));
    return admin;
}

static inline bool server_answers(void)
{
    redisContext *admin = admin_connect();
    redisReply *reply = admin->err == 0 ? redisCommand(admin, "PING") : NULL;
    bool ok = reply != NULL && reply->type == REDIS_REPLY_STATUS;

    if (reply != NULL)
        freeReplyObject(reply);
    redisFree(admin);
    return ok;
}

static inline void server_run(void)
{
    char port[16];
    const char *args[] = {"redis-server",
                          "--port",
                          port,
                          "--bind",
                          "127.0.0.1",
                          "--unixsocket",
                          server.socket_path,
                          "--dir",
                          server.folder,
                          "--save",
                          "",
                          "--appendonly",
                          "no",
                          "--maxclients",
                          "200",
                          "--requirepass",
                          server.password,
                          NULL};

    if (server.password == NULL)
        args[15] = NULL;
    snprintf(port, sizeof port, "%d", server.port);
    server.pid = fork();
    assert_true(server.pid >= 0);
    if (server.pid == 0) {
        int null = open("/dev/null", O_WRONLY);

        dup2(null, 1);
        dup2(null, 2);
        execvp(args[0], (char *const *)args);
        _exit(127);
    }
    for (int tries = 0; !server_answers(); tries++) {
        assert_true(tries < 1000);
        poll(NULL, 0, 10);
    }
}

static inline void server_kill(void)
{
    if (server.pid > 0) {
        kill(server.pid, SIGKILL);
        waitpid(server.pid, NULL, 0);
    }
    server.pid = 0;
}

/* Returns when it is frozen: a signal alone takes effect some time later. */
static inline void server_freeze(void)
{
    int status;

    assert_int_equal(kill(server.pid, SIGSTOP), 0);
    assert_int_equal(waitpid(server.pid, &status, WUNTRACED), server.pid);
    assert_true(WIFSTOPPED(status));
}

static inline void server_start(const char *password)
{
    server.password = password;
    server.port = free_port();
    snprintf(server.folder, sizeof server.folder, "/tmp/imapmux-redis-XXXXXX");
    assert_non_null(mkdtemp(server.folder));
    snprintf(server.socket_path, sizeof server.socket_path, "%s/sock", server.folder);
    server_run();
}

static inline void server_stop(void)
{
    server_kill();
    unlink(server.socket_path);
    rmdir(server.folder);
}

/*
 * What a reply says, in static memory: "nil", a text, a number, or the elements with commas. Frees
 * it.
 */
static inline const char *reply_text(redisReply *reply)
{
    static char said[2048];
    size_t len = 0;

    assert_non_null(reply);
    said[0] = '\0';
    if (reply->type == REDIS_REPLY_INTEGER)
        snprintf(said, sizeof said, "%lld", reply->integer);
    else if (reply->type == REDIS_REPLY_NIL)
        snprintf(said, sizeof said, "nil");
    else if (reply->type != REDIS_REPLY_ARRAY)
        snprintf(said, sizeof said, "%s", reply->str);
    for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; i++) {
        len += (size_t)snprintf(said + len, sizeof said - len, "%s%s", i > 0 ? "," : "",
                                reply->element[i]->str == NULL ? "nil" : reply->element[i]->str);
        assert_true(len < sizeof said);
    }
    freeReplyObject(reply);
    return said;
}

/* One command to the server, over a blocking connection. Words of `format` as in hiredis. */
static inline void admin(const char *format, ...)
{
    redisContext *context = admin_connect();
    redisReply *reply;
    va_list args;

    va_start(args, format);
    reply = redisvCommand(context, format, args);
    va_end(args);
    assert_non_null(reply);
    assert_int_not_equal(reply->type, REDIS_REPLY_ERROR);
    freeReplyObject(reply);
    redisFree(context);
}

#endif
