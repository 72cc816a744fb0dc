/*
 * The one place that allocates. Every call may fail and says so with NULL; callers turn that into
 * ERR_INTERNAL or end the session. (Memory inside OpenSSL, libuv, libldap and hiredis is theirs.)
 */
#ifndef IMAPMUX_BASE_MEM_H
#define IMAPMUX_BASE_MEM_H

#include <stddef.h>

/* Zeroed memory for one object of `size` bytes, or NULL. Released with mem_free. */
void *mem_new(size_t size);

/* Zeroed memory for `count` objects of `size` bytes; NULL also when the product would overflow. */
void *mem_array(size_t count, size_t size);

/* As realloc: the old block stays valid when NULL comes back. New bytes are not zeroed. */
void *mem_resize(void *block, size_t size);

/* A NUL-terminated copy of `len` bytes, or NULL. */
char *mem_copy_text(const char *text, size_t len);

/* Releases; NULL is fine. */
void mem_free(void *block);

#endif
