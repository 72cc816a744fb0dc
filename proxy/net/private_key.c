/*
 * Owns the text of a key's file between reading and wiping: what OpenSSL itself reads passes
 * through stdio and through buffers that it frees as they are.
 */
#include "proxy/net/private_key.h"

#include "proxy/base/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

enum { FILE_MAX = 256 * 1024 }; /* a chain may come before the key */

/* --- OpenSSL's memory, wiped when freed by a thread that reads a key --- */

static _Thread_local bool wiping;

static void free_wiped(void *block, const char *file, int line)
{
    (void)file, (void)line;
    if (wiping && block != NULL)
        secret_wipe(block, malloc_usable_size(block));
    free(block);
}

static void *new (size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return malloc(size);
}

static void *resize(void *block, size_t size, const char *file, int line)
{
    size_t old = block == NULL ? 0 : malloc_usable_size(block);

    if (!wiping || old == 0)
        return realloc(block, size);
    void *more = malloc(size);
    if (more == NULL)
        return NULL;
    memcpy(more, block, old < size ? old : size);
    free_wiped(block, file, line);
    return more;
}

void private_key_prepare(void)
{
    (void)CRYPTO_set_mem_functions(new, resize, free_wiped);
}

/* --- reading --- */

/* In secure memory, if there is some. NULL with the reason in the queue. */
static char *load(const char *path, size_t *len_out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *text = fd < 0 ? NULL : OPENSSL_secure_malloc(FILE_MAX);
    ssize_t got = 0;

    *len_out = 0;
    while (text != NULL && *len_out < FILE_MAX &&
           (got = read(fd, text + *len_out, FILE_MAX - *len_out)) > 0)
        *len_out += (size_t)got;
    if (fd < 0 || got < 0)
        ERR_raise_data(ERR_LIB_SYS, errno, "%s", path);
    if (got < 0 || *len_out == FILE_MAX) {
        OPENSSL_secure_clear_free(text, FILE_MAX);
        text = NULL;
    }
    if (fd >= 0)
        close(fd);
    return text;
}

/* Nobody is there to type one. */
static int no_passphrase(char *text, int size, int writing, void *unused)
{
    (void)text, (void)size, (void)writing, (void)unused;
    return -1;
}

static EVP_PKEY *parse(BIO *source)
{
    unsigned char *der = NULL;
    const unsigned char *at;
    long len = 0;

    if (source == NULL || PEM_bytes_read_bio_secmem(&der, &len, NULL, "ANY PRIVATE KEY", source,
                                                    no_passphrase, NULL) != 1)
        return NULL;
    at = der;
    EVP_PKEY *key = d2i_AutoPrivateKey(NULL, &at, len);
    OPENSSL_secure_clear_free(der, (size_t)len);
    return key;
}

EVP_PKEY *private_key_read(const char *path)
{
    size_t len;
    char *text = load(path, &len);
    BIO *source = text == NULL ? NULL : BIO_new_mem_buf(text, (int)len);

    wiping = true;
    EVP_PKEY *key = parse(source);
    wiping = false;
    BIO_free(source);
    OPENSSL_secure_clear_free(text, text == NULL ? 0 : FILE_MAX);
    return key;
}
