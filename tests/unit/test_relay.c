/* A relayed session when one side goes: what has come of it shall arrive at the other one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proxy/session/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TURNS = 8, BLOCK = 4096, IN_MAX = 4 << 20 };

/* A session between two sockets; the test has their other ends. */
static struct bench {
    uv_loop_t loop;
    uv_timer_t alarm; /* so that the loop turns without an event */
    struct turn turn;
    struct counters counters;
    struct env env;
    struct relay relay;
    int client_fd, store_fd; /* -1: closed */
    char scratch[RELAY_SCRATCH_MIN];
    char in[IN_MAX]; /* what the client or the store has heard */
    size_t len;
    bool lingers, over;
} b;

static void on_alarm(uv_timer_t *timer)
{
    (void)timer;
}

static void turn_some(void)
{
    for (int i = 0; i < TURNS; i++)
        uv_run(&b.loop, UV_RUN_ONCE);
}

static void on_linger(void *owner)
{
    (void)owner;
    b.lingers = true;
}

static void on_end(void *owner)
{
    (void)owner;
    b.over = true;
}

static void nothing(void *owner)
{
    (void)owner;
}

static const struct conn_events no_events = {nothing, nothing, nothing, nothing};

static struct conn *conn_of_pair(int *other_end)
{
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    *other_end = pair[0];
    return conn_open(&b.env, pair[1], &no_events, NULL);
}

static int setup(void **state)
{
    static const struct caps_filter filter;
    struct buf none;

    (void)state;
    memset(&b, 0, sizeof b);
    uv_loop_init(&b.loop);
    uv_timer_init(&b.loop, &b.alarm);
    uv_timer_start(&b.alarm, on_alarm, 1, 1);
    turn_init(&b.turn, &b.loop);
    b.env = (struct env){.loop = &b.loop, .turn = &b.turn, .counters = &b.counters};
    b.relay = (struct relay){.env = &b.env,
                             .client = conn_of_pair(&b.client_fd),
                             .backend = conn_of_pair(&b.store_fd),
                             .filter = &filter,
                             .scratch = b.scratch,
                             .scratch_size = sizeof b.scratch,
                             .on_linger = on_linger,
                             .on_end = on_end};
    buf_init(&none, 0);
    relay_start(&b.relay, false, &none, &none);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (b.relay.client != NULL)
        relay_release(&b.relay);
    conn_close(&b.relay.client);
    conn_close(&b.relay.backend);
    close(b.client_fd);
    close(b.store_fd);
    uv_close((uv_handle_t *)&b.alarm, NULL);
    turn_release(&b.turn);
    uv_run(&b.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&b.loop), 0);
    return 0;
}

static void say(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
    turn_some();
}

/* Takes what has come; true at its end. */
static bool receive(int fd)
{
    ssize_t count;

    while ((count = recv(fd, b.in + b.len, sizeof b.in - 1 - b.len, 0)) > 0)
        b.len += (size_t)count;
    assert_true(count == 0 || errno == EAGAIN);
    b.in[b.len] = '\0';
    return count == 0;
}

/* Waits for the end, and for exactly this before it. */
static void hear_all(int fd, const char *text)
{
    while (!receive(fd))
        turn_some();
    assert_string_equal(b.in, text);
}

/* --- */

static void half_a_line_for_who_has_closed_its_half(void **state)
{
    (void)state;
    say(b.client_fd, "a NOOP\r\n");
    shutdown(b.client_fd, SHUT_WR);
    turn_some();
    assert_true(b.lingers);
    say(b.store_fd, "* 3 EXISTS\r\n* BY");
    shutdown(b.store_fd, SHUT_WR);
    while (!b.over)
        turn_some();
    relay_release(&b.relay);
    conn_close(&b.relay.client);
    hear_all(b.client_fd, "* 3 EXISTS\r\n* BY");
}

/* The store sends until the proxy takes no more, for the client does not. */
static size_t send_until_it_stops(void)
{
    static const char block[BLOCK] = {0};
    size_t sent = 0, before;

    do {
        before = atomic_load(&b.counters.bytes_to_clients);
        assert_int_equal(send(b.store_fd, block, BLOCK, MSG_NOSIGNAL), BLOCK);
        sent += BLOCK;
        turn_some();
    } while (atomic_load(&b.counters.bytes_to_clients) > before);
    return sent;
}

/* Fills what there is room for on the way to the store, which reads nothing. */
static void upload_until_it_stops(void)
{
    static const char block[BLOCK] = {0};
    ssize_t count;

    say(b.client_fd, "a APPEND INBOX {100000000+}\r\n");
    do {
        count = send(b.client_fd, block, BLOCK, MSG_NOSIGNAL);
        turn_some();
    } while (count > 0);
    assert_true(conn_queued(b.relay.backend) > 0);
}

static void a_store_that_has_gone_is_heard_to_its_end(void **state)
{
    size_t sent;

    (void)state;
    upload_until_it_stops();
    say(b.store_fd, "* 1 FETCH (BODY[] {100000000}\r\n");
    sent = strlen("* 1 FETCH (BODY[] {100000000}\r\n") + send_until_it_stops();
    close(b.store_fd);
    b.store_fd = -1;
    turn_some(); /* what is still to be written cannot be */
    while (!receive(b.client_fd))
        turn_some();
    assert_int_equal(b.len, sent);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(half_a_line_for_who_has_closed_its_half, setup, teardown),
        cmocka_unit_test_setup_teardown(a_store_that_has_gone_is_heard_to_its_end, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
