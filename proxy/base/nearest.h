/*
 * Which of some words is most like a given one, for words that were mistyped: by how many letters
 * must be put in, left out, exchanged with their neighbour, or be others.
 */
#ifndef IMAPMUX_BASE_NEAREST_H
#define IMAPMUX_BASE_NEAREST_H

#include "proxy/base/span.h"

/* Words are borrowed. */
struct nearest {
    struct span wanted;
    struct span word; /* the best so far; empty: none is like it */
    size_t distance;  /* of the best; before there is one, what is too far */
};

/* Nothing is like a word when more than a third of it must change. */
void nearest_init(struct nearest *nearest, struct span wanted);

/* Of words that are equally near, the first one counts. */
void nearest_offer(struct nearest *nearest, struct span word);

#endif
