/* Ticket keys: as text and in files, and which of them is for new tickets when. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/process/ticket_ring.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LEAD = 100, KEEP = 1000 };

/* --- text --- */

static struct secret key_of(char octet, size_t size)
{
    struct secret key = {0};
    char octets[TICKET_KEY_SIZE];

    memset(octets, octet, sizeof octets);
    assert_true(secret_set(&key, (struct span){octets, size}));
    return key;
}

static bool is_key(const char *text)
{
    struct secret key = {0};
    struct err err = {0};
    bool read = ticket_key_read(span_of(text), &key, &err);

    assert_true(read == (key.bytes != NULL) && read == (err.kind == ERR_NONE));
    secret_release(&key);
    return read;
}

static void keys_are_read_as_they_were_written(void **state)
{
    static const size_t sizes[] = {TICKET_KEY_SIZE, TICKET_KEY_SHORT};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct secret key = key_of('k', sizes[i]), again = {0};
        char text[TICKET_KEY_TEXT];

        ticket_key_write(&key, text);
        assert_true(ticket_key_read(span_of(text), &again, NULL));
        assert_true(span_equal(secret_span(&key), secret_span(&again)));
        secret_release(&key);
        secret_release(&again);
    }
}

static void what_is_no_key_is_refused(void **state)
{
    char text[TICKET_KEY_TEXT + 8];
    struct secret key = key_of('k', TICKET_KEY_SIZE);

    (void)state;
    ticket_key_write(&key, text);
    secret_release(&key);
    assert_true(is_key(text));
    for (size_t i = 0; text[i] != '\0'; i++) {
        static const char strange[] = " =-\n\x80*";
        char was = text[i];

        for (size_t j = 0; strange[j] != '\0'; j++) {
            text[i] = strange[j];
            assert_true(is_key(text) == (was == '=' && strange[j] == '='));
        }
        text[i] = '\0'; /* cut */
        assert_false(i != 64 && is_key(text));
        text[i] = was;
    }
    strcat(text, "A");
    assert_false(is_key(text));
}

static void a_file_has_a_key_in_each_line(void **state)
{
    char path[] = "/tmp/imapmux-tickets-XXXXXX", text[TICKET_KEY_TEXT];
    struct ticket_keys keys = {0};
    struct err err = {0};
    int fd = mkstemp(path);
    FILE *file = fdopen(fd, "w");

    (void)state;
    for (char octet = 'a'; octet < 'd'; octet++) {
        struct secret key = key_of(octet, octet == 'b' ? TICKET_KEY_SHORT : TICKET_KEY_SIZE);

        ticket_key_write(&key, text);
        fprintf(file, "%s\n%s", text, octet == 'a' ? "\n" : "");
        secret_release(&key);
    }
    fclose(file);
    assert_true(ticket_keys_read(path, &keys, &err));
    assert_int_equal(keys.count, 3);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(keys.keys[i].bytes[0], 'a' + (int)i);
    ticket_keys_release(&keys);
    file = fopen(path, "ab");
    fwrite("\0", 1, 1, file);
    fclose(file);
    assert_false(ticket_keys_read(path, &keys, &err));
    assert_int_equal(err.kind, ERR_CONFIG);
    assert_int_equal(keys.count, 0);
    unlink(path);
}

/* --- the ring: keys are called by their first octet --- */

static struct ring_key shared_key(char octet, int64_t made_ms)
{
    return (struct ring_key){.key = key_of(octet, TICKET_KEY_SIZE), .made_ms = made_ms};
}

/* Redis tells of these: "a0 b150" are `a`, made at 0, and `b`. */
static void hear(struct ticket_ring *ring, const char *told, int64_t now)
{
    struct ring_key keys[TICKET_KEYS_MAX];
    size_t count = 0;
    char octet;
    int made, len;

    for (; sscanf(told, " %c%d%n", &octet, &made, &len) == 2; told += len)
        keys[count++] = shared_key(octet, made);
    ticket_ring_merge(ring, keys, count, now, KEEP);
}

/* All that are known, that for new tickets first; our own are "?". */
static void expect(struct ticket_ring *ring, int64_t now, const char *expected)
{
    char names[TICKET_KEYS_MAX + 1] = "";
    struct ticket_keys keys;

    ticket_ring_expire(ring, now);
    assert_true(ticket_ring_keys(ring, now, LEAD, &keys) == (ring->count > 0));
    for (size_t i = 0; i < keys.count; i++) {
        bool is_own = true;

        for (size_t j = 0; j < ring->count; j++)
            if (span_equal(secret_span(&keys.keys[i]), secret_span(&ring->keys[j].key)))
                is_own = !ring->keys[j].shared;
        names[i] = is_own ? '?' : keys.keys[i].bytes[0];
    }
    assert_string_equal(names, expected);
    ticket_keys_release(&keys);
}

static void own_keys_follow_one_another(void **state)
{
    struct ticket_ring ring = {0};

    (void)state;
    expect(&ring, 0, "");
    assert_true(ticket_ring_make(&ring, 0, KEEP, NULL));
    expect(&ring, 5000, "?");
    assert_true(ticket_ring_make(&ring, 5000, KEEP, NULL));
    expect(&ring, 5999, "??");
    assert_int_equal(ring.keys[0].made_ms, 5000);
    expect(&ring, 6000, "?");
    ticket_ring_release(&ring);
}

static void a_shared_key_is_used_when_all_have_it(void **state)
{
    struct ticket_ring ring = {0};

    (void)state;
    assert_true(ticket_ring_make(&ring, 10, KEEP, NULL));
    hear(&ring, "a20", 20); /* the first of all: there is none before it */
    expect(&ring, 20, "a?");
    hear(&ring, "b500 a20", 500);
    expect(&ring, 500, "ab?");
    expect(&ring, 599, "ab?");
    expect(&ring, 600, "ba?");
    expect(&ring, 1020, "ba"); /* our own was of use until 20 */
    hear(&ring, "b500", 1600); /* Redis has forgotten a; here it stays for a while, in any case */
    expect(&ring, 2599, "ba");
    expect(&ring, 2600, "b");
    ticket_ring_release(&ring);
}

static void what_redis_has_lost_stays_in_use_until_others_have_the_new_one(void **state)
{
    struct ticket_ring ring = {0};

    (void)state;
    hear(&ring, "a0 b200", 300);
    expect(&ring, 300, "ba");
    hear(&ring, "", 1000);
    expect(&ring, 1000, "ba");
    hear(&ring, "c1050", 1060);
    expect(&ring, 1100, "bca");
    expect(&ring, 1150, "cba");
    expect(&ring, 2000, "c");
    hear(&ring, "c1050 a0", 2100); /* whoever knows it still */
    expect(&ring, 9999, "ca");
    ticket_ring_release(&ring);
}

static void our_own_comes_after_older_shared_ones(void **state)
{
    struct ticket_ring ring = {0};

    (void)state;
    assert_true(ticket_ring_make(&ring, 700, KEEP, NULL));
    hear(&ring, "a-100 b650", 710);
    expect(&ring, 710, "a?b");
    expect(&ring, 760, "b?a");
    ticket_ring_release(&ring);
}

static void the_oldest_goes_where_there_is_no_room(void **state)
{
    struct ticket_ring ring = {0};

    (void)state;
    for (int i = 0; i < TICKET_KEYS_MAX + 2; i++)
        assert_true(ticket_ring_make(&ring, i, KEEP, NULL));
    assert_int_equal(ring.count, TICKET_KEYS_MAX);
    assert_int_equal(ring.keys[TICKET_KEYS_MAX - 1].made_ms, 2);
    ticket_ring_release(&ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_read_as_they_were_written),
        cmocka_unit_test(what_is_no_key_is_refused),
        cmocka_unit_test(a_file_has_a_key_in_each_line),
        cmocka_unit_test(own_keys_follow_one_another),
        cmocka_unit_test(a_shared_key_is_used_when_all_have_it),
        cmocka_unit_test(what_redis_has_lost_stays_in_use_until_others_have_the_new_one),
        cmocka_unit_test(our_own_comes_after_older_shared_ones),
        cmocka_unit_test(the_oldest_goes_where_there_is_no_room),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
