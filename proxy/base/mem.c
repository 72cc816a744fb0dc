/*
 * Owns nothing but the words: every allocation of imapmux passes here, so that tests can make any
 * of them fail.
 */
#include "proxy/base/mem.h"

#include <stdlib.h>
#include <string.h>

void *mem_new(size_t size)
{
    return calloc(1, size);
}

void *mem_array(size_t count, size_t size)
{
    return calloc(count, size); /* calloc checks the product */
}

void *mem_resize(void *block, size_t size)
{
    return realloc(block, size);
}

char *mem_copy_text(const char *text, size_t len)
{
    char *copy = malloc(len + 1);

    if (copy == NULL)
        return NULL;
    if (len > 0)
        memcpy(copy, text, len);
    copy[len] = '\0';
    return copy;
}

void mem_free(void *block)
{
    free(block);
}
