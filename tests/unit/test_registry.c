/*
 * Sessions of two nodes in one real Redis: who is one too many, and that Redis counts exactly those
 * that there are, after whatever has happened to it, to its connections and to other nodes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/net/redis_link.h"
#include "proxy/session/registry.h"
#include "tests/unit/redis_server.h"

#include <string.h>

enum { NODES = 2, USERS = 40, SEATS = 200 };

/* A session, or one to be. */
struct seat {
    struct registry_request request;
    struct node *node;
    struct registry_entry *entry;
    union address address;
    char user[16];
    bool asks, is_in;
    unsigned answers;
    enum registry_verdict verdict;
};

struct node {
    struct env env;
    struct counters counters;
    struct registry *registry;
    unsigned retired;
};

static struct bench {
    uv_loop_t loop;
    struct turn turn;
    struct conf conf;
    char address[64];
    struct node nodes[NODES];
    struct seat seats[SEATS];
    uv_timer_t alarm; /* so that waiting goes on without an event */
} bench;

/* In place of libuv's: the test moves the clock. */
static uint64_t later_ms;

uint64_t uv_now(const uv_loop_t *loop)
{
    return loop->time + later_ms;
}

static void on_alarm(uv_timer_t *timer)
{
    (void)timer;
}

static void node_open(struct node *node)
{
    struct err err = {0};

    memset(node, 0, sizeof *node);
    node->env = (struct env){
        .loop = &bench.loop, .turn = &bench.turn, .conf = &bench.conf, .counters = &node->counters};
    node->env.redis = redis_link_open(&node->env, &err);
    assert_non_null(node->env.redis);
    node->registry = registry_open(&node->env, &err);
    assert_non_null(node->registry);
}

static void node_close(struct node *node)
{
    registry_close(&node->registry);
    redis_link_close(&node->env.redis);
}

static uint64_t times_up(struct node *node)
{
    return atomic_load(&node->counters.registry_nodes);
}

static void wait_up(struct node *node, uint64_t times)
{
    uint64_t end = uv_hrtime() + 20000000000u;

    while (times_up(node) < times) {
        assert_true(uv_hrtime() < end);
        uv_run(&bench.loop, UV_RUN_ONCE);
    }
}

static int setup(void **state)
{
    (void)state;
    memset(&bench, 0, sizeof bench);
    assert_int_equal(uv_loop_init(&bench.loop), 0);
    turn_init(&bench.turn, &bench.loop);
    uv_timer_init(&bench.loop, &bench.alarm);
    uv_timer_start(&bench.alarm, on_alarm, 10, 10);
    snprintf(bench.address, sizeof bench.address, "127.0.0.1:%d", server.port);
    bench.conf.redis = (struct conf_redis){.address = bench.address,
                                           .user = (char *)"",
                                           .prefix = (char *)"t:",
                                           .connect_timeout = 2000,
                                           .timeout = 2000,
                                           .retry_max = 100,
                                           .node_expiry = 3000};
    admin("FLUSHALL");
    for (int i = 0; i < NODES; i++)
        node_open(&bench.nodes[i]);
    for (int i = 0; i < NODES; i++)
        wait_up(&bench.nodes[i], 1);
    return 0;
}

static void all_leave(void);

static int teardown(void **state)
{
    (void)state;
    all_leave(); /* of a test that has failed; else the close would fail, and hide why */
    for (int i = 0; i < NODES; i++)
        node_close(&bench.nodes[i]);
    uv_close((uv_handle_t *)&bench.alarm, NULL);
    turn_release(&bench.turn);
    uv_run(&bench.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&bench.loop), 0);
    return 0;
}

/* --- sessions --- */

static void on_answer(struct registry_request *request, enum registry_verdict verdict,
                      struct registry_entry *entry)
{
    struct seat *seat = request->owner;

    assert_true(seat->asks && !seat->is_in);
    assert_true((verdict == REGISTRY_COUNTED) == (entry != NULL));
    seat->asks = false;
    seat->answers++;
    seat->verdict = verdict;
    seat->entry = entry;
    seat->is_in = entry != NULL;
}

/* False: at once nobody knew. */
static bool ask(struct seat *seat, int node, const char *user, const char *address)
{
    assert_false(seat->asks || seat->is_in);
    seat->node = &bench.nodes[node];
    assert_true(address_of(address, 1, &seat->address));
    snprintf(seat->user, sizeof seat->user, "%s", user);
    seat->request.user = seat->user;
    seat->request.address = &seat->address;
    seat->request.on_answer = on_answer;
    seat->request.owner = seat;
    seat->asks = true;
    if (registry_ask(seat->node->registry, &seat->request))
        return true;
    seat->asks = false;
    seat->verdict = REGISTRY_UNKNOWN;
    return false;
}

static void wait_answer(struct seat *seat)
{
    while (seat->asks)
        uv_run(&bench.loop, UV_RUN_ONCE);
}

static enum registry_verdict enter(struct seat *seat, int node, const char *user,
                                   const char *address)
{
    if (ask(seat, node, user, address))
        wait_answer(seat);
    return seat->verdict;
}

/* Lets it in where nobody knows. */
static void enter_anyway(struct seat *seat, int node, const char *user, const char *address)
{
    if (enter(seat, node, user, address) != REGISTRY_UNKNOWN)
        return;
    seat->entry = registry_add(seat->node->registry, &seat->request);
    assert_non_null(seat->entry);
    seat->is_in = true;
}

static void leave(struct seat *seat)
{
    registry_leave(seat->node->registry, &seat->entry);
    assert_null(seat->entry);
    seat->is_in = false;
}

/* --- what Redis says --- */

static redisReply *read_hash(redisContext *context, const char *key)
{
    redisReply *hash = redisCommand(context, "HGETALL %s", key);

    assert_non_null(hash);
    assert_int_equal(hash->type, REDIS_REPLY_ARRAY);
    return hash;
}

static bool lives(redisContext *context, const char *field)
{
    redisReply *reply =
        redisCommand(context, "EXISTS t:node:{%b}", field, (size_t)strcspn(field, " "));
    bool there = reply->integer == 1;

    freeReplyObject(reply);
    return there;
}

/* The sum of a hash, of nodes that live; and the number of its fields. */
static long sum_of(const char *key, size_t *fields_out)
{
    redisContext *context = admin_connect();
    redisReply *hash = read_hash(context, key);
    long sum = 0;

    for (size_t i = 0; i < hash->elements; i += 2) {
        long count = strtol(hash->element[i + 1]->str, NULL, 10);

        assert_true(count > 0);
        if (lives(context, hash->element[i]->str))
            sum += count;
    }
    if (fields_out != NULL)
        *fields_out = hash->elements / 2;
    freeReplyObject(hash);
    redisFree(context);
    return sum;
}

static bool user_is(const char *user, long sum)
{
    char key[64];

    snprintf(key, sizeof key, "t:sessions:{%s}", user);
    return sum_of(key, NULL) == sum;
}

static size_t key_count(void)
{
    redisContext *context = admin_connect();
    redisReply *reply = redisCommand(context, "KEYS *");
    size_t count = reply->elements;

    freeReplyObject(reply);
    redisFree(context);
    return count;
}

/* Whether Redis counts the sessions of the seats, for each user; or at least not more. */
static bool is_exact(bool or_less)
{
    for (int number = 0; number < USERS; number++) {
        char user[16], key[64];
        long count = 0;

        snprintf(user, sizeof user, "u%d", number);
        for (size_t i = 0; i < SEATS; i++)
            count += bench.seats[i].is_in && strcmp(bench.seats[i].user, user) == 0;
        snprintf(key, sizeof key, "t:sessions:{%s}", user);
        long sum = sum_of(key, NULL);
        if (sum > count || (sum < count && !or_less))
            return false;
    }
    return true;
}

static void wait_exact(void)
{
    uint64_t end = uv_hrtime() + 20000000000u;

    while (!is_exact(false)) {
        assert_true(uv_hrtime() < end);
        uv_run(&bench.loop, UV_RUN_ONCE);
    }
}

static void wait_user(const char *user, long sum)
{
    uint64_t end = uv_hrtime() + 20000000000u;

    while (!user_is(user, sum)) {
        assert_true(uv_hrtime() < end);
        uv_run(&bench.loop, UV_RUN_ONCE);
    }
}

static void all_leave(void)
{
    for (size_t i = 0; i < SEATS; i++) {
        struct seat *seat = &bench.seats[i];

        if (seat->asks)
            registry_cancel(&seat->request);
        seat->asks = false;
        if (seat->is_in)
            leave(seat);
    }
}

/* Everybody is somewhere. */
static void fill(void)
{
    for (int i = 0; i < SEATS; i++) {
        char user[16], address[32];

        snprintf(user, sizeof user, "u%d", i % USERS);
        snprintf(address, sizeof address, "192.0.2.%d", i % 7);
        bench.seats[i].request.address_max = 1000;
        enter_anyway(&bench.seats[i], i % NODES, user, address);
    }
}

/* --- the tests --- */

static void nodes_know_of_one_another(void **state)
{
    struct seat *seats = bench.seats;

    (void)state;
    for (int i = 0; i < 4; i++)
        seats[i].request.user_max = 2;
    assert_int_equal(enter(&seats[0], 0, "ann", "192.0.2.1"), REGISTRY_COUNTED);
    assert_int_equal(enter(&seats[1], 1, "ann", "192.0.2.2"), REGISTRY_COUNTED);
    assert_int_equal(enter(&seats[2], 0, "ann", "192.0.2.1"), REGISTRY_USER_FULL);
    assert_int_equal(enter(&seats[2], 1, "ann", "192.0.2.3"), REGISTRY_USER_FULL);
    assert_int_equal(enter(&seats[3], 1, "bob", "192.0.2.1"), REGISTRY_COUNTED);
    assert_true(user_is("ann", 2));
    leave(&seats[1]);
    assert_int_equal(enter(&seats[2], 1, "ann", "192.0.2.1"), REGISTRY_COUNTED);
    assert_int_equal(enter(&seats[1], 0, "ann", "192.0.2.1"), REGISTRY_USER_FULL);
    all_leave();
    wait_user("ann", 0);
    wait_user("bob", 0);
    assert_int_equal(key_count(), NODES); /* nothing but the nodes themselves */
}

static void addresses_are_counted_where_they_are_limited(void **state)
{
    struct seat *seats = bench.seats;

    (void)state;
    for (int i = 0; i < 3; i++)
        seats[i].request.address_max = 2;
    assert_int_equal(enter(&seats[0], 0, "ann", "2001:db8::1"), REGISTRY_COUNTED);
    assert_int_equal(enter(&seats[1], 1, "bob", "2001:db8::2"), REGISTRY_COUNTED);
    assert_int_equal(enter(&seats[2], 0, "cat", "2001:db8::3"), REGISTRY_ADDRESS_FULL);
    assert_int_equal(enter(&seats[2], 0, "cat", "2001:db8:0:1::3"), REGISTRY_COUNTED);
    assert_int_equal(enter(&seats[3], 0, "dan", "2001:db8::3"), REGISTRY_COUNTED); /* trusted */
    assert_int_equal(sum_of("t:addresses:{2001:db8::}", NULL), 2);
    leave(&seats[0]);
    wait_user("ann", 0); /* another node's connection may be served first */
    seats[0].request.address_max = 2;
    assert_int_equal(enter(&seats[0], 1, "cat", "2001:db8::3"), REGISTRY_COUNTED);
    all_leave();
    wait_user("cat", 0);
    wait_user("dan", 0);
    assert_int_equal(key_count(), NODES);
}

static void a_user_from_an_address(void **state)
{
    struct seat *seats = bench.seats;

    (void)state;
    for (int i = 0; i < 4; i++)
        seats[i].request.user_address_max = 1;
    assert_int_equal(enter(&seats[0], 0, "ann", "192.0.2.1"), REGISTRY_COUNTED);
    assert_int_equal(enter(&seats[1], 1, "ann", "::ffff:192.0.2.1"), REGISTRY_USER_ADDRESS_FULL);
    assert_int_equal(enter(&seats[1], 1, "ann", "192.0.2.2"), REGISTRY_COUNTED);
    assert_int_equal(enter(&seats[2], 1, "bob", "192.0.2.1"), REGISTRY_COUNTED);
    leave(&seats[0]);
    wait_user("ann", 1);
    assert_int_equal(enter(&seats[3], 1, "ann", "192.0.2.1"), REGISTRY_COUNTED);
    all_leave();
}

static void names_may_hold_anything(void **state)
{
    static const char *const names[] = {"a b", "a}b", "{", "%s", "*", "\xc3\xbc", "a\nb"};
    struct seat *seats = bench.seats;

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        seats[0].request.user_max = seats[1].request.user_max = 1;
        assert_int_equal(enter(&seats[0], 0, names[i], "192.0.2.1"), REGISTRY_COUNTED);
        assert_int_equal(enter(&seats[1], 1, names[i], "192.0.2.1"), REGISTRY_USER_FULL);
        leave(&seats[0]);
    }
}

static void the_dead_do_not_count(void **state)
{
    struct seat *seats = bench.seats;
    size_t fields;

    (void)state;
    seats[1].request.user_max = 1;
    assert_int_equal(enter(&seats[0], 0, "ann", "192.0.2.1"), REGISTRY_COUNTED);
    leave(&seats[0]);
    wait_user("ann", 0);
    admin("HSET t:sessions:{ann} dead0 3"); /* no address */
    admin("HSET t:sessions:{ann} %b 5", "dead1 192.0.2.1", strlen("dead1 192.0.2.1"));
    admin("SET t:node:{dead2} x");
    admin("HSET t:sessions:{ann} %b 1", "dead2 192.0.2.9", strlen("dead2 192.0.2.9"));
    assert_int_equal(enter(&seats[1], 1, "ann", "192.0.2.1"), REGISTRY_USER_FULL);
    sum_of("t:sessions:{ann}", &fields);
    assert_int_equal(fields, 1);
    admin("DEL t:node:{dead2}");
    assert_int_equal(enter(&seats[1], 1, "ann", "192.0.2.1"), REGISTRY_COUNTED);
    sum_of("t:sessions:{ann}", &fields);
    assert_int_equal(fields, 1);
    all_leave();
}

/* Its loop stands still, and its key is not refreshed. */
static void a_node_that_is_killed_expires(void **state)
{
    struct node third;
    struct seat *seats = bench.seats;
    struct registry_request request = {.user = "ann"};
    struct registry_entry *entry;

    (void)state;
    bench.conf.redis.node_expiry = 1000;
    node_open(&third);
    wait_up(&third, 1);
    bench.conf.redis.node_expiry = 3000;
    assert_true(address_of("192.0.2.1", 1, &seats[9].address));
    request.address = &seats[9].address;
    entry = registry_add(third.registry, &request);
    wait_user("ann", 1);
    registry_leave(third.registry, &entry); /* but that is never sent */
    node_close(&third);
    assert_true(user_is("ann", 1));
    seats[0].request.user_max = 1;
    while (enter(&seats[0], 0, "ann", "192.0.2.2") == REGISTRY_USER_FULL)
        uv_run(&bench.loop, UV_RUN_ONCE);
    assert_int_equal(seats[0].verdict, REGISTRY_COUNTED);
    all_leave();
}

static void cancelled_in_any_turn(void **state)
{
    (void)state;
    for (int turns = 0; turns < 10; turns++) {
        struct seat *seat = &bench.seats[0];

        assert_true(ask(seat, 0, "ann", "192.0.2.1"));
        for (int i = 0; i < turns && seat->asks; i++)
            uv_run(&bench.loop, UV_RUN_ONCE);
        if (seat->is_in)
            leave(seat);
        registry_cancel(&seat->request);
        memset(seat, 0, sizeof *seat);
        bench.seats[1].request.user_max = 0;
        assert_int_equal(enter(&bench.seats[1], 0, "ann", "192.0.2.1"), REGISTRY_COUNTED);
        wait_user("ann", 1);
        leave(&bench.seats[1]);
        wait_user("ann", 0);
    }
}

static void on_retired(void *owner)
{
    struct node *node = owner;

    node->retired++;
}

static void who_retires_says_so(void **state)
{
    struct node third;
    struct registry_request request = {.user = "ann"};
    union address address;
    struct registry_entry *entry;

    (void)state;
    assert_true(address_of("192.0.2.1", 1, &address));
    request.address = &address;
    node_open(&third);
    assert_false(registry_ask(third.registry, &request));
    wait_up(&third, 1);
    entry = registry_add(third.registry, &request);
    wait_user("ann", 1);
    registry_leave(third.registry, &entry);
    entry = registry_add(third.registry, &request);
    registry_leave(third.registry, &entry);
    assert_true(registry_retire(third.registry, on_retired, &third));
    while (third.retired == 0)
        uv_run(&bench.loop, UV_RUN_ONCE);
    assert_int_equal(third.retired, 1);
    assert_false(registry_ask(third.registry, &request));
    node_close(&third);
    assert_true(user_is("ann", 0));
    node_open(&third); /* has nothing to say yet */
    assert_false(registry_retire(third.registry, on_retired, &third));
    node_close(&third);
}

/* What docs/operations.md says of a restricted user is enough. */
static void a_restricted_user_will_do(void **state)
{
    struct node third;
    struct seat *seat = &bench.seats[0];

    (void)state;
    admin("ACL SETUSER proxy on >pw ~t:* +select +evalsha +script|load +set +del +exists +expire "
          "+hgetall +hincrby +hdel");
    admin("SCRIPT FLUSH");
    admin("HSET t:sessions:{ann} %b 5", "dead 192.0.2.1", strlen("dead 192.0.2.1"));
    bench.conf.redis.user = (char *)"proxy";
    assert_true(secret_set(&bench.conf.redis.password, span_of("pw")));
    node_open(&third);
    wait_up(&third, 1);
    for (int i = 0; i < 2; i++) {
        assert_true(address_of("192.0.2.1", 1, &seat->address));
        seat->request = (struct registry_request){.user = "ann",
                                                  .address = &seat->address,
                                                  .user_max = 1,
                                                  .address_max = 1,
                                                  .on_answer = on_answer,
                                                  .owner = seat};
        seat->asks = true;
        assert_true(registry_ask(third.registry, &seat->request));
        wait_answer(seat);
        assert_int_equal(seat->verdict, REGISTRY_COUNTED);
        registry_leave(third.registry, &seat->entry);
        seat->is_in = false;
    }
    assert_true(registry_retire(third.registry, on_retired, &third));
    while (third.retired == 0)
        uv_run(&bench.loop, UV_RUN_ONCE);
    node_close(&third);
    secret_release(&bench.conf.redis.password);
    assert_int_equal(key_count(), NODES);
}

static void who_retires_waits_for_no_frozen_server(void **state)
{
    struct node third;

    (void)state;
    bench.conf.redis.timeout = 300;
    node_open(&third);
    wait_up(&third, 1);
    server_freeze();
    assert_true(registry_retire(third.registry, on_retired, &third));
    while (third.retired == 0)
        uv_run(&bench.loop, UV_RUN_ONCE);
    node_close(&third);
    kill(server.pid, SIGCONT);
}

/* --- when it goes wrong --- */

static void a_restarted_server_is_told_all(void **state)
{
    (void)state;
    fill();
    assert_true(is_exact(false));
    server_kill();
    for (int i = 0; i < SEATS; i += 3) { /* goes on without it */
        leave(&bench.seats[i]);
        if (i % 2 == 0)
            enter_anyway(&bench.seats[i], i % NODES, bench.seats[i].user, "192.0.2.77");
    }
    server_run();
    wait_exact();
    for (int i = 0; i < NODES; i++)
        assert_true(times_up(&bench.nodes[i]) >= 2);
    bench.seats[0].request.user_max = 1;
    if (bench.seats[0].is_in)
        leave(&bench.seats[0]);
    assert_int_equal(enter(&bench.seats[0], 0, "u1", "192.0.2.1"), REGISTRY_USER_FULL);
    all_leave();
    wait_exact();
    assert_int_equal(key_count(), NODES);
}

static void a_server_that_has_forgotten_is_told_all(void **state)
{
    (void)state;
    fill();
    admin("FLUSHALL");
    bench.seats[0].request.user_max = 1;
    leave(&bench.seats[0]); /* to a node that is unknown */
    assert_int_equal(enter(&bench.seats[0], 0, "u0", "192.0.2.1"), REGISTRY_UNKNOWN);
    wait_exact(); /* the other one finds out with its next beat */
    assert_int_equal(enter(&bench.seats[0], 0, "u0", "192.0.2.1"), REGISTRY_USER_FULL);
    all_leave();
    wait_exact();
}

static void broken_connections_count_nobody_twice(void **state)
{
    (void)state;
    fill();
    admin("CLIENT KILL TYPE normal");
    for (int i = 0; i < 20; i++)
        leave(&bench.seats[i]);
    for (int i = 0; i < NODES; i++)
        wait_up(&bench.nodes[i], 2);
    assert_true(is_exact(true));
    wait_exact();
    all_leave();
    wait_exact();
}

/* As one that was restarted from an old snapshot, which still knows the node. */
static void a_server_with_old_counts_is_told_all(void **state)
{
    (void)state;
    fill();
    admin("DEL t:sessions:{u1}");
    admin("CLIENT KILL TYPE normal");
    wait_exact();
    all_leave();
    wait_exact();
}

static void a_frozen_server_holds_nobody_up(void **state)
{
    struct seat *seats = bench.seats;

    (void)state;
    bench.conf.redis.timeout = 200;
    for (int i = 0; i < 6; i++)
        enter_anyway(&seats[i], i % NODES, "u1", "192.0.2.1");
    server_freeze();
    for (int i = 6; i < 12; i++) {
        seats[i].request.user_max = 6;
        ask(&seats[i], i % NODES, "u1", "192.0.2.1");
    }
    for (int i = 6; i < 12; i++) {
        wait_answer(&seats[i]);
        assert_int_equal(seats[i].verdict, REGISTRY_UNKNOWN);
    }
    assert_int_equal(enter(&seats[6], 0, "u1", "192.0.2.1"), REGISTRY_UNKNOWN); /* at once */
    kill(server.pid, SIGCONT);
    for (int i = 0; i < NODES; i++)
        wait_up(&bench.nodes[i], 2);
    wait_exact(); /* what the frozen one did afterwards does not count */
    assert_int_equal(enter(&seats[6], 0, "u1", "192.0.2.1"), REGISTRY_USER_FULL);
    all_leave();
    wait_exact();
}

static void a_server_that_refuses_is_no_server(void **state)
{
    struct seat *seats = bench.seats;

    (void)state;
    admin("SET t:sessions:{u1} text");
    ask(&seats[0], 0, "u0", "192.0.2.1"); /* what is counted with the same breath is told again */
    assert_int_equal(enter(&seats[1], 0, "u1", "192.0.2.1"), REGISTRY_UNKNOWN);
    wait_answer(&seats[0]);
    admin("DEL t:sessions:{u1}");
    enter_anyway(&seats[1], 0, "u1", "192.0.2.1");
    if (!seats[0].is_in)
        enter_anyway(&seats[0], 0, "u0", "192.0.2.1");
    wait_exact();
    all_leave();
}

/* Anything in any order, and at the end the counts are right. */
static void whatever_happens(void **state)
{
    unsigned random = 7;

    (void)state;
    for (int step = 0; step < 6000; step++) {
        random = random * 1103515245 + 12345;
        struct seat *seat = &bench.seats[(random >> 8) % SEATS];
        char user[16], address[32];

        snprintf(user, sizeof user, "u%u", (random >> 16) % USERS);
        snprintf(address, sizeof address, "192.0.2.%u", (random >> 20) % 5);
        if (seat->is_in) {
            leave(seat);
        } else if (seat->asks && random % 3 == 0) {
            registry_cancel(&seat->request);
            seat->asks = false;
        } else if (!seat->asks) {
            seat->request.user_max = 6;
            seat->request.address_max = 60;
            if (!ask(seat, (int)(random >> 12) % NODES, user, address)) {
                seat->entry = registry_add(seat->node->registry, &seat->request);
                seat->is_in = true;
            }
        }
        if (step % 7 == 0)
            uv_run(&bench.loop, UV_RUN_NOWAIT);
        if (step % 1500 == 1499)
            admin("CLIENT KILL TYPE normal");
        if (step == 3000)
            admin("FLUSHALL");
    }
    for (size_t i = 0; i < SEATS; i++)
        wait_answer(&bench.seats[i]);
    wait_exact();
    all_leave();
    wait_exact();
}

static long seconds_left(const char *key)
{
    redisContext *context = admin_connect();
    redisReply *reply = redisCommand(context, "TTL %s", key);
    long seconds = (long)reply->integer;

    freeReplyObject(reply);
    redisFree(context);
    return seconds;
}

/*
 * A hash outlives the half of a day until it is written again; then it is, once, if it is needed.
 */
static void long_sessions_are_told_again(void **state)
{
    const uint64_t commands_of_beat = 1;
    struct node *node = &bench.nodes[0];

    (void)state;
    bench.seats[0].request.address_max = 5;
    assert_int_equal(enter(&bench.seats[0], 0, "u1", "192.0.2.1"), REGISTRY_COUNTED);
    assert_in_range(seconds_left("t:sessions:{u1}"), 47 * 3600, 48 * 3600);
    assert_in_range(seconds_left("t:addresses:{192.0.2.1}"), 47 * 3600, 48 * 3600);
    admin("EXPIRE t:sessions:{u1} 100");
    admin("EXPIRE t:addresses:{192.0.2.1} 100");
    later_ms += 11 * 3600 * 1000;
    uint64_t sent = atomic_load(&node->counters.redis_commands);
    while (atomic_load(&node->counters.redis_commands) < sent + 2 * commands_of_beat)
        uv_run(&bench.loop, UV_RUN_ONCE);
    assert_in_range(seconds_left("t:sessions:{u1}"), 1, 100);
    later_ms += 2 * 3600 * 1000;
    while (seconds_left("t:sessions:{u1}") <= 100)
        uv_run(&bench.loop, UV_RUN_ONCE);
    assert_in_range(seconds_left("t:addresses:{192.0.2.1}"), 47 * 3600, 48 * 3600);
    wait_exact();
    assert_int_equal(times_up(node), 1);
    all_leave();
    wait_exact();
    assert_int_equal(key_count(), NODES);
}

static int group_start(void **state)
{
    (void)state;
    server_start(NULL);
    return 0;
}

static int group_stop(void **state)
{
    (void)state;
    server_stop();
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nodes_know_of_one_another),
        TEST(addresses_are_counted_where_they_are_limited),
        TEST(a_user_from_an_address),
        TEST(names_may_hold_anything),
        TEST(the_dead_do_not_count),
        TEST(a_node_that_is_killed_expires),
        TEST(cancelled_in_any_turn),
        TEST(who_retires_says_so),
        TEST(a_restricted_user_will_do),
        TEST(who_retires_waits_for_no_frozen_server),
        TEST(a_restarted_server_is_told_all),
        TEST(a_server_that_has_forgotten_is_told_all),
        TEST(broken_connections_count_nobody_twice),
        TEST(a_server_with_old_counts_is_told_all),
        TEST(a_frozen_server_holds_nobody_up),
        TEST(a_server_that_refuses_is_no_server),
        TEST(whatever_happens),
        TEST(long_sessions_are_told_again),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
