/* Addresses and networks: what parses, what does not, and that text comes back as it went in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/networks.h"

#include <string.h>

static void split(void **state)
{
    static const char *const bad[] = {"",        ":",       "host",          "host:",    ":143",
                                      "host:0",  "h:65536", "h:1x",          "h: 1",     "h:-1",
                                      "::1:143", "[::1]",   "[::1:143",      "::1]:143", "[host]:1",
                                      "[]:143",  "a b:143", "h:99999999999", "[::1]x:1", "h\n:1"};
    char host[HOST_MAX], text[HOST_MAX + 8];
    uint16_t port;

    (void)state;
    assert_true(address_split("mail.example_1.org:143", host, &port));
    assert_string_equal(host, "mail.example_1.org");
    assert_int_equal(port, 143);
    assert_true(address_split("[2001:db8::1]:65535", host, &port));
    assert_string_equal(host, "2001:db8::1");
    assert_int_equal(port, 65535);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(address_split(bad[i], host, &port));
    memset(text, 'h', sizeof text);
    memcpy(text + HOST_MAX - 1, ":1", 3);
    assert_true(address_split(text, host, &port));
    memcpy(text + HOST_MAX - 1, "h:1", 4);
    assert_false(address_split(text, host, &port));
}

static void text_comes_back(void **state)
{
    static const char *const good[] = {
        "192.0.2.1:993",        "0.0.0.0:0",
        "[2001:db8::1]:993",    "[::]:0",
        "[::ffff:192.0.2.1]:1", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"};
    static const char *const bad[] = {"localhost:1", "192.0.2:1", "192.0.2.256:1", "[fe80::1%lo]:1",
                                      "1.2.3.4"};
    union address address;
    char text[ADDRESS_TEXT_MAX];

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(address_parse(good[i], &address));
        address_text(&address, text);
        assert_string_equal(text, good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(address_parse(bad[i], &address));
}

static void parts(void **state)
{
    union address address;
    char text[ADDRESS_TEXT_MAX];

    (void)state;
    assert_true(address_of("192.0.2.1", 25, &address));
    assert_int_equal(address_port(&address), 25);
    assert_int_equal(address_size(&address), sizeof(struct sockaddr_in));
    address_host_text(&address, text);
    assert_string_equal(text, "192.0.2.1");
    assert_true(address_of("::1", 26, &address));
    assert_int_equal(address_port(&address), 26);
    assert_int_equal(address_size(&address), sizeof(struct sockaddr_in6));
    assert_false(address_of("[::1]", 26, &address));
    assert_false(address_of("", 26, &address));
}

static void origins(void **state)
{
    static const char *const pairs[][2] = {
        {"192.0.2.1", "192.0.2.1"},
        {"::ffff:192.0.2.1", "192.0.2.1"},
        {"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"},
        {"2001:db8:1:2::", "2001:db8:1:2::"},
        {"::1", "::"},
    };
    char text[ADDRESS_TEXT_MAX];
    union address address;

    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        assert_true(address_of(pairs[i][0], 143, &address));
        address_origin_text(&address, text);
        assert_string_equal(text, pairs[i][1]);
    }
}

static bool contains(const char *block, const char *host)
{
    struct network network;
    union address address;

    assert_true(network_parse(block, &network));
    assert_true(address_of(host, 1, &address));
    return network_contains(&network, &address);
}

static void networks(void **state)
{
    static const char *const bad[] = {"",       "/8",     "10.0.0.0/",    "10.0.0.0/33",
                                      "::/129", "host/8", "10.0.0.0/8/8", "10.0.0.0/-1",
                                      "[::]/8"};
    struct network network;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(network_parse(bad[i], &network));
    assert_true(contains("192.0.2.0/24", "192.0.2.255"));
    assert_false(contains("192.0.2.0/24", "192.0.3.0"));
    assert_true(contains("192.0.2.128/25", "192.0.2.128"));
    assert_false(contains("192.0.2.128/25", "192.0.2.127"));
    assert_true(contains("0.0.0.0/0", "203.0.113.9"));
    assert_true(contains("192.0.2.1", "192.0.2.1"));
    assert_false(contains("192.0.2.1", "192.0.2.2"));
    assert_true(contains("2001:db8::/33", "2001:db8:7fff::1"));
    assert_false(contains("2001:db8::/33", "2001:db8:8000::1"));
    assert_false(contains("0.0.0.0/0", "::1"));
    assert_false(contains("::/0", "192.0.2.1"));
    assert_true(contains("192.0.2.0/24", "::ffff:192.0.2.9"));
    assert_false(contains("192.0.2.0/24", "::ffff:192.0.3.9"));
    assert_true(contains("::ffff:192.0.2.0/120", "192.0.2.9"));
    assert_false(contains("::ffff:192.0.2.0/120", "192.0.3.9"));
}

static void lists_of_networks(void **state)
{
    static char first[] = "192.0.2.0/24", second[] = "2001:db8::/32", bad[] = "localhost";
    char *items[] = {first, second, bad};
    struct conf_words words = {items, 2};
    struct networks networks;
    union address address;
    struct err err;

    (void)state;
    assert_true(networks_init(&networks, &words, "throttle.trusted", &err));
    assert_true(address_of("2001:db8::7", 1, &address));
    assert_true(networks_contain(&networks, &address));
    assert_true(address_of("198.51.100.1", 1, &address));
    assert_false(networks_contain(&networks, &address));
    networks_release(&networks);
    words.count = 3;
    assert_false(networks_init(&networks, &words, "throttle.trusted", &err));
    assert_string_equal(err.text, "throttle.trusted: \"localhost\" is no network");
    networks_release(&networks);
    words.count = 0;
    assert_true(networks_init(&networks, &words, "throttle.trusted", &err));
    assert_false(networks_contain(&networks, &address));
    networks_release(&networks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split),    cmocka_unit_test(text_comes_back),
        cmocka_unit_test(parts),    cmocka_unit_test(origins),
        cmocka_unit_test(networks), cmocka_unit_test(lists_of_networks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
