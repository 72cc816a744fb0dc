/* Keys are read, and nothing of them stays in memory when they are gone. */
#include "proxy/net/private_key.h"

#include "proxy/base/secret.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h> /* after what it needs */

enum { NUMBER = 32, MASK = 0x5a, CHUNK = 1 << 16 };

static char path[] = "/tmp/imapmux-key-XXXXXX";
static unsigned char masked[NUMBER]; /* the number, so that this is not found */

static void run(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void run(const char *format, ...)
{
    char command[256];
    va_list args;

    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    assert_int_equal(system(command), 0); /* NOLINT(cert-env33-c): openssl(1) */
}

/* As openssl prints it: "priv:", and lines of octets with colons. */
static void learn_number(void)
{
    char command[256], line[256];
    size_t count = 0;

    snprintf(command, sizeof command, "openssl pkey -in %s -noout -text", path);
    FILE *text = popen(command, "r"); /* NOLINT(cert-env33-c) */
    assert_non_null(text);
    while (fgets(line, sizeof line, text) != NULL && strncmp(line, "pub:", 4) != 0)
        for (char *octet = *line == ' ' ? strtok(line, " :\n") : NULL;
             octet != NULL && count < NUMBER; octet = strtok(NULL, " :\n"))
            masked[count++] = (unsigned char)(strtoul(octet, NULL, 16) ^ MASK);
    pclose(text);
    assert_int_equal(count, NUMBER);
}

static size_t count_in(const unsigned char *bytes, size_t len)
{
    size_t found = 0;

    for (size_t i = 0; i + NUMBER <= len; i++) {
        size_t same = 0, same_reversed = 0;

        while (same < NUMBER && (bytes[i + same] ^ MASK) == masked[same])
            same++;
        while (same_reversed < NUMBER &&
               (bytes[i + same_reversed] ^ MASK) == masked[NUMBER - 1 - same_reversed])
            same_reversed++;
        found += same == NUMBER || same_reversed == NUMBER;
    }
    return found;
}

/* In all that this process could have written to. */
static size_t count_in_memory(void)
{
    static unsigned char chunk[CHUNK];
    char line[512];
    size_t found = 0;
    int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    FILE *maps = fopen("/proc/self/maps", "re");

    assert_true(memory >= 0 && maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long from, to;
        char mode[5];

        if (sscanf(line, "%lx-%lx %4s", &from, &to, mode) != 3 || mode[1] != 'w' ||
            to - from > 1UL << 32) /* a sanitizer's own */
            continue;
        for (; from + NUMBER <= to; from += CHUNK - NUMBER) {
            size_t len = to - from < CHUNK ? to - from : CHUNK;
            ssize_t got = pread(memory, chunk, len, (off_t)from);

            found += got > 0 ? count_in(chunk, (size_t)got) : 0;
        }
    }
    secret_wipe(chunk, sizeof chunk);
    fclose(maps);
    close(memory);
    return found;
}

static void nothing_stays(void **state)
{
    (void)state;
    learn_number();
    EVP_PKEY *key = private_key_read(path);
    assert_non_null(key);
    assert_int_equal(EVP_PKEY_get_bits(key), 256);
    assert_true(count_in_memory() > 0); /* so it is looked for as it should be */
    EVP_PKEY_free(key);
    assert_int_equal(count_in_memory(), 0);
}

static void files_without_a_key(void **state)
{
    (void)state;
    assert_null(private_key_read("/nonexistent"));
    assert_null(private_key_read("/etc/passwd"));
    assert_null(private_key_read("/"));
    run("openssl pkey -in %s -aes128 -passout pass:x -out %s.locked", path, path);
    char locked[64];
    snprintf(locked, sizeof locked, "%s.locked", path);
    assert_null(private_key_read(locked));
    unlink(locked);
    ERR_clear_error();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_stays),
                                       cmocka_unit_test(files_without_a_key)};

    private_key_prepare();
    close(mkstemp(path));
    run("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out %s", path);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
