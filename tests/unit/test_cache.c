/* What the cache of passwords knows, and when, and for how many. */
#include "auth/cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
/* after its friends */
#include <cmocka.h>

static struct conf_auth_cache conf;
static struct auth_cache *cache;
static struct cache_key right, wrong;

static struct cache_key digest_of(const char *user, const char *password)
{
    struct cache_key digest;
    struct secret secret = {0};

    assert_true(secret_set(&secret, span_of(password)));
    assert_true(auth_cache_key(cache, user, &secret, &digest));
    secret_release(&secret);
    return digest;
}

static int setup(void **state)
{
    struct err err;

    (void)state;
    conf = (struct conf_auth_cache){
        .ttl = 100, .negative_ttl = 10, .stale_while_down = 1000, .max_entries = 3};
    cache = auth_cache_open(&conf, &err);
    assert_non_null(cache);
    right = digest_of("ann", "right");
    wrong = digest_of("ann", "wrong");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    auth_cache_close(&cache);
    assert_null(cache);
    auth_cache_close(&cache);
    return 0;
}

/* With the digest of another key, which may be of another user. */
static struct cache_key key_of(const char *user, const struct cache_key *digest)
{
    struct cache_key key = *digest;

    key.user = user;
    return key;
}

static enum cache_verdict at(uint64_t now_ms, const char *user, const struct cache_key *digest)
{
    struct cache_key key = key_of(user, digest);
    struct auth_facts *facts;
    enum cache_verdict verdict = auth_cache_find(cache, &key, now_ms, &facts);

    assert_null(facts);
    return verdict;
}

static void verified(const char *user, const struct cache_key *digest, uint64_t now_ms)
{
    struct cache_key key = key_of(user, digest);

    auth_cache_verified(cache, &key, NULL, now_ms);
}

static void refused(const char *user, const struct cache_key *digest, uint64_t now_ms)
{
    struct cache_key key = key_of(user, digest);

    auth_cache_refused(cache, &key, now_ms);
}

static void digests_tell_all_apart(void **state)
{
    struct cache_key again = digest_of("ann", "right"), shifted = digest_of("annr", "ight");
    struct auth_cache *other;
    struct auth_cache *mine = cache;
    struct err err;

    (void)state;
    assert_memory_equal(again.digest, right.digest, sizeof right.digest);
    assert_memory_not_equal(wrong.digest, right.digest, sizeof right.digest);
    assert_memory_not_equal(shifted.digest, right.digest, sizeof right.digest);
    other = cache = auth_cache_open(&conf, &err);
    again = digest_of("ann", "right");
    cache = mine;
    assert_memory_not_equal(again.digest, right.digest, sizeof right.digest); /* another key */
    auth_cache_close(&other);
}

static void times_are_kept(void **state)
{
    (void)state;
    assert_int_equal(at(0, "ann", &right), CACHE_UNKNOWN);
    verified("ann", &right, 1000);
    refused("ann", &wrong, 1000);
    assert_int_equal(at(1099, "ann", &right), CACHE_VERIFIED);
    assert_int_equal(at(1100, "ann", &right), CACHE_STALE);
    assert_int_equal(at(2099, "ann", &right), CACHE_STALE);
    assert_int_equal(at(2100, "ann", &right), CACHE_UNKNOWN);
    assert_int_equal(at(1009, "ann", &wrong), CACHE_REFUSED);
    assert_int_equal(at(1010, "ann", &wrong), CACHE_UNKNOWN);
    assert_int_equal(at(1000, "bob", &right), CACHE_UNKNOWN);
}

static void zero_remembers_nothing(void **state)
{
    (void)state;
    conf = (struct conf_auth_cache){.negative_ttl = 10, .stale_while_down = 10, .max_entries = 3};
    teardown(NULL);
    cache = auth_cache_open(&conf, NULL);
    right = digest_of("ann", "right");
    verified("ann", &right, 0);
    assert_int_equal(at(0, "ann", &right), CACHE_UNKNOWN);
    refused("ann", &right, 0);
    assert_int_equal(at(0, "ann", &right), CACHE_REFUSED);
}

static void a_new_password_replaces_the_old_one(void **state)
{
    struct cache_key new_one = digest_of("ann", "new");

    (void)state;
    verified("ann", &right, 0);
    verified("ann", &new_one, 1);
    assert_int_equal(at(2, "ann", &right), CACHE_UNKNOWN);
    assert_int_equal(at(2, "ann", &new_one), CACHE_VERIFIED);
}

static void what_changes_its_verdict_has_only_one(void **state)
{
    (void)state;
    verified("ann", &right, 0);
    refused("ann", &wrong, 0);
    assert_int_equal(at(1, "ann", &right), CACHE_VERIFIED);
    refused("ann", &right, 1);
    assert_int_equal(at(2, "ann", &right), CACHE_REFUSED);
    assert_int_equal(at(50, "ann", &right), CACHE_UNKNOWN);
    refused("ann", &wrong, 50);
    verified("ann", &wrong, 51);
    assert_int_equal(at(52, "ann", &wrong), CACHE_VERIFIED);
    auth_cache_forget(cache, "ann");
    auth_cache_forget(cache, "bob");
    assert_int_equal(at(53, "ann", &wrong), CACHE_UNKNOWN);
}

static void all_is_forgotten(void **state)
{
    static const char *const users[] = {"ann", "bob", "cat"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        verified(users[i], &right, 0);
        refused(users[i], &wrong, 0);
    }
    auth_cache_forget(cache, NULL);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(at(1, users[i], &right), CACHE_UNKNOWN);
        assert_int_equal(at(1, users[i], &wrong), CACHE_UNKNOWN);
    }
}

/* Known by name alone, with what a source has told. */
static void names_and_passwords_are_apart(void **state)
{
    struct auth_facts told = {.user = "ann", .backend_user = "", .shard = "blue"};
    struct auth_facts *facts = auth_facts_new(&told, NULL), *found;
    struct cache_key name;

    (void)state;
    assert_true(auth_cache_key(cache, "ann", NULL, &name));
    verified("ann", &right, 0);
    assert_int_equal(auth_cache_find(cache, &name, 1, &found), CACHE_UNKNOWN);
    auth_cache_verified(cache, &name, facts, 1);
    auth_facts_release(&facts);
    assert_int_equal(auth_cache_find(cache, &name, 2, &found), CACHE_VERIFIED);
    assert_string_equal(found->shard, "blue");
    auth_cache_refused(cache, &name, 3); /* gone, and not refused from memory */
    assert_string_equal(found->user, "ann");
    auth_facts_release(&found);
    assert_int_equal(auth_cache_find(cache, &name, 4, &found), CACHE_UNKNOWN);
    assert_int_equal(at(4, "ann", &right), CACHE_VERIFIED);
}

static void who_came_longest_ago_makes_room(void **state)
{
    static const char *const users[] = {"bob", "cat", "dan"};

    (void)state;
    verified("ann", &right, 0);
    for (size_t i = 0; i < 2; i++)
        verified(users[i], &right, 0);
    assert_int_equal(at(1, "ann", &right), CACHE_VERIFIED); /* came again */
    verified(users[2], &right, 2);
    assert_int_equal(at(3, "bob", &right), CACHE_UNKNOWN);
    assert_int_equal(at(3, "ann", &right), CACHE_VERIFIED);
    assert_int_equal(at(3, "cat", &right), CACHE_VERIFIED);
    assert_int_equal(at(3, "dan", &right), CACHE_VERIFIED);
}

static void guesses_displace_nobody(void **state)
{
    char user[16];

    (void)state;
    verified("ann", &right, 0);
    for (int i = 0; i < 10; i++) {
        snprintf(user, sizeof user, "guess%d", i);
        refused(user, &wrong, 0);
    }
    assert_int_equal(at(1, "ann", &right), CACHE_VERIFIED);
    assert_int_equal(at(1, "guess6", &wrong), CACHE_UNKNOWN);
    assert_int_equal(at(1, "guess9", &wrong), CACHE_REFUSED);
}

static void remembers(const char *user, uint64_t now_ms, enum cache_verdict verdict, uint64_t age)
{
    uint64_t age_ms;

    assert_int_equal(auth_cache_remembers(cache, user, now_ms, &age_ms), verdict);
    assert_int_equal(age_ms, age);
}

/* Nor does it keep anybody from making room. */
static void a_look_changes_nothing(void **state)
{
    (void)state;
    remembers("ann", 1, CACHE_UNKNOWN, 0);
    verified("ann", &right, 0);
    verified("bob", &right, 1);
    verified("cid", &right, 1);
    remembers("ann", 99, CACHE_VERIFIED, 99);
    remembers("ann", 100, CACHE_STALE, 100);
    remembers("ann", 1100, CACHE_UNKNOWN, 1100);
    remembers("ann", 50, CACHE_VERIFIED, 50);
    verified("dan", &right, 2);
    remembers("ann", 50, CACHE_UNKNOWN, 0);
    remembers("bob", 50, CACHE_VERIFIED, 49);
    refused("eve", &wrong, 0);
    remembers("eve", 1, CACHE_UNKNOWN, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(digests_tell_all_apart, setup, teardown),
        cmocka_unit_test_setup_teardown(times_are_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(zero_remembers_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_new_password_replaces_the_old_one, setup, teardown),
        cmocka_unit_test_setup_teardown(what_changes_its_verdict_has_only_one, setup, teardown),
        cmocka_unit_test_setup_teardown(all_is_forgotten, setup, teardown),
        cmocka_unit_test_setup_teardown(names_and_passwords_are_apart, setup, teardown),
        cmocka_unit_test_setup_teardown(who_came_longest_ago_makes_room, setup, teardown),
        cmocka_unit_test_setup_teardown(guesses_displace_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(a_look_changes_nothing, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
