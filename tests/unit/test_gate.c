/*
 * Places that several sides share, and the lines before them: in one thread, where the order can be
 * told, and with a thread for each side, where all that counts is that nobody is forgotten and
 * there are never too many.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/store/gate.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

enum { SIDES = 2, GUESTS = 10 };

struct guest {
    struct gate_ticket ticket; /* first: the gate gives it back */
    struct bench *bench;
    char name;
    void (*then)(struct guest *guest); /* what it does with its place; may be NULL */
};

struct bench {
    struct gate gate;
    struct door {
        uv_loop_t loop;
        uv_async_t wake;
        struct gate_side side;
        unsigned wakes;
    } doors[SIDES];
    struct guest guests[GUESTS]; /* "a", "b", ... */
    char served[3 * GUESTS];     /* their names, in order */
};

static void on_wake(uv_async_t *wake)
{
    struct door *door = wake->data;

    door->wakes++;
    gate_serve(&door->side);
}

static void on_place(struct gate_ticket *ticket)
{
    struct guest *guest = (struct guest *)ticket;

    assert_null(ticket->side);
    strncat(guest->bench->served, &guest->name, 1);
    if (guest->then != NULL)
        guest->then(guest);
}

static void bench_init(struct bench *b, uint32_t limit, uint32_t queue_max, uint64_t ramp_ms)
{
    memset(b, 0, sizeof *b);
    assert_true(gate_init(&b->gate, limit, queue_max, ramp_ms, SIDES));
    for (size_t i = 0; i < SIDES; i++) {
        struct door *door = &b->doors[i];

        assert_int_equal(uv_loop_init(&door->loop), 0);
        assert_int_equal(uv_async_init(&door->loop, &door->wake, on_wake), 0);
        door->wake.data = door;
        gate_join(&b->gate, i, &door->side, &door->wake);
    }
    for (size_t i = 0; i < GUESTS; i++)
        b->guests[i] =
            (struct guest){.ticket.on_place = on_place, .bench = b, .name = (char)('a' + i)};
}

/* Lets all who were woken serve their lines, until nobody is. */
static void settle(struct bench *b)
{
    unsigned before, after = 0;

    do {
        before = after;
        after = 0;
        for (size_t i = 0; i < SIDES; i++) {
            uv_run(&b->doors[i].loop, UV_RUN_NOWAIT);
            after += b->doors[i].wakes;
        }
    } while (after != before);
}

static void bench_release(struct bench *b)
{
    settle(b);
    assert_int_equal(atomic_load(&b->gate.waiting), 0);
    for (size_t i = 0; i < SIDES; i++) {
        struct door *door = &b->doors[i];

        assert_null(door->side.first);
        assert_null(door->side.last);
        assert_int_equal(atomic_load(&door->side.waiting), 0);
        assert_int_equal(atomic_load(&door->side.granted), 0);
        uv_close((uv_handle_t *)&door->wake, NULL);
        uv_run(&door->loop, UV_RUN_DEFAULT);
        assert_int_equal(uv_loop_close(&door->loop), 0);
    }
    gate_release(&b->gate);
}

static uint32_t used(struct bench *b)
{
    return atomic_load(&b->gate.used);
}

static enum gate_answer enter(struct bench *b, size_t door, char name)
{
    return gate_enter(&b->doors[door].side, &b->guests[name - 'a'].ticket);
}

static void enter_waits(struct bench *b, size_t door, const char *names)
{
    for (; *names != '\0'; names++)
        assert_int_equal(enter(b, door, *names), GATE_WAITS);
}

static void leave(struct bench *b, size_t door)
{
    gate_leave(&b->doors[door].side);
    settle(b);
}

static void cancel(struct bench *b, char name)
{
    gate_cancel(&b->guests[name - 'a'].ticket);
    assert_null(b->guests[name - 'a'].ticket.side);
}

static void places_are_given_up_to_the_limit(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 3, 10, 0);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    assert_int_equal(enter(&b, 1, 'b'), GATE_IN);
    assert_int_equal(enter(&b, 0, 'c'), GATE_IN);
    assert_false(gate_is_crowded(&b.gate));
    assert_int_equal(enter(&b, 1, 'd'), GATE_WAITS);
    assert_int_equal(used(&b), 3);
    assert_true(gate_is_crowded(&b.gate));
    settle(&b);
    assert_string_equal(b.served, "");
    leave(&b, 0);
    assert_string_equal(b.served, "d");
    assert_int_equal(used(&b), 3);
    assert_false(gate_is_crowded(&b.gate));
    for (int i = 0; i < 3; i++)
        leave(&b, 0);
    assert_int_equal(used(&b), 0);
    assert_string_equal(b.served, "d");
    bench_release(&b);
}

static void without_a_limit_all_are_only_counted(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 0, 1, 0);
    for (unsigned i = 1; i <= 1000; i++) {
        assert_int_equal(enter(&b, i % SIDES, 'a'), GATE_IN);
        assert_int_equal(used(&b), i);
    }
    assert_true(gate_try(&b.doors[0].side));
    for (unsigned i = 0; i <= 1000; i++)
        leave(&b, i % SIDES);
    assert_int_equal(used(&b), 0);
    assert_int_equal(b.doors[0].wakes + b.doors[1].wakes, 0);
    bench_release(&b);
}

static void a_line_is_served_in_order_and_later(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 1, 10, 0);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "bcde");
    for (size_t i = 1; i <= 4; i++) {
        gate_leave(&b.doors[0].side);
        assert_int_equal(strlen(b.served), i - 1); /* not inside the call */
        settle(&b);
        assert_int_equal(strlen(b.served), i);
        assert_int_equal(used(&b), 1);
    }
    assert_string_equal(b.served, "bcde");
    leave(&b, 0);
    bench_release(&b);
}

static void who_comes_while_a_place_is_on_its_way_waits_behind(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 1, 10, 0);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "b");
    gate_leave(&b.doors[0].side);
    enter_waits(&b, 0, "c");
    assert_int_equal(enter(&b, 1, 'd'), GATE_WAITS); /* on the other side, too */
    settle(&b);
    assert_string_equal(b.served, "b");
    leave(&b, 0);
    leave(&b, 0);
    assert_int_equal(strlen(b.served), 3);
    leave(&b, 0);
    bench_release(&b);
}

/* As when the time of a slow start has passed and nobody has looked yet. */
static void all_places_at_once(struct bench *b)
{
    atomic_store(&b->gate.ramp_from_ms, 0);
}

static void nobody_overtakes_the_line_of_its_side(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 4, 10, 3600000);
    gate_hold(&b.gate);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "b");
    all_places_at_once(&b);
    enter_waits(&b, 0, "c"); /* who comes finds the places for all that wait */
    assert_string_equal(b.served, "");
    settle(&b);
    assert_string_equal(b.served, "bc");
    assert_int_equal(used(&b), 3);
    for (int i = 0; i < 3; i++)
        leave(&b, 0);
    bench_release(&b);
}

static void the_lines_together_have_a_limit(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 1, 3, 0);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "bc");
    enter_waits(&b, 1, "d");
    for (size_t i = 0; i < SIDES; i++) {
        assert_int_equal(enter(&b, i, 'e'), GATE_FULL);
        assert_null(b.guests['e' - 'a'].ticket.side);
    }
    cancel(&b, 'b');
    enter_waits(&b, 1, "e");
    assert_int_equal(enter(&b, 0, 'f'), GATE_FULL);
    for (int i = 0; i < 4; i++)
        leave(&b, 0);
    assert_int_equal(strlen(b.served), 3);
    assert_int_equal(used(&b), 0);
    bench_release(&b);
}

static void a_line_may_have_no_room_at_all(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 1, 0, 0);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    assert_int_equal(enter(&b, 1, 'b'), GATE_FULL);
    leave(&b, 0);
    assert_int_equal(enter(&b, 1, 'b'), GATE_IN);
    leave(&b, 1);
    bench_release(&b);
}

static void who_has_left_the_line_is_not_served(void **state)
{
    static const struct {
        const char *cancelled, *served;
    } cases[] = {
        {"", "bcde"}, {"b", "cde"}, {"c", "bde"},  {"e", "bcd"},  {"bc", "de"},  {"edcb", ""},
        {"bcde", ""}, {"ce", "bd"}, {"bb", "cde"}, {"a", "bcde"}, {"j", "bcde"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b;

        bench_init(&b, 1, 4, 0);
        assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
        enter_waits(&b, 0, "bcde");
        for (const char *name = cases[i].cancelled; *name != '\0'; name++)
            cancel(&b, *name);
        assert_int_equal(atomic_load(&b.gate.waiting), strlen(cases[i].served));
        while (used(&b) > 0)
            leave(&b, 0);
        assert_string_equal(b.served, cases[i].served);
        bench_release(&b);
    }
}

static void who_has_left_may_come_again(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 1, 4, 0);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "bc");
    cancel(&b, 'b');
    enter_waits(&b, 1, "b");
    cancel(&b, 'b');
    enter_waits(&b, 0, "b");
    while (used(&b) > 0)
        leave(&b, 0);
    assert_string_equal(b.served, "cb");
    bench_release(&b);
}

static void a_place_for_one_who_has_left_goes_to_the_next(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 1, 4, 0);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "b");
    gate_leave(&b.doors[0].side); /* b's place is on its way */
    cancel(&b, 'b');
    settle(&b);
    assert_int_equal(used(&b), 0); /* nobody had it */

    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "b");
    gate_leave(&b.doors[0].side);
    cancel(&b, 'b');
    enter_waits(&b, 1, "c"); /* the other side */
    settle(&b);
    assert_string_equal(b.served, "c");

    enter_waits(&b, 0, "b");
    gate_leave(&b.doors[1].side);
    cancel(&b, 'b');
    assert_int_equal(enter(&b, 0, 'd'), GATE_WAITS); /* the same side */
    settle(&b);
    assert_string_equal(b.served, "cd");
    assert_int_equal(used(&b), 1);
    leave(&b, 0);
    bench_release(&b);
}

static void places_go_to_the_sides_in_turn(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 1, 10, 0);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "bcde");
    enter_waits(&b, 1, "ghij");
    while (used(&b) > 0)
        leave(&b, 0);
    assert_int_equal(strlen(b.served), 8);
    for (size_t i = 0; i < 7; i++)
        assert_int_not_equal(b.served[i] < 'g', b.served[i + 1] < 'g');
    bench_release(&b);
}

static void a_place_goes_to_whichever_side_waits(void **state)
{
    struct bench b;

    (void)state;
    for (size_t side = 0; side < SIDES; side++) {
        bench_init(&b, 2, 10, 0);
        assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
        assert_int_equal(enter(&b, 1, 'b'), GATE_IN);
        enter_waits(&b, side, "cde");
        leave(&b, 0);
        leave(&b, 1);
        assert_string_equal(b.served, "cd");
        assert_int_equal(b.doors[1 - side].wakes, 0);
        leave(&b, 0);
        leave(&b, 1);
        assert_string_equal(b.served, "cde");
        leave(&b, 0);
        assert_int_equal(used(&b), 0);
        bench_release(&b);
    }
}

/* No side is promised more places than it has tickets. */
static void two_places_at_once_go_to_two_sides(void **state)
{
    (void)state;
    for (uint32_t turn = 0; turn < 4; turn++) {
        struct bench b;

        bench_init(&b, 2, 10, 0);
        atomic_store(&b.gate.turn, turn);
        assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
        assert_int_equal(enter(&b, 0, 'b'), GATE_IN);
        enter_waits(&b, 0, "c");
        enter_waits(&b, 1, "d");
        gate_leave(&b.doors[0].side);
        gate_leave(&b.doors[0].side);
        assert_int_equal(atomic_load(&b.doors[0].side.granted), 1);
        assert_int_equal(atomic_load(&b.doors[1].side.granted), 1);
        settle(&b);
        assert_string_equal(b.served, "cd");
        leave(&b, 0);
        leave(&b, 1);
        bench_release(&b);
    }
}

static void try_takes_a_place_that_nobody_waits_for(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 2, 10, 3600000);
    assert_true(gate_try(&b.doors[0].side));
    assert_true(gate_try(&b.doors[1].side));
    assert_false(gate_try(&b.doors[0].side));
    assert_int_equal(used(&b), 2);
    enter_waits(&b, 0, "a");
    gate_leave(&b.doors[1].side); /* the place is for a */
    assert_false(gate_try(&b.doors[1].side));
    settle(&b);
    assert_string_equal(b.served, "a");
    leave(&b, 0);
    leave(&b, 0);

    /* a place is free, but somebody waits */
    gate_hold(&b.gate);
    assert_true(gate_try(&b.doors[0].side));
    assert_false(gate_try(&b.doors[0].side));
    enter_waits(&b, 0, "b");
    all_places_at_once(&b);
    assert_false(gate_try(&b.doors[1].side));
    gate_serve(&b.doors[1].side);
    settle(&b);
    assert_string_equal(b.served, "ab");
    leave(&b, 0);
    leave(&b, 0);
    assert_int_equal(used(&b), 0);
    bench_release(&b);
}

static void give_back(struct guest *guest)
{
    gate_leave(&guest->bench->doors[0].side);
}

static void cancel_next(struct guest *guest)
{
    gate_cancel(&guest[1].ticket);
}

static void enter_again(struct guest *guest)
{
    if (strlen(guest->bench->served) < 5) {
        assert_int_equal(gate_enter(&guest->bench->doors[0].side, &guest->ticket), GATE_WAITS);
        gate_leave(&guest->bench->doors[0].side);
    }
}

/* All of them may be called by who is being served. */
static void who_is_served_may_do_anything(void **state)
{
    static const struct {
        void (*then)(struct guest *guest);
        const char *served;
    } cases[] = {{give_back, "bcd"}, {cancel_next, "bd"}, {enter_again, "bcdbcdb"}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b;

        bench_init(&b, 1, 4, 0);
        assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
        enter_waits(&b, 0, "bcd");
        for (size_t guest = 0; guest < GUESTS; guest++)
            b.guests[guest].then = cases[i].then;
        while (used(&b) > 0)
            leave(&b, 0);
        assert_string_equal(b.served, cases[i].served);
        bench_release(&b);
    }
}

static void call_wakes_all_sides(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 1, 4, 0);
    gate_call(&b.gate);
    settle(&b);
    for (size_t i = 0; i < SIDES; i++)
        assert_int_equal(b.doors[i].wakes, 1);
    bench_release(&b);
}

static void a_side_that_has_not_joined_is_left_out(void **state)
{
    struct gate gate = {0};
    struct gate_side side;
    struct gate_ticket ticket = {0};
    struct bench b;

    (void)state;
    bench_init(&b, 1, 1, 0);
    assert_true(gate_init(&gate, 1, 4, 0, 3));
    gate_join(&gate, 1, &side, &b.doors[0].wake);
    assert_int_equal(gate_enter(&side, &ticket), GATE_IN);
    assert_int_equal(gate_enter(&side, &ticket), GATE_WAITS);
    gate_call(&gate);
    gate_leave(&side);
    assert_int_equal(atomic_load(&side.granted), 1);
    gate_cancel(&ticket);
    gate_serve(&side);
    assert_int_equal(atomic_load(&gate.used), 0);
    gate_release(&gate);
    bench_release(&b);
}

/* ---- after a store was down ---- */

static void a_gate_that_is_held_has_one_place(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 4, 10, 3600000);
    for (char name = 'a'; name <= 'c'; name++)
        assert_int_equal(enter(&b, 0, name), GATE_IN);
    gate_hold(&b.gate);
    enter_waits(&b, 0, "de");
    enter_waits(&b, 1, "f");
    assert_int_equal(used(&b), 3); /* who is in may stay */
    leave(&b, 0);
    leave(&b, 0);
    assert_string_equal(b.served, "");
    for (size_t i = 1; i <= 3; i++) {
        leave(&b, 0);
        assert_int_equal(strlen(b.served), i);
        assert_int_equal(used(&b), 1);
        gate_serve(&b.doors[0].side);
        gate_serve(&b.doors[1].side);
        assert_int_equal(used(&b), 1);
    }
    leave(&b, 0);
    assert_int_equal(used(&b), 0);
    assert_int_equal(enter(&b, 1, 'a'), GATE_IN);
    assert_false(gate_try(&b.doors[0].side));
    leave(&b, 1);
    bench_release(&b);
}

static void a_slow_start_begins_with_one_place(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 4, 10, 3600000);
    gate_hold(&b.gate);
    gate_start_slowly(&b.gate);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "b");
    gate_hold(&b.gate); /* down again */
    leave(&b, 0);
    assert_string_equal(b.served, "b");
    enter_waits(&b, 1, "c");
    gate_start_slowly(&b.gate);
    gate_serve(&b.doors[1].side);
    settle(&b);
    assert_string_equal(b.served, "b");
    leave(&b, 0);
    leave(&b, 0);
    bench_release(&b);
}

static void who_holds_and_who_lets_go_is_told(void **state)
{
    static const uint64_t ramps_ms[] = {0, 3600000};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct bench b;

        bench_init(&b, 4, 10, ramps_ms[i]);
        assert_false(gate_start_slowly(&b.gate)); /* not held: nothing changes */
        assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
        assert_int_equal(enter(&b, 0, 'b'), GATE_IN);
        for (int again = 0; again < 2; again++) {
            assert_true(gate_hold(&b.gate));
            assert_false(gate_hold(&b.gate));
            assert_true(gate_start_slowly(&b.gate));
            assert_false(gate_start_slowly(&b.gate));
        }
        leave(&b, 0);
        leave(&b, 0);
        bench_release(&b);
    }
}

static uint64_t now_ms(void)
{
    return uv_hrtime() / 1000000;
}

/* The limit never runs ahead of the time, and those who wait need no more than to be served. */
static void a_slow_start_grows_to_the_limit(void **state)
{
    enum { LIMIT = 8, RAMP_MS = 200, DEADLINE_MS = 20000 };
    struct bench b;

    (void)state;
    bench_init(&b, LIMIT, 10, RAMP_MS);
    gate_hold(&b.gate);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    enter_waits(&b, 0, "bcde");
    enter_waits(&b, 1, "fghi");
    gate_serve(&b.doors[0].side);
    uint64_t from = now_ms(), passed = 0;
    gate_start_slowly(&b.gate);
    while (used(&b) < LIMIT) {
        gate_serve(&b.doors[passed % SIDES].side);
        settle(&b);
        passed = now_ms() - from;
        assert_true(used(&b) <= 1 || used(&b) <= LIMIT * passed / RAMP_MS);
        assert_int_equal(strlen(b.served), used(&b) - 1);
        assert_true(passed < DEADLINE_MS);
    }
    assert_true(passed >= RAMP_MS);
    leave(&b, 0);
    assert_int_equal(used(&b), LIMIT); /* "i" has come in */
    while (used(&b) > 0)
        leave(&b, 0);
    bench_release(&b);
}

static void without_a_ramp_nothing_is_slow(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 3, 10, 0);
    gate_hold(&b.gate);
    assert_int_equal(enter(&b, 0, 'a'), GATE_IN);
    assert_int_equal(enter(&b, 0, 'b'), GATE_IN);
    gate_start_slowly(&b.gate);
    assert_int_equal(enter(&b, 0, 'c'), GATE_IN);
    enter_waits(&b, 1, "d");
    while (used(&b) > 0)
        leave(&b, 0);
    assert_string_equal(b.served, "d");
    bench_release(&b);
}

/* ---- threads ---- */

/*
 * Each thread has a loop, a side and some visitors. At each turn it does something with a few of
 * them, at random: enter, leave, give up. When its share is done, all who are in leave, and those
 * who wait are waited for. A thread ends when all have come to that.
 */
enum { THREADS = 4, VISITORS = 8, DEEDS_PER_TURN = 6, PLACES = 5, QUEUE_MAX = 20 };

enum visitor_state { OUT, WAITS, IN };

struct visitor {
    struct gate_ticket ticket; /* first: the gate gives it back */
    struct crew *crew;
    enum visitor_state state;
};

struct crew {
    struct crowd *crowd;
    size_t number;
    uv_loop_t loop;
    uv_async_t wake;
    uv_idle_t work;
    uv_timer_t sweep; /* a ramp needs somebody to look now and then */
    struct gate_side side;
    struct visitor visitors[VISITORS];
    uint32_t random, deeds;
    uint32_t waited, served, given_up;
    bool rests;
};

struct crowd {
    struct gate gate;
    struct crew crews[THREADS];
    pthread_barrier_t start;
    uint32_t deeds; /* of each crew */
    _Atomic uint32_t holders, most_holders, rest_count, failures;
};

static uint32_t draw(struct crew *crew, uint32_t count)
{
    crew->random = crew->random * 1664525 + 1013904223;
    return (crew->random >> 8) % count;
}

static void has_come_in(struct visitor *visitor)
{
    struct crowd *crowd = visitor->crew->crowd;
    uint32_t holders = atomic_fetch_add(&crowd->holders, 1) + 1;
    uint32_t most = atomic_load(&crowd->most_holders);

    visitor->state = IN;
    while (holders > most && !atomic_compare_exchange_weak(&crowd->most_holders, &most, holders))
        ;
}

static void go_out(struct visitor *visitor)
{
    atomic_fetch_sub(&visitor->crew->crowd->holders, 1);
    visitor->state = OUT;
    gate_leave(&visitor->crew->side);
}

/* All of this thread's visitors have gone: it only passes places on until all threads rest. */
static void rest_if_done(struct crew *crew)
{
    struct crowd *crowd = crew->crowd;

    for (size_t i = 0; i < VISITORS; i++)
        if (crew->visitors[i].state != OUT)
            return;
    if (crew->deeds < crew->crowd->deeds || crew->rests)
        return;
    crew->rests = true;
    if (atomic_fetch_add(&crowd->rest_count, 1) + 1 == THREADS)
        gate_call(&crowd->gate);
}

static void on_visitor_place(struct gate_ticket *ticket)
{
    struct visitor *visitor = (struct visitor *)ticket;
    struct crew *crew = visitor->crew;

    if (visitor->state != WAITS) /* not one who has given up, nor one who is in */
        atomic_fetch_add(&crew->crowd->failures, 1);
    crew->served++;
    has_come_in(visitor);
    if (crew->deeds == crew->crowd->deeds)
        go_out(visitor);
}

static void on_crew_wake(uv_async_t *wake)
{
    struct crew *crew = wake->data;

    gate_serve(&crew->side);
    rest_if_done(crew);
    if (atomic_load(&crew->crowd->rest_count) == THREADS)
        uv_stop(&crew->loop);
}

static void on_sweep(uv_timer_t *sweep)
{
    struct crew *crew = sweep->data;

    gate_serve(&crew->side);
    rest_if_done(crew);
}

static void do_something(struct crew *crew)
{
    struct visitor *visitor = &crew->visitors[draw(crew, VISITORS)];
    struct gate *gate = &crew->crowd->gate;

    if (crew->number == 0 && draw(crew, 100) == 0) {
        gate_hold(gate);
    } else if (crew->number == 0 && draw(crew, 50) == 0) {
        gate_start_slowly(gate);
    } else if (visitor->state == IN) {
        go_out(visitor);
    } else if (visitor->state == WAITS && draw(crew, 8) == 0) {
        gate_cancel(&visitor->ticket);
        visitor->state = OUT;
        crew->given_up++;
    } else if (visitor->state == OUT && draw(crew, 8) == 0) {
        if (gate_try(&crew->side))
            has_come_in(visitor);
    } else if (visitor->state == OUT) {
        switch (gate_enter(&crew->side, &visitor->ticket)) {
        case GATE_IN:
            has_come_in(visitor);
            break;
        case GATE_WAITS:
            visitor->state = WAITS;
            crew->waited++;
            break;
        case GATE_FULL:
            break;
        }
    }
}

static void on_work(uv_idle_t *work)
{
    struct crew *crew = work->data;

    for (int i = 0; i < DEEDS_PER_TURN && crew->deeds < crew->crowd->deeds; i++, crew->deeds++)
        do_something(crew);
    if (crew->deeds < crew->crowd->deeds)
        return;
    uv_idle_stop(work);
    if (crew->number == 0)
        gate_start_slowly(&crew->crowd->gate);
    for (size_t i = 0; i < VISITORS; i++)
        if (crew->visitors[i].state == IN)
            go_out(&crew->visitors[i]);
    rest_if_done(crew);
}

static void crew_init(struct crew *crew, struct crowd *crowd, size_t number, uint32_t seed)
{
    crew->crowd = crowd;
    crew->number = number;
    crew->random = seed * 7919;
    assert_int_equal(uv_loop_init(&crew->loop), 0);
    uv_idle_init(&crew->loop, &crew->work);
    uv_timer_init(&crew->loop, &crew->sweep);
    assert_int_equal(uv_async_init(&crew->loop, &crew->wake, on_crew_wake), 0);
    crew->wake.data = crew->work.data = crew->sweep.data = crew;
    uv_idle_start(&crew->work, on_work);
    if (crowd->gate.ramp_ms > 0)
        uv_timer_start(&crew->sweep, on_sweep, 1, 1);
    for (size_t i = 0; i < VISITORS; i++)
        crew->visitors[i] = (struct visitor){.ticket.on_place = on_visitor_place, .crew = crew};
    gate_join(&crowd->gate, number, &crew->side, &crew->wake);
}

/* After all threads have ended. */
static void crew_release(struct crew *crew)
{
    uv_close((uv_handle_t *)&crew->work, NULL);
    uv_close((uv_handle_t *)&crew->sweep, NULL);
    uv_close((uv_handle_t *)&crew->wake, NULL);
    uv_run(&crew->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&crew->loop), 0);
    assert_int_equal(crew->served + crew->given_up, crew->waited);
    assert_null(crew->side.first);
    assert_int_equal(atomic_load(&crew->side.waiting), 0);
    assert_int_equal(atomic_load(&crew->side.granted), 0);
}

static void *run_crew(void *argument)
{
    struct crew *crew = argument;

    pthread_barrier_wait(&crew->crowd->start);
    uv_run(&crew->loop, UV_RUN_DEFAULT);
    return NULL;
}

static void play_crowd(struct crowd *crowd, uint32_t limit, uint64_t ramp_ms, uint32_t seed)
{
    pthread_t threads[THREADS];

    assert_true(gate_init(&crowd->gate, limit, QUEUE_MAX, ramp_ms, THREADS));
    assert_int_equal(pthread_barrier_init(&crowd->start, NULL, THREADS), 0);
    for (size_t i = 0; i < THREADS; i++)
        crew_init(&crowd->crews[i], crowd, i, seed + (uint32_t)i);
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_crew, &crowd->crews[i]), 0);
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (size_t i = 0; i < THREADS; i++) /* a place may be on its way to one who has given up */
        gate_serve(&crowd->crews[i].side);
    for (size_t i = 0; i < THREADS; i++)
        crew_release(&crowd->crews[i]);
    assert_int_equal(atomic_load(&crowd->failures), 0);
    assert_int_equal(atomic_load(&crowd->holders), 0);
    assert_in_range(atomic_load(&crowd->most_holders), 0, limit);
    assert_int_equal(atomic_load(&crowd->gate.used), 0);
    assert_int_equal(atomic_load(&crowd->gate.waiting), 0);
    assert_int_equal(pthread_barrier_destroy(&crowd->start), 0);
    gate_release(&crowd->gate);
}

static void many_threads_forget_nobody(void **state)
{
    static const uint64_t ramps_ms[] = {0, 2};
    static struct crowd crowd;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        memset(&crowd, 0, sizeof crowd);
        crowd.deeds = 100000;
        play_crowd(&crowd, PLACES, ramps_ms[i], 1);
        if (ramps_ms[i] == 0)
            assert_int_equal(atomic_load(&crowd.most_holders), PLACES); /* it was crowded */
    }
}

/* Whoever waits last has nobody behind it, whose coming and going would make up for a mistake. */
static void the_last_ones_are_not_forgotten(void **state)
{
    static struct crowd crowd;

    (void)state;
    for (uint32_t round = 0; round < 200; round++) {
        memset(&crowd, 0, sizeof crowd);
        crowd.deeds = 1 + round % 40;
        play_crowd(&crowd, 1 + round % 3, 0, round);
    }
}

/* Two threads and one place: at the same moment one leaves it and the other asks for it. */
enum { ROUNDS = 20000, SPINS = 2000, PATIENCE_MS = 30000 };

static struct {
    struct bench bench;
    _Atomic uint32_t arrived;
    _Atomic bool lost; /* one waits for a place that is free */
} pair;

/* Spins, for both must go on at the same moment; but there may be one core only. */
static void wait_until(_Atomic uint32_t *number, uint32_t least)
{
    uint64_t from = now_ms();

    for (uint32_t spins = 0; atomic_load(number) < least && !atomic_load(&pair.lost); spins++) {
        if (spins % SPINS != SPINS - 1)
            continue;
        sched_yield();
        if (now_ms() - from > PATIENCE_MS)
            atomic_store(&pair.lost, true);
    }
}

static void take_no_notes(struct gate_ticket *ticket)
{
    (void)ticket;
}

static void *take_turns(void *argument)
{
    uint32_t number = *(uint32_t *)argument;
    struct gate_side *side = &pair.bench.doors[number].side;
    struct gate_ticket *ticket = &pair.bench.guests[number].ticket;

    for (uint32_t round = 0; round < ROUNDS; round++) {
        atomic_fetch_add(&pair.arrived, 1);
        wait_until(&pair.arrived, 2 * (round + 1));
        if (round % 2 == number) {
            gate_leave(side);
        } else if (gate_enter(side, ticket) == GATE_WAITS) {
            wait_until(&side->granted, 1); /* gate_serve itself would look for free places */
            gate_serve(side);
        }
        if (atomic_load(&pair.lost))
            break;
    }
    return NULL;
}

static void no_wake_up_is_lost_between_two(void **state)
{
    uint32_t numbers[2] = {0, 1};
    pthread_t threads[2];

    (void)state;
    bench_init(&pair.bench, 1, 1, 0);
    assert_true(gate_try(&pair.bench.doors[0].side));
    for (size_t i = 0; i < 2; i++) {
        pair.bench.guests[i].ticket.on_place = take_no_notes;
        assert_int_equal(pthread_create(&threads[i], NULL, take_turns, &numbers[i]), 0);
    }
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_false(atomic_load(&pair.lost));
    settle(&pair.bench);
    assert_int_equal(used(&pair.bench), 1);
    leave(&pair.bench, 0);
    bench_release(&pair.bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_are_given_up_to_the_limit),
        cmocka_unit_test(without_a_limit_all_are_only_counted),
        cmocka_unit_test(a_line_is_served_in_order_and_later),
        cmocka_unit_test(who_comes_while_a_place_is_on_its_way_waits_behind),
        cmocka_unit_test(nobody_overtakes_the_line_of_its_side),
        cmocka_unit_test(the_lines_together_have_a_limit),
        cmocka_unit_test(a_line_may_have_no_room_at_all),
        cmocka_unit_test(who_has_left_the_line_is_not_served),
        cmocka_unit_test(who_has_left_may_come_again),
        cmocka_unit_test(a_place_for_one_who_has_left_goes_to_the_next),
        cmocka_unit_test(places_go_to_the_sides_in_turn),
        cmocka_unit_test(a_place_goes_to_whichever_side_waits),
        cmocka_unit_test(two_places_at_once_go_to_two_sides),
        cmocka_unit_test(try_takes_a_place_that_nobody_waits_for),
        cmocka_unit_test(who_is_served_may_do_anything),
        cmocka_unit_test(call_wakes_all_sides),
        cmocka_unit_test(a_side_that_has_not_joined_is_left_out),
        cmocka_unit_test(a_gate_that_is_held_has_one_place),
        cmocka_unit_test(a_slow_start_begins_with_one_place),
        cmocka_unit_test(who_holds_and_who_lets_go_is_told),
        cmocka_unit_test(a_slow_start_grows_to_the_limit),
        cmocka_unit_test(without_a_ramp_nothing_is_slow),
        cmocka_unit_test(many_threads_forget_nobody),
        cmocka_unit_test(the_last_ones_are_not_forgotten),
        cmocka_unit_test(no_wake_up_is_lost_between_two),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
