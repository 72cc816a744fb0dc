/* Work for the next turn: once, in order, not within the call, and not after a cancel. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/mem.h"
#include "proxy/base/turn.h"

#include <string.h>

struct job {
    struct turn_task task; /* first */
    char name;
    struct job *post, *cancel;
    bool is_freed;
};

static uv_loop_t loop;
static struct turn turn;
static char ran[32];

static void run(struct turn_task *task)
{
    struct job *job = (struct job *)task;
    size_t len = strlen(ran);

    assert_true(len + 1 < sizeof ran);
    ran[len] = job->name;
    if (job->post != NULL)
        turn_post(&turn, &job->post->task);
    if (job->cancel != NULL)
        turn_cancel(&turn, &job->cancel->task);
    if (job->is_freed)
        mem_free(job);
}

#define JOB(name_, ...)                                                                            \
    (struct job)                                                                                   \
    {                                                                                              \
        .task.run = run, .name = name_, __VA_ARGS__                                                \
    }

static int open_loop(void **state)
{
    (void)state;
    memset(ran, 0, sizeof ran);
    if (uv_loop_init(&loop) != 0)
        return -1;
    turn_init(&turn, &loop);
    return 0;
}

static int close_loop(void **state)
{
    (void)state;
    turn_release(&turn);
    uv_run(&loop, UV_RUN_DEFAULT);
    return uv_loop_close(&loop);
}

static void in_order_and_once(void **state)
{
    struct job a = JOB('a', .post = NULL), b = JOB('b', .post = NULL);

    (void)state;
    turn_post(&turn, &a.task);
    turn_post(&turn, &b.task);
    turn_post(&turn, &a.task); /* is posted already */
    assert_string_equal(ran, "");
    uv_run(&loop, UV_RUN_DEFAULT); /* ends: an idle handle without tasks keeps no loop alive */
    assert_string_equal(ran, "ab");
    turn_post(&turn, &a.task);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_string_equal(ran, "aba");
}

static void a_cancelled_task_does_not_run(void **state)
{
    struct job a = JOB('a', .post = NULL), b = JOB('b', .post = NULL), c = JOB('c', .post = NULL);

    (void)state;
    turn_cancel(&turn, &a.task);
    turn_post(&turn, &a.task);
    turn_post(&turn, &b.task);
    turn_post(&turn, &c.task);
    turn_cancel(&turn, &c.task); /* the last */
    turn_cancel(&turn, &a.task); /* the first */
    turn_cancel(&turn, &a.task);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_string_equal(ran, "b");
    turn_post(&turn, &a.task);
    turn_cancel(&turn, &a.task);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_string_equal(ran, "b");
}

static void a_task_may_cancel_another(void **state)
{
    struct job a = JOB('a', .post = NULL), b = JOB('b', .post = NULL), c = JOB('c', .post = NULL);

    (void)state;
    a.cancel = &b;
    c.cancel = &c; /* itself, while it runs: harmless */
    turn_post(&turn, &a.task);
    turn_post(&turn, &b.task);
    turn_post(&turn, &c.task);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_string_equal(ran, "ac");
}

static void what_a_task_posts_waits_for_the_next_turn(void **state)
{
    struct job a = JOB('a', .post = NULL), b = JOB('b', .post = NULL);

    (void)state;
    a.post = &a;
    b.post = &a; /* is posted already, by itself */
    turn_post(&turn, &a.task);
    turn_post(&turn, &b.task);
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_string_equal(ran, "ab");
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_string_equal(ran, "aba");
    a.post = NULL;
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_string_equal(ran, "abaa");
}

static void a_task_may_free_itself(void **state)
{
    struct job *job = mem_new(sizeof *job);

    (void)state;
    assert_non_null(job);
    *job = JOB('f', .is_freed = true);
    turn_post(&turn, &job->task);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_string_equal(ran, "f");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(in_order_and_once, open_loop, close_loop),
        cmocka_unit_test_setup_teardown(a_cancelled_task_does_not_run, open_loop, close_loop),
        cmocka_unit_test_setup_teardown(a_task_may_cancel_another, open_loop, close_loop),
        cmocka_unit_test_setup_teardown(what_a_task_posts_waits_for_the_next_turn, open_loop,
                                        close_loop),
        cmocka_unit_test_setup_teardown(a_task_may_free_itself, open_loop, close_loop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
