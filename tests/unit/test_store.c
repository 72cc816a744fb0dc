/* What workers share about the stores: who takes logins, who stands in, what is dialled last. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/mem.h"
#include "proxy/store/store.h"

#include <stdio.h>
#include <string.h>

enum { BLUE, GREEN, SHARDS };

struct bench {
    struct conf conf;
    struct stores *stores;
};

/* Blue has green for its replica. */
static void bench_init(struct bench *b, bool is_checked)
{
    static char names[SHARDS][8] = {"blue", "green"};

    memset(b, 0, sizeof *b);
    b->conf.shards = mem_array(SHARDS, sizeof *b->conf.shards);
    b->conf.shard_count = SHARDS;
    b->conf.health.interval = is_checked ? 1000 : 0;
    for (int i = 0; i < SHARDS; i++) {
        struct conf_shard *shard = &b->conf.shards[i];

        shard->title = names[i];
        shard->id = (size_t)i;
        shard->replica = names[i] + strlen(names[i]);
        shard->max_logins_in_flight = 10;
        shard->max_queue = 10;
        shard->slow_start = 3600000;
        shard->weight = 100;
    }
    b->conf.shards[BLUE].replica = names[GREEN];
    b->stores = stores_open(&b->conf, 1);
    assert_non_null(b->stores);
}

static void bench_release(struct bench *b)
{
    stores_close(&b->stores);
    assert_null(b->stores);
    mem_free(b->conf.shards);
}

static void expect_serving(struct bench *b, int shard, int serving)
{
    assert_ptr_equal(store_serving(b->stores->by_id[shard]), b->stores->by_id[serving]);
}

static bool is_held(const struct store *store)
{
    return atomic_load(&store->logins.ramp_from_ms) == GATE_HELD;
}

static bool starts_slowly(const struct store *store)
{
    return !is_held(store) && atomic_load(&store->logins.ramp_from_ms) != 0;
}

static void what_checks_find_counts_at_once(void **state)
{
    struct bench b;
    struct err err = {0};

    (void)state;
    bench_init(&b, true);
    assert_false(store_refuses(b.stores->by_id[BLUE]));
    store_found(b.stores->by_id[BLUE], true, "why");
    assert_true(store_refuses(b.stores->by_id[BLUE]) && is_held(b.stores->by_id[BLUE]));
    assert_false(store_refuses(b.stores->by_id[GREEN]));
    store_tell_refusal(b.stores->by_id[BLUE], &err);
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_non_null(strstr(err.text, "shard blue"));
    store_was_reached(b.stores->by_id[BLUE]); /* a login that was under way */
    assert_true(store_refuses(b.stores->by_id[BLUE]) && is_held(b.stores->by_id[BLUE]));
    store_found(b.stores->by_id[BLUE], false, "");
    assert_false(store_refuses(b.stores->by_id[BLUE]));
    assert_true(starts_slowly(b.stores->by_id[BLUE]));
    bench_release(&b);
}

/* With checks logins decide nothing. */
static void logins_that_fail_only_raise_doubts(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, true);
    for (int i = 0; i < 3; i++)
        assert_false(store_was_not_reached(b.stores->by_id[BLUE], uv_hrtime() / 1000000 + 5000));
    assert_false(store_refuses(b.stores->by_id[BLUE]) || is_held(b.stores->by_id[BLUE]));
    bench_release(&b);
}

/* Without checks they decide, and refuse nobody: one at a time tries. */
static void without_checks_logins_find_out(void **state)
{
    struct bench b;
    uint64_t started_ms = uv_hrtime() / 1000000 + 5000;

    (void)state;
    bench_init(&b, false);
    assert_false(store_was_not_reached(b.stores->by_id[BLUE], started_ms));
    assert_true(is_held(b.stores->by_id[BLUE]) && atomic_load(&b.stores->by_id[BLUE]->is_down));
    assert_false(store_refuses(b.stores->by_id[BLUE]));
    expect_serving(&b, BLUE, BLUE); /* else nobody would find out that it is back */
    assert_true(store_was_not_reached(b.stores->by_id[BLUE], started_ms));
    store_was_reached(b.stores->by_id[BLUE]);
    assert_true(starts_slowly(b.stores->by_id[BLUE]) &&
                !atomic_load(&b.stores->by_id[BLUE]->is_down));
    bench_release(&b);
}

static void an_operator_s_word_and_the_checks_are_two_things(void **state)
{
    struct bench b;
    struct store *blue;

    (void)state;
    bench_init(&b, true);
    blue = b.stores->by_id[BLUE];
    assert_true(store_set_operator(blue, STORE_DOWN, 0));
    assert_false(store_set_operator(blue, STORE_DOWN, 0)); /* no news */
    assert_true(store_refuses(blue) && is_held(blue));
    store_found(blue, true, "why");
    assert_true(store_set_operator(blue, STORE_UP, 0));
    assert_true(store_refuses(blue) && is_held(blue)); /* it still does not answer */
    store_set_operator(blue, STORE_DOWN, 0);
    store_found(blue, false, "");
    assert_true(store_refuses(blue) && is_held(blue)); /* it answers, and is still not wanted */
    store_was_reached(blue);
    assert_true(is_held(blue));
    store_set_operator(blue, STORE_DRAIN, 0);
    assert_false(store_refuses(blue));
    assert_true(starts_slowly(blue));
    bench_release(&b);
}

static void a_replica_stands_in_while_it_is_up(void **state)
{
    static const struct {
        bool blue_is_down, green_is_down;
        enum store_order blue, green;
        int serving;
    } cases[] = {
        {false, false, STORE_UP, STORE_UP, BLUE},     {true, false, STORE_UP, STORE_UP, GREEN},
        {false, false, STORE_DRAIN, STORE_UP, GREEN}, {false, false, STORE_DOWN, STORE_UP, GREEN},
        {false, true, STORE_DRAIN, STORE_UP, BLUE},   {true, true, STORE_UP, STORE_UP, BLUE},
        {true, false, STORE_UP, STORE_DRAIN, BLUE},   {true, false, STORE_UP, STORE_DOWN, BLUE},
        {false, true, STORE_UP, STORE_DOWN, BLUE},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bench b;

        bench_init(&b, true);
        store_found(b.stores->by_id[BLUE], cases[i].blue_is_down, "");
        store_found(b.stores->by_id[GREEN], cases[i].green_is_down, "");
        store_set_operator(b.stores->by_id[BLUE], cases[i].blue, 0);
        store_set_operator(b.stores->by_id[GREEN], cases[i].green, 0);
        expect_serving(&b, BLUE, cases[i].serving);
        expect_serving(&b, GREEN, GREEN); /* nobody stands in for it */
        bench_release(&b);
    }
}

static void a_ring_asks_operators_not_checks(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, true);
    assert_int_equal(store_ring_weight(b.stores, GREEN), 100);
    store_set_operator(b.stores->by_id[GREEN], STORE_UP, 7);
    assert_int_equal(store_ring_weight(b.stores, GREEN), 7);
    assert_int_equal(store_ring_weight(b.stores, BLUE), 100);
    store_found(b.stores->by_id[GREEN], true, "");
    assert_int_equal(store_ring_weight(b.stores, GREEN), 7); /* her mail may be there */
    store_set_operator(b.stores->by_id[GREEN], STORE_DRAIN, 7);
    assert_int_equal(store_ring_weight(b.stores, GREEN), 0);
    store_set_operator(b.stores->by_id[GREEN], STORE_DOWN, 7);
    assert_int_equal(store_ring_weight(b.stores, GREEN), 0);
    store_set_operator(b.stores->by_id[GREEN], STORE_UP, 0);
    assert_int_equal(store_ring_weight(b.stores, GREEN), 100);
    bench_release(&b);
}

static union address numbered(unsigned number)
{
    union address address;
    char text[ADDRESS_TEXT_MAX];

    snprintf(text, sizeof text, "192.0.2.%u:143", number);
    assert_true(address_parse(text, &address));
    return address;
}

static void addresses_that_are_down_are_remembered_one_by_one(void **state)
{
    union address one = numbered(1), other = numbered(2);
    struct bench b;
    struct store *blue;

    (void)state;
    bench_init(&b, true);
    blue = b.stores->by_id[BLUE];
    assert_false(store_address_is_down(blue, &one));
    store_address_found(blue, &one, true);
    store_address_found(blue, &one, true); /* takes no second place */
    assert_true(store_address_is_down(blue, &one));
    assert_false(store_address_is_down(blue, &other));
    assert_false(store_address_is_down(b.stores->by_id[GREEN], &one));
    store_address_found(blue, &one, false);
    store_address_found(blue, &other, false);
    assert_false(store_address_is_down(blue, &one));
    for (unsigned i = 0; i < STORE_DOWN_ADDRESSES + 3; i++) {
        union address address = numbered(i);

        store_address_found(blue, &address, true);
        assert_true(store_address_is_down(blue, &address) == (i < STORE_DOWN_ADDRESSES));
    }
    store_address_found(blue, &one, false);
    one = numbered(STORE_DOWN_ADDRESSES);
    store_address_found(blue, &one, true); /* there is room again */
    assert_true(store_address_is_down(blue, &one));
    bench_release(&b);
}

static void on_doubt(uv_async_t *doubts)
{
    ++*(int *)doubts->data;
}

static void doubts_are_told_once_until_they_are_heard(void **state)
{
    struct bench b;
    uv_loop_t loop;
    uv_async_t doubts;
    int heard = 0;

    (void)state;
    bench_init(&b, true);
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(uv_async_init(&loop, &doubts, on_doubt), 0);
    doubts.data = &heard;
    store_doubt(b.stores->by_id[BLUE]); /* nobody listens yet */
    assert_false(atomic_load(&b.stores->by_id[BLUE]->is_doubted));
    store_watch(b.stores->by_id[BLUE], &doubts);
    store_was_not_reached(b.stores->by_id[BLUE], 0);
    store_doubt(b.stores->by_id[BLUE]);
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_int_equal(heard, 1);
    assert_true(atomic_exchange(&b.stores->by_id[BLUE]->is_doubted, false));
    assert_false(atomic_load(&b.stores->by_id[GREEN]->is_doubted));
    uv_close((uv_handle_t *)&doubts, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    bench_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_checks_find_counts_at_once),
        cmocka_unit_test(logins_that_fail_only_raise_doubts),
        cmocka_unit_test(without_checks_logins_find_out),
        cmocka_unit_test(an_operator_s_word_and_the_checks_are_two_things),
        cmocka_unit_test(a_replica_stands_in_while_it_is_up),
        cmocka_unit_test(a_ring_asks_operators_not_checks),
        cmocka_unit_test(addresses_that_are_down_are_remembered_one_by_one),
        cmocka_unit_test(doubts_are_told_once_until_they_are_heard),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
