/* Owns secrets in memory: their copies and their wiping. */
#include "proxy/base/secret.h"

#include "proxy/base/mem.h"

#include <string.h>

bool secret_set(struct secret *secret, struct span value)
{
    char *copy = mem_copy_text(value.ptr, value.len);

    secret_release(secret);
    if (copy == NULL)
        return false;
    *secret = (struct secret){copy, value.len};
    return true;
}

void secret_release(struct secret *secret)
{
    if (secret->bytes != NULL)
        secret_wipe(secret->bytes, secret->len);
    mem_free(secret->bytes);
    *secret = (struct secret){0};
}

void secret_wipe(void *bytes, size_t len)
{
    explicit_bzero(bytes, len);
}
