/* What the next login of a user would come to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "proxy/admin/verdict.h"

static char blue_title[] = "blue", red_title[] = "red";
static const struct conf_shard blue = {.title = blue_title}, red = {.title = red_title};
static struct conf conf;
static struct inquiry inquiry;
static struct err refusal;
static const struct conf_shard *serving;

/* All is well. */
static int setup(void **state)
{
    (void)state;
    conf = (struct conf){.auth.look_up = true, .cutover.hold_timeout = 30000};
    inquiry = (struct inquiry){.name = "ann",
                               .has_route = true,
                               .route = {.shard = "blue", .backend_user = "ann", .source = "file"}};
    refusal = (struct err){0};
    serving = &blue;
    return 0;
}

static void is(const char *expected)
{
    const struct verdict_view view = {&conf, &inquiry, serving, &refusal};
    char verdict[VERDICT_MAX];

    verdict_tell(&view, verdict);
    assert_string_equal(verdict, expected);
}

static void all_is_well(void **state)
{
    (void)state;
    is("gets in at shard blue as ann");
    inquiry.memory.delay_ms = 250;
    inquiry.network_count = 1;
    is("gets in at shard blue as ann, if the client is in one of the networks, after a wait of 250 "
       "ms for wrong passwords");
    serving = &red;
    inquiry.memory = (struct auth_memory){.password = CACHE_VERIFIED, .delay_ms = 250};
    is("gets in at shard red as ann, the replica of blue, if the client is in one of the networks");
}

static void her_account_comes_first(void **state)
{
    (void)state;
    inquiry.is_held = true;
    err_set(&inquiry.account, ERR_CREDENTIALS, "no source knows the user");
    is("is refused as AUTHENTICATIONFAILED: no source knows the user");
    err_set(&inquiry.account, ERR_EXPIRED, "ldap: the password has expired");
    is("is refused as EXPIRED: ldap: the password has expired");
    inquiry.is_held = false;
    inquiry.memory.password = CACHE_STALE;
    is("is refused as EXPIRED: ldap: the password has expired");
    err_set(&inquiry.account, ERR_UNAVAILABLE, "ldap: down");
    is("with the password that is remembered: gets in at shard blue as ann");
    inquiry.memory.password = CACHE_UNKNOWN;
    is("is refused as UNAVAILABLE: ldap: down");
    inquiry.memory.password = CACHE_VERIFIED;
    is("with the password that is remembered: gets in at shard blue as ann");
}

static void who_needs_no_account(void **state)
{
    (void)state;
    conf.auth.look_up = false;
    err_set(&inquiry.account, ERR_CREDENTIALS, "no source knows the user");
    is("with a certificate or a token: gets in at shard blue as ann");
}

static void her_sessions_are_counted(void **state)
{
    (void)state;
    conf.limits.per_user = 3;
    inquiry.sessions = 2;
    is("gets in at shard blue as ann");
    inquiry.sessions = 3;
    is("is refused as LIMIT: 3 sessions are open, limits.per_user is 3");
    inquiry.sessions = 1;
    inquiry.all_sessions = 5;
    is("gets in at shard blue as ann");
    inquiry.sessions_known = true;
    is("is refused as LIMIT: 5 sessions are open, limits.per_user is 3");
}

static void she_waits_while_she_is_moved(void **state)
{
    static const char moves[] = "waits until the mailbox is moved from blue to red, at most 30 s, "
                                "and is refused as UNAVAILABLE after that";

    (void)state;
    snprintf(inquiry.route.target, sizeof inquiry.route.target, "red");
    inquiry.route.state = ROUTE_MOVING;
    err_set(&inquiry.route_err, ERR_UNAVAILABLE, "route: the user is being moved");
    is(moves);
    inquiry.route.state = ROUTE_COMMITTED;
    is(moves);
    inquiry.route.state = ROUTE_ACTIVE;
    inquiry.is_held = true;
    is("waits until the mailbox is moved, at most 30 s, and is refused as UNAVAILABLE after that");
}

static void her_route_and_her_shard(void **state)
{
    (void)state;
    inquiry.route.stale = true;
    inquiry.route.age_ms = 61000;
    is("gets in at shard blue as ann, where it was 61 s ago, for Redis does not answer");
    err_set(&refusal, ERR_UNAVAILABLE, "shard blue is down: an operator has said so");
    is("is refused as UNAVAILABLE: shard blue is down: an operator has said so");
    inquiry.has_route = false;
    serving = NULL;
    err_set(&inquiry.route_err, ERR_ADMIN, "route: no source knows the user");
    is("is refused as CONTACTADMIN: route: no source knows the user");
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(all_is_well),
        TEST(her_account_comes_first),
        TEST(who_needs_no_account),
        TEST(her_sessions_are_counted),
        TEST(she_waits_while_she_is_moved),
        TEST(her_route_and_her_shard),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
