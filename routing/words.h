/* The words of a line of text that somebody else may have written: nothing in them is trusted. */
#ifndef IMAPMUX_ROUTING_WORDS_H
#define IMAPMUX_ROUTING_WORDS_H

#include "proxy/base/span.h"

#include <stdint.h>

/* A decimal number of 64 bits, of digits alone. */
bool words_is_number(struct span word, uint64_t *number_out);

/* From `min` to `max` octets, none of them a control character. */
bool words_is_name(struct span word, size_t min, size_t max);

/* Takes what stands before the next `end`, and that; false when there is none, or no such word. */
bool words_take(struct span *rest, char end, struct span *word_out);
bool words_take_number(struct span *rest, char end, uint64_t *number_out);

/* The name is copied, with a NUL: to max + 1 octets. */
bool words_take_name(struct span *rest, char end, size_t min, size_t max, char *name_out);

#endif
