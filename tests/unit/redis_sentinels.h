/*
 * A master and a replica of it, watched by three Sentinels with a quorum of two, on free loopback
 * ports, each with a folder of its own.
 */
#ifndef IMAPMUX_TESTS_REDIS_SENTINELS_H
#define IMAPMUX_TESTS_REDIS_SENTINELS_H

#include "tests/unit/redis_server.h"

#include <string.h>

#define MASTER_NAME "routes"

enum { SERVERS = 2, SENTINELS = 3 };

struct node {
    pid_t pid;
    int port;
    int master_port; /* of whom it is a replica, or whom it watches; 0: it is a master */
    bool is_sentinel;
    char folder[64], file[96];
};

struct group {
    struct node servers[SERVERS], sentinels[SENTINELS];
};

/* The reply to one command over a blocking connection, freed by the caller; NULL without one. */
static inline redisReply *node_ask(const struct node *node, const char *command)
{
    struct timeval limit = {.tv_sec = 2};
    redisContext *context = redisConnectWithTimeout("127.0.0.1", node->port, limit);
    redisReply *reply = NULL;

    assert_non_null(context);
    if (context->err == 0) {
        redisSetTimeout(context, limit);
        reply = redisCommand(context, command);
    }
    redisFree(context);
    return reply;
}

/* Whether `text` is in the reply, or in an element of it. */
static inline bool node_says(const struct node *node, const char *command, const char *text)
{
    redisReply *reply = node_ask(node, command);
    bool found = reply != NULL && reply->str != NULL && strstr(reply->str, text) != NULL;

    for (size_t i = 0; reply != NULL && reply->type == REDIS_REPLY_ARRAY && i < reply->elements;
         i++) {
        const redisReply *part = reply->element[i];

        found = found || (part->str != NULL && strcmp(part->str, text) == 0);
    }
    if (reply != NULL)
        freeReplyObject(reply);
    return found;
}

static inline void node_wait(const struct node *node, const char *command, const char *text)
{
    for (int tries = 0; !node_says(node, command, text); tries++) {
        assert_true(tries < 2000);
        poll(NULL, 0, 10);
    }
}

static inline void node_write_file(const struct node *node)
{
    FILE *file = fopen(node->file, "w");

    assert_non_null(file);
    fprintf(file, "port %d\nbind 127.0.0.1\nprotected-mode no\ndir %s\n", node->port, node->folder);
    if (node->is_sentinel)
        fprintf(file,
                "sentinel monitor " MASTER_NAME " 127.0.0.1 %d 2\n"
                "sentinel down-after-milliseconds " MASTER_NAME " 500\n"
                "sentinel failover-timeout " MASTER_NAME " 3000\n",
                node->master_port);
    else
        fprintf(file, "save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n");
    if (!node->is_sentinel && node->master_port != 0)
        fprintf(file, "replicaof 127.0.0.1 %d\n", node->master_port);
    assert_int_equal(fclose(file), 0);
}

static inline void node_run(struct node *node)
{
    const char *args[] = {"redis-server", node->file, node->is_sentinel ? "--sentinel" : NULL,
                          NULL};

    node->pid = fork();
    assert_true(node->pid >= 0);
    if (node->pid == 0) {
        int null = open("/dev/null", O_WRONLY);

        dup2(null, 1);
        dup2(null, 2);
        execvp(args[0], (char *const *)args);
        _exit(127);
    }
    node_wait(node, "PING", "PONG");
}

static inline void node_start(struct node *node, int master_port, bool is_sentinel)
{
    *node =
        (struct node){.port = free_port(), .master_port = master_port, .is_sentinel = is_sentinel};
    snprintf(node->folder, sizeof node->folder, "/tmp/imapmux-redis-XXXXXX");
    assert_non_null(mkdtemp(node->folder));
    snprintf(node->file, sizeof node->file, "%s/conf", node->folder);
    node_write_file(node);
    node_run(node);
}

static inline void node_kill(struct node *node)
{
    if (node->pid > 0) {
        kill(node->pid, SIGKILL);
        waitpid(node->pid, NULL, 0);
    }
    node->pid = 0;
}

static inline void node_freeze(const struct node *node)
{
    int status;

    assert_int_equal(kill(node->pid, SIGSTOP), 0);
    assert_int_equal(waitpid(node->pid, &status, WUNTRACED), node->pid);
}

static inline void node_thaw(const struct node *node)
{
    kill(node->pid, SIGCONT);
}

static inline void node_stop(struct node *node)
{
    char command[100];

    node_kill(node);
    snprintf(command, sizeof command, "rm -r %s", node->folder);
    assert_int_equal(system(command), 0);
}

static inline void group_start(struct group *group)
{
    struct node *servers = group->servers;

    node_start(&servers[0], 0, false);
    node_start(&servers[1], servers[0].port, false);
    node_wait(&servers[1], "INFO replication", "master_link_status:up");
    for (size_t i = 0; i < SENTINELS; i++) {
        node_start(&group->sentinels[i], servers[0].port, true);
        /*
         * They find one another, and the replica, by what is sent each two or ten seconds. Four
         * times the first is how long a new master has before another Sentinel demotes it, five
         * times the last how old news may be of a replica that is to become one, of which there are
         * some each second while the master is down.
         */
        node_wait(&group->sentinels[i],
                  "SENTINEL DEBUG PUBLISH-PERIOD 500 INFO-PERIOD 200 ASK-PERIOD 100 "
                  "PING-PERIOD 300",
                  "OK");
    }
    for (size_t i = 0; i < SENTINELS; i++) {
        node_wait(&group->sentinels[i], "SENTINEL CKQUORUM " MASTER_NAME, "OK 3 usable");
        node_wait(&group->sentinels[i], "INFO sentinel", "slaves=1,sentinels=3");
    }
}

/* Sentinels first, so that they start no fail-over. */
static inline void group_stop(struct group *group)
{
    for (size_t i = 0; i < SENTINELS; i++)
        node_stop(&group->sentinels[i]);
    for (size_t i = 0; i < SERVERS; i++)
        node_stop(&group->servers[i]);
}

#endif
