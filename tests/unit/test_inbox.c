/*
 * Letters between threads: all arrive, in order, on the receiver's thread; none after the inbox is
 * closed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/inbox.h"

#include <pthread.h>

enum { SENDERS = 2, LETTERS = 20000 };

struct note {
    struct letter letter;
    int sender, number;
};

struct receiver {
    struct inbox inbox;
    uv_loop_t loop;
    int seen[SENDERS];
    int total, close_at;
    struct note *again;
    struct letter *left;
};

static struct note notes[SENDERS][LETTERS];
static struct receiver *shared;

static void deliver(struct letter *letter, void *context)
{
    struct receiver *receiver = context;
    struct note *note = (struct note *)letter; /* its first member */

    assert_int_equal(note->number, receiver->seen[note->sender]);
    receiver->seen[note->sender]++;
    if (receiver->again != NULL) {
        struct note *again = receiver->again;

        receiver->again = NULL;
        assert_true(inbox_post(&receiver->inbox, &again->letter));
    }
    if (++receiver->total == receiver->close_at)
        receiver->left = inbox_close(&receiver->inbox);
}

static void set_up(struct receiver *receiver, int close_at)
{
    *receiver = (struct receiver){.close_at = close_at};
    assert_int_equal(uv_loop_init(&receiver->loop), 0);
    assert_true(inbox_open(&receiver->inbox, &receiver->loop, receiver));
    for (int sender = 0; sender < SENDERS; sender++) {
        for (int number = 0; number < LETTERS; number++)
            notes[sender][number] = (struct note){{NULL, deliver}, sender, number};
    }
}

static void *send_all(void *sender)
{
    for (int number = 0; number < LETTERS; number++)
        inbox_post(&shared->inbox, &notes[*(int *)sender][number].letter);
    return NULL;
}

static void letters_of_two_threads_all_arrive_in_order(void **state)
{
    static struct receiver receiver;
    pthread_t threads[SENDERS];
    int ids[SENDERS];

    (void)state;
    set_up(&receiver, SENDERS * LETTERS);
    shared = &receiver;
    for (int i = 0; i < SENDERS; i++) {
        ids[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, send_all, &ids[i]), 0);
    }
    uv_run(&receiver.loop, UV_RUN_DEFAULT);
    for (int i = 0; i < SENDERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(receiver.total, SENDERS * LETTERS);
    assert_null(receiver.left);
    assert_int_equal(uv_loop_close(&receiver.loop), 0);
}

static void nothing_is_delivered_after_close(void **state)
{
    struct receiver receiver;

    (void)state;
    set_up(&receiver, 2);
    for (int i = 0; i < 4; i++)
        assert_true(inbox_post(&receiver.inbox, &notes[0][i].letter));
    uv_run(&receiver.loop, UV_RUN_DEFAULT);
    assert_int_equal(receiver.total, 2);
    assert_ptr_equal(receiver.left, &notes[0][2].letter);
    assert_ptr_equal(receiver.left->next, &notes[0][3].letter);
    assert_null(receiver.left->next->next);
    assert_int_equal(uv_loop_close(&receiver.loop), 0);
}

static void post_after_close_gives_the_letter_back(void **state)
{
    struct receiver receiver;

    (void)state;
    set_up(&receiver, 0);
    assert_true(inbox_post(&receiver.inbox, &notes[0][0].letter));
    assert_ptr_equal(inbox_close(&receiver.inbox), &notes[0][0].letter);
    assert_false(inbox_post(&receiver.inbox, &notes[0][1].letter));
    uv_run(&receiver.loop, UV_RUN_DEFAULT);
    assert_int_equal(receiver.total, 0);
    assert_int_equal(uv_loop_close(&receiver.loop), 0);
}

static void a_letter_posted_by_a_letter_waits_for_the_next_turn(void **state)
{
    struct receiver receiver;

    (void)state;
    set_up(&receiver, 2);
    receiver.again = &notes[0][1];
    assert_true(inbox_post(&receiver.inbox, &notes[0][0].letter));
    uv_run(&receiver.loop, UV_RUN_ONCE);
    assert_int_equal(receiver.total, 1);
    uv_run(&receiver.loop, UV_RUN_DEFAULT);
    assert_int_equal(receiver.total, 2);
    assert_int_equal(uv_loop_close(&receiver.loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(letters_of_two_threads_all_arrive_in_order),
        cmocka_unit_test(nothing_is_delivered_after_close),
        cmocka_unit_test(post_after_close_gives_the_letter_back),
        cmocka_unit_test(a_letter_posted_by_a_letter_waits_for_the_next_turn),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
