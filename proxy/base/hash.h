/*
 * uthash with our allocator, and without its exit() when that fails: a failed HASH_ADD leaves the
 * element's hh.tbl NULL. The element must have been zeroed.
 */
#ifndef IMAPMUX_BASE_HASH_H
#define IMAPMUX_BASE_HASH_H

#include "proxy/base/mem.h"

#define HASH_NONFATAL_OOM        1
#define uthash_nonfatal_oom(elt) ((void)(elt))
#define uthash_malloc(size)      mem_new(size)
#define uthash_free(block, size) mem_free(block)
#include <uthash.h>

#endif
