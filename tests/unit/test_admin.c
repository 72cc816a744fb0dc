/* The socket of administration and its connections, with handlers made for the purpose. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/admin/admin.h"
#include "proxy/base/buf.h"
#include "proxy/base/mem.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { ANSWER_MAX = 8 * 1024 * 1024, PATIENCE_MS = 30000 };

static uv_loop_t loop;
static struct turn turn;
static struct conf conf;
static struct env env = {.loop = &loop, .turn = &turn, .conf = &conf};
static struct admin *admin;
static struct admin_call *waiting; /* of the handler that answers later */
static int cancelled;
static char folder[] = "/tmp/imapmux-test-XXXXXX", path[64];
static char answer[ANSWER_MAX];

/* --- handlers --- */

static void answer_now(struct admin_call *call)
{
    admin_answer(call, json_string(call->context));
}

static void cancel(struct admin_call *call)
{
    assert_ptr_equal(call, waiting);
    waiting = NULL;
    cancelled++;
}

static void answer_later(struct admin_call *call)
{
    waiting = call;
    call->cancel = cancel;
}

static void refuse(struct admin_call *call)
{
    const char *user = admin_argument(call, "user");

    admin_refuse(call, "not %s", user == NULL ? "all" : user);
}

static void answer_too_long(struct admin_call *call)
{
    json_t *list = json_array();

    for (int i = 0; i < 1000000; i++)
        json_array_append_new(list, json_true());
    admin_answer(call, list);
}

static admin_handler *const handlers[CTL_COMMAND_COUNT] = {[CTL_ID_version] = answer_now,
                                                           [CTL_ID_status] = answer_later,
                                                           [CTL_ID_cache_flush] = refuse,
                                                           [CTL_ID_metrics] = answer_too_long,
                                                           [CTL_ID_log_level] = answer_now};

/* --- the stage --- */

static int set_up(void **state)
{
    (void)state;
    waiting = NULL;
    cancelled = 0;
    conf.admin = (struct conf_admin){.socket = path, .mode = "0600", .group = "", .readers = ""};
    if (uv_loop_init(&loop) != 0)
        return -1;
    turn_init(&turn, &loop);
    admin = admin_open(&env, false, handlers, "here", NULL);
    return admin == NULL ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    admin_close(&admin);
    turn_release(&turn);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(access(path, F_OK), -1);
    return uv_loop_close(&loop);
}

static int client_of(int flags)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | flags, 0);

    memcpy(address.sun_path, path, strlen(path));
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    int failure = errno;
    close(fd);
    errno = failure;
    return -1;
}

static int client(void)
{
    return client_of(0);
}

static void say(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static int step(void)
{
    return uv_run(&loop, UV_RUN_NOWAIT);
}

static uint64_t now_ms(void)
{
    return uv_hrtime() / 1000000;
}

static void run_until(bool (*done)(void))
{
    for (uint64_t end = now_ms() + PATIENCE_MS; !done(); step())
        assert_true(now_ms() < end);
}

static bool is_waiting(void)
{
    return waiting != NULL;
}

static bool is_cancelled(void)
{
    return cancelled > 0;
}

/* Lets the loop do all that it has to do now. */
static void settle(void)
{
    for (int i = 0; i < 10; i++)
        step();
}

/* What comes up to this many line ends, or the end of the stream. */
static const char *hear(int fd, int lines)
{
    size_t len = 0;

    for (uint64_t end = now_ms() + PATIENCE_MS; lines > 0;) {
        ssize_t count = recv(fd, answer + len, sizeof answer - 1 - len, MSG_DONTWAIT);

        assert_true(now_ms() < end);
        if (count == 0 || (count < 0 && errno != EAGAIN))
            break;
        for (ssize_t i = 0; i < count; i++)
            lines -= answer[len + (size_t)i] == '\n';
        len += count > 0 ? (size_t)count : 0;
        step();
    }
    answer[len] = '\0';
    return answer;
}

static void hang_up(int fd)
{
    close(fd);
    settle();
}

#define DONE(text)   "{\"ok\":true,\"result\":\"" text "\"}\n"
#define FAILED(text) "{\"ok\":false,\"error\":\"" text "\"}\n"

/* --- requests and answers --- */

static void each_request_is_answered_in_order(void **state)
{
    int fd = client();

    (void)state;
    say(fd, "{\"command\":\"version\"}\n");
    assert_string_equal(hear(fd, 1), DONE("here"));
    say(fd, "{\"command\":\"cache flush\",\"arguments\":{\"user\":\"ann\"}}\n{\"comm");
    assert_string_equal(hear(fd, 1), FAILED("not ann"));
    say(fd, "and\":\"version\"}\r\nrubbish\n{\"command\":\"cache flush\"}\n");
    assert_string_equal(
        hear(fd, 3),
        DONE("here") FAILED("the request is no JSON object: '[' or '{' expected near 'rubbish'")
            FAILED("not all"));
    hang_up(fd);
}

static void a_late_answer_comes_before_the_next_one(void **state)
{
    int fd = client();

    (void)state;
    say(fd, "{\"command\":\"status\"}\n{\"command\":\"version\"}\n");
    run_until(is_waiting);
    assert_int_equal(recv(fd, answer, 1, MSG_DONTWAIT), -1);
    admin_item(waiting, json_integer(1));
    admin_item(waiting, json_pack("{s:i}", "n", 2));
    assert_string_equal(hear(fd, 2), "{\"item\":1}\n{\"item\":{\"n\":2}}\n");
    admin_answer(waiting, json_null());
    assert_string_equal(hear(fd, 2), "{\"ok\":true,\"result\":null}\n" DONE("here"));
    assert_int_equal(cancelled, 0);
    hang_up(fd);
}

static void a_client_that_goes_takes_its_call_back(void **state)
{
    int fd = client();

    (void)state;
    say(fd, "{\"command\":\"status\"}\n");
    run_until(is_waiting);
    close(fd);
    run_until(is_cancelled);
    fd = client();
    say(fd, "{\"command\":\"version\"}\n");
    assert_string_equal(hear(fd, 1), DONE("here"));
    hang_up(fd);
    assert_int_equal(cancelled, 1);
}

static void a_client_that_has_said_all_is_answered(void **state)
{
    int fd = client();

    (void)state;
    say(fd, "{\"command\":\"status\"}\n{\"command\":\"version\"}\n{\"half");
    shutdown(fd, SHUT_WR);
    run_until(is_waiting);
    settle();
    assert_int_equal(cancelled, 0);
    admin_answer(waiting, json_true());
    assert_string_equal(hear(fd, 3), "{\"ok\":true,\"result\":true}\n" DONE("here"));
    close(fd);
}

static void whoever_said_all_and_then_goes_is_noticed_at_the_next_item(void **state)
{
    int fd = client();

    (void)state;
    say(fd, "{\"command\":\"status\"}\n");
    shutdown(fd, SHUT_WR);
    run_until(is_waiting);
    settle();
    close(fd);
    settle();
    admin_item(waiting, json_true());
    assert_int_equal(cancelled, 0); /* not inside the call */
    run_until(is_cancelled);
}

static void the_end_cancels(void **state)
{
    int fd = client();

    say(fd, "{\"command\":\"status\"}\n");
    run_until(is_waiting);
    assert_int_equal(tear_down(state), 0);
    assert_int_equal(cancelled, 1);
    assert_string_equal(hear(fd, 1), "");
    close(fd);
    assert_int_equal(set_up(state), 0);
}

/* --- bounds --- */

static void a_long_request_is_refused(void **state)
{
    int fd = client();
    char part[1024];

    (void)state;
    memset(part, ' ', sizeof part);
    for (int i = 0; i < 64; i++) {
        assert_int_equal(send(fd, part, sizeof part, MSG_NOSIGNAL), sizeof part);
        step();
    }
    settle();
    assert_int_equal(recv(fd, answer, 1, MSG_DONTWAIT), -1);
    say(fd, "x");
    assert_string_equal(hear(fd, 2), FAILED("a request has at most 65536 octets"));
    close(fd);
}

static void the_longest_request_is_taken(void **state)
{
    int fd = client();
    char part[1024];

    (void)state;
    memset(part, ' ', sizeof part);
    for (int i = 0; i < 63; i++) {
        assert_int_equal(send(fd, part, sizeof part, MSG_NOSIGNAL), sizeof part);
        step();
    }
    say(fd, "{\"command\":\"version\"}");
    assert_int_equal(send(fd, part, 1024 - 21, MSG_NOSIGNAL), 1024 - 21);
    say(fd, "\n{\"command\":\"version\"}\n");
    assert_string_equal(hear(fd, 2), DONE("here") DONE("here"));
    hang_up(fd);
}

static void who_does_not_read_what_is_told_is_let_go(void **state)
{
    int fd = client();
    char text[4096];

    (void)state;
    memset(text, 'x', sizeof text);
    say(fd, "{\"command\":\"status\"}\n");
    run_until(is_waiting);
    for (int i = 0; i < 2048 && waiting != NULL; i++) {
        admin_item(waiting, json_stringn(text, sizeof text));
        step();
    }
    run_until(is_cancelled);
    close(fd);
}

static void an_answer_that_is_too_long_ends_the_connection(void **state)
{
    int fd = client();

    (void)state;
    say(fd, "{\"command\":\"metrics\"}\n");
    assert_string_equal(hear(fd, 1), "");
    close(fd);
}

static void who_reads_slowly_gets_all(void **state)
{
    int fd = client();
    size_t asked = 0, heard = 0;

    (void)state;
    for (; asked < 20000 && send(fd, "{\"command\":\"version\"}\n", 22, MSG_DONTWAIT) == 22;
         asked++)
        step();
    settle();
    hear(fd, (int)asked);
    for (const char *at = answer; (at = strchr(at, '\n')) != NULL; at++)
        heard++;
    assert_true(asked > 100 && asked < 20000); /* nothing more is read while answers wait */
    assert_int_equal(heard, asked);
    hang_up(fd);
}

static void more_than_so_many_are_turned_away(void **state)
{
    enum { CLIENTS_MAX = 64 };
    int fds[CLIENTS_MAX + 1];

    (void)state;
    for (int i = 0; i <= CLIENTS_MAX; i++, step()) /* which takes it out of the line */
        fds[i] = client();
    assert_string_equal(hear(fds[CLIENTS_MAX], 2),
                        "{\"ok\":false,\"error\":\"too many connections\",\"again\":true}\n");
    say(fds[CLIENTS_MAX - 1], "{\"command\":\"version\"}\n");
    assert_string_equal(hear(fds[CLIENTS_MAX - 1], 1), DONE("here"));
    hang_up(fds[CLIENTS_MAX - 1]);
    fds[CLIENTS_MAX - 1] = client();
    say(fds[CLIENTS_MAX - 1], "{\"command\":\"version\"}\n");
    assert_string_equal(hear(fds[CLIENTS_MAX - 1], 1), DONE("here"));
    for (int i = 0; i <= CLIENTS_MAX; i++)
        close(fds[i]);
}

/* --- the file --- */

static void the_file_has_its_mode(void **state)
{
    struct stat status;

    (void)state;
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
}

static void whoever_listens_keeps_the_file(void **state)
{
    struct err err = {0};
    int fds[64];
    size_t count = 0;

    (void)state;
    assert_null(admin_open(&env, false, handlers, NULL, &err));
    assert_non_null(strstr(err.text, "another process listens there"));
    while (count < 64 && (fds[count] = client_of(SOCK_NONBLOCK)) >= 0)
        count++;
    assert_int_equal(errno, EAGAIN); /* nobody else is let into the line */
    assert_null(admin_open(&env, false, handlers, NULL, &err));
    assert_non_null(strstr(err.text, "another process listens there"));
    say(fds[0], "{\"command\":\"version\"}\n");
    assert_string_equal(hear(fds[0], 1), DONE("here"));
    while (count > 0)
        close(fds[--count]);
}

static void a_stale_file_is_replaced_and_any_other_is_not(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct err err = {0};

    (void)state;
    admin_close(&admin);
    settle();
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    assert_int_equal(client(), -1);
    admin = admin_open(&env, false, handlers, "here", &err);
    assert_non_null(admin);
    admin_close(&admin);
    settle();
    fclose(fopen(path, "w"));
    assert_null(admin_open(&env, false, handlers, "here", &err));
    assert_non_null(strstr(err.text, "no socket"));
    assert_int_equal(unlink(path), 0);
}

static void the_file_of_another_is_not_removed(void **state)
{
    (void)state;
    assert_int_equal(unlink(path), 0);
    fclose(fopen(path, "w"));
    admin_close(&admin);
    assert_int_equal(unlink(path), 0);
}

static int make_folder(void **state)
{
    (void)state;
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/admin.sock", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_request_is_answered_in_order),
        TEST(a_late_answer_comes_before_the_next_one),
        TEST(a_client_that_goes_takes_its_call_back),
        TEST(a_client_that_has_said_all_is_answered),
        TEST(whoever_said_all_and_then_goes_is_noticed_at_the_next_item),
        TEST(the_end_cancels),
        TEST(a_long_request_is_refused),
        TEST(the_longest_request_is_taken),
        TEST(who_does_not_read_what_is_told_is_let_go),
        TEST(an_answer_that_is_too_long_ends_the_connection),
        TEST(who_reads_slowly_gets_all),
        TEST(more_than_so_many_are_turned_away),
        TEST(the_file_has_its_mode),
        TEST(whoever_listens_keeps_the_file),
        TEST(a_stale_file_is_replaced_and_any_other_is_not),
        TEST(the_file_of_another_is_not_removed),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
